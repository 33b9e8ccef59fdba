"""The page: a run's numbers and pictures laid out by the template `page.html`, styled by `page.css`, moved by `page.js`.

Everything a run's names and labels could smuggle in is escaped by the template engine; the page's policy lets nothing
run but its own script, and nothing load at all.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
import posixpath
from collections.abc import Iterable
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

import numpy as np
from jinja2 import Environment, StrictUndefined, Template

from stylize_batch.errors import KINDS, counted
from stylize_batch.images.decode import SUFFIXES
from stylize_batch.layout.reading import PictureReader, address, in_container
from stylize_batch.manifest.schema import RESULT_COLUMNS
from stylize_batch.report.charts import digits, histogram, moment, rate
from stylize_batch.report.numbers import LOSSES, Groups, RunNumbers
from stylize_batch.report.selection import RANKED, Row
from stylize_batch.report.thumbnails import make_thumbnails
from stylize_batch.results import read_parts
from stylize_batch.root import Root
from stylize_batch.storage import absolute, is_uri

SHOWN_STYLES = 3
"""Styles of a pair whose pictures are shown: the first."""

SHOWN_GROUPS = 300
"""Lines of a table of styles or labels."""

SHOWN_COLUMNS = 30
"""Carried columns of a pair that are shown: the first."""

MAX_TEXT = 400
"""Characters of a value, in the middle of which more are left out."""

MAX_CARRIED = 3000
"""Characters of all carried values of a pair, to which each column has the same right."""

MAX_LABEL = 100
"""Characters of a value in tables and filters, and of a column's name."""

MAX_PAGE = 9_500_000
"""Bytes that are shared out, of the 10 MB: thumbnails get what text leaves, and what they are called by needs some."""

NAMES = {
    "content_loss": "Content loss",
    "style_loss": "Style loss",
    "content_distance": "Content distance",
}
MEANINGS = {
    "content_loss": "from AdaIN’s target to the picture, in features (Eq. 12)",
    "style_loss": "from the style to the picture, in feature statistics (Eq. 13)",
    "content_distance": "from the photograph to the picture, in features (Fig. 3)",
}


class Run(NamedTuple):
    """What run.json says of a run.

    Attributes:
        identity: of the run, in its results parts.
        pairs: rows of the manifest; 0 until they are counted.
        finished: whether the run was.
        base: folder that relative image paths start from.
        home: the output root while the run was at work, with a `/` at its end; it may have been moved since.
        settings: shown as they are.
    """

    identity: str
    pairs: int
    finished: bool
    base: str
    home: str
    settings: dict[str, str]


def make_report(root: Root, run: Run) -> bytes:
    """Make report.html from the results that are there; an unfinished run has fewer.

    Raises:
        OSError: the results cannot be read.
    """
    numbers = RunNumbers(read_parts(root, run.identity))
    text = _render(numbers, _Images([], run, root, 0), run, root)
    room = (MAX_PAGE - len(text)) * 3 // 4  # base64 makes a third more of it
    return _render(numbers, _Images(numbers.selection.rows(), run, root, room), run, root)


