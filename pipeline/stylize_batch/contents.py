"""Loading a shard's images: contents, fetched and decoded ahead, with their masks; styles that are to be re-coloured."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import lru_cache
from typing import NamedTuple

import pyarrow as pa
import torch
from torch import Tensor

from stylize_batch.ahead import begun_ahead
from stylize_batch.errors import RowError
from stylize_batch.images.decode import Array, decode_whole, resized, sides_of
from stylize_batch.images.mask import decode_mask, visible_part
from stylize_batch.manifest.schema import string_lists
from stylize_batch.model.architecture import MIN_SIDE
from stylize_batch.model.color import Colors, colors
from stylize_batch.model.device import lacks_memory
from stylize_batch.settings import WorkerSettings
from stylize_batch.stopwatch import Stopwatch
from stylize_batch.storage import absolute, read_bytes
from stylize_batch.styles import named

LOOKAHEAD = 16
"""Contents, or styles, fetched and decoded ahead of the one in hand, for so many threads as a worker has at least."""

STYLES_AHEAD = 16
"""Style images fetched and decoded ahead of the re-coloured pair being prepared."""

STYLES_KEPT = 32
"""Style images kept for other re-coloured pairs of the shard."""


class Pair(NamedTuple):
    """One row of a shard, ready to be stylized; without styles, and without α, it asks for the content itself."""

    row: int
    output: str
    alpha: float | None
    styles: list[str]
    weights: list[float] | None
    masks: list[str]
    preserve_color: bool


class Content(NamedTuple):
    """One content image and its pairs."""

    uri: str
    pairs: list[Pair]


class Fetched(NamedTuple):
    """A content's file, and the files of its pairs' masks, by URI."""

    data: bytes
    masks: dict[str, bytes | RowError]


class Loaded(NamedTuple):
    """A decoded content, its colours if a pair preserves them, and its pairs' masks, of its size, by URI."""

    image: Array
    colors: Colors | None
    masks: dict[str, Array | RowError]


def contents_of(plan: pa.Table) -> list[Content]:
    """Group a shard's rows, which are sorted by content, into contents with their pairs."""
    names = plan.column_names
    empty = [None] * len(plan)
    weights = plan["style_weights"].to_pylist() if "style_weights" in names else empty
    masks = string_lists(plan["mask"].combine_chunks()) if "mask" in names else empty
    colors = plan["preserve_color"].to_pylist() if "preserve_color" in names else empty
    columns = (plan[name].to_pylist() for name in ("content", "output", "alpha", "style"))
    contents: list[Content] = []
    rows = zip(*columns, weights, masks, colors, strict=True)
    for row, (content, output, alpha, styles, weight, mask, color) in enumerate(rows):
        if not contents or contents[-1].uri != content:
            contents.append(Content(content, []))
        contents[-1].pairs.append(Pair(row, output, alpha, styles, weight, mask or [], bool(color)))
    return contents


