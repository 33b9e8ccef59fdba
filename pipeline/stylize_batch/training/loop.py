"""The training loop: Adam on the decoder, in stages, resumable from its last checkpoint."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import math
import time
from collections.abc import Callable
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

LOG_FIELDS = ("iteration", "stage", "loss", "content_loss", "style_loss", "learning_rate", "seconds")


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
        self.device = torch.device(device)
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
        if self.root.exists(STATE):
            self._resume(self.root.read(STATE))
        self.contents = ImagePool(recipe.contents, recipe.group_separator, recipe.holdout)
        self.styles = ImagePool(recipe.styles, recipe.group_separator, recipe.holdout)
        self.skipped = self.contents.skipped + self.styles.skipped

    def run(self, report: Callable[[Step], None], minutes: float | None = None) -> bool:
        """Train until the recipe is done or the minutes are over; returns whether it is done.

        A checkpoint is written every `checkpoint_minutes`, at the end and when interrupted.

        Raises:
            JobFailedError: the loss stayed NaN or infinite.
        """
        started = saved = time.monotonic()
        before = self.seconds
        bad_steps = 0
        try:
            while self.iteration < self.iterations:
                step = self._step()
                now = time.monotonic()
                self.seconds = before + now - started
                step = step._replace(seconds=self.seconds)
                bad_steps = 0 if math.isfinite(step.loss) else bad_steps + 1
                if bad_steps == MAX_BAD_STEPS:
                    raise JobFailedError(
                        f"the loss is not finite since {bad_steps} iterations; lower learning_rate and repeat "
                        f"the command: it continues from the last checkpoint"
                    )
                self._rows.append(step)
                report(step)
                if self.iteration % self.recipe.sample_every == 0 or self.iteration == self.iterations:
                    self.write_samples()
                if now - saved > 60 * self.recipe.checkpoint_minutes:
                    self.save()
                    saved = now
                if minutes is not None and now - started > 60 * minutes:
                    break
        finally:
            if bad_steps == 0:
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
        if torch.isfinite(norm):
            self.optimizer.step()
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
        recent = self._rows[-200:]
        means = {
            key: f"{np.nanmean([getattr(row, key) for row in recent]):.5g}"
            for key in ("content_loss", "style_loss")
            if recent and recent[-1].stage == "style"
        }
        metadata = {
            "name": self.recipe.name,
            "encoder_licence": self.recipe.encoder_licence,
            "recipe": self.recipe.model_dump_json(exclude={"contents", "styles", "encoder"}),
            "iterations": str(self.iteration),
            **{f"training_{key}": value for key, value in means.items()},
        }
        self.root.put(MODEL, checkpoint.dumps(self.encoder, self.decoder, metadata))
        self._append_log()
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

    def _append_log(self) -> None:
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        if self.root.exists(LOG):
            # Rows after the checkpoint we resumed from are drawn again.
            first = self._rows[0].iteration if self._rows else self.iteration + 1
            old = list(csv.reader(io.StringIO(self.root.read(LOG).decode())))
            writer.writerows(row for row in old if row[0] == "iteration" or int(row[0]) < first)
        else:
            writer.writerow(LOG_FIELDS)
        for row in self._rows:
            losses = (f"{value:.6g}" for value in (row.loss, row.content_loss, row.style_loss))
            writer.writerow(
                (row.iteration, row.stage, *losses, f"{row.learning_rate:.4g}", f"{row.seconds:.1f}")
            )
        self.root.put(LOG, text.getvalue().encode())

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


def _fingerprint(recipe: Recipe) -> str:
    """Digest of what decides the network. How long stages last may still change, and where the images lie."""
    free = {"checkpoint_minutes", "sample_every", "contents", "styles", "encoder"}
    settings = recipe.model_dump(exclude=free)
    for stage in settings["stages"]:
        del stage["iterations"]
    return hashlib.blake2b(json.dumps(settings, sort_keys=True).encode(), digest_size=16).hexdigest()


def _load_encoder(recipe: Recipe) -> Encoder:
    data = read_model(recipe.encoder)
    if "architecture" in container.read_metadata(data) and "encoder.conv1_1.weight" in container.read_header(
        data
    ):
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
