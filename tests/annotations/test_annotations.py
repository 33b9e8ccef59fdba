"""Annotation files of a run: COCO and image folders that their own readers load, true for the pictures as they are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from PIL import Image
from pycocotools.coco import COCO
from torchvision.datasets import ImageFolder

import stylize_batch
from stylize_batch.annotations.coco import geometry
from stylize_batch.errors import UsageError, counted
from stylize_batch.manifest.build import build
from stylize_batch.manifest.pairing import Pairing
from stylize_batch.progress import Silent
from tests.conftest import MakeManifest, Row


def run(manifest: object, output: object, **settings: Any) -> stylize_batch.RunSummary:
    defaults: dict[str, Any] = {"in_process": True, "device": "cpu", "style_size": 48, "shard_pairs": 3}
    return stylize_batch.run(str(manifest), output=str(output), **{**defaults, **settings})


def test_boxes_are_scaled_moved_and_cut_as_pictures_are() -> None:
    plain = geometry((200, 100), (96, 48), 48, None)
    assert plain
    assert plain.moved([100, 50, 20, 10]) == [48, 24, 9.6, 4.8]
    cropped = geometry((200, 100), (40, 40), 50, 40)  # 100 × 50, of which 30 and 5 are cut off
    assert cropped
    assert cropped.moved([80, 30, 20, 20]) == [10, 10, 10, 10]
    assert cropped.moved([40, 0, 40, 20]) == [0, 0, 10, 5]
    assert cropped.moved([0, 0, 50, 100]) is None, "cropped away"
    assert cropped.moved([0, 0, 61, 100]) is None, "half a pixel is left"
    assert cropped.moved([100, 50, 0.5, 0.5]) == [20, 20, 0.25, 0.25], "small, and whole"
    assert cropped.moved([100, 50, float("nan"), 10]) is None
    assert cropped.moved([100, 50, None, 10]) is None
    assert cropped.moved([100, 50, 10, 10, None]) is None


def test_boxes_that_cannot_be_placed_are_known() -> None:
    assert geometry((None, 100), (96, 48), 48, None) is None
    assert geometry((200, 100), (48, 96), 48, None) is None, "annotated on its side, and turned by EXIF"
    assert geometry((100, 100), (48, 48), 48, None) is not None


CATEGORIES = [
    {"id": 3, "name": "car", "supercategory": "vehicle"},
    {"id": 18, "name": "dog", "supercategory": "animal"},
]


def coco_manifest(folder: Path, styles: list[str], styles_per_content: int) -> Path:
    """Two photographs of 120 × 60 pixels and one that is missing, with boxes, as `manifest build` reads them."""
    for index in (1, 2):
        Image.new("RGB", (120, 60), "teal").save(folder / f"{index}.jpg")
    images = [
        {"id": 70 + index, "file_name": f"{index}.jpg", "width": 120, "height": 60} for index in (1, 2, 3)
    ]
    boxes = {
        500: (71, [0, 0, 60, 60]),
        501: (71, [90, 30, 30, 30]),
        600: (72, [30, 0, 60, 60]),
        700: (73, [0, 0, 9, 9]),
    }
    annotations = [
        {
            "id": id,
            "image_id": image,
            "bbox": box,
            "category_id": 18,
            "iscrowd": 0,
            "area": 1,
            "segmentation": [],
        }
        for id, (image, box) in boxes.items()
    ]
    document = {"images": images, "annotations": annotations, "categories": CATEGORIES}
    (folder / "instances.json").write_text(json.dumps(document))
    Image.new("RGB", (9, 9)).save(folder / "3.jpg")
    output = str(folder / "pairs.parquet")
    pairing = Pairing(styles_per_content=styles_per_content)
    build(str(folder / "instances.json"), str(Path(styles[0]).parent), output, pairing, observer=Silent())
    (folder / "3.jpg").unlink()
    return folder / "pairs.parquet"


@pytest.mark.parametrize("styles_per_content", [1, 2])
def test_coco_annotations_load_and_lie_where_the_boxes_are_now(
    styles: list[str], tmp_path: Path, styles_per_content: int
) -> None:
    manifest = coco_manifest(tmp_path, styles, styles_per_content)
    summary = run(manifest, tmp_path / "out", size=40, crop=40)
    assert summary.annotations == [str(tmp_path / "out" / "annotations.json")]
    coco: Any = COCO(summary.annotations[0])
    assert len(coco.imgs) == 2 * styles_per_content, "failed rows are left out"
    for image in coco.imgs.values():
        with Image.open(tmp_path / "out" / "images" / image["file_name"]) as picture:
            assert picture.size == (image["width"], image["height"]) == (40, 40)
    # Scaled to 80 × 40, 20 pixels cut off on each side: [0, 0, 40, 40], [60, 20, 20, 20] and [20, 0, 40, 40] are left as
    assert coco.dataset["categories"] == CATEGORIES, "as they were, those without boxes, too"
    expected = [[0, 0, 20, 40], [0, 0, 40, 40]] * styles_per_content
    annotations = coco.loadAnns(coco.getAnnIds(catIds=coco.getCatIds(catNms=["dog"])))
    assert sorted(each["bbox"] for each in annotations) == sorted(expected)
    assert sorted(each["area"] for each in annotations) == sorted(box[2] * box[3] for box in expected)
    if styles_per_content == 1:
        assert sorted(coco.imgs) == [71, 72]
        assert sorted(coco.anns) == [500, 600]
    else:
        assert sorted(coco.imgs) == [1, 2, 3, 4]
        assert sorted(image["source_id"] for image in coco.imgs.values()) == [71, 71, 72, 72]
        assert sorted(each["source_id"] for each in annotations) == [500, 500, 600, 600]
    assert (
        f"Left out: {counted(styles_per_content, 'box', 'boxes')} outside the picture."
        in coco.dataset["info"]["description"]
    )


@pytest.mark.parametrize("crop", [None, 20])
def test_annotations_say_what_boxes_of_cropped_pictures_rely_on(
    styles: list[str], tmp_path: Path, crop: int | None
) -> None:
    summary = run(coco_manifest(tmp_path, styles, 1), tmp_path / "out", size=30, crop=crop)
    description = json.loads(Path(summary.annotations[0]).read_text())["info"]["description"]
    assert ("those of the upright photograph" in description) == (crop is not None)


@pytest.mark.parametrize("sides", [{"width": 60, "height": 120}, {"width": None}])
def test_pictures_whose_boxes_cannot_be_placed_are_left_out_and_told_of(
    styles: list[str], tmp_path: Path, sides: dict[str, int | None]
) -> None:
    manifest = coco_manifest(tmp_path, styles, 1)
    document = json.loads((tmp_path / "instances.json").read_text())
    document["images"][0].update(sides)
    document["images"][1].update(sides)
    document["annotations"] = [each for each in document["annotations"] if each["image_id"] != 72]
    (tmp_path / "instances.json").write_text(json.dumps(document))
    Image.new("RGB", (9, 9)).save(tmp_path / "3.jpg")
    build(
        str(tmp_path / "instances.json"),
        str(Path(styles[0]).parent),
        str(manifest),
        Pairing(),
        observer=Silent(),
    )
    (tmp_path / "3.jpg").unlink()
    summary = run(manifest, tmp_path / "out", size=30)
    coco: Any = COCO(summary.annotations[0])
    assert sorted(coco.imgs) == [72], "has no boxes, and is true as it is"
    (note,) = summary.notes
    assert note.startswith("annotations.json leaves out 1 picture with boxes, since the annotated width")


def test_pictures_whose_boxes_are_cropped_away_stay_and_are_told_of(
    styles: list[str], tmp_path: Path
) -> None:
    summary = run(coco_manifest(tmp_path, styles, 1), tmp_path / "out", size=20, crop=16)
    assert summary.notes == ["annotations.json leaves out 1 box outside the picture"]
    assert len(json.loads(Path(summary.annotations[0]).read_text())["images"]) == 2


def test_coco_annotations_without_ids_are_numbered(styles: list[str], tmp_path: Path) -> None:
    coco_manifest(tmp_path, styles, 1)
    document = json.loads((tmp_path / "instances.json").read_text())
    for annotation in document["annotations"]:
        del annotation["id"]
    (tmp_path / "instances.json").write_text(json.dumps(document))
    build(
        str(tmp_path / "instances.json"), str(Path(styles[0]).parent), str(tmp_path / "pairs.parquet"), Pairing(),
        observer=Silent(),
    )  # fmt: skip
    summary = run(tmp_path / "pairs.parquet", tmp_path / "out", size=30)
    coco: Any = COCO(summary.annotations[0])
    assert sorted(coco.anns) == [1, 2, 3]
    assert sorted((each["image_id"], each["bbox"]) for each in coco.anns.values()) == [
        (71, [0, 0, 30, 30]), (71, [45, 15, 15, 15]), (72, [15, 0, 30, 30]),
    ]  # fmt: skip


@pytest.mark.parametrize("categories", [b"{", b"7", b'[{"name": "dog"}]', b'[{"id": "dog"}]', b"[" * 100_000])
def test_categories_that_are_none_are_refused_before_anything_is_written(
    make_manifest: MakeManifest, pairs: list[Row], tmp_path: Path, categories: bytes
) -> None:
    manifest = make_manifest(pairs)
    table = pq.read_table(manifest).replace_schema_metadata({"stylize_batch.categories": categories})
    pq.write_table(table, manifest)
    with pytest.raises(UsageError, match="are no COCO categories; build it again"):
        run(manifest, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("split", ["", "train/"])
def test_an_image_folder_loads_with_its_metadata_and_as_the_class_tree_it_is(
    make_manifest: MakeManifest,
    pairs: list[Row],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    split: str,
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    import datasets

    rows = [
        {**row, "output": f"{split}{label}/{index}", "label": label, "mask_file_name": "elsewhere.png"}
        for index, (row, label) in enumerate(zip(pairs, ["dog", "cat", "dog", "cat"], strict=False))
    ]
    rows.append({**rows[0], "content": str(tmp_path / "missing.jpg"), "output": f"{split}cat/9"})
    if split:
        rows[3]["output"] = "val/cat/3"
    summary = run(make_manifest(rows), tmp_path / "out")
    assert summary.failed == 1
    images = tmp_path / "out" / "images"
    folders = ["train/", "val/"] if split else [""]
    assert summary.annotations == [f"{images}/{folder}metadata.parquet" for folder in folders]
    where: Any = {"data_dir": str(images)} if split else {"data_files": f"{images}/**"}
    loaded = datasets.load_dataset("imagefolder", **where, cache_dir=str(tmp_path / "hf"))
    assert isinstance(loaded, datasets.DatasetDict)
    assert list(loaded) == (["train", "validation"] if split else ["train"])
    found: list[Any] = [row for part in loaded.values() for row in part]
    assert sorted(row["label"] for row in found) == ["cat", "cat", "dog", "dog"]
    for row in found:
        assert (row["image"].height, row["image"].width) == (row["height"], row["width"])
        assert row["style_loss"] > 0
    tree = ImageFolder(images / split)
    assert tree.classes == ["cat", "dog"]
    assert len(tree) == (3 if split else 4)


def test_names_that_look_like_splits_make_none_in_an_image_folder(
    make_manifest: MakeManifest, pairs: list[Row], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    import datasets

    keys = ["train/1-test_pattern", "dog/ILSVRC2012_val_00000001", "dog/1-train_at_station", "dog/2"]
    rows = [
        {**row, "output": key, "label": key.partition("/")[0]} for row, key in zip(pairs, keys, strict=False)
    ]
    summary = run(make_manifest(rows), tmp_path / "out")
    images = tmp_path / "out" / "images"
    assert summary.annotations == [f"{images}/metadata.parquet"]
    loaded = datasets.load_dataset(
        "imagefolder", data_files=f"{images}/**", split="train", cache_dir=str(tmp_path / "hf")
    )
    assert isinstance(loaded, datasets.Dataset)
    assert sorted(row["label"] for row in loaded.to_list()) == ["dog", "dog", "dog", "train"]


def test_pictures_cannot_take_the_name_of_the_metadata(
    make_manifest: MakeManifest, pairs: list[Row], tmp_path: Path
) -> None:
    manifest = make_manifest([{**pairs[0], "output": "val/metadata.parquet/1"}])
    with pytest.raises(UsageError, match=r"'val/metadata\.parquet', a name of the run's own files"):
        run(manifest, tmp_path / "out")
