"""What a URI may reach. A manifest may come from elsewhere than the person who runs it, so its rows name only
storage of allowed schemes, never a chain of file systems, and nobody's URI carries a credential. Nor is what a run
reads what it replaces."""

# pyarrow makes its compute functions when it is imported.
# pyright: reportAttributeAccessIssue=false

from __future__ import annotations

import functools
import os
import re
from collections.abc import Callable, Iterable
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from stylize_batch.errors import UsageError
from stylize_batch.location import follow_links, real
from stylize_batch.manifest.schema import ManifestError, is_string, plain_strings
from stylize_batch.storage import absolute, is_uri

VARIABLE = "STYLIZE_BATCH_SCHEMES"
"""Environment variable with the schemes rows may use instead of `SCHEMES`, separated by commas.

The environment, and neither a flag nor a job file: what a manifest's author may make this machine reach is decided
by whoever owns the machine, once, and is not copied along with somebody's job.
"""

SCHEMES = ("file", "s3", "s3a", "gs", "gcs", "az", "abfs", "memory")
"""Schemes that rows may use by default; plain paths count as `file`. Not http(s): a row could then ask anything of
every server the workers reach."""

_CREDENTIAL = (
    r"(?i)://[^/?#@:]*:([^/?#@]*|[^/?#@]*[^0-9/?#@][^?#@]*)@"
    r"|[?&](x-amz-(signature|credential|security-token)|x-goog-(signature|credential)|signature|awsaccesskeyid|sig"
    r"|(access_?)?token|api_?key|password)="
)
_CREDENTIAL_PATTERN = re.compile(_CREDENTIAL)
_COLUMNS = ("content", "style", "mask")

IN_OUTPUT = "lies in the output root, where the run replaces and deletes files; choose another --output"
"""Why a run may not read a file of its own."""


class Reach(NamedTuple):
    """What rows may reach.

    Attributes:
        schemes: allowed in URIs.
        base: folder that relative paths start from; `../` may lead out of it, within the same storage (bucket).
        replaced: folders that the run replaces what lies in and `--overwrite` empties, as `location.real` gives them.
    """

    schemes: tuple[str, ...]
    base: str
    replaced: tuple[str, ...] = ()

    def refusal(self, uri: str) -> str | None:
        """Return why a row's path or URI is refused; None if it is not."""
        if reason := self._refusal_of_scheme(uri):
            return reason
        folder = uri[: uri.rfind("/") + 1]
        return IN_OUTPUT if self.replaced and self._is_replaced(folder, follow_links) else None

    def _is_replaced(self, folder: str, follow: Callable[[str], str]) -> bool:
        return real(absolute(folder, self.base), follow).startswith(self.replaced)

    def _refusal_of_scheme(self, uri: str) -> str | None:
        if not is_uri(uri):
            relative = is_uri(self.base) and not uri.startswith("/")
            if relative and "::" in uri:
                return f"becomes a chain of file systems beside {self.base}, which rows may not use; rename the file"
            return None if relative or "file" in self.schemes else self._not_allowed("plain paths")
        if "::" in uri:
            return "is a chain of file systems, which rows may not use"
        if carries_credential(uri):
            return "carries a credential, which the results would show; give it in the environment, not in the URI"
        scheme = uri.split("://", 1)[0]
        return None if scheme in self.schemes else self._not_allowed(f"{scheme}://")

    def _not_allowed(self, what: str) -> str:
        return (
            f"uses {what}, rows may use {', '.join(self.schemes)}; "
            f"if you trust the manifest, set {VARIABLE} to the list you allow"
        )

    def check(self, batch: pa.RecordBatch, where: str, start: int) -> None:
        """Check the contents, styles and masks of some rows; `start` is the first one's number.

        Raises:
            ManifestError: naming the first row that is refused.
        """
        for name in _COLUMNS:
            if name not in batch.schema.names:
                continue
            texts = _texts(batch[name])
            if self._suspicious(texts) or self._replaced(texts):
                for row, value in enumerate(batch[name].to_pylist(), start):
                    for uri in [value] if isinstance(value, str) else value or ():
                        if uri and (reason := self.refusal(uri)):
                            raise ManifestError(f"{where}, row {row}: {name} {uri[:200]!r} {reason}")

    def _replaced(self, column: pa.Array) -> bool:
        """Whether any value lies where the run replaces files, asked once for each folder: links are followed."""
        if not self.replaced:
            return False
        folders = pc.unique(pc.replace_substring_regex(pc.unique(column), "[^/]*$", "")).drop_null()
        follow = functools.cache(follow_links)
        return any(self._is_replaced(folder, follow) for folder in folders.to_pylist())

    def _suspicious(self, column: pa.Array) -> bool:
        """Whether any value's scheme may have to be refused: exact for plain paths, and for URIs but for odd ones."""
        rooted = pc.starts_with(column, "/") if is_uri(self.base) else pa.scalar(True)
        local = pc.and_(rooted, pa.scalar("file" in self.schemes))
        beside = pc.invert(pc.or_(rooted, pc.match_substring(column, "::")))
        plain = pc.and_(pc.invert(pc.match_substring(column, "://")), pc.or_(local, beside))
        schemes = "|".join(map(re.escape, self.schemes))
        uris = column.filter(pc.invert(plain))
        fine = pc.and_(
            pc.match_substring_regex(uris, f"^({schemes})://"),
            pc.invert(pc.match_substring_regex(uris, f"::|{_CREDENTIAL}")),
        )
        return bool(pc.any(pc.invert(fine)).as_py())


def _texts(column: pa.Array) -> pa.Array:
    """Return the strings of a column, which may be in lists."""
    while not (pa.types.is_null(column.type) or is_string(column.type)):
        column = pc.list_flatten(column)
    return plain_strings(column)


def reach(base: str, replaced: Iterable[str] = ()) -> Reach:
    """Return what rows may reach on this machine, with relative paths starting from `base`, outside of some folders.

    Raises:
        UsageError: the environment variable is not a list of schemes.
    """
    text = os.environ.get(VARIABLE)
    if text is None:
        return Reach(SCHEMES, base, tuple(map(real, replaced)))
    schemes = tuple(part.strip().removesuffix("://") for part in text.split(",") if part.strip())
    for scheme in schemes:
        if not re.fullmatch(r"[A-Za-z][A-Za-z0-9+.-]*", scheme):
            raise UsageError(f"{VARIABLE} is {text!r}, it must be schemes with commas between: file,s3,https")
    return Reach(schemes, base, tuple(map(real, replaced)))


def carries_credential(uri: str) -> bool:
    """Whether a URI has a password in front of its host, or a presigned or similar query."""
    return is_uri(uri) and _CREDENTIAL_PATTERN.search(uri) is not None


def refuse_credentials(**uris: str | None) -> None:
    """Raise UsageError if a URI of a job's own, given by what it is of, carries a credential: files would show it."""
    for name, uri in uris.items():
        if uri and carries_credential(uri):
            raise UsageError(
                f"the {name.replace('_', ' ')}'s URI carries a credential, which run.json and the results would show; "
                "give it in the environment or in fsspec's configuration"
            )
