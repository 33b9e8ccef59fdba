"""Damaged pictures and manifests by the thousand: each gives a picture or a plan, or one error of ours.

    python -m tests.fuzz --minutes 10 [--seed 0]

Sound files of every kind are cut, spliced and overwritten; the decoder and the manifest reader get them in a process
that may not use more than MEMORY, take longer than SECONDS over one, print warnings, or die. A finding ends with the
case that shows it, kept in the working directory.
"""

from __future__ import annotations

import argparse
import io
import random
import re
import resource
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pyarrow as pa
import pyarrow.parquet as pq

from stylize_batch.errors import RowError, UsageError
from stylize_batch.images import decode as decoding
from stylize_batch.images.decode import decode
from stylize_batch.manifest.partition import check_and_partition
from stylize_batch.manifest.source import fingerprint, locate
from tests.images.samples import samples

MAX_PIXELS = 4_000_000
MEMORY = 6_000_000_000
SECONDS = 60.0
LIBTIFF = re.compile(rb"[\w.]+: .*\.|$")
"""What libtiff says of damage on stderr, which Pillow has no switch for: `Fax4Decode: Bad code word at line 16.`"""
EXTREMES = (
    b"\0\0\0\0",
    b"\xff\xff\xff\xff",
    b"\x7f\xff\xff\xff",
    b"\xff\xff\xff\x7f",
    b"\0\0\0\1",
    b"\1\0\0\0",
)


def manifests() -> dict[str, bytes]:
    """Return a small sound manifest of every shape."""
    plain = {"content": [f"c{row}" for row in range(40)], "style": ["s", "t"] * 20}
    listed = {
        "content": plain["content"],
        "style": [["s", "t"]] * 40,
        "style_weights": [[1.0, 3.0], None] * 20,
        "alpha": [0.5] * 40,
        "mask": [None] * 40,
        "output": [f"folder/{row}.png" for row in range(40)],
        "boxes": [[{"x": 1, "label": "cat"}]] * 40,
    }
    found: dict[str, bytes] = {}
    plain_table, listed_table = pa.table(plain), pa.table(listed)
    encoded = plain_table.set_column(0, "content", plain_table["content"].dictionary_encode())
    tables: list[tuple[str, pa.Table, dict[str, Any]]] = [
        ("plain", plain_table, {}),
        ("listed", listed_table, {"row_group_size": 7}),
        ("uncompressed", plain_table, {"compression": "none", "use_dictionary": False}),
        ("zstd", listed_table, {"compression": "zstd", "data_page_version": "2.0"}),
        ("dictionary", encoded, {}),
    ]
    for name, table, options in tables:
        sink = io.BytesIO()
        pq.write_table(table, sink, **options)
        found[name] = sink.getvalue()
    return found


def damaged(chance: random.Random, files: list[bytes]) -> bytes:
    """Return one of some files with one to eight damages."""
    data = bytearray(chance.choice(files))
    for _ in range(chance.choice((1, 1, 1, 2, 3, 8))):
        # Half of all damage hits where the structure is: the beginning, or a footer.
        near = min(len(data), 300)
        place = chance.choice(
            (
                chance.randrange(len(data) + 1),
                chance.randrange(near + 1),
                len(data) - chance.randrange(near + 1),
            )
        )
        length = chance.choice((1, 2, 4, 16, 200))
        match chance.randrange(7):
            case 0:
                data[place : place + 1] = bytes([chance.randrange(256)])
            case 1:
                data[place : place + 1] = bytes(
                    byte ^ 1 << chance.randrange(8) for byte in data[place : place + 1]
                )
            case 2:
                data[place : place + 4] = chance.choice(EXTREMES)
            case 3:
                del data[place : place + length]
            case 4:
                data[place:place] = chance.randbytes(length)
            case 5:
                other = chance.choice(files)
                start = chance.randrange(len(other))
                data[place : place + length] = other[start : start + length]
            case _:
                data = data[:place]
        if not data:
            break
    return bytes(data)


