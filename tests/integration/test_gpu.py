"""What only a GPU can show: its pictures are the CPU's, whatever its streams and batches, and lack of memory costs no row."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import stylize_batch
from stylize_batch import stage
from stylize_batch.images.decode import decode
from tests.conftest import MakeManifest, Row, read_results

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")


def pixels(manifest: Path, output: Path, device: str = "cuda", **settings: Any) -> list[np.ndarray]:
    summary = stylize_batch.run(
        str(manifest),
        output=str(output),
        in_process=True,
        device=device,
        style_size=48,
        format="png",
        **settings,
    )
    assert summary.failed == 0
    return [decode(Path(row["output"]).read_bytes()).astype(int) for row in read_results(output)]


def difference(one: Sequence[np.ndarray], other: Sequence[np.ndarray]) -> tuple[int, float]:
    """Return the largest and the mean difference of two runs' pictures."""
    steps = np.concatenate([np.abs(a - b).ravel() for a, b in zip(one, other, strict=True)])
    return steps.max(), steps.mean()


@pytest.mark.parametrize(
    ("precision", "most", "mean"), [("fp32", 1, 0.01), ("fp16", 40, 0.5), ("bf16", 120, 2)]
)
def test_a_gpu_makes_the_pictures_a_cpu_makes(
    make_manifest: MakeManifest, pairs: list[Row], tmp_path: Path, precision: str, most: int, mean: float
) -> None:
    manifest = make_manifest(pairs)
    found = difference(
        pixels(manifest, tmp_path / "cpu", "cpu", precision="fp32"),
        pixels(manifest, tmp_path / "gpu", precision=precision),
    )
    assert found[0] <= most
    assert found[1] <= mean


def test_streams_do_not_get_in_each_others_way(
    make_manifest: MakeManifest, pairs: list[Row], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [
        {**pair, "alpha": step / 20} for pair in pairs for step in range(1, 20)
    ]  # contents shared by batches
    manifest = make_manifest(rows)
    settings: dict[str, Any] = {"precision": "fp32", "batch_size": 3, "shard_pairs": 1000}
    together = pixels(manifest, tmp_path / "two", **settings)
    monkeypatch.setattr(stage, "GPU_LANES", 1)
    assert difference(together, pixels(manifest, tmp_path / "one", **settings))[0] == 0


def test_the_size_of_a_batch_changes_hardly_a_pixel(
    make_manifest: MakeManifest, pairs: list[Row], tmp_path: Path
) -> None:
    manifest = make_manifest(pairs)
    single = pixels(manifest, tmp_path / "single", batch_size=1, crop=40, precision="fp32")
    assert difference(single, pixels(manifest, tmp_path / "auto", crop=40, precision="fp32"))[0] <= 1


def test_a_batch_that_does_not_fit_on_the_card_is_halved_and_no_row_fails(
    make_manifest: MakeManifest, pairs: list[Row], tmp_path: Path
) -> None:
    torch.cuda.empty_cache()
    _, total = torch.cuda.mem_get_info()
    torch.cuda.set_per_process_memory_fraction(2**30 / total)
    try:
        rows = [{**pair, "alpha": step / 4} for pair in pairs for step in range(1, 5)]
        made = pixels(make_manifest(rows), tmp_path / "out", size=512, crop=512, batch_size=64)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert len(made) == len(rows)
