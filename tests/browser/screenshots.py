"""Photograph a report for the README: desktop, dark, and phone.

make screenshots
"""

from __future__ import annotations

import argparse
import io
from pathlib import Path

from PIL import Image

from tests.browser.chromium import DESKTOP, PHONE, chromium

DOCS = Path(__file__).parents[2] / "docs"
MAX_BYTES = 400_000


def main() -> None:
    """Write docs/report.jpg, report-dark.jpg and report-phone.jpg."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("output", type=Path, help="output root of a run")
    page = parser.parse_args().output.resolve() / "report.html"
    with chromium() as browser:
        for name, size, dark, height in (
            ("report", DESKTOP, False, 1160),
            ("report-dark", DESKTOP, True, 1160),
            ("report-phone", PHONE, False, 1400),
        ):
            browser.open(page, size, dark=dark, scale=1.25)
            data = io.BytesIO()
            Image.open(io.BytesIO(browser.photograph(height))).convert("RGB").save(data, "JPEG", quality=82)
            assert data.tell() < MAX_BYTES, f"{name} takes {data.tell()} bytes"
            (DOCS / f"{name}.jpg").write_bytes(data.getvalue())


if __name__ == "__main__":
    main()
