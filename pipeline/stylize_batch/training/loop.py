"""The training loop: Adam in stages, a running mean of the weights, resumable from its last checkpoint."""

from __future__ import annotations

import hashlib
import math
import os
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from stylize_batch.ahead import begun_ahead
from stylize_batch.errors import JobFailedError, UsageError, os_errors_as
from stylize_batch.images.encode import encode
from stylize_batch.images.sheet import contact_sheet
from stylize_batch.location import lies_in
from stylize_batch.model import checkpoint, container
from stylize_batch.model.architecture import DESIGNS
from stylize_batch.model.device import begin_to_host, keep_float32, to_device, usable_device
from stylize_batch.model.grid import grid_energy
from stylize_batch.model.pixels import to_array
from stylize_batch.model.quick import fused
from stylize_batch.model.vgg import Encoder
from stylize_batch.root import LEASE, Root
from stylize_batch.training import log, state
from stylize_batch.training.average import RunningMean, assign
from stylize_batch.training.channels import Centering, wake
from stylize_batch.training.data import MAX_STORED_SIDE, ImagePool, to_tensor
from stylize_batch.training.log import Step
from stylize_batch.training.objective import Objective, Transfer
from stylize_batch.training.recipe import Recipe, Stage
from stylize_batch.training.state import Position
from stylize_batch.weights import read_model

MODEL, RECIPE, LOG, PLOT = "model.safetensors", "recipe.json", "training.csv", "training.png"
MAX_GRADIENT_NORM = 10.0
MAX_BAD_STEPS = 20
LOOK_EVERY = 50
"""Iterations between two looks at the means of what convolutions get."""

WAKING_BATCHES = 4
"""Batches that no channel may be silent on when training begins."""

SAMPLES = 4
"""Contents and styles of the sample grid."""

LITTLE_MEMORY = "the GPU has too little memory; lower the stage's batch or crop"

THREADS = 4
"""Threads that prepare batches: some milliseconds of one for a batch. More would take turns with the loop's own."""

AHEAD = 8
"""Batches prepared ahead of the one in hand."""

MOMENTS = ("exp_avg", "exp_avg_sq")

FREE = {
    **dict.fromkeys(("checkpoint_minutes", "sample_every", "contents", "styles", "encoder"), True),
    "stages": {"__all__": {"iterations", "learning_rate", "decay", "warm_up", "crop", "batch"}},
}
"""What of a recipe may change under way: the length, the rate and the batches of stages, and where the images and φ lie."""


def check_output(root: Root, recipe: Recipe) -> None:
    """Look at a training's output before anything is written there.

    Raises:
        UsageError: it holds something else, its samples would be taken for training images, or it cannot be used.
    """
    for name in ("contents", "styles"):
        folder = getattr(recipe, name)
        if folder and lies_in(root.uri, folder):
            raise UsageError(
                f"the output {root.uri} lies in --{name}, where its samples would be listed too; choose another --output"
            )
    with os_errors_as(UsageError, f"cannot use {root.uri}"):
        ours = root.exists(RECIPE) or root.exists(state.INDEX) or root.empty(but=(LEASE,))
    if not ours:
        raise UsageError(
            f"{root.uri} is not empty and holds no {RECIPE} of a training; choose another --output or empty it yourself"
        )


class Launched(NamedTuple):
    """An iteration that a GPU may still be at: what is known of it, and what waits for the rest.

    Attributes:
        step: its losses are those of no iteration yet.
        numbers: loss, content loss, style loss and whether it changed the weights, float32 [4] on the CPU.
    """

    step: Step
    numbers: Callable[[], tuple[Tensor, ...]]


