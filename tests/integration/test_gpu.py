"""What only a GPU can show: its pictures are the CPU's, whatever its streams and batches, and lack of memory costs no row."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import stylize_batch
from stylize_batch import stage
from stylize_batch.images.decode import decode
from stylize_batch.model import checkpoint, container
from stylize_batch.model.adain import moments_of_halves
from stylize_batch.model.convolution import ReflectedConv2d
from stylize_batch.model.device import keep_float32
from stylize_batch.model.network import Network
from stylize_batch.model.pixels import bytes_in_one_pass
from stylize_batch.model.quick import from_rgb, fused, quicken
from stylize_batch.training import log
from stylize_batch.training.loop import Trainer
from stylize_batch.training.recipe import Recipe
from tests.conftest import MakeManifest, Row, read_results

SAMPLE = Path(__file__).parents[2] / "manifests" / "sample"

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


@pytest.mark.parametrize(("height", "width"), [(9, 9), (64, 64), (257, 299)])
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float16, 0.01), (torch.bfloat16, 0.05)]
)
def test_one_kernel_between_convolutions_computes_what_the_layers_do(
    dtype: torch.dtype, tolerance: float, height: int, width: int
) -> None:
    module = pytest.importorskip("stylize_batch.model.fused")
    keep_float32()
    model = checkpoint.loads(container.builtin_bytes(container.DEFAULT))
    torch.manual_seed(0)
    given = torch.rand(3, 3, height, width, device="cuda")
    with torch.inference_mode():
        for network in (model.encoder, model.decoder):
            plain = copy.deepcopy(network).cuda()
            quick = copy.deepcopy(network).to("cuda", dtype, memory_format=torch.channels_last)  # pyright: ignore
            quicken(quick)
            assert all(isinstance(each, module.FusedConv2d) for each in quick.children())
            expected = plain(given)
            found = quick(given.to(dtype))
            assert found.shape == expected.shape
            assert (found - expected).abs().mean() < tolerance * expected.abs().mean()
            given = expected


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("pool", [False, True])
def test_the_kernel_between_convolutions_rounds_as_the_layers_do_in_batches_of_any_size(
    pool: bool, dtype: torch.dtype
) -> None:
    module = pytest.importorskip("stylize_batch.model.fused")
    made = torch.randn(5, 64, 33, 47, device="cuda").to(dtype, memory_format=torch.channels_last)
    bias = torch.randn(64, device="cuda", dtype=dtype)
    border = module.Border(64, reflect=True)
    height, width = (17, 24) if pool else (33, 47)

    def written(part: torch.Tensor) -> torch.Tensor:
        return module._written(part, bias, 64, height, width, border, relu=True, pool=pool)

    expected = (made + bias[:, None, None]).relu_()
    if pool:
        expected = torch.nn.functional.max_pool2d(expected, 2, ceil_mode=True)
    found = written(made)
    assert torch.equal(found, torch.nn.functional.pad(expected, (1, 1, 1, 1), "reflect"))
    assert torch.equal(torch.cat([written(part) for part in made.split(2)]), found)


def test_offsets_beyond_two_to_the_power_of_31_reach_their_place() -> None:
    module = pytest.importorskip("stylize_batch.model.fused")
    torch.cuda.empty_cache()
    if torch.cuda.mem_get_info()[0] < 12 * 2**30:
        pytest.skip("two maps of 4.4 GB do not fit")
    made = torch.empty(
        33, 64, 1024, 1024, dtype=torch.float16, device="cuda", memory_format=torch.channels_last
    )
    made[-1] = 1
    found = module._written(made, None, 64, 1024, 1024, module.Border(64, reflect=True))
    assert bool((found[-1] == 1).all())


def test_a_tiled_picture_is_the_one_in_a_piece() -> None:
    model = checkpoint.loads(container.builtin_bytes(container.DEFAULT))
    torch.manual_seed(0)
    images = torch.nn.functional.interpolate(torch.rand(1, 3, 60, 70), (601, 347), mode="bicubic").clamp(0, 1)
    made: list[torch.Tensor] = []
    for pixels_at_once in (2**22, 2**17):
        network = Network(model, "cuda", "fp32", pass_pixels=pixels_at_once)
        content = network.encode_contents(images, metrics=False)
        made.append(network.stylize(content, network.encode_styles(images.flip(3)), torch.ones(1))[0].cpu())
    assert (made[0] - made[1]).abs().max() < 1 / 255


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("kernel", [fused, from_rgb, moments_of_halves, bytes_in_one_pass])
def test_every_kernel_passes_its_trial(kernel: Callable[..., object], dtype: torch.dtype) -> None:
    pytest.importorskip("triton")
    assert kernel(torch.device("cuda", torch.cuda.current_device()), dtype) is not None


def test_other_networks_are_convolved_by_torchs_own_operators() -> None:
    model = checkpoint.build("compact")
    for network in model:
        quicken(network.cuda())
        assert any(isinstance(each, ReflectedConv2d) for each in network.children())


def test_a_gpu_trains_as_a_cpu_does(tmp_path: Path) -> None:
    stage = {"loss": "style", "iterations": 3, "crop": 64, "batch": 2, "identity_pairs": 1}
    recipe = Recipe.model_validate(
        {
            "name": "test", "architecture": "vgg16", "encoder": "adain-vgg16", "start": "adain-vgg16", "stages": [stage],
            "contents": str(SAMPLE / "content"), "styles": str(SAMPLE / "style"),
        }
    )  # fmt: skip
    losses: dict[str, list[float]] = {}
    for device in ("cpu", "cuda"):
        trainer = Trainer(recipe, str(tmp_path / device), device)
        assert trainer.run(lambda _: None)
        losses[device] = [step.loss for step in log.load(trainer.root.read("training.csv"))]
    assert losses["cuda"] == pytest.approx(losses["cpu"], rel=0.02)
