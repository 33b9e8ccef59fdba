"""Local paths and any fsspec URI: what they name, and reading it.

Endpoints, profiles and other storage settings come from fsspec's own configuration and the environment
(`FSSPEC_S3_ENDPOINT_URL`, `AWS_PROFILE`, …), never from options of ours.
"""

from __future__ import annotations

import errno
import functools
import os
import stat
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any, cast

import fsspec
import fsspec.config
from fsspec.core import url_to_fs
from fsspec.implementations.local import LocalFileSystem

from stylize_batch.errors import RowError, SystemicError, UsageError


def is_uri(path: str) -> bool:
    """Whether a path names its protocol (`s3://…`, `file://…`, `memory://…`)."""
    return "://" in path


def absolute(path: str, base: str | None = None) -> str:
    """Make a path absolute: URIs stay as they are, others are taken relative to `base` (or the cwd).

    `.` and `..` in the path are followed, below a URI as a browser does: no further up than its bucket or host.
    """
    if is_uri(path):
        return path
    if base is not None and is_uri(base) and not path.startswith("/"):
        return _resolved(base, path)
    return os.path.abspath(Path(base) / path if base is not None else path)  # noqa: PTH100 (keeps symlinks)


def _resolved(base: str, path: str) -> str:
    parts = path.split("/")
    if not {".", ".."}.intersection(parts):
        return join(base, path)
    protocol, folder = _split(base)
    bucket, *kept = folder.rstrip("/").split("/")
    for part in parts:
        if part == "..":
            del kept[-1:]
        elif part != ".":
            kept.append(part)
    return protocol + "/".join([bucket, *kept])


def join(root: str, key: str) -> str:
    """Append a relative key to a root URI or path."""
    protocol, path = _split(root)
    return f"{protocol}{path.rstrip('/')}/{key}"


def parent(uri: str) -> str:
    """Return the folder a file lies in."""
    protocol, path = _split(uri)
    folder, slash, _ = path.rpartition("/")
    return protocol + (folder or slash)


def _split(uri: str) -> tuple[str, str]:
    """Return `s3://` and the rest; a path has no protocol."""
    protocol, mark, path = uri.partition("://")
    return (protocol + mark, path) if mark else ("", uri)


def filesystem(uri: str) -> tuple[Any, str]:
    """Return the fsspec file system (whose own types are too loose to use) of a URI, and the path inside it.

    Raises:
        UsageError: the protocol is unknown or its package is not installed.
    """
    if not is_uri(uri):  # fsspec would take a `::` in a name for a chain of file systems
        return _local(), absolute(uri)
    try:
        return _s3(uri) if uri.startswith(("s3://", "s3a://")) else url_to_fs(uri)
    except ImportError as error:
        raise UsageError(f"cannot open {uri}: {error}") from error  # no row's fault: see `failure`
    except ValueError as error:
        raise UsageError(f"cannot open {uri}: {error}") from None


@functools.cache
def _local() -> Any:
    return fsspec.filesystem("file")


def _s3(uri: str) -> tuple[Any, str]:
    from stylize_batch import s3  # takes half a second

    return s3.PatientS3.at(uri, _merged(s3.DEFAULTS, fsspec.config.conf.get("s3", {})))


def _merged(defaults: dict[str, Any], given: dict[str, Any]) -> dict[str, Any]:
    """Lay settings over defaults, nested ones too: asking for path-style must not switch retries off."""
    merged = {**defaults, **given}
    for key, value in defaults.items():
        if isinstance(value, dict) and isinstance(merged[key], dict):
            merged[key] = _merged(cast("dict[str, Any]", value), merged[key])
    return merged


CREDENTIALS = (
    "ExpiredToken", "ExpiredTokenException", "TokenRefreshRequired", "InvalidToken", "RequestTimeTooSkewed",
    "InvalidAccessKeyId", "SignatureDoesNotMatch",
    "NoCredentialsError", "PartialCredentialsError", "CredentialRetrievalError", "TokenRetrievalError",
    "SSOTokenLoadError", "UnauthorizedSSOTokenError", "ProfileNotFound",
    "RefreshError", "DefaultCredentialsError", "ClientAuthenticationError",
)  # fmt: skip
"""Storage's words for credentials that are missing or do not work now: S3's codes (s3fs calls some a lack of
permission), and the exceptions of botocore, Google's and Azure's libraries."""

PERMANENT_ERRNO = (errno.ENAMETOOLONG, errno.ELOOP, errno.EINVAL, errno.ENXIO)
MALFORMED = ("Invalid bucket name", "Invalid length for parameter Key")
"""What botocore says of a URI that no object can have: `s3://My Photos/a.jpg`, or a bucket without a key."""

BROKEN_OFF = ("ClientPayloadError", "IncompleteRead", "IncompleteReadError", "ResponseStreamingError")
"""Names of what HTTP libraries raise when an answer ends before its length."""

READ_ATTEMPTS = 6
RETRIABLE_STATUS = (408, 425, 429)

HTTP_WAITS = (0.5, 1.0, 2.0, 4.0)
"""Seconds between attempts over http(s), whose file system, unlike those of object stores, does not retry itself."""


