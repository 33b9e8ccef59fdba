"""The training loop: Adam on the decoder, in stages, resumable from its last checkpoint."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import math
import signal
import threading
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
import safetensors.torch
import torch
import torch.nn.functional as F
from torch import Tensor

from stylize_batch.errors import JobFailedError, UsageError
from stylize_batch.images.encode import encode
from stylize_batch.images.sheet import contact_sheet
from stylize_batch.model import checkpoint, container
from stylize_batch.model.adain import adain, statistics
from stylize_batch.model.decoder import Decoder
from stylize_batch.model.losses import feature_distance, style_loss
from stylize_batch.model.vgg import Encoder, load_torchvision_features
from stylize_batch.storage import Root
from stylize_batch.training.data import ImagePool, to_array, to_tensor
from stylize_batch.training.recipe import Recipe, Stage
from stylize_batch.weights import read_model

MODEL, STATE, LOG = "model.safetensors", "state.safetensors", "training.csv"
MAX_GRADIENT_NORM = 10.0
MAX_BAD_STEPS = 20
SAMPLES = 4
"""Contents and styles of the sample grid."""


class Step(NamedTuple):
    """One iteration: where it stands and the losses of its batch (NaN where the stage has none)."""

    iteration: int
    iterations: int
    stage: str
    loss: float
    content_loss: float
    style_loss: float
    learning_rate: float
    seconds: float


class Trainer:
    """Trains the decoder a recipe describes, under an output folder.

    Batches depend only on the recipe's seed and the iteration, so a resumed run draws what an
    uninterrupted one would have drawn.
    """

    def __init__(self, recipe: Recipe, output: str, device: str = "cpu") -> None:
        """Read the images and the encoder, and continue from the folder's checkpoint if it has one.

        Raises:
            UsageError: images or encoder are missing, or the folder belongs to another recipe.
        """
        self.recipe = recipe
        self.device = _device(device)
        self.root = Root(output)
        self.encoder = _load_encoder(recipe).to(self.device)
        torch.manual_seed(recipe.seed)
        self.decoder = Decoder(recipe.architecture).to(self.device)
        for network in (self.encoder, self.decoder):
            network.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        self.optimizer = torch.optim.Adam(self.decoder.parameters(), lr=1e-4)
        self.iterations = sum(stage.iterations for stage in recipe.stages)
        self.iteration = 0
        self.seconds = 0.0
        self._rows: list[Step] = []
        self._bad_steps = 0
        if self.root.exists(STATE):
            self._resume(self.root.read(STATE))
        self.contents = ImagePool(recipe.contents, recipe.group_separator, recipe.holdout)
        self.styles = ImagePool(recipe.styles, recipe.group_separator, recipe.holdout)
        self.skipped = self.contents.skipped + self.styles.skipped
        try:
            self.root.put("recipe.json", recipe.model_dump_json(indent=2).encode())
        except OSError as error:
            raise UsageError(f"cannot write to {self.root.uri}: {error}") from None

    def run(self, report: Callable[[Step], None], minutes: float | None = None) -> bool:
        """Train until the recipe is done or the minutes are over; returns whether it is done.

        A checkpoint is written every `checkpoint_minutes`, at the end and when interrupted. SIGINT and SIGTERM are
        heard between two iterations, so that a checkpoint never holds half of one.

        Raises:
            JobFailedError: the loss or its gradient stayed NaN or infinite.
            KeyboardInterrupt: a signal came; the state is saved.
        """
        if self.iteration >= self.iterations:
            return True
        started = saved = time.monotonic()
        before = self.seconds
        try:
            with _held_signals() as interrupted:
                while self.iteration < self.iterations:
                    step = self._step()
                    now = time.monotonic()
                    self.seconds = before + now - started
                    self._rows.append(step._replace(seconds=self.seconds))
                    report(self._rows[-1])
                    if self._bad_steps == MAX_BAD_STEPS:
                        raise JobFailedError(
                            f"loss or gradient are not finite since {MAX_BAD_STEPS} iterations; "
                            "lower the stage's learning_rate"
                        )
                    if self.iteration % self.recipe.sample_every == 0 or self.iteration == self.iterations:
                        self.write_samples()
                    if now - saved > 60 * self.recipe.checkpoint_minutes and not self._bad_steps:
                        self.save()
                        saved = now
                    if minutes is not None and now - started > 60 * minutes:
                        break
                    if interrupted():
                        raise KeyboardInterrupt
        finally:
            if not self._bad_steps:
                self.save()
        return self.iteration == self.iterations

    def _stage(self) -> tuple[Stage, int]:
        """Return the stage the next iteration belongs to, and the iteration's number in it."""
        offset = self.iteration
        for stage in self.recipe.stages:
            if offset < stage.iterations:
                return stage, offset
            offset -= stage.iterations
        raise AssertionError("asked for a stage after the last")

    def _step(self) -> Step:
        stage, offset = self._stage()
        rate = stage.learning_rate / (1 + stage.decay * offset)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        generator = np.random.default_rng((self.recipe.seed, self.iteration))
        scale = self.recipe.min_scale
        contents = self._upload(self.contents.crops(generator, stage.batch, stage.crop, scale))
        styles = self._upload(self.styles.crops(generator, stage.batch, stage.crop, scale))
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.recipe.precision == "bf16"):
            if stage.loss == "reconstruction":
                # Half photographs, half paintings: the decoder must know both kinds of colour.
                half = stage.batch // 2
                loss = self._reconstruction(torch.cat([contents[half:], styles[:half]]))
                content = style = torch.tensor(math.nan)
            else:
                same = stage.identity_pairs
                styles[:same] = contents[:same]
                images, content, style = self._style_transfer(contents, styles)
                loss = content + stage.style_weight * style
                if same:
                    loss = loss + stage.identity_weight * F.mse_loss(images[:same].float(), contents[:same])
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(self.decoder.parameters(), MAX_GRADIENT_NORM)
        if torch.isfinite(norm) and torch.isfinite(loss):
            self.optimizer.step()
            self._bad_steps = 0
        else:
            self._bad_steps += 1
        self.iteration += 1
        return Step(
            self.iteration, self.iterations, stage.loss, loss.item(), content.item(), style.item(), rate, 0.0
        )

    def _upload(self, images: Tensor) -> Tensor:
        return images.to(self.device, memory_format=torch.channels_last)

    def _reconstruction(self, images: Tensor) -> Tensor:
        with torch.no_grad():
            features = self.encoder(images)
        return F.mse_loss(self.decoder(features).float(), images)

    def _style_transfer(self, contents: Tensor, styles: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the pictures, and L_c (Eq. 12) and L_s (Eq. 13), each the mean over the batch."""
        with torch.no_grad():
            features = self.encoder(contents)
            targets = [statistics(tap) for tap in self.encoder.taps(styles)]
            target = adain(statistics(features), targets[-1]).apply(features.float())
        images = self.decoder(target)
        taps = self.encoder.taps(images)
        return images, feature_distance(taps[-1], target).mean(), style_loss(taps, targets).mean()

    @torch.no_grad()
    def write_samples(self) -> None:
        """Write a grid as a picture: contents left, their α=0 reconstruction, styles on top, results inside."""
        contents, styles = self._samples(self.contents), self._samples(self.styles)
        style_statistics = [statistics(self.encoder(style)) for style in styles]
        rows = [[None, None, *(to_array(style[0]) for style in styles)]]
        for content in contents:
            features = self.encoder(content)
            found = statistics(features)
            results = [self.decoder(adain(found, style).apply(features)) for style in style_statistics]
            pictures = [content, self.decoder(features), *results]
            rows.append([to_array(picture[0]) for picture in pictures])
        self.root.put(f"samples/{self.iteration:06d}.jpg", encode(contact_sheet(rows), "jpeg", 90))

    def _samples(self, pool: ImagePool) -> list[Tensor]:
        if pool.held_out:
            images = [to_tensor(image) for _, image in sorted(pool.held_out.items())[:SAMPLES]]
            return [
                self._upload(F.interpolate(image, scale_factor=0.5, mode="bilinear", antialias=True))
                for image in images
            ]
        generator = np.random.default_rng(self.recipe.seed)
        return [self._upload(pool.crops(generator, 1, 256, 1.0)) for _ in range(SAMPLES)]

    def save(self) -> None:
        """Write the model, the optimizer's state and the log, each atomically; the state comes last."""
        recent = [row for row in self._rows[-200:] if row.stage == "style"]
        means = {
            key: f"{np.mean([getattr(row, key) for row in recent]):.5g}"
            for key in ("content_loss", "style_loss")
            if recent
        }
        metadata = {
            "name": self.recipe.name,
            "encoder_licence": self.recipe.encoder_licence,
            "recipe": self.recipe.model_dump_json(exclude={"contents", "styles", "encoder"}),
            "iterations": str(self.iteration),
            **{f"training_{key}": value for key, value in means.items()},
        }
        self.root.put(MODEL, checkpoint.dumps(self.encoder, self.decoder, metadata))
        self._write_log()
        tensors: dict[str, Tensor] = {}
        for name, parameter in self.decoder.named_parameters():
            tensors[f"decoder.{name}"] = parameter.detach().contiguous()
            for key, value in self.optimizer.state[parameter].items():
                tensors[f"adam.{key}.{name}"] = value.contiguous()
        position = {
            "iteration": str(self.iteration),
            "seconds": repr(self.seconds),
            "recipe": _fingerprint(self.recipe),
        }
        self.root.put(STATE, safetensors.torch.save(tensors, position))
        self.root.clear_temporaries()

    def _write_log(self) -> None:
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(Step._fields)
        for row in self._rows:
            writer.writerow(f"{value:.6g}" if isinstance(value, float) else value for value in row)
        self.root.put(LOG, text.getvalue().encode())

    def _read_log(self) -> list[Step]:
        if not self.root.exists(LOG):
            return []
        rows = csv.DictReader(io.StringIO(self.root.read(LOG).decode()))
        steps = [
            Step(
                int(row["iteration"]),
                int(row["iterations"]),
                row["stage"],
                *map(float, list(row.values())[3:]),
            )
            for row in rows
        ]
        # Rows after the checkpoint are drawn again.
        return [step for step in steps if step.iteration <= self.iteration]

    def _resume(self, data: bytes) -> None:
        metadata = container.read_metadata(data)
        if metadata.get("recipe") != _fingerprint(self.recipe):
            raise UsageError(
                f"{self.root.uri} was trained with another recipe; choose another --output or restore the recipe"
            )
        tensors = safetensors.torch.load(data)
        with torch.no_grad():
            for name, parameter in self.decoder.named_parameters():
                parameter.copy_(tensors[f"decoder.{name}"])
                self.optimizer.state[parameter] = {
                    key: value.to(self.device if key != "step" else "cpu")
                    for key in ("step", "exp_avg", "exp_avg_sq")
                    if (value := tensors.get(f"adam.{key}.{name}")) is not None
                }
        self.iteration = int(metadata["iteration"])
        self.seconds = float(metadata["seconds"])
        self._rows = self._read_log()


def _device(name: str) -> torch.device:
    """Raise UsageError for a device that is not here."""
    if name not in ("cpu", "cuda"):
        raise UsageError(f"--device {name} is unknown; use auto, cpu or cuda")
    if name == "cuda" and not torch.cuda.is_available():
        raise UsageError("--device cuda: this machine has no usable GPU; use --device cpu")
    return torch.device(name)


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


def _fingerprint(recipe: Recipe) -> str:
    """Digest of what may not change under way; the length and the rate of stages, and where images lie, may."""
    free = {"checkpoint_minutes", "sample_every", "contents", "styles", "encoder"}
    settings = recipe.model_dump(exclude=free)
    for stage in settings["stages"]:
        for name in ("iterations", "learning_rate", "decay"):
            del stage[name]
    return hashlib.blake2b(json.dumps(settings, sort_keys=True).encode(), digest_size=16).hexdigest()


def _load_encoder(recipe: Recipe) -> Encoder:
    data = read_model(recipe.encoder)
    if container.METADATA in container.read_metadata(data):
        encoder = checkpoint.loads(data).encoder
        if encoder.architecture != recipe.architecture:
            raise UsageError(
                f"the encoder of {recipe.encoder} is a {encoder.architecture}, not a {recipe.architecture}"
            )
        return encoder
    try:
        encoder = load_torchvision_features(recipe.architecture, safetensors.torch.load(data))
    except KeyError as error:
        raise UsageError(f"the encoder {recipe.encoder} has no {error} of a {recipe.architecture}") from None
    encoder.requires_grad_(False)
    return encoder.eval()
