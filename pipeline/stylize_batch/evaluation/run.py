"""An evaluation: every pair with every method, each finished one kept, so that repeating the command goes on."""

from __future__ import annotations

import copy
import hashlib
import json
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from stylize_batch import parquet
from stylize_batch.errors import JobFailedError, UsageError, counted, os_errors_as
from stylize_batch.evaluation import summary
from stylize_batch.evaluation.methods import (
    Content,
    Gatys,
    Method,
    Model,
    Style,
    Unstylized,
    encode_content,
    encode_style,
    measure,
)
from stylize_batch.evaluation.protocol import Picture, Protocol, digest
from stylize_batch.images.decode import Array, decode
from stylize_batch.images.encode import encode
from stylize_batch.images.sheet import contact_sheet
from stylize_batch.model import checkpoint
from stylize_batch.model.device import usable_device
from stylize_batch.model.network import Network, loss_network
from stylize_batch.model.pixels import to_array
from stylize_batch.model.vgg import Encoder
from stylize_batch.progress import Observer
from stylize_batch.root import Root
from stylize_batch.weights import read_model

CELL = 256
"""Longest side a picture is kept at for the contact sheet."""

MARKS = (10, 25, 50, 100, 200, 500)
"""Iterations after which the baseline's picture is measured, and after its last."""

MAX_SHEET_PAIRS = 8

VERSION = 2
"""Of the parts: raise it when the same unit would now be measured otherwise."""

SHEET = "sheet.jpg"

PROTOCOL = "protocol.json"
"""Written first: a folder that holds it is an evaluation's, and the next one may replace what is there."""

_Row = dict[str, Any]
"""A measured picture."""

_PART = pa.schema(
    {
        "iterations": pa.int32(),
        "style_loss": pa.float32(),
        "content_distance": pa.float32(),
        "ssim": pa.float32(),
        "grid": pa.float32(),
        "reconstruction_psnr": pa.float32(),
        "seconds": pa.float32(),
        "picture": pa.binary(),
    }
)


class _Unit(NamedTuple):
    content: Picture
    style: Style
    method: Method
    key: str


class Findings(NamedTuple):
    """What an evaluation found.

    Attributes:
        table: a row per pair, method and iterations.
        tables: means and ratios, in Markdown.
    """

    table: pa.Table
    tables: str


