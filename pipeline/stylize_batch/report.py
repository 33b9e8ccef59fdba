"""report.html: a run's totals and a contact sheet of its pairs, in one file without outside requests."""

from __future__ import annotations

import base64
import html
from collections.abc import Iterator
from typing import Any

from stylize_batch.errors import RowError, SystemicError
from stylize_batch.images.decode import decode
from stylize_batch.images.encode import encode
from stylize_batch.results import read_results
from stylize_batch.storage import Root, absolute, read_bytes

KEY = "report.html"
MAX_PAIRS = 60
"""Pairs on the contact sheet: the first of the results."""

THUMBNAIL = 160
"""Shorter side of a thumbnail, pixels."""

_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width">
<title>{title}</title>
<style>
:root {{ color-scheme: light dark; font: 16px/1.5 system-ui, sans-serif }}
body {{ margin: 0 auto; max-width: 72rem; padding: 1rem }}
dl {{ display: flex; flex-wrap: wrap; gap: .5rem 2rem }} dt {{ opacity: .7 }} dd {{ margin: 0; font-weight: 600 }}
main {{ display: grid; gap: 1rem; grid-template-columns: repeat(auto-fill, minmax(20rem, 1fr)) }}
figure {{ margin: 0; padding: .5rem; border: 1px solid #8886; border-radius: .5rem }}
figure div {{ display: grid; grid-template-columns: 1fr 1fr 2fr; gap: .25rem; align-items: center }}
img {{ width: 100%; border-radius: .25rem }}
figcaption {{ font-size: .8rem; overflow-wrap: anywhere }} .failed {{ color: #c33 }}
</style></head><body>
<h1>{title}</h1><dl>{totals}</dl><main>
{pairs}
</main></body></html>
"""


def write_report(root: Root, totals: dict[str, Any], base: str) -> None:
    """Write report.html.

    Args:
        root: of the run.
        totals: fields of the run's summary.
        base: folder that relative image paths start from.
    """
    shown = ("pairs", "ok", "failed", "images_per_second", "mean_content_loss", "mean_style_loss")
    cells = "".join(f"<div><dt>{_label(key)}</dt><dd>{_text(totals[key])}</dd></div>" for key in shown)
    kinds = "".join(
        f"<div><dt>{_text(kind)}</dt><dd>{count}</dd></div>" for kind, count in totals["kinds"].items()
    )
    thumbnails = _Thumbnails(base)
    pairs = "\n".join(_figure(row, thumbnails) for row in _rows(root))
    name = root.uri.rstrip("/").rsplit("/", 1)[-1]
    page = _PAGE.format(title=_text(name), totals=cells + kinds, pairs=pairs)
    root.put(KEY, page.encode())


def _rows(root: Root) -> Iterator[dict[str, Any]]:
    shown = 0
    for table in read_results(root):
        for row in table.slice(0, MAX_PAIRS - shown).to_pylist():
            yield row
            shown += 1
        if shown >= MAX_PAIRS:
            return


def _figure(row: dict[str, Any], thumbnails: _Thumbnails) -> str:
    names = " + ".join(uri.rsplit("/", 1)[-1] for uri in row["style"])
    caption = row["content"].rsplit("/", 1)[-1] + (f" × {names}" if names else ", as it is")
    if row["alpha"] not in (None, 1):
        caption += f", α = {row['alpha']:.2g}"
    if row["status"] != "ok":
        return (
            f'<figure><figcaption>{_text(caption)}<br><span class="failed">{_text(row["error"])}</span>'
            "</figcaption></figure>"
        )
    if row["style_loss"] is not None:
        caption += f" — content loss {row['content_loss']:.2f}, style loss {row['style_loss']:.2f}"
    pictures = "".join(thumbnails.image(uri) for uri in (row["content"], *row["style"][:1], row["output"]))
    return f"<figure><div>{pictures}</div><figcaption>{_text(caption)}</figcaption></figure>"


class _Thumbnails:
    """Makes each image's thumbnail once."""

    def __init__(self, base: str) -> None:
        self._base = base
        self._made: dict[str, str] = {}

    def image(self, uri: str) -> str:
        if uri not in self._made:
            try:
                small = decode(read_bytes(absolute(uri, self._base)), size=THUMBNAIL)
                data = base64.b64encode(encode(small, "jpeg", 80)).decode()
                self._made[uri] = f'<img alt="{_text(uri)}" src="data:image/jpeg;base64,{data}">'
            except (RowError, SystemicError) as error:
                self._made[uri] = f"<span>{_text(error)}</span>"
        return self._made[uri]


def _label(key: str) -> str:
    return key.replace("_", " ")


def _text(value: object) -> str:
    if value is None:
        return "–"
    return html.escape(f"{value:.3f}" if isinstance(value, float) else str(value))