def failure(error: Exception, uri: str) -> RowError | SystemicError:
    """Translate what a file system raised: the failure of one row, or refused credentials, which are no row's fault."""
    if isinstance(error, RowError | SystemicError):
        return error
    reason = f"{type(error).__name__} {' '.join(str(error).split())[:300]}".strip()
    if _s3_code(error) in CREDENTIALS or type(error).__name__ in CREDENTIALS:
        return SystemicError(f"the credentials for {uri} are refused or missing: {reason}")
    if isinstance(error.__cause__, ImportError):
        return SystemicError(str(error))
    if isinstance(error, FileNotFoundError | NotADirectoryError):
        return RowError("NotFound", f"{uri} does not exist")
    if isinstance(error, UsageError):
        return RowError("Unreadable", str(error))
    if type(error).__name__ == "ParamValidationError" and any(words in reason for words in MALFORMED):
        return RowError(
            "Unreadable", f"no object can lie at {uri}; write bucket and key as in s3://bucket/a.jpg"
        )
    status = getattr(error, "status", None)
    if isinstance(error, PermissionError) or status in (401, 403):
        return RowError("AccessDenied", f"no permission to read {uri}")
    if isinstance(error, IsADirectoryError):
        return RowError("NotFound", f"{uri} is a folder, not a file")
    refused = isinstance(status, int) and 400 <= status < 500 and status not in RETRIABLE_STATUS
    if refused or isinstance(error, ValueError) or getattr(error, "errno", None) in PERMANENT_ERRNO:
        return RowError("Unreadable", f"{uri}: {reason}")
    return RowError("StorageError", f"reading {uri} failed: {reason}", transient=True)


def _s3_code(error: Exception) -> str:
    response = getattr(error.__cause__, "response", None)
    return str(response.get("Error", {}).get("Code", "")) if isinstance(response, dict) else ""


def read_bytes(uri: str) -> bytes:
    """Read a whole file.

    Raises:
        RowError: `NotFound`, `AccessDenied`, `Unreadable`, or a transient `StorageError` after the retries inside.
        SystemicError: storage refuses the credentials.
    """
    waits = iter(HTTP_WAITS if uri.startswith(("http://", "https://")) else ())
    while True:
        try:
            fs, path = filesystem(uri)
            _refuse_endless(fs, path)
            return read_whole(fs, path)
        except Exception as error:
            found = failure(error, uri)
        wait = next(waits, None)
        if wait is None or not (isinstance(found, RowError) and found.transient):
            try:
                raise found from None
            finally:
                del found  # or it and this frame, and all that called it, would keep each other alive
        time.sleep(wait)


def read_whole(fs: Any, path: str) -> bytes:
    """Read a whole file. An answer that breaks off half way is asked for again, since storage clients see to that
    only before the first byte."""
    if type(fs) is LocalFileSystem:  # which does the same, and holds up other threads ten times as long
        with open(path, "rb", buffering=0) as file:  # noqa: PTH123
            return file.readall()
    for _ in range(READ_ATTEMPTS - 1):
        try:
            return bytes(fs.cat_file(path))
        except Exception as error:
            if type(error).__name__ not in BROKEN_OFF:
                raise
    return bytes(fs.cat_file(path))


def _refuse_endless(fs: Any, path: str) -> None:
    if type(fs) is not LocalFileSystem:
        return
    mode = os.stat(path).st_mode  # noqa: PTH116 (`Path` costs more than the call)
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        raise RowError("Unreadable", f"{path} is a device or a pipe, which may never end")


def fingerprint(uri: str) -> str:
    """Return a file's ETag, or its size and modification time: equal means the bytes are the same.

    Raises:
        RowError: as `read_bytes`.
        SystemicError: as `read_bytes`.
    """
    try:
        fs, path = filesystem(uri)
        info: dict[str, Any] = fs.info(path)
    except Exception as error:
        raise explained(error, uri) from None
    etag = info.get("ETag") or info.get("etag")
    if etag:
        return str(etag).strip('"')
    changed = info.get("mtime") or info.get("LastModified") or info.get("created") or ""
    return f"{info.get('size')}-{changed}"


def explained(error: Exception, uri: str) -> RowError | SystemicError:
    """Translate what a file system raised when it was asked about a file, and find out why if it was refused."""
    found = failure(error, uri)
    vague = ["AccessDenied", "Unreadable"]
    if uri.startswith(("http://", "https://")):
        vague.append("NotFound")  # so fsspec calls all that goes wrong there
    if isinstance(found, RowError) and found.kind in vague:
        try:
            read_bytes(uri)  # S3 gives the reason of a refusal only to who asks for the object itself
        except (RowError, SystemicError) as reason:
            return reason
        if found.kind == "NotFound":
            return RowError("StorageError", f"{uri} was not there when first asked for", transient=True)
    return found


def kind(fs: Any, path: str) -> str | None:
    """Return `file`, `directory` or another kind of what lies at a path; None if there is nothing.

    Unlike the `isfile` and `isdir` of file systems, it does not take storage that fails for storage that is empty.

    Raises:
        Exception: whatever the file system raises when it does not answer.
    """
    try:
        return str(fs.info(path)["type"])
    except (FileNotFoundError, NotADirectoryError):
        return None


def full_names(fs: Any, uri: str, names: Iterable[str]) -> list[str]:
    """Return names as a file system lists them below a URI as URIs of its scheme, and those below a path as they are."""
    protocol, _ = _split(uri)
    if not protocol:
        return [*names]
    # Of the names that some schemes have (`s3`, `s3a`), file systems give their first one.
    return [protocol + _split(str(fs.unstrip_protocol(name)))[1] for name in names]
