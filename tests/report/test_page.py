"""The page: every name inert, every picture linked as far as it can be, and honest about what it leaves out."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Collection, Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from stylize_batch.report import page as pages
from stylize_batch.report import thumbnails
from stylize_batch.report.page import Run, make_report
from stylize_batch.results import Outcome
from stylize_batch.root import Root
from tests.conftest import Row
from tests.report.roots import RUN, make_root, row

HOSTILE = (
    '"><script>alert(1)<',
    "' onerror='alert(1)' x='",
    "<img src=x onerror=alert(1)>",
    "&lt;b&gt;\u202e",
    "</script><script>alert(1)//",
    "{{ 7 * 7 }}{% raw %}",
    "line\u2028break",
)


class Page(HTMLParser):
    """What a browser makes of the page: every element with its attributes, the text, the data for the script."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.data: dict[str, Any] = {}
        self.code = {"script": "", "style": ""}
        self._inside: tuple[str, dict[str, str | None]] = ("", {})
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self._inside = self.elements[-1]

    def handle_endtag(self, tag: str) -> None:
        self._inside = ("", {})

    def handle_data(self, data: str) -> None:
        tag, attributes = self._inside
        if tag == "script" and "id" in attributes:
            self.data[str(attributes["id"])] = json.loads(data)
        elif tag in self.code:
            self.code[tag] += data
        else:
            self.text += data

    def having(self, name: str) -> list[str]:
        """The values of an attribute, wherever it stands."""
        return [str(attributes[name]) for _, attributes in self.elements if name in attributes]


def report(root: Root, base: Path | str, **known: Any) -> Page:
    run = Run(RUN, 0, True, str(base), root.uri_of(""), {"model": "m"})._replace(**known)
    return Page(make_report(root, run).decode())


def made(**losses: float) -> Outcome:
    return Outcome(
        None,
        losses.get("content", 1.0),
        losses.get("style", 2.0),
        losses.get("distance", 3.0),
        48,
        64,
    )


@pytest.fixture
def rows(pictures: Path, contents: list[str], tmp_path: Path) -> Sequence[Row]:
    """Four rows with a picture below the root, and one that failed."""
    found: list[Row] = []
    for place, content in enumerate(contents[:4]):
        picture = tmp_path / "out" / "images" / f"a b%20c#{place}.jpg"
        picture.parent.mkdir(parents=True, exist_ok=True)
        picture.write_bytes(Path(content).read_bytes())
        style = "style/tapa-cloth.jpg" if place % 2 else "style/morisot-daffodils.jpg"
        name = Path(content).relative_to(pictures).as_posix()
        found.append(
            row(name, [style], made(style=place + 1.5), str(picture), split="val" if place else "train")
        )
    return [*found, row("absent.jpg", ["style/tapa-cloth.jpg"], Outcome(error="NotFound: gone"), split="val")]


def test_hostile_names_labels_and_errors_stay_text(
    pictures: Path, rows: Sequence[Row], tmp_path: Path
) -> None:
    hostile = [
        {
            **rows[0],
            "content": f"content/{name}.jpg",
            "style": [name],
            "split": name,
            "outcome": Outcome(error=f"NotFound: {name}"),
        }
        for name in HOSTILE
    ]
    out = tmp_path / HOSTILE[2]
    page = report(make_root(out, [[*rows, *hostile]], pictures), pictures)
    assert {tag for tag, _ in page.elements}.isdisjoint({"iframe", "object", "embed", "link", "base"})
    assert len([tag for tag, _ in page.elements if tag == "script"]) == 3
    assert not [name for _, attributes in page.elements for name in attributes if name.startswith("on")]
    assert not page.having("style")
    for name in HOSTILE:
        assert name in page.text
    assert {pair["columns"]["split"] for pair in page.data["pair-data"]} >= set(HOSTILE)


