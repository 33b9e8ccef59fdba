"""Small copies of the pictures a page shows, each made once, by a few threads and within a limit of time and bytes."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Collection
from concurrent.futures import Future
from concurrent.futures import TimeoutError as TimedOut
from contextlib import suppress

from stylize_batch.errors import RowError, SystemicError
from stylize_batch.images.decode import decode, sides_of
from stylize_batch.images.encode import encode
from stylize_batch.storage import read_bytes

BYTES = 6_500_000
"""All thumbnails of a page together, at most; base64 makes a third more of them."""

SECONDS = 120.0
"""Time for all of them: a run whose work is done shall not wait for storage that answers slowly."""

THREADS = 8
QUALITY = 76
BYTES_PER_PIXEL = 0.28
"""What WebP of that quality takes for stylized pictures at most, about."""

LARGEST, SMALLEST = 420, 128
"""Sides of the square a picture is fitted into, pixels."""

SOURCE_SCALE = 0.6
"""Side of photographs and styles ÷ side of the pictures made of them."""


def make_thumbnails(
    pictures: Collection[str],
    sources: Collection[str],
    read: Callable[[str], bytes] = read_bytes,
    room: int = BYTES,
) -> dict[str, bytes | str]:
    """Make thumbnails: WebP bytes by URI, or a line that says why there are none.

    Args:
        pictures: URIs of what the run made.
        sources: URIs of photographs and styles, shown smaller.
        read: gets the bytes of an image.
        room: bytes left on the page, should they be fewer than `BYTES`.
    """
    left = min(BYTES, room)
    side = _side(len(pictures), len(sources), left)
    sides = dict.fromkeys(pictures, side)
    for uri in sources:
        sides.setdefault(uri, round(side * SOURCE_SCALE))
    deadline = time.monotonic() + SECONDS
    waiting: dict[str, Future[bytes]] = {uri: Future() for uri in sides}
    left_to_do = deque(sides.items())

    def work() -> None:
        with suppress(IndexError):
            while True:
                uri, size = left_to_do.popleft()
                try:
                    waiting[uri].set_result(_thumbnail(uri, size, read))
                except Exception as error:
                    waiting[uri].set_exception(error)

    for _ in range(THREADS):  # those of a pool would be waited for at the process's end
        threading.Thread(target=work, name="thumbnail", daemon=True).start()
    try:
        made: dict[str, bytes | str] = {}
        for uri, future in waiting.items():
            found = _result(future, deadline)
            if isinstance(found, bytes):
                if len(found) > left:
                    found = "left out, the page is full"
                else:
                    left -= len(found)
            made[uri] = found
        return made
    finally:
        left_to_do.clear()


def _side(pictures: int, sources: int, room: int) -> int:
    """Return the side that fills the room: few pictures are shown large."""
    areas = pictures + sources * SOURCE_SCALE**2
    fitting = (max(room, 0) / (BYTES_PER_PIXEL * max(areas, 1))) ** 0.5
    return round(min(max(fitting, SMALLEST), LARGEST))


def _result(future: Future[bytes], deadline: float) -> bytes | str:
    try:
        return future.result(max(0.0, deadline - time.monotonic()))
    except (RowError, SystemicError) as error:
        return str(error)
    except TimedOut:
        return "left out, storage answers too slowly"


def _thumbnail(uri: str, side: int, read: Callable[[str], bytes]) -> bytes:
    data = read(uri)
    short, long = sides_of(data)
    scale = min(1.0, side / long)
    return encode(decode(data, size=max(1, round(short * scale))), "webp", QUALITY)