def one_line(error: Exception, outcome: str) -> str:
    """Return the outcome of an error that is one line."""
    assert str(error).isprintable(), str(error)
    return outcome


def try_picture(data: bytes) -> str:
    """Decode; return what became of it."""
    try:
        with patch.object(decoding, "MAX_PIXELS", MAX_PIXELS):
            found = decode(data)
    except RowError as error:
        return one_line(error, error.kind)
    assert found.ndim == 3
    assert found.shape[2] == 3
    assert 0 < found.shape[0] * found.shape[1] <= MAX_PIXELS
    return "picture"


def try_manifest(data: bytes, folder: Path) -> str:
    """Plan; return what became of it."""
    manifest, spill = folder / "m.parquet", folder / "spill"
    manifest.write_bytes(data)
    spill.mkdir(exist_ok=True)
    try:
        source = locate(str(manifest))
        fingerprint(source)
        check_and_partition(source, spill, "jpeg", None)
    except UsageError as error:
        if "m.parquet" not in str(error) and "row" not in str(error):
            raise AssertionError(f"names neither file nor row: {error}") from None
        return one_line(error, "refused")
    finally:
        for path in spill.iterdir():
            path.unlink()
    return "plan"


def work(seed: int, folder: Path) -> None:
    """Try case after case, each written to a file before; count what became of them."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    pictures, tables = list(samples().values()), list(manifests().values())
    counts: Counter[str] = Counter()
    chance = random.Random(seed)
    while True:
        of_pictures = chance.random() < 0.8
        data = damaged(chance, pictures if of_pictures else tables)
        (folder / "case").write_bytes((b"I" if of_pictures else b"M") + data)
        counts[try_picture(data) if of_pictures else try_manifest(data, folder)] += 1
        if counts.total() % 100 == 0:
            (folder / "counts").write_text(
                ", ".join(f"{count} {kind}" for kind, count in counts.most_common())
            )


def main() -> None:
    """Run the worker for so many minutes; exit 1 with the case it failed on."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--again", type=Path, help="try one kept case again, in this process")
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.work:
        return work(options.seed, options.work)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if options.again:
            kind, data = options.again.read_bytes()[:1], options.again.read_bytes()[1:]
            print(try_picture(data) if kind == b"I" else try_manifest(data, folder))
            return None
        print(f"seed {options.seed}")
        error = watch(folder, options.seed, time.monotonic() + 60 * options.minutes)
        counts = folder / "counts"
        print(counts.read_text() if counts.exists() else "no case was finished")
        if error:
            kept = Path(f"fuzz-{options.seed}.case")
            kept.write_bytes((folder / "case").read_bytes())
            sys.exit(f"{error}\nkept as {kept}; again with: python -m tests.fuzz --again {kept}")
    return None


def watch(folder: Path, seed: int, until: float) -> str | None:
    """Run the worker until a time; return what was wrong, if anything."""
    printed = folder / "printed"
    with printed.open("wb") as sink:
        command = [sys.executable, "-m", "tests.fuzz", "--work", str(folder), "--seed", str(seed)]
        worker = subprocess.Popen(command, stdout=sink, stderr=sink)
    try:
        case = folder / "case"
        while time.monotonic() < until:
            time.sleep(0.5)
            if worker.poll() is not None:
                return f"the process ended with {worker.returncode}: {printed.read_text(errors='replace')[-3000:]}"
            if case.exists() and time.time() - case.stat().st_mtime > SECONDS:
                return f"one case takes longer than {SECONDS:.0f} s"
            strange = [line for line in printed.read_bytes().splitlines() if not LIBTIFF.match(line)]
            if strange:
                time.sleep(1)  # a traceback comes in pieces
                return f"something was printed: {printed.read_text(errors='replace')[-3000:]}"
    finally:
        worker.kill()
        worker.wait()
    return None


if __name__ == "__main__":
    main()