class ContentLoader:
    """Fetches and decodes contents on threads, ahead of the one in hand."""

    def __init__(
        self,
        settings: WorkerSettings,
        threads: ThreadPoolExecutor,
        clock: Stopwatch,
        large: Callable[[tuple[int, ...]], bool],
        ahead: int = LOOKAHEAD,
    ) -> None:
        """Get ready.

        Args:
            settings: of the job.
            threads: that fetch and decode.
            clock: counts seconds by stage, and bytes read.
            large: whether a picture of this shape is to be decoded only when its turn has come.
            ahead: contents that are begun before the one in hand.
        """
        self._settings = settings
        self._threads = threads
        self._clock = clock
        self._large = large
        self._ahead = ahead

    def load_ahead(self, contents: list[Content]) -> Iterator[tuple[Content, Loaded | RowError]]:
        """Yield the contents in order, each with what was loaded, or the reason why it cannot be."""
        for content, load in begun_ahead(self._threads, self._load_content, contents, self._ahead):
            yield content, self._loaded(content, load.result())

    def _loaded(self, content: Content, loaded: Loaded | Fetched | RowError) -> Loaded | RowError:
        try:
            return self._decode(content, loaded) if isinstance(loaded, Fetched) else loaded
        except RowError as error:
            return error.bare()

    def _load_content(self, content: Content) -> Loaded | Fetched | RowError:
        """Load a content with its masks. Of a large one only the files: decoded ones would fill the memory."""
        try:
            with self._clock("fetch"):
                data = self._read(content.uri)
                uris = {uri for pair in content.pairs for uri in pair.masks}
                masks = {uri: self._fetch_mask(uri) for uri in uris}
            size, crop = self._settings.size, self._settings.crop
            fetched = Fetched(data, masks)
            if crop is None:
                short, long = sides_of(data)
                shape = (short, long) if size is None else resized(short, long, size)
            else:
                shape = (crop, crop)
            return fetched if self._large(shape) else self._decode(content, fetched)
        except RowError as error:
            return error.bare()

    def _fetch_mask(self, uri: str) -> bytes | RowError:
        try:
            return self._read(uri)
        except RowError as error:
            return error.bare()

    def _read(self, uri: str) -> bytes:
        data = read_bytes(absolute(uri, self._settings.base))
        self._clock.count("read", len(data))
        return data

    def _decode(self, content: Content, fetched: Fetched) -> Loaded:
        """Decode a content, and its masks to its size.

        Raises:
            RowError: the content cannot be decoded.
        """
        size, crop = self._settings.size, self._settings.crop
        with self._clock("decode"):
            image, width, height = decode_whole(fetched.data, size=size, crop=crop, min_side=MIN_SIDE)
            part = visible_part(width, height, crop)
            masks: dict[str, Array | RowError] = {}
            for uri, data in fetched.masks.items():
                if isinstance(data, RowError):
                    masks[uri] = named(data, "mask", uri)
                    continue
                try:
                    masks[uri] = decode_mask(data, image.shape[1], image.shape[0], part)
                except RowError as error:
                    masks[uri] = named(error, "mask", uri)
            preserved = any(pair.preserve_color for pair in content.pairs)
            return Loaded(image, colors_of(image) if preserved else None, masks)


class StyleImage(NamedTuple):
    """A style that is to be re-coloured, and its colours."""

    image: Array
    colors: Colors


StyleLoad = StyleImage | RowError | Callable[[], StyleImage | RowError]
"""What loading such a style gives: of one that fills the memory what decodes it, each time that it is used."""


class StyleImages:
    """The style images that a shard's re-coloured pairs need: loaded ahead in the rows' order, kept while recent."""

    def __init__(self, order: list[str], load: Callable[[str], Future[StyleLoad]]) -> None:
        """Get ready.

        Args:
            order: the styles of all pairs, in the rows' order.
            load: begins to load one.
        """
        self._order = order
        self._load = lru_cache(STYLES_KEPT)(load)
        self._ahead = 0
        self._taken = self._end = 0

    def reach(self, styles: int) -> None:
        """Go on to the next pair, of so many styles, whatever was taken of those before."""
        self._taken = self._end
        self._end += styles
        self._load_ahead()

    def take(self, uri: str) -> StyleImage:
        """Return the next image of the pair.

        Raises:
            RowError: it cannot be loaded.
        """
        self._taken += 1
        self._load_ahead()
        found = self._load(uri).result()
        if callable(found):
            found = found()
        if isinstance(found, RowError):
            raise found.bare()
        return found

    def _load_ahead(self) -> None:
        while self._ahead < min(self._taken + STYLES_AHEAD, len(self._order)):
            self._load(self._order[self._ahead])
            self._ahead += 1


def colors_of(image: Array) -> Colors:
    """Return the colours of an image [H, W, 3].

    Raises:
        RowError: there is no memory for it.
    """
    try:
        return colors(as_tensor(image))
    except (RuntimeError, MemoryError) as error:
        if not lacks_memory(error):
            raise
        raise RowError("OutOfMemory", "the image does not fit into memory") from None


def as_tensor(image: Array) -> Tensor:
    """Return an image [H, W, 3] as [3, H, W], in the same memory."""
    return torch.from_numpy(image).permute(2, 0, 1)
