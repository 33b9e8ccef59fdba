"""The transform for training: which samples it changes, what it leaves alone, its randomness, and DataLoaders."""

from __future__ import annotations

import pickle
import re
import shutil
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader
from torchvision import datasets, tv_tensors
from torchvision.transforms import v2

from stylize_batch import RandomStyle, Stylizer
from stylize_batch.errors import UsageError
from stylize_batch.job.bank import encode
from stylize_batch.model import checkpoint, container
from stylize_batch.model.network import Network
from stylize_batch.progress import Silent
from stylize_batch.styles import StyleVector, read_bank, write_bank
from tests.model.models import model_of

DOCUMENT = Path(__file__).parent.parent / "docs" / "augmentation.md"


@pytest.fixture(scope="module")
def bank(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Five small styles, encoded."""
    uri = str(tmp_path_factory.mktemp("banks") / "paintings.parquet")
    encode(str(pictures / "style"), uri, style_size=48, device="cpu", observer=Silent())
    return uri


@pytest.fixture(scope="module")
def always(bank: str) -> RandomStyle:
    return RandomStyle(bank, p=1, alpha_range=(1, 1))


def picture(height: int = 24, width: int = 32, count: int | None = None) -> Tensor:
    """Smooth noise: RGB in 0..1."""
    generator = torch.Generator().manual_seed(height * width)
    coarse = torch.rand(count or 1, 3, 4, 4, generator=generator)
    images = torch.nn.functional.interpolate(coarse, (height, width), mode="bilinear")
    return images if count else images[0]


def changed(before: Tensor, after: Tensor) -> list[bool]:
    return [not torch.equal(one, other) for one, other in zip(before, after, strict=True)]


@pytest.mark.parametrize(
    "given",
    [
        picture(),
        picture(33, 21, count=2),
        picture().half(),
        picture().double(),
        (picture() * 255).byte(),
        (picture(count=2) * 255).byte(),
        tv_tensors.Image((picture() * 255).byte()),
        v2.functional.to_pil_image(picture()),
    ],
    ids=["float", "batch", "half", "double", "uint8", "uint8 batch", "tv_tensor", "PIL"],
)
def test_what_comes_out_is_of_the_type_and_size_of_what_goes_in(always: RandomStyle, given: Any) -> None:
    found = always(given)
    assert type(found) is type(given)
    if isinstance(given, Image.Image):
        assert (found.size, found.mode) == (given.size, "RGB")
        assert np.any(np.asarray(found) != np.asarray(given))
        return
    assert (found.shape, found.dtype, found.stride()) == (given.shape, given.dtype, given.stride())
    assert not torch.equal(found, given)
    assert found.min() >= 0
    assert found.float().std() > (5 if found.dtype == torch.uint8 else 0.02)


def test_every_type_gets_the_same_picture(always: RandomStyle) -> None:
    pixels = (picture() * 255).byte()
    found: list[Tensor] = []
    for given in (pixels, tv_tensors.Image(pixels), v2.functional.to_pil_image(pixels), pixels / 255):
        torch.manual_seed(3)
        stylized: Any = always(given)
        found.append(v2.functional.to_image(stylized) if isinstance(stylized, Image.Image) else stylized)
    for other in found[1:3]:
        assert torch.equal(found[0], other.as_subclass(Tensor))
    torch.testing.assert_close(found[0] / 255, found[3], rtol=0, atol=0.6 / 255)


def test_the_picture_is_the_one_a_run_would_make_of_the_same_style_and_alpha(
    bank: str, pictures: Path
) -> None:
    with Image.open(pictures / "style" / "tapa-cloth.jpg") as image:
        style = image.convert("RGB")
    one = bank.replace("paintings", "one")
    held = read_bank(bank)
    chosen = next(each for each in held.by_uri().values() if each.uri.endswith("tapa-cloth.jpg"))
    write_bank(one, [chosen], held.key)
    found = RandomStyle(one, p=1, alpha_range=(0.7, 0.7))(picture())
    torch.testing.assert_close(found, Stylizer()(picture(), style, alpha=0.7), rtol=0, atol=1e-4)


def test_alpha_0_is_the_decoders_reconstruction(bank: str) -> None:
    network = Network(checkpoint.loads(container.builtin_bytes(container.DEFAULT)))
    content = picture()
    features = network.encode_contents(content[None], metrics=False)
    other_style = network.encode_styles(torch.rand(1, 3, 32, 32))
    reconstruction, _ = network.stylize(features, other_style, torch.zeros(1))
    torch.testing.assert_close(
        RandomStyle(bank, p=1, alpha_range=(0, 0))(content), reconstruction[0], rtol=0, atol=1e-5
    )


def test_p_0_returns_the_input_itself(bank: str) -> None:
    transform = RandomStyle(bank, p=0)
    for given in (picture(), v2.functional.to_pil_image(picture())):
        assert transform(given) is given


def test_about_p_of_a_batch_is_stylized_each_sample_by_a_draw_of_its_own(bank: str) -> None:
    torch.manual_seed(0)
    batch = picture(9, 9).expand(200, 3, 9, 9).contiguous()
    found = RandomStyle(bank, p=0.3, alpha_range=(0.5, 1))(batch)
    hit = changed(batch, found)
    assert 40 < sum(hit) < 80
    distinct = torch.unique(found[torch.tensor(hit)].flatten(1), dim=0)
    assert len(distinct) == sum(hit)
    params = RandomStyle(bank, alpha_range=(0.25, 0.75)).make_params([batch])
    assert set(params["styles"].tolist()) == set(range(5))
    assert 0.25 <= params["alpha"].min() < 0.3
    assert 0.7 < params["alpha"].max() <= 0.75


def test_labels_boxes_and_masks_pass_through_untouched(always: RandomStyle) -> None:
    image = tv_tensors.Image((picture() * 255).byte())
    boxes = tv_tensors.BoundingBoxes(
        torch.tensor([[1, 2, 9, 9]]),
        format="XYXY",  # pyright: ignore[reportCallIssue, reportArgumentType]
        canvas_size=(24, 32),
    )
    target = {"boxes": boxes, "mask": tv_tensors.Mask(torch.ones(24, 32)), "labels": torch.tensor([7])}
    found, kept = v2.Compose([always])(image, target)
    assert not torch.equal(found, image)
    assert all(kept[name] is value for name, value in target.items())
    batch, labels = picture(count=2), torch.tensor([3, 4])
    assert always(batch, labels)[1] is labels


def test_it_composes_with_torchvisions_transforms(always: RandomStyle) -> None:
    pipeline = v2.Compose(
        [v2.RandomResizedCrop(20), always, v2.ToDtype(torch.float32, scale=True), v2.Normalize([0.5], [0.5])]
    )
    found = pipeline((picture() * 255).byte())
    assert found.shape == (3, 20, 20)
    assert found.dtype == torch.float32
    assert "RandomStyle(" in repr(pipeline)


def test_manual_seed_repeats_it_whether_or_not_the_network_is_there_yet(bank: str) -> None:
    transform = RandomStyle(bank)
    found: list[Tensor] = []
    for _ in range(2):
        torch.manual_seed(5)
        found.append(torch.stack([transform(picture()) for _ in range(6)]))
    assert torch.equal(*found)
    assert any(changed(found[0], picture().expand(6, -1, -1, -1)))


def test_torchs_default_device_of_the_caller_changes_no_draw(bank: str) -> None:
    found: list[Tensor] = []
    given = picture(count=3)
    for device in ("cpu", "meta"):
        torch.manual_seed(5)
        with torch.device(device):
            found.append(RandomStyle(bank)(given))
    assert torch.equal(*found)


def test_a_training_step_may_use_the_result_also_under_autocast(always: RandomStyle) -> None:
    given = picture(count=2)
    torch.manual_seed(1)
    plain = always(given)
    weight = torch.ones(1, requires_grad=True)
    (plain * weight).sum().backward()
    assert weight.grad is not None
    torch.manual_seed(1)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(always(given), plain)


def load(dataset: Any, seed: int, **settings: Any) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    batches = list(DataLoader(dataset, batch_size=3, generator=generator, **settings))
    images, labels = zip(*batches, strict=True)
    return torch.cat(images), torch.cat(labels)


def tree(pictures: Path, folder: Path) -> Path:
    """Make an ImageFolder tree of the six small photographs, in two classes."""
    for number, path in enumerate(sorted((pictures / "content").iterdir())):
        target = folder / ("a" if number % 2 else "b") / path.name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, target)
    return folder


@pytest.mark.parametrize("start", ["fork", "spawn"])
def test_workers_of_a_data_loader_stylize_reproducibly_and_differently(
    bank: str, pictures: Path, tmp_path: Path, start: str
) -> None:
    photos = tree(pictures, tmp_path / "photos")
    # A process of its own, as trainings are: other tests started Ray in this one, and a fork of that may die.
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
        process.submit(load_with_workers, bank, photos, start).result()


def load_with_workers(bank: str, photos: Path, start: str) -> None:
    transform = RandomStyle(bank, p=0.8)
    transform(picture())  # the network of this process must not be in the workers' way
    pipeline = v2.Compose([v2.CenterCrop(40), transform, v2.ToImage()])
    dataset = datasets.ImageFolder(str(photos), pipeline)
    settings = {"num_workers": 2 if start == "fork" else 1, "multiprocessing_context": start}
    plain = torch.stack(
        [v2.Compose([v2.CenterCrop(40), v2.ToImage()])(dataset.loader(path)) for path, _ in dataset.samples]
    )
    images, labels = load(dataset, 1, **settings)
    assert labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert images.dtype == torch.uint8
    assert sum(changed(plain, images)) >= 3
    if start == "fork":
        again, _ = load(dataset, 1, **settings)
        assert torch.equal(images, again)
        other, _ = load(dataset, 2, **settings)
        assert not torch.equal(images, other)


def test_what_travels_to_workers_is_small_and_their_bank_is_shared(bank: str, tmp_path: Path) -> None:
    key = read_bank(bank).key
    large = str(tmp_path / "large.parquet")
    write_bank(large, [StyleVector(f"/{n}.jpg", "v", np.full(1920, n, np.float32)) for n in range(2000)], key)
    transform = RandomStyle(large, p=1)
    transform(picture())
    assert len(bytes(ForkingPickler.dumps(transform))) < 10_000
    assert transform._vectors.is_shared()  # pyright: ignore[reportPrivateUsage]


def test_a_pickled_transform_draws_and_makes_the_same(always: RandomStyle) -> None:
    copy = pickle.loads(pickle.dumps(always))
    torch.manual_seed(2)
    found = always(picture())
    torch.manual_seed(2)
    assert torch.equal(copy(picture()), found)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_a_batch_on_a_gpu_is_stylized_there(bank: str, always: RandomStyle) -> None:
    tf32 = torch.backends.cudnn.conv.fp32_precision  # pyright: ignore
    given = (picture(count=4) * 255).byte()
    torch.manual_seed(1)
    on_gpu = always(given.cuda())
    torch.manual_seed(1)
    on_cpu = always(given)
    assert on_gpu.device.type == "cuda"
    assert (on_gpu.cpu().int() - on_cpu.int()).abs().float().mean() < 2
    assert torch.backends.cudnn.conv.fp32_precision == tf32  # pyright: ignore


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"p": 1.5}, "p is 1.5"),
        ({"p": float("nan")}, "p is nan"),
        ({"p": "a"}, "p is a, it must be"),
        ({"alpha_range": (0.5, 1.1)}, "alpha_range is"),
        ({"alpha_range": (0.9, 0.2)}, "lower end first"),
        ({"alpha_range": 0.5}, "must be a range"),
        ({"model": "picasso"}, "unknown model 'picasso'"),
        ({"bank": "absent.parquet"}, "there is no style bank absent.parquet"),
    ],
)
def test_impossible_settings_are_refused(bank: str, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=re.escape(message)):
        RandomStyle(**dict[str, Any](bank=bank) | settings)


def test_a_bank_of_another_model_and_an_empty_one_are_refused(bank: str, tmp_path: Path) -> None:
    other = model_of("compact")
    path = tmp_path / "compact.safetensors"
    path.write_bytes(checkpoint.dumps(other.encoder, other.decoder, {"name": "other"}))
    with pytest.raises(UsageError, match="another model"):
        RandomStyle(bank, model=str(path))
    empty = str(tmp_path / "empty.parquet")
    pq.write_table(pq.read_table(bank).slice(0, 0), empty)
    with pytest.raises(UsageError, match="holds no styles"):
        RandomStyle(empty)


def test_a_model_that_has_changed_under_its_bank_makes_no_picture(bank: str, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    data = container.builtin_bytes(container.DEFAULT)
    path.write_bytes(data)
    transform = RandomStyle(bank, p=1, model=str(path))
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(UsageError, match="has changed since RandomStyle was made"):
        transform(picture())


@pytest.mark.parametrize("given", [picture(), (picture() * 255).byte()], ids=["float", "uint8"])
def test_a_picture_of_which_the_network_makes_no_numbers_stays_as_it_is(
    bank: str, tmp_path: Path, given: Tensor
) -> None:
    """As float16 does that overflows."""
    held = read_bank(bank)
    style = next(iter(held.by_uri().values()))
    broken = style._replace(vector=np.full_like(style.vector, np.nan))
    write_bank(str(tmp_path / "bank.parquet"), [broken], held.key)
    assert torch.equal(RandomStyle(str(tmp_path / "bank.parquet"), p=1)(given), given)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (torch.zeros(1, 20, 20), "[3, H, W]"),
        (torch.zeros(4, 20, 20), "[3, H, W]"),
        (torch.zeros(20, 20), "[3, H, W]"),
        (torch.zeros(3, 20, 20, dtype=torch.int64), "torch.int64"),
        (tv_tensors.Video(torch.zeros(2, 3, 20, 20)), "no videos"),
        (torch.zeros(3, 8, 20), "at least 9 pixels"),
        (Image.new("RGB", (20, 8)), "at least 9 pixels"),
        (Image.new("L", (20, 20)), "not mode L"),
        ((tv_tensors.Image(picture()), tv_tensors.Image(picture(count=2))), "as many"),
        (np.zeros((20, 20, 3), np.uint8), "finds no image"),
        ({"image": np.zeros((20, 20, 3), np.uint8), "label": 3}, "finds no image"),
    ],
)
def test_what_is_no_picture_is_refused_whatever_the_draw(bank: str, given: Any, message: str) -> None:
    with pytest.raises(UsageError, match=re.escape(message)):
        RandomStyle(bank, p=0)(given)


def test_a_normalised_picture_is_refused(always: RandomStyle) -> None:
    with pytest.raises(UsageError, match="before Normalize"):
        always(v2.functional.normalize(picture(), [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]) * 2)


def test_what_is_not_a_number_is_refused(always: RandomStyle) -> None:
    with pytest.raises(UsageError, match=r"must be in 0\.\.1"):
        always(picture() * float("nan"))


def test_the_examples_of_the_documentation_run(bank: str, pictures: Path, tmp_path: Path) -> None:
    tree(pictures, tmp_path / "photos")
    shutil.copy(bank, tmp_path / "paintings.parquet")
    examples = re.findall(r"```python\n(.*?)```", DOCUMENT.read_text(), re.DOTALL)
    assert len(examples) == 2
    for example in examples:
        subprocess.run([sys.executable, "-c", example], cwd=tmp_path, check=True)