class Evaluation:
    """Compares methods on every pair of some contents and styles, under an output folder.

    A unit is one pair made by one method. Its rows and pictures are one object under `parts/`, named after the
    pixels of both images and all else that decides them, so units are shared by whatever evaluations need them: with
    another model only that model's units are made.

    Attributes:
        device: where the networks run.
        skipped: images that could not be decoded, and why.
        contents: that are compared.
        styles: likewise.
    """

    def __init__(self, protocol: Protocol, output: str, device: str = "cpu") -> None:
        """Read models and images.

        Raises:
            UsageError: a model, the device or all images of a folder are unusable, or the output cannot be written or is
                somebody else's.
            JobFailedError: storage does not answer.
        """
        self.device = usable_device(device)
        self.protocol = protocol
        self.root = Root(output)
        with os_errors_as(UsageError, f"cannot write to {self.root.uri}"):
            _refuse_foreign(self.root)
        loaded = {name: checkpoint.loads(read_model(name)) for name in protocol.models}
        # A copy: `to` would move the model's own encoder, where that is φ.
        phi = copy.deepcopy(loss_network(next(iter(loaded.values()))))
        self._phi: Encoder = phi.to(self.device, memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        self._phi_digest = digest(*(value.cpu().numpy() for value in phi.state_dict().values()))
        self._networks = {name: (model.digest, Network(model, self.device)) for name, model in loaded.items()}
        self.skipped: dict[str, str] = {}
        self.contents = protocol.load(protocol.contents, protocol.max_contents, self.skipped)
        self.styles = protocol.load(protocol.styles, protocol.max_styles, self.skipped)
        described = {**asdict(protocol), "model_digests": [model.digest for model in loaded.values()]}
        with os_errors_as(UsageError, f"cannot write to {self.root.uri}"):
            self.root.put(PROTOCOL, (json.dumps(described, indent=2) + "\n").encode())

    def run(self, observer: Observer) -> Findings:
        """Make what is missing, and write table, summary, plots and contact sheet.

        Raises:
            JobFailedError: storage failed, or the GPU has too little memory.
        """
        iterations = self.protocol.iterations
        try:
            styles = [encode_style(self._phi, *self._upload(image)) for image in self.styles]
            models = [Model(name, *network, styles) for name, network in self._networks.items()]
            units = self._units([Unstylized(), *models], styles)
            slow = self._units([Gatys(self._phi, iterations)] if iterations else [], styles)
            parts = self._read_parts(units + slow)
            self._make("pictures", units, parts, observer)
            if slow:
                self._make("iterations of the baseline", slow, parts, observer)
            return self._finish(units + slow, parts)
        except OSError as error:
            raise JobFailedError(f"cannot use {self.root.uri}: {error.strerror or error}") from None
        except torch.OutOfMemoryError:
            raise JobFailedError(f"the GPU has too little memory for --size {self.protocol.size}") from None
        finally:
            self.root.clear_temporaries()

    def _upload(self, image: Picture) -> tuple[str, str, Tensor]:
        pixels = torch.from_numpy(np.array(image.pixels))[None].to(self.device)
        return image.name, image.digest, pixels.permute(0, 3, 1, 2).float() / 255

    def _units(self, methods: Sequence[Method], styles: list[Style]) -> list[_Unit]:
        return [
            _Unit(content, style, method, self._key(content, style, method))
            for content in self.contents
            for style in styles
            for method in methods
        ]

    def _key(self, content: Picture, style: Style, method: Method) -> str:
        images = (content.digest, style.digest)
        identity = json.dumps([VERSION, self.device.type, self._phi_digest, *images, method.identity])
        return f"parts/{hashlib.blake2b(identity.encode(), digest_size=16).hexdigest()}.parquet"

    def _read_parts(self, units: list[_Unit]) -> dict[str, pa.Table]:
        keys = sorted({unit.key for unit in units}.intersection(self.root.list("parts")))
        with ThreadPoolExecutor(16) as threads:
            found = zip(keys, threads.map(partial(parquet.read, self.root), keys), strict=True)
            return {key: part for key, part in found if part is not None}

    def _make(self, phase: str, units: list[_Unit], parts: dict[str, pa.Table], observer: Observer) -> None:
        """Make the parts that are missing, and add them."""
        missing = [unit for unit in units if unit.key not in parts]
        steps = sum(unit.method.steps for unit in units)
        done = steps - sum(unit.method.steps for unit in missing)
        observer.phase(phase, steps, done)
        content: Content | None = None
        for unit in missing:
            if content is None or content.digest != unit.content.digest:
                content = encode_content(self._phi, *self._upload(unit.content))
            rows: list[_Row] = []
            for row in self._rows(content, unit.style, unit.method):
                done += 1
                observer.advance(done, 0)
                if row is not None:
                    rows.append(row)
            part = pa.Table.from_pylist(rows, _PART)
            self.root.put(unit.key, parquet.dumps(part))
            parts[unit.key] = part

    def _rows(self, content: Content, style: Style, method: Method) -> Iterator[_Row | None]:
        """Make a unit step by step: a row where the picture is measured, None where not."""
        seconds = 0.0
        started = time.perf_counter()
        for iterations, picture in method.pictures(content, style):
            if iterations is not None and iterations not in (*MARKS, method.steps):
                yield None
                continue
            if self.device.type == "cuda":
                torch.cuda.synchronize(self.device)
            seconds += time.perf_counter() - started
            scores = measure(self._phi, picture, content, style)
            small = contact_sheet([[to_array(picture[0])]], min(self.protocol.size, CELL), gap=0)
            yield {
                "iterations": iterations,
                **scores._asdict(),
                "reconstruction_psnr": method.reconstruction_psnr(content),
                "seconds": seconds,
                "picture": encode(small, "jpeg", 92),
            }
            started = time.perf_counter()

    def _finish(self, units: list[_Unit], parts: dict[str, pa.Table]) -> Findings:
        """Write what was found."""
        # Pair by pair; sorting is stable, so methods stay in order.
        units = sorted(units, key=lambda unit: (unit.content.name, unit.style.name))
        table = pa.concat_tables(_named(parts[unit.key].drop_columns("picture"), unit) for unit in units)
        tables = summary.tables(table)
        plots = summary.plots(table)
        title = (
            f"# Evaluation\n\n{counted(len(self.contents), 'content')} × {counted(len(self.styles), 'style')}, "
            f"centre squares of {self.protocol.size}×{self.protocol.size} pixels, on {self.device.type} with torch "
            f"{torch.__version__.partition('+')[0]}. Lower losses are nearer; seconds are the median of a picture, "
            "without encoding the style.\n"
        )
        pictures = "".join(f"![{name.partition('.')[0]}]({name})\n" for name in (*plots, SHEET))
        self.root.put("results.parquet", parquet.dumps(table))
        self.root.put("summary.md", f"{title}\n{tables}\n{pictures}".encode())
        for name, png in plots.items():
            self.root.put(name, png)
        self.root.put(SHEET, encode(self._sheet(units, parts), "jpeg", 88))
        return Findings(table, tables)

    def _sheet(self, units: list[_Unit], parts: dict[str, pa.Table]) -> Array:
        """Lay out pairs spread evenly over all: content, style, and what each method made."""
        pairs: dict[tuple[str, str], list[_Unit]] = {}
        for unit in units:
            if not isinstance(unit.method, Unstylized):
                pairs.setdefault((unit.content.name, unit.style.name), []).append(unit)
        chosen = np.linspace(0, len(pairs) - 1, min(len(pairs), MAX_SHEET_PAIRS)).round().astype(int)
        originals = {image.name: image.pixels for image in self.contents}
        style_originals = {image.name: image.pixels for image in self.styles}
        rows: list[list[Array | None]] = []
        titles: list[str] = []
        for (content, style), made in (list(pairs.items())[index] for index in chosen):
            row: list[Array | None] = [originals[content], style_originals[style]]
            titles = ["content", "style"]
            for unit in made:
                for each in parts[unit.key].select(["iterations", "picture"]).to_pylist():
                    row.append(decode(each["picture"]))
                    after = "" if each["iterations"] is None else f", {each['iterations']}"
                    titles.append(f"{unit.method.name}{after}")
            rows.append(row)
        return contact_sheet(rows, min(self.protocol.size, CELL), titles=titles)


def _refuse_foreign(root: Root) -> None:
    """Raise UsageError for a folder that holds something, and nothing that says it is of an evaluation."""
    try:
        ours = b'"model_digests"' in root.read(PROTOCOL)
    except FileNotFoundError:
        ours = root.empty()
    if not ours:
        raise UsageError(
            f"{root.uri} is not empty and holds no {PROTOCOL} of an evaluation; choose another --output or empty it "
            "yourself"
        )


def _named(part: pa.Table, unit: _Unit) -> pa.Table:
    names = {"content": unit.content.name, "style": unit.style.name, "method": unit.method.name}
    for index, (column, name) in enumerate(names.items()):
        part = part.add_column(index, column, pa.array([name] * len(part), pa.string()))
    return part