def test_the_policy_lets_nothing_run_or_load_but_the_page_itself(
    pictures: Path, rows: Sequence[Row], tmp_path: Path
) -> None:
    page = report(make_root(tmp_path / "out", [rows], pictures), pictures)
    (policy,) = [value for value in page.having("content") if "default-src" in value]
    hashes = {
        f"{tag}-src 'sha256-{base64.b64encode(hashlib.sha256(code.encode()).digest()).decode()}'"
        for tag, code in page.code.items()
    }
    assert set(policy.split("; ")) == {
        *hashes, "default-src 'none'", "img-src data:", "base-uri 'none'", "form-action 'none'",
    }  # fmt: skip
    assert not page.having("src")
    assert not re.findall(r"url\((?!#)|@import", page.code["style"])


def test_pictures_are_embedded_once_and_linked_from_where_the_page_lies(
    pictures: Path, rows: Sequence[Row], tmp_path: Path
) -> None:
    elsewhere = {**rows[1], "content": "memory://bucket/cat.jpg"}
    page = report(make_root(tmp_path / "out", [[*rows, elsewhere]], pictures), pictures)
    pairs = {pair["content"]["uri"]: pair for pair in page.data["pair-data"]}
    assert pairs["memory://bucket/cat.jpg"]["content"]["link"] is None
    first = pairs[rows[0]["content"]]
    assert first["output"]["link"] == "images/a%20b%2520c%230.jpg"
    assert first["content"]["link"] == (pictures / rows[0]["content"]).as_uri()
    images = page.data["image-data"]
    assert len(images) == 10  # 4 contents, 2 styles, 4 outputs
    assert base64.b64decode(images[first["output"]["image"]])[8:12] == b"WEBP"
    assert {int(place) for place in page.having("data-image")} == set(range(10))


def test_a_root_that_was_moved_still_shows_its_pictures(
    pictures: Path, rows: Sequence[Row], tmp_path: Path
) -> None:
    home = make_root(tmp_path / "out", [rows], pictures).uri_of("")
    for place in ("out", "moved", "not UTF-8 \udcff"):
        (tmp_path / "out").rename(tmp_path / place)
        page = report(Root(str(tmp_path / place)), pictures, home=home)
        assert len(page.data["image-data"]) == 10
        (tmp_path / place).rename(tmp_path / "out")