class Trainer:
    """Trains the network a recipe describes, under an output folder.

    Batches depend only on the recipe's seed and the iteration, so a resumed run draws what an
    uninterrupted one would have drawn.
    """

    def __init__(
        self,
        recipe: Recipe,
        output: str,
        device: str = "cpu",
        network: Callable[[Recipe, Encoder], Transfer] | None = None,
    ) -> None:
        """List the images, load the encoder, and continue from the folder's checkpoint if it has one.

        Args:
            recipe: what to do.
            output: folder or URI for the model, the checkpoint, the log and the samples.
            device: `auto`, `cpu` or `cuda`.
            network: makes a network to train in place of the architecture's own, given φ.

        Raises:
            UsageError: images or encoder are missing, or the folder belongs to another recipe.
        """
        self.recipe = recipe
        self.device = usable_device(device)
        self.root = Root(output)
        if recipe.precision == "fp32":
            keep_float32()
        self._autocast = recipe.precision == "bf16" and _computes_bf16(self.device)
        phi, self._provenance = _load_encoder(recipe)
        torch.manual_seed(recipe.seed)
        computed_in = torch.bfloat16 if self._autocast else torch.float32
        objective = Objective(
            phi,
            (network or _new_network)(recipe, phi),
            quick_targets=computed_in if self.device.type == "cpu" else None,
        )
        self.objective = objective.to(self.device, memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        self._style_transfer = self.objective.style_transfer
        self._ahead = 0
        """Iterations launched before the numbers of one are read."""
        if self.device.type == "cuda":
            # A GPU must not wait for what becomes of its numbers.
            self._ahead = 1
            # Every batch of a stage has one shape: worth the search for cuDNN's best way, and a minute of compiling,
            # which takes what stands between convolutions in one pass.
            torch.backends.cudnn.benchmark = True
            # What is left for the CPU is small; threads of threads would only get in each other's way.
            torch.set_num_threads(1)
            # Whether torch's compiler has what it takes too: Triton, a C compiler and Python's headers.
            if fused(self.device, torch.float32) is not None:
                self._style_transfer = torch.compile(self._style_transfer, dynamic=False)
        self._weights = {
            name: weight
            for name, weight in self.objective.transfer.named_parameters()
            if weight.requires_grad
        }
        self._average = RunningMean(self._weights, recipe.average)
        self._centering = Centering(self.objective.transfer)
        self.optimizer = torch.optim.Adam(self._weights.values(), lr=1e-4, fused=True)
        self._scales = recipe.min_scale, recipe.max_scale
        self.iterations = sum(stage.iterations for stage in recipe.stages)
        self.iteration = self._updates = self._bad_steps = 0
        self.seconds = 0.0
        self._rows: list[Step] = []
        side = max(MAX_STORED_SIDE, *(stage.crop for stage in recipe.stages))
        self.contents, self.styles = (
            ImagePool(folder, recipe.group_separator, recipe.holdout, side)
            for folder in (recipe.contents, recipe.styles)
        )
        try:
            resumed = self._resume()
        except state.DAMAGED as error:
            raise UsageError(
                f"the checkpoint in {self.root.uri} cannot be read ({error}); copy it again or start another --output"
            ) from None
        except OSError as error:
            raise UsageError(f"cannot read {self.root.uri}: {error.strerror or error}") from None
        if recipe.start and not resumed:
            self._start()
        if not resumed:
            self._begin()
        with os_errors_as(UsageError, f"cannot write to {self.root.uri}"):
            self.root.put(RECIPE, recipe.model_dump_json(indent=2).encode())

    def run(self, report: Callable[[Step], None], minutes: float | None = None) -> bool:
        """Train until the recipe is done or the minutes are over; returns whether it is done.

        A checkpoint is written every `checkpoint_minutes`, at the end and when interrupted. SIGINT and SIGTERM are
        heard between two iterations, so that a checkpoint never holds half of one.

        Raises:
            JobFailedError: the loss or its gradient stayed NaN or infinite, too many images are unreadable,
                the GPU has too little memory, or a checkpoint cannot be written.
            KeyboardInterrupt: a signal came; the state is saved.
        """
        if self.iteration >= self.iterations:
            return True
        started = saved = time.monotonic()
        before = self.seconds
        launched: deque[Launched] = deque()
        coming = range(self.iteration, self.iterations)

        def read(left: int) -> None:
            while len(launched) > left:
                self.seconds = before + time.monotonic() - started
                self._note(launched.popleft())
                report(self._rows[-1])
            if self._bad_steps >= MAX_BAD_STEPS:
                raise JobFailedError(
                    f"loss or gradient are not finite since {MAX_BAD_STEPS} iterations; "
                    "lower the stage's learning_rate"
                )

        try:
            with (
                ThreadPoolExecutor(min(THREADS, os.cpu_count() or 1), "batch") as threads,
                closing(begun_ahead(threads, self._draw, coming, AHEAD)) as batches,
                _held_signals() as interrupted,
            ):
                for _, batch in batches:
                    launched.append(self._step(*batch.result()))
                    read(self._ahead)
                    now = time.monotonic()
                    if self.iteration % self.recipe.sample_every == 0 or self.iteration == self.iterations:
                        self.write_samples()
                    if now - saved > 60 * self.recipe.checkpoint_minutes:
                        read(0)
                        if not self._bad_steps:
                            self.save()
                            saved = now
                    if minutes is not None and now - started > 60 * minutes:
                        break
                    if interrupted():
                        read(0)
                        raise KeyboardInterrupt
                read(0)
        except torch.OutOfMemoryError:
            raise JobFailedError(LITTLE_MEMORY) from None
        finally:
            with suppress(RuntimeError):  # of a GPU that is lost, or too small
                while launched:
                    self._note(launched.popleft())
            at_end = self.iteration == self.iterations and self._bad_steps < MAX_BAD_STEPS
            # Among such steps the weights may be beyond repair, and before the first there is nothing to keep.
            if self.iteration and (not self._bad_steps or at_end):
                self.save()
        return self.iteration == self.iterations

    @property
    def skipped(self) -> list[str]:
        """Images that were drawn and could not be decoded."""
        return self.contents.skipped + self.styles.skipped

    def _stage(self, iteration: int) -> tuple[Stage, int]:
        """Return the stage an iteration belongs to, and the iteration's number in it."""
        for stage in self.recipe.stages:
            if iteration < stage.iterations:
                return stage, iteration
            iteration -= stage.iterations
        raise AssertionError("asked for a stage after the last")

    def _draw(self, iteration: int) -> tuple[Tensor, Tensor]:
        stage, _ = self._stage(iteration)
        generator = np.random.default_rng((self.recipe.seed, iteration))
        contents, styles = (
            pool.crops(generator, stage.batch, stage.crop, self._scales)
            for pool in (self.contents, self.styles)
        )
        return contents, styles

    def _step(self, contents: Tensor, styles: Tensor) -> Launched:
        stage, offset = self._stage(self.iteration)
        rise = min(1.0, (offset + 1) / (stage.warm_up + 1))
        rate = rise * stage.learning_rate / (1 + stage.decay * offset)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        contents, styles = self._upload(contents), self._upload(styles)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self._autocast):
            if stage.loss == "reconstruction":
                # Half photographs, half paintings: the decoder must know both kinds of colour.
                half = stage.batch // 2
                loss = self.objective.reconstruction(torch.cat([contents[half:], styles[:half]]))
                content = style = torch.full_like(loss, math.nan, requires_grad=False)
            else:
                same = stage.identity_pairs
                styles[:same] = contents[:same]
                images, content, style = self._style_transfer(contents, styles)
                loss = content + stage.style_weight * style
                if same:
                    loss = loss + stage.identity_weight * F.mse_loss(images[:same].float(), contents[:same])
                if stage.grid_weight:
                    loss = loss + stage.grid_weight * grid_energy(images.float())
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        if self.iteration % LOOK_EVERY == 0:
            self._look(contents, styles)
        self._centering.begin()
        norm = torch.nn.utils.clip_grad_norm_(self._weights.values(), MAX_GRADIENT_NORM)
        # Decided on the device, which the host does not wait for: Adam passes over a step with this set.
        sound = (torch.isfinite(norm) & torch.isfinite(loss)).float()
        self.optimizer.found_inf = 1 - sound  # pyright: ignore[reportAttributeAccessIssue]
        self.optimizer.step()
        self._centering.end(sound)
        self._updates += 1
        self._average.follow(self._updates, sound)
        self.iteration += 1
        numbers = begin_to_host(torch.stack([loss.detach(), content.detach(), style.detach(), sound]))
        unknown = math.nan
        step = Step(self.iteration, self.iterations, stage.loss, unknown, unknown, unknown, rate, seconds=0.0)
        return Launched(step, numbers)

    def _note(self, launched: Launched) -> None:
        """Wait for an iteration's numbers and keep them."""
        (numbers,) = launched.numbers()
        loss, content, style, sound = numbers.tolist()
        if sound:
            self._bad_steps = 0
        else:
            self._updates -= 1
            self._bad_steps += 1
        losses = {"loss": loss, "content_loss": content, "style_loss": style}
        self._rows.append(launched.step._replace(**losses, seconds=self.seconds))

    def _look(self, contents: Tensor, styles: Tensor) -> None:
        """Follow the means of what convolutions get, and leave all else as it is."""
        self.objective.eval()
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self._autocast):
            self._centering.look(lambda: self.objective.stylize(contents, styles))
        self.objective.train()

    def _upload(self, images: Tensor) -> Tensor:
        return to_tensor(to_device(images, self.device))

    @contextmanager
    def averaged(self) -> Generator[None]:
        """Put the running mean into the network for a while, and the network into its state for use."""
        self.objective.eval()
        try:
            with self._average.lent():
                yield
        finally:
            self.objective.train()

    @torch.no_grad()
    def write_samples(self) -> None:
        """Write a grid as a picture: contents left, their reconstruction, styles on top, results inside.

        Raises:
            JobFailedError: storage is full or does not answer.
        """
        contents, styles = self._samples(self.contents), self._samples(self.styles)
        rows = [[None, None, *(to_array(style[0]) for style in styles)]]
        with self.averaged():
            for content in contents:
                results = (self.objective.stylize(content, style) for style in (content, *styles))
                rows.append([to_array(picture[0]) for picture in (content, *results)])
        with os_errors_as(JobFailedError, f"cannot write samples to {self.root.uri}"):
            self.root.put(f"samples/{self.iteration:06d}.jpg", encode(contact_sheet(rows), "jpeg", 90))

    def _samples(self, pool: ImagePool) -> list[Tensor]:
        if pool.held_out:
            images = [
                torch.from_numpy(image.copy())[None] for _, image in sorted(pool.held_out.items())[:SAMPLES]
            ]
            return [
                F.interpolate(self._upload(image), scale_factor=0.5, mode="bilinear", antialias=True)
                for image in images
            ]
        generator = np.random.default_rng(self.recipe.seed)
        return [self._upload(pool.crops(generator, 1, 256, (1.0, 1.0))) for _ in range(SAMPLES)]

    def save(self) -> None:
        """Write the model, the log, its plot and the checkpoint, each file atomically.

        Raises:
            JobFailedError: storage is full or does not answer; the last checkpoint is kept.
        """
        recent = [row for row in self._rows[-200:] if row.stage == "style"]
        means = {
            f"training_{key}": f"{np.mean([getattr(row, key) for row in recent]):.5g}"
            for key in ("content_loss", "style_loss")
            if recent
        }
        metadata = {
            **self._provenance,
            "name": self.recipe.name,
            "recipe": self.recipe.model_dump_json(exclude={"contents", "styles", "encoder", "start"}),
            "iterations": str(self.iteration),
            **({"max_gain": f"{self.recipe.max_gain:g}"} if self.recipe.max_gain else {}),
            **means,
        }
        network = self.objective.transfer
        with self.averaged():
            model = checkpoint.dumps(network.encoder, network.decoder, metadata)
        start = self._provenance.get("start_digest", "")
        position = Position(self.iteration, self._updates, self.seconds, start, self._fixed())
        buffers = dict(self.objective.transfer.named_buffers())
        parts = {
            "weights": self._weights,
            "average": self._average.values,
            "means": self._centering.means,
            **({"buffers": buffers} if buffers else {}),
        }
        for moment in MOMENTS:
            parts[moment] = {
                name: self.optimizer.state[weight][moment]
                for name, weight in self._weights.items()
                if weight in self.optimizer.state
            }
        tensors = {
            part: {name: tensor.detach().contiguous() for name, tensor in named.items()}
            for part, named in parts.items()
        }
        try:
            with os_errors_as(JobFailedError, f"cannot write the checkpoint to {self.root.uri}"):
                self.root.put(MODEL, model)
                self.root.put(LOG, log.dump(self._rows))
                if self._rows:
                    self.root.put(PLOT, log.plot(self._rows))
                state.save(self.root, position, tensors)
        finally:
            self.root.clear_temporaries()

    def _fixed(self) -> dict[str, Any]:
        """Return by name what may not change under way: settings that are not left at their defaults, φ and the images."""
        settings = self.recipe.model_dump(exclude=FREE, exclude_defaults=True)
        for number, stage in enumerate(settings.pop("stages")):
            settings |= {f"stages.{number}.{name}": value for name, value in stage.items()}
        return {
            **settings,
            "encoder": _digest(self.objective.phi),
            "contents": self.contents.digest,
            "styles": self.styles.digest,
        }

    def _start(self) -> None:
        """Take over the weights of the model the recipe starts from.

        Raises:
            UsageError: it cannot be read, or is another network.
        """
        name, transfer = self.recipe.start, self.objective.transfer
        start = checkpoint.loads(read_model(name))
        if start.encoder.architecture != self.recipe.architecture:
            raise UsageError(
                f"{name} is a {start.encoder.architecture}, training a {self.recipe.architecture} cannot start from it"
            )
        if transfer.encoder is not self.objective.phi:
            transfer.encoder.load_state_dict(start.encoder.state_dict())
        elif _digest(start.encoder) != _digest(self.objective.phi):
            # A decoder belongs to the features it was trained on.
            raise UsageError(
                f"the encoder of {self.recipe.encoder} is not that of {name}; write `encoder: {name}` into the recipe"
            )
        transfer.decoder.load_state_dict(start.decoder.state_dict())
        self._provenance["start_digest"] = start.digest

    def _begin(self) -> None:
        """Have all channels at work on the first batches; the running mean begins with what they are then.

        Raises:
            JobFailedError: too many images are unreadable, storage does not answer, or the GPU has too little memory.
        """
        count = min(WAKING_BATCHES, self.recipe.stages[0].iterations)
        batches = [self._draw(number) for number in range(count)]
        contents, styles = (self._upload(torch.cat(images)) for images in zip(*batches, strict=True))
        try:
            # Without a cache of weights, which change under way.
            with torch.autocast(self.device.type, torch.bfloat16, self._autocast, cache_enabled=False):
                wake(self.objective.transfer, lambda: self.objective.stylize(contents, styles))
        except torch.OutOfMemoryError:
            raise JobFailedError(LITTLE_MEMORY) from None
        assign(self._average.values, self._weights)

    def _resume(self) -> bool:
        """Continue from the output's checkpoint; returns whether there is one."""
        found = state.load(self.root)
        if found is None:
            return False
        position, parts = found
        before, now = position.fixed, self._fixed()
        changed = [name for name in {**before, **now} if before.get(name) != now.get(name)]
        if changed:
            raise UsageError(
                f"{self.root.uri} was trained with another recipe or other images (changed: {', '.join(changed)}); "
                "change that back or choose another --output"
            )
        assign(self._weights, parts["weights"])
        assign(self._average.values, parts["average"])
        for name, buffer in self.objective.transfer.named_buffers():
            buffer.copy_(parts["buffers"][name])
        self._centering.means = {name: mean.to(self.device) for name, mean in parts["means"].items()}
        for name, weight in self._weights.items():
            if position.updates:
                self.optimizer.state[weight] = {
                    "step": torch.tensor(float(position.updates), device=self.device),
                    **{moment: torch.empty_like(weight).copy_(parts[moment][name]) for moment in MOMENTS},
                }
        self.iteration, self._updates, self.seconds = position.iteration, position.updates, position.seconds
        if position.start:
            self._provenance["start_digest"] = position.start
        if self.root.exists(LOG):
            # Rows after the checkpoint are drawn again.
            rows = log.load(self.root.read(LOG))
            self._rows = [row for row in rows if row.iteration <= self.iteration]
        return True