def _render(numbers: RunNumbers, images: _Images, run: Run, root: Root) -> bytes:
    selection = numbers.selection
    pairs = selection.rows()
    places = {row["pair_id"]: place for place, row in enumerate(pairs)}

    def at(rows: Iterable[Row]) -> list[int]:
        return [places[row["pair_id"]] for row in rows]

    meanings: dict[str, str] = {**KINDS}
    described = [_described(row, images, root) for row in pairs]
    page = _template().render(
        css=_file("page.css"),
        js=_file("page.js"),
        policy=_policy(),
        title=posixpath.basename(root.uri.rstrip("/")) or root.uri,
        run=run,
        finished=run.finished and numbers.totals.pairs == run.pairs,  # parts may have been lost since
        totals=numbers.totals,
        model=pairs[0]["model"] if pairs else None,
        last=moment(max(time for time, _ in numbers.finished)) if numbers.finished else None,
        losses=[
            (NAMES[name], MEANINGS[name], chart, numbers.losses[name].mean)
            for name in LOSSES
            if (chart := histogram(numbers.losses[name]))
        ],
        rate=rate(numbers.finished),
        failures=[
            (kind, count, meanings.get(kind, ""), at(selection.failed[kind].rows))
            for kind, count in numbers.totals.kinds.most_common()
        ],
        extremes=[
            (NAMES[name], end, at(kept[name].rows))
            for name in RANKED
            for end, kept in (("lowest", selection.lowest), ("highest", selection.highest))
            if numbers.losses[name].count > 1
        ],
        pairs=described,
        sample=len(selection.sample.rows),
        filters=_filters(described, ["style", *map(_label, numbers.columns())]),
        groups=_tables(numbers, images),
        images=images.encoded,
        problems=images.problems,
        names_of=NAMES,
    )
    return page.encode(errors="replace")  # a root that was moved may have a path that is not UTF-8


class _Images:
    """The thumbnails of the pairs that are shown.

    Only images of ok rows are opened: one that a failed row names may be what ended the process that opened it.

    Attributes:
        encoded: base64 of each thumbnail, in the order the page numbers them by.
        problems: why there is no thumbnail of an image, by its URI.
    """

    def __init__(self, pairs: list[Row], run: Run, root: Root, room: int) -> None:
        locate = self.locate = lambda uri: _moved(absolute(uri, run.base), run.home, root.uri_of(""))
        ok = [row for row in pairs if row["status"] == "ok"]
        pictures = dict.fromkeys(locate(address(row["output"], row["pair_id"])) for row in ok)
        sources = dict.fromkeys(
            locate(uri) for row in ok for uri in (row["content"], *row["style"][:SHOWN_STYLES])
        )
        made = make_thumbnails(pictures, sources, PictureReader().read, room)
        self.problems = {uri: _shortened(found) for uri, found in made.items() if isinstance(found, str)}
        thumbnails = {uri: found for uri, found in made.items() if isinstance(found, bytes)}
        self.encoded = [base64.b64encode(found).decode() for found in thumbnails.values()]
        self._places = {uri: place for place, uri in enumerate(thumbnails)}

    def place(self, uri: str) -> int | None:
        """Return the number of an image's thumbnail, if there is one."""
        return self._places.get(self.locate(uri))

    def problem(self, uri: str) -> str | None:
        """Return why an image that was to be shown is not."""
        return self.problems.get(self.locate(uri))