def test_images_that_only_failed_rows_name_are_never_opened(
    pictures: Path, rows: Sequence[Row], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    died = row(
        "content/deadly.jpg", ["style/deadly.jpg"], Outcome(error="WorkerDied: without a word"), split="x"
    )
    opened: list[str] = []

    def read(uri: str) -> bytes:
        opened.append(uri)
        return Path(uri).read_bytes()

    monkeypatch.setattr("stylize_batch.layout.reading.read_bytes", read)
    report(make_root(tmp_path / "out", [[*rows, died]], pictures), pictures)
    assert len(opened) == 10
    assert not [uri for uri in opened if "deadly" in uri]


def test_a_damaged_picture_is_shown_as_such_and_the_rest_of_the_page_is_there(
    pictures: Path, rows: Sequence[Row], tmp_path: Path
) -> None:
    picture = Path(rows[1]["picture"])
    picture.write_bytes(picture.read_bytes()[:300])
    page = report(make_root(tmp_path / "out", [rows], pictures), pictures)
    (damaged,) = [pair for pair in page.data["pair-data"] if pair["output"] and pair["output"]["problem"]]
    assert damaged["output"]["problem"].startswith("Undecodable")
    assert damaged["output"]["image"] is None
    assert "not read" in page.text
    assert "1 image could not be shown" in page.text
    assert len(page.data["image-data"]) == 9


def test_rows_without_styles_losses_or_with_many_styles_are_shown(
    pictures: Path, rows: Sequence[Row], tmp_path: Path
) -> None:
    picture = rows[0]["picture"]
    styles = [f"style/{name.name}" for name in sorted((pictures / "style").iterdir())]
    other = [
        row("content/cat.jpg", [], Outcome(height=48, width=64), picture, alpha=None),
        row("content/cat.jpg", styles, Outcome(height=48, width=64), picture),
    ]
    page = report(make_root(tmp_path / "out", [other], pictures), pictures)
    original, blend = sorted(page.data["pair-data"], key=lambda pair: len(pair["styles"]))
    assert (original["styles"], original["losses"]["style_loss"], original["columns"]["alpha"]) == (
        [],
        None,
        "",
    )
    assert (len(blend["styles"]), len(blend["more"])) == (3, 2)
    assert "kept as it is" in page.text
    assert "Style loss" not in page.text


def test_parts_of_another_run_and_damaged_parts_are_no_part_of_the_report(
    pictures: Path, rows: Sequence[Row], tmp_path: Path
) -> None:
    root = make_root(tmp_path / "out", [rows[:2], rows[2:]], pictures)
    root.put("results/part-000001.parquet", b"")
    for finished in (False, True):  # the part may have been damaged after the run
        page = report(root, pictures, finished=finished, pairs=5)
        assert len(page.data["pair-data"]) == 2
        assert "Unfinished: 2 of 5 pairs so far" in " ".join(page.text.split())
    assert not report(root, pictures, identity="another", finished=False).data["pair-data"]


def test_a_single_pair_is_told_of_in_the_singular(
    pictures: Path, rows: Sequence[Row], tmp_path: Path
) -> None:
    root = make_root(tmp_path / "out", [rows[4:]], pictures)
    for finished, said in ((True, "1 pair, the last"), (False, "1 of 1 pair so far")):
        page = " ".join(report(root, pictures, finished=finished, pairs=1).text.split())
        assert said in page
        assert "1 pairs" not in page


def test_filters_offer_the_values_of_the_pairs_shown_and_tables_say_what_they_cut(
    pictures: Path, rows: Sequence[Row], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pages, "SHOWN_GROUPS", 1)
    long = {**rows[0], "content": "content/long.jpg", "split": "long" * 50}  # one hides no filter
    page = report(make_root(tmp_path / "out", [[*rows, long]], pictures), pictures)
    assert page.having("data-column") == ["style", "split"]
    assert {"=train", "=val", "=style/tapa-cloth.jpg"} <= set(page.having("value"))
    assert "1 of 2: those with the most failures, then the most pairs" in " ".join(page.text.split())


@pytest.mark.parametrize("letter", ["<", "画"])
def test_columns_of_long_texts_do_not_make_a_large_page(
    letter: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(pictures: Collection[str], sources: object, read: object, room: int) -> dict[str, bytes]:
        return {uri: bytes(min(thumbnails.BYTES, room)) for uri in list(pictures)[:1]}

    monkeypatch.setattr(pages, "make_thumbnails", full)
    labels = [letter * 3000 + str(number) for number in range(200)]
    many = {f"{letter * 300}{place}": letter * 300 for place in range(40)}
    rows = [
        row(
            f"{place}.jpg",
            ["style"],
            made(),
            "x.jpg",
            **{f"c{n}": labels[place // 3] for n in range(8)},
            **many,
        )
        for place in range(600)
    ]
    root = make_root(tmp_path / "out", [rows], tmp_path)
    html = make_report(root, Run(RUN, 600, True, "", root.uri_of(""), {}))
    assert len(html) < 10_000_000
    page = Page(html.decode())
    assert len(page.data["image-data"][0]) > 1_000_000
    columns = page.data["pair-data"][0]["columns"]
    assert columns["…"] == "18 more columns, in the results"
    assert columns["c0"].startswith(letter * 50 + " … ")


@pytest.mark.filterwarnings("error")
def test_carried_numbers_are_written_as_exactly_as_they_are(
    pictures: Path, rows: Sequence[Row], tmp_path: Path
) -> None:
    values = {123456789.0: "123456789", 16777216.0: "16777216", 1730000000.25: "1730000000.25",
              1e300: "1e+300", 0.30000000000000004: "0.30000000000000004", -0.5: "-0.5"}  # fmt: skip
    found = [{**rows[0], "content": f"content/{value}.jpg", "number": value} for value in values]
    page = report(make_root(tmp_path / "out", [found], pictures), pictures)
    assert {pair["columns"]["number"] for pair in page.data["pair-data"]} == set(values.values())