def _new_network(recipe: Recipe, phi: Encoder) -> Transfer:
    """Make the architecture's network, with random weights."""
    encoder, decoder = checkpoint.build(recipe.architecture)
    gain = recipe.max_gain or math.inf
    return Transfer(encoder if DESIGNS[recipe.architecture].own_encoder else phi, decoder, gain)


@contextmanager
def _held_signals() -> Generator[Callable[[], bool]]:
    """Hold SIGINT and SIGTERM back; the function given tells whether one has come."""
    caught: list[int] = []
    signals = (signal.SIGINT, signal.SIGTERM)
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    previous = {each: signal.signal(each, lambda number, _: caught.append(number)) for each in signals}
    try:
        yield lambda: bool(caught)
    finally:
        for each, handler in previous.items():
            signal.signal(each, handler)


def _digest(network: torch.nn.Module) -> str:
    """Return what identifies a network's weights, in order."""
    found = hashlib.blake2b(digest_size=16)
    for weight in network.state_dict().values():
        found.update(weight.cpu().numpy().tobytes())
    return found.hexdigest()


def _computes_bf16(device: torch.device) -> bool:
    """Say whether bfloat16 is fast there: a CPU without AVX-512 takes five times as long as in float32."""
    return device.type == "cuda" or torch.backends.cpu.get_cpu_capability().startswith("AVX512")


def _load_encoder(recipe: Recipe) -> tuple[Encoder, dict[str, str]]:
    """Return φ, and what a model that has it as its encoder says of where it is from."""
    data = read_model(recipe.encoder)
    encoder = checkpoint.load_encoder(data)
    provenance = {"encoder_licence": recipe.encoder_licence} if recipe.encoder_licence else {}
    if DESIGNS[recipe.architecture].own_encoder:
        return encoder, provenance
    if recipe.architecture != encoder.architecture:
        raise UsageError(
            f"the encoder of {recipe.encoder} is a {encoder.architecture}, not a {recipe.architecture}"
        )
    said = {key: value for key, value in container.check_encoder(data).items() if key.startswith("encoder_")}
    return encoder, {"encoder_digest": container.digest(data), **said, **provenance}
