"""The recipes in jobs/: each regenerates a small ImageFolder tree with its labels, by its own settings."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image
from torchvision.datasets import ImageFolder

import stylize_batch
from stylize_batch.images.decode import decode
from stylize_batch.job.spec import make_spec
from tests.conftest import SAMPLE, command, read_results

REPOSITORY = SAMPLE.parent.parent
KUBERNETES = "rayjob.yaml"
RECIPES = sorted(each for each in (REPOSITORY / "jobs").glob("*.yaml") if each.name != KUBERNETES)


@pytest.fixture
def dataset(pictures: Path, tmp_path: Path) -> Path:
    """Six photographs as `<split>/<class>/<name>.JPEG`, one of them turned by its EXIF orientation."""
    for number, path in enumerate(sorted((pictures / "content").iterdir())):
        label = "animal" if path.stem in ("cat", "scarlet-macaw") else "landmark"
        target = tmp_path / "photos" / ("train", "val")[number % 2] / label / f"{path.stem}.JPEG"
        target.parent.mkdir(parents=True, exist_ok=True)
        with Image.open(path) as image:
            exif = image.getexif()
            exif[0x0112] = 6 if path.stem == "cat" else 1
            image.save(target, exif=exif)
    return tmp_path / "photos"


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_regenerates_an_image_folder_with_its_labels(
    recipe: Path, dataset: Path, pictures: Path, tmp_path: Path
) -> None:
    full = make_spec({"content": "photos", "style": "styles", "output": "out"}, str(recipe))
    assert full.size
    small: dict[str, Any] = {"size": 48, "style_size": 48, "crop": full.crop and full.crop * 48 // full.size}
    root = tmp_path / "out"
    summary = stylize_batch.run(
        job=str(recipe), content=str(dataset), style=str(pictures / "style"), output=str(root),
        in_process=True, device="cpu", **small,
    )  # fmt: skip
    build = full.build
    count = build.styles_per_content or 1
    assert (summary.ok, summary.failed) == (6 * (count + build.keep_originals), 0)

    results = read_results(root)
    for row in results:
        source, picture = Path(row["content"]), Path(row["output"])
        split, label, name = source.parts[1:]
        assert (row["split"], row["label"]) == (split, label)
        styles = [Path(style).stem.replace("-", "_") for style in row["style"]]
        stem = "-".join(
            [Path(name).stem, *styles] if build.keep_originals or count > 1 else [Path(name).stem]
        )
        assert picture == root / "images" / split / label / f"{stem}.JPEG"
        expected = decode((tmp_path / source).read_bytes(), size=48, crop=small["crop"])
        with Image.open(picture) as image:
            assert image.size == (row["width"], row["height"]) == expected.shape[1::-1]
        difference = abs(decode(picture.read_bytes()).astype(int) - expected).mean()
        assert difference > 5 if row["style"] else difference < 2
        assert (row["style_loss"] is not None) == (full.metrics and bool(row["style"]))
        assert bool(row.get("preserve_color")) == (build.preserve_color and bool(row["style"]))
        low, _, high = (build.alpha or "1").partition("..")
        assert float(low) <= row["alpha"] <= float(high or low) if row["style"] else row["alpha"] is None
    assert sum(not row["style"] for row in results) == 6 * build.keep_originals
    if build.alpha:
        assert len({row["alpha"] for row in results}) > count
    for split in ("train", "val"):
        assert ImageFolder(str(root / "images" / split)).classes == ImageFolder(str(dataset / split)).classes


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_says_how_it_is_started_and_is_listed_with_its_cost(recipe: Path) -> None:
    assert f"stylize-batch run --job jobs/{recipe.name} --content " in recipe.read_text()
    assert f"`{recipe.name}`" in (REPOSITORY / "docs" / "recipes.md").read_text()
    assert yaml.safe_load(recipe.read_text())["build"]


def test_the_line_of_the_readme_regenerates_the_sample_dataset(tmp_path: Path) -> None:
    (line,) = (
        line for line in (REPOSITORY / "README.md").read_text().splitlines() if "sample-imagefolder" in line
    )
    words = [command() if word.endswith("stylize-batch") else word for word in line.split("#")[0].split()]
    words[words.index("-o") + 1] = str(tmp_path / "out")
    fast = ("--in-process", "--device", "cpu", "--size", "48", "--crop", "42", "--style-size", "48")
    done = subprocess.run([*words, *fast], cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert ImageFolder(str(tmp_path / "out" / "images")).classes == ["animal", "landmark"]
    assert {row["label"] for row in read_results(tmp_path / "out")} == {"animal", "landmark"}
    assert str(tmp_path / "out.parquet") in done.stderr
