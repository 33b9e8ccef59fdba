"""Pack training images into one file that travels: reduced, re-encoded, in a tar.

    python jobs/train/pack.py PHOTOGRAPHS PAINTINGS -o training-images.tar
    tar xf training-images.tar && stylize-batch train RECIPE --contents content --styles style

Folders and names are kept, so that groups and held-out images stay what they are.
"""

from __future__ import annotations

import argparse
import io
import sys
import tarfile
from concurrent.futures import ThreadPoolExecutor

from stylize_batch.errors import RowError, SystemicError, UsageError
from stylize_batch.images.decode import SUFFIXES, decode, sides_of
from stylize_batch.images.encode import encode
from stylize_batch.listing import list_files
from stylize_batch.root import replacing
from stylize_batch.storage import absolute, read_bytes


def reduce(uri: str, side: int, quality: int) -> bytes | None:
    """Return an image as a JPEG whose shorter side is at most `side`, or None if it cannot be decoded."""
    try:
        data = read_bytes(uri)
        return encode(decode(data, size=side if min(sides_of(data)) > side else None), "jpeg", quality)
    except RowError as error:
        print(f"skipped {uri}: {error}")
        return None


def main() -> None:
    """Write the tar, images in the order of their names."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("contents")
    parser.add_argument("styles")
    parser.add_argument("-o", "--output", required=True)
    parser.add_argument(
        "--side", type=int, default=320, help="shorter side, pixels; 512 for paper.yaml (default: 320)"
    )
    parser.add_argument("--quality", type=int, default=85, help="of the JPEGs")
    options = parser.parse_args()
    folders = {"content": options.contents, "style": options.styles}
    roots = {kind: absolute(folder).rstrip("/") + "/" for kind, folder in folders.items()}
    listed = {kind: list_files(root, SUFFIXES) for kind, root in roots.items()}
    for kind, files in listed.items():
        if not files:
            raise UsageError(f"no images in {roots[kind]}; expected {', '.join(SUFFIXES)} files")
    with replacing(options.output) as path:
        with tarfile.open(path, "w") as tar, ThreadPoolExecutor() as threads:
            for kind, files in listed.items():
                made = threads.map(lambda uri: reduce(uri, options.side, options.quality), files)
                for uri, data in zip(files, made, strict=True):
                    if data is not None:
                        # The name as it is: training tells kinds of files by their content.
                        member = tarfile.TarInfo(f"{kind}/{uri.removeprefix(roots[kind])}")
                        member.size = len(data)
                        tar.addfile(member, io.BytesIO(data))
        size = path.stat().st_size
    print(f"{options.output}: {size / 2**20:.1f} MiB")


if __name__ == "__main__":
    try:
        main()
    except (OSError, UsageError, SystemicError) as error:
        sys.exit(f"error: {error}")