def _described(row: Row, images: _Images, root: Root) -> dict[str, Any]:
    """Return what the page says of a pair: all of it strings, finite numbers and None."""

    def image(uri: str) -> dict[str, Any]:
        located = images.locate(uri)
        return {
            "name": _shortened(_name(uri)),
            "uri": _shortened(uri),
            "link": _link(located, root),
            "image": images.place(uri),
            "problem": images.problem(uri),
        }

    styles: list[str] = row["style"]
    names = [name for name in row if name not in RESULT_COLUMNS]
    shown = names[:SHOWN_COLUMNS]
    most = min(MAX_TEXT, MAX_CARRIED // max(len(shown), 1))
    carried = {_label(name): _shortened(_text(row[name]), most) for name in shown if row[name] is not None}
    if len(names) > len(shown):
        carried["…"] = f"{counted(len(names) - len(shown), 'more column')}, in the results"
    kind, _, reason = (row["error"] or "").partition(": ")
    return {
        "id": row["pair_id"],
        "status": row["status"],
        "kind": kind or None,
        "reason": _shortened(reason) or None,
        "content": image(row["content"]),
        "styles": [image(uri) for uri in styles[:SHOWN_STYLES]],
        "more": [_shortened(uri) for uri in styles[SHOWN_STYLES:]],
        "output": image(address(row["output"], row["pair_id"])) if row["output"] else None,
        "losses": {name: _finite(row[name]) for name in LOSSES},
        "size": [row["width"], row["height"]] if row["width"] else None,
        "columns": {
            "style": " + ".join(_shortened(uri) for uri in styles),
            "alpha": "" if row["alpha"] is None else _text(row["alpha"]),
            **carried,
        },
    }


def _filters(pairs: list[dict[str, Any]], names: Iterable[str]) -> list[tuple[str, list[str]]]:
    """Return the values of each column that the pairs shown can be told apart by, if they are short as a rule."""
    found: list[tuple[str, list[str]]] = []
    for name in names:
        values = {pair["columns"].get(name) or "" for pair in pairs}
        short = sum(map(len, values)) <= MAX_LABEL * len(values)
        if len(values) > 1 and (name == "style" or short):
            found.append((name, sorted(values)))
    return found


def _tables(numbers: RunNumbers, images: _Images) -> list[dict[str, Any]]:
    """Return a table for the styles and for each column that groups rows."""
    grouped: dict[str, Groups] = {"style": numbers.styles, **numbers.columns()}
    return [
        {
            "name": _label(name),
            "total": len(groups),
            "overflow": groups.overflow,
            "rows": [
                {
                    **group._asdict(),
                    "value": group.value
                    and _shortened(group.value, MAX_TEXT if name == "style" else MAX_LABEL),
                    "image": images.place(group.value) if name == "style" and group.value else None,
                }
                for group in groups.most(SHOWN_GROUPS)
            ],
        }
        for name, groups in grouped.items()
        if len(groups)
    ]


def _moved(uri: str, home: str, now: str) -> str:
    """Return where a picture lies now if the output root has been moved since the run."""
    member, chained, path = uri.rpartition("::") if uri.startswith("tar://") else ("", "", uri)
    return member + chained + now + path[len(home) :] if path.startswith(home) else uri


def _link(uri: str, root: Root) -> str | None:
    """Return what a browser opens an image by: a path from the page for what lies below the root, so that both can be
    moved and served together; None for what no browser opens."""
    below = root.uri_of("")
    if in_container(uri):
        return None
    if uri.startswith(below):
        return quote(uri[len(below) :])
    if uri.startswith(("http://", "https://")):
        return uri
    return Path(uri).as_uri() if root.local and not is_uri(uri) else None


def _name(uri: str) -> str:
    """Return what people call an image: the end of its path, without what says that it is an image."""
    path = uri.partition("::")[0] if uri.startswith("tar://") else uri
    name = path.rstrip("/").rsplit("/", 1)[-1]
    stem, extension = posixpath.splitext(name)
    return stem if extension.lower() in SUFFIXES else name


def _text(value: object) -> str:
    """Write a carried value: text as it is, numbers, lists and structures as JSON."""
    if isinstance(value, float):
        with np.errstate(over="ignore"):
            single = np.float32(value)  # whose shortest decimal is what was written, where it is one
        is_one = float(single) == value and not value.is_integer()
        return str(single if is_one else value).removesuffix(".0")
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def _shortened(text: str, most: int = MAX_TEXT) -> str:
    half = most // 2
    return text if len(text) <= most else f"{text[:half]} … {text[-half:]}"


def _label(name: str) -> str:
    return _shortened(name, MAX_LABEL)


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def _policy() -> str:
    """Return the page's Content-Security-Policy: its own script and style by their hashes, embedded images, no more."""
    script, style = (
        base64.b64encode(hashlib.sha256(_file(name).encode()).digest()).decode()
        for name in ("page.js", "page.css")
    )
    return (
        f"default-src 'none'; img-src data:; script-src 'sha256-{script}'; style-src 'sha256-{style}'; "
        "base-uri 'none'; form-action 'none'"
    )


@cache
def _file(name: str) -> str:
    return resources.files(__package__ or "").joinpath(name).read_text("utf-8")


@cache
def _template() -> Template:
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.policies["json.dumps_kwargs"] = {"allow_nan": False, "ensure_ascii": False}
    environment.filters.update(digits=digits, name=_name)
    return environment.from_string(_file("page.html"))
