"""The stylize stage in a worker: what shares a batch or a pass changes no picture, and memory fails no row that fits."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from stylize_batch import stage
from stylize_batch.contents import Pair
from stylize_batch.errors import DeviceError, HandedBackError, RowError
from stylize_batch.images.decode import decode
from stylize_batch.model import checkpoint, container
from stylize_batch.model.network import ContentFeatures, Network
from stylize_batch.stage import Job, Prepared, StylizeStage
from stylize_batch.stopwatch import Stopwatch
from tests.conftest import SAMPLE, MakeManifest, Row, cores, run_in_process, worker_settings
from tests.controls import by_name, controlled_rows


def test_the_last_content_of_a_shard_keeps_all_lanes_at_work(
    make_manifest: MakeManifest,
    contents: list[str],
    styles: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rows = [{"content": content, "style": [style]} for content in contents[:3] for style in styles[:4]]
    units: list[int] = []
    real = StylizeStage._stylize_unit  # pyright: ignore[reportPrivateUsage]

    def counted(self: StylizeStage, bucket: Any, encoded: Any, batches: Any) -> Any:
        units.append(len(batches))
        return real(self, bucket, encoded, batches)

    monkeypatch.setattr(StylizeStage, "_stylize_unit", counted)
    with cores(2):
        summary, _ = run_in_process(make_manifest(rows), tmp_path / "out", shard_pairs=100)
    assert summary.ok == 12
    assert sorted(units) == [2, 2, 4, 4]  # both lanes have a content each, and then halves of one


@pytest.mark.parametrize("crop", [40, None], ids=["one size", "mixed sizes"])
def test_batches_make_the_pictures_that_single_pairs_make(
    make_manifest: MakeManifest,
    pairs: list[Row],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    crop: int | None,
) -> None:
    _, singles = run_in_process(make_manifest(pairs), tmp_path / "singles", format="png", size=40, crop=crop)
    monkeypatch.setattr(StylizeStage, "batch_size", lambda self, shape: 4)  # what a GPU does
    _, batches = run_in_process(make_manifest(pairs), tmp_path / "batches", format="png", size=40, crop=crop)
    for one, other in zip(singles, batches, strict=True):
        assert one["pair_id"] == other["pair_id"]
        pixels = [decode(Path(row["output"]).read_bytes()).astype(int) for row in (one, other)]
        assert np.abs(pixels[0] - pixels[1]).max() <= 1
        assert one["style_loss"] == pytest.approx(other["style_loss"], rel=1e-3)


def test_batches_make_the_pictures_that_single_pairs_make_with_controls_too(
    make_manifest: MakeManifest,
    contents: list[str],
    styles: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    manifest = make_manifest(controlled_rows(contents[0], styles, tmp_path))
    _, singles = run_in_process(manifest, tmp_path / "singles", format="png", shard_pairs=100)
    monkeypatch.setattr(StylizeStage, "batch_size", lambda self, shape: 8)  # what a GPU does
    sizes: list[int] = []
    stylize = Network.stylize

    def counted(
        self: Network, content: ContentFeatures, vectors: torch.Tensor, *rest: Any, **more: Any
    ) -> Any:
        sizes.append(len(vectors))
        return stylize(self, content, vectors, *rest, **more)

    monkeypatch.setattr(Network, "stylize", counted)
    with cores(1):  # on which batches follow each other
        _, batches = run_in_process(manifest, tmp_path / "batches", format="png", shard_pairs=100)
    # Pairs without masks share a batch whatever their α, weights and colours, and so do those of as many regions.
    assert sizes == [5, 2, 5]
    _, one = by_name(singles)
    _, other = by_name(batches)
    assert one.keys() == other.keys()
    for name, pixels in one.items():
        assert np.abs(pixels - other[name]).max() <= 1, name


def test_a_batch_that_does_not_fit_in_memory_is_halved(
    make_manifest: MakeManifest, pairs: list[Row], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []
    real = Network.stylize

    def small_memory(self: Network, content: ContentFeatures, *rest: Any, **options: Any) -> Any:
        sizes.append(content.contents)
        if content.contents > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(self, content, *rest, **options)

    monkeypatch.setattr(StylizeStage, "batch_size", lambda self, shape: 4)
    monkeypatch.setattr(Network, "stylize", small_memory)
    with cores(1):  # on which batches follow each other
        summary, _ = run_in_process(make_manifest(pairs), tmp_path / "out", size=40, crop=40, shard_pairs=100)
    assert summary.ok == len(pairs)
    assert sizes[:7] == [4, 2, 1, 1, 2, 1, 1]


def test_contents_that_do_not_fit_in_memory_together_are_halved(
    make_manifest: MakeManifest, pairs: list[Row], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []
    real = Network.encode_contents

    def small_memory(self: Network, images: torch.Tensor, **options: Any) -> ContentFeatures:
        sizes.append(len(images))
        if len(images) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(self, images, **options)

    monkeypatch.setattr(StylizeStage, "batch_size", lambda self, shape: 4)
    monkeypatch.setattr(Network, "encode_contents", small_memory)
    with cores(1):  # on which batches follow each other
        summary, _ = run_in_process(
            make_manifest(pairs[::2]), tmp_path / "out", size=40, crop=40, shard_pairs=100
        )
    assert summary.ok == len(pairs) / 2
    assert sizes == [4, 2, 2, 2]


def test_few_style_images_wait_for_a_content_with_many_recoloured_pairs(
    make_manifest: MakeManifest,
    contents: list[str],
    styles: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pairs = [
        {"content": contents[0], "style": [styles[step % 5]], "alpha": step / 40, "preserve_color": True}
        for step in range(1, 21)
    ]
    together: list[int] = []
    real = StylizeStage.units

    def units(self: StylizeStage, bucket: list[Prepared], parts: int) -> Any:
        together.append(sum(len(each.jobs) for each in bucket))
        return real(self, bucket, parts)

    monkeypatch.setattr(StylizeStage, "units", units)
    summary, _ = run_in_process(make_manifest(pairs), tmp_path / "out", size=40, shard_pairs=100)
    assert summary.ok == 20
    assert together == [8, 8, 4]


@pytest.mark.parametrize("what", ["encode_styles", "encode_contents", "stylize"])
def test_what_fits_in_memory_alone_fails_no_row_because_of_what_is_beside_it(
    make_manifest: MakeManifest, pairs: list[Row], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    crowded = 0
    real = getattr(Network, what)

    def small_memory(self: Network, *rest: Any, **options: Any) -> Any:
        nonlocal crowded
        if torch.get_num_threads() == 1:  # others have the other cores
            crowded += 1
            raise MemoryError
        return real(self, *rest, **options)

    monkeypatch.setattr(Network, what, small_memory)
    with cores(2):
        summary, _ = run_in_process(make_manifest(pairs), tmp_path / "out", size=40, shard_pairs=100)
    assert summary.ok == len(pairs)
    assert crowded


@pytest.mark.parametrize(("bias", "kinds"), [(float("nan"), {"NotFinite": 1}), (float("inf"), {})])
def test_a_picture_of_no_numbers_fails_and_one_beyond_white_is_white(
    make_manifest: MakeManifest,
    pairs: list[Row],
    tmp_path: Path,
    bias: float,
    kinds: dict[str, int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    load = checkpoint.loads

    def broken(data: bytes) -> checkpoint.Checkpoint:
        model = load(data)
        *_, last = (each for each in model.decoder.modules() if isinstance(each, torch.nn.Conv2d))
        assert last.bias is not None
        last.bias.fill_(bias)
        return model

    monkeypatch.setattr(checkpoint, "loads", broken)
    summary, (row,) = run_in_process(make_manifest(pairs[:1]), tmp_path / "out", format="png", metrics=False)
    assert summary.kinds == kinds
    if not kinds:
        assert decode(Path(row["output"]).read_bytes()).min() == 255


def test_a_picture_too_large_for_one_pass_is_made_in_tiles_with_every_control(
    make_manifest: MakeManifest, styles: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wide = tmp_path / "wide.png"
    with Image.open(SAMPLE / "content" / "colosseum.jpg") as image:
        image.resize((400, 41)).save(wide)
    rows = [
        row
        for row in controlled_rows(str(wide), styles, tmp_path)
        if row["output"] in ("plain", "masks-alpha", "colour-masks-alpha")
    ]
    manifest = make_manifest(rows)
    _, whole = run_in_process(manifest, tmp_path / "whole", format="png")
    small = functools.partial(Network, pass_pixels=41 * 336)
    monkeypatch.setattr(stage, "Network", small)
    _, tiled = run_in_process(manifest, tmp_path / "tiled", format="png")
    rows_whole, pixels_whole = by_name(whole)
    rows_tiled, pixels_tiled = by_name(tiled)
    assert len(rows_tiled) == len(rows)
    for name, row in rows_whole.items():
        assert np.abs(pixels_whole[name] - pixels_tiled[name]).max() <= 1, name
        for loss in ("content_loss", "style_loss", "content_distance"):
            assert row[loss] == pytest.approx(rows_tiled[name][loss], rel=1e-3), (name, loss)


def own_stage(folder: Path, stay: Callable[[], None] = lambda: None) -> StylizeStage:
    """Return a stage without a worker around it."""
    return StylizeStage(
        worker_settings(folder), container.builtin_bytes(container.DEFAULT), Stopwatch(), stay
    )


IMAGE = np.zeros((24, 24, 3), np.uint8)


def test_a_worker_that_has_to_go_finishes_the_picture_in_hand_and_not_all_of_a_unit(tmp_path: Path) -> None:
    begun = 0

    def stay() -> None:
        nonlocal begun
        begun += 1
        if begun > 2:
            raise HandedBackError("this worker has to go")

    own = own_stage(tmp_path, stay)
    vectors = own.encode_style(IMAGE)[None]
    jobs = [Job(Pair(row, "", 1.0, ["style"], None, [], False), [], vectors, []) for row in range(4)]
    (unit,) = own.units([Prepared(IMAGE, jobs)], 1)
    made = unit()
    assert [next(made)[0].row for _ in range(2)] == [0, 1]
    with pytest.raises(HandedBackError):
        next(made)


def more_than_there_is(*_: object) -> None:
    torch.empty(1 << 50, dtype=torch.uint8)


def of_a_gpu(*_: object) -> None:
    raise RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be reported later")


@pytest.mark.parametrize("fail", [more_than_there_is, of_a_gpu])
def test_a_lack_of_memory_is_named_as_one_whoever_reports_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fail: Callable[..., None]
) -> None:
    own = own_stage(tmp_path)
    monkeypatch.setattr(Network, "encode_styles", fail)
    with pytest.raises(RowError, match="OutOfMemory: 24×24 pixels do not fit in memory; use --size"):
        own.encode_style(IMAGE)


def test_an_error_of_the_network_fails_the_row_unless_the_device_is_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("CUDA error: unspecified launch failure\nCompile with TORCH_USE_CUDA_DSA")

    own = own_stage(tmp_path)
    monkeypatch.setattr(Network, "encode_styles", fail)
    with pytest.raises(RowError, match=r"NetworkError: CUDA error: unspecified launch failure$"):
        own.encode_style(IMAGE)
    monkeypatch.setattr(stage, "answers", lambda device: False)
    with pytest.raises(DeviceError, match=r"^CUDA error: unspecified launch failure$"):
        own.encode_style(IMAGE)
