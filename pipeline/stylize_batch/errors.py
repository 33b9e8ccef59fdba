"""The errors a user meets: a usage error ends the command, a row error ends one row; and the lines a user reads.

Every message is one line that names what is wrong, and never carries a credential.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Generator
from contextlib import contextmanager, suppress
from typing import Literal

Kind = Literal[
    "NotFound", "AccessDenied", "Unreadable", "StorageError", "Undecodable", "TooLarge", "TooSmall", "BadMask",
    "OutOfMemory", "NetworkError", "NotFinite", "Unencodable", "WorkerDied",
]  # fmt: skip

KINDS: dict[Kind, str] = {
    "NotFound": "the image does not exist",
    "AccessDenied": "storage refuses to let this user read the image",
    "Unreadable": "the image can never be read from where the manifest says it is",
    "StorageError": "storage did not answer as it should, after all retries",
    "Undecodable": "the file is empty, damaged or no image in a known format",
    "TooLarge": "more pixels than the limit, or a longer side than the format holds",
    "TooSmall": "a side is too short, after resizing, for the network or the crop",
    "BadMask": "a mask does not fit, or leaves a region empty",
    "OutOfMemory": "the image, or the picture even alone, does not fit into memory",
    "NetworkError": "the network cannot process the picture",
    "NotFinite": "the network's output is not finite",
    "Unencodable": "the picture cannot be encoded in its format",
    "WorkerDied": "the image ends or hangs every process that works on it",
}
"""Every kind of failed row, and what it means: `error` in the results is `Kind: one line`. The list is closed."""

_BREAK = re.compile(r"(?<! ) *[^\S ]\s*")
"""White space that is more than blanks, which may be those of a name."""

_SECRETS = (
    # user:password@ in front of a host, which is neither host:port/ nor a colon further on
    (re.compile(r"(?<=://)[^/@:\s'\"]*:(?!\d+/)[^@\s'\"]*@"), "***@"),
    # presigned queries, Authorization headers, and whatever else names a secret and gives its value
    (
        re.compile(
            r"((?<![A-Za-z])(?:x-(?:amz|goog|ms)-)?(?:signature|credential|security-token|access_?token|token|secret(?:_?access)?_?key"
            r"|secret|password|passwd|pwd|(?:aws_?)?access_?key(?:_?id)?|api_?key|sig)['\"]?\s*[=:]\s*['\"]?)"
            r"[^\s&'\",;<>)]+",
            re.IGNORECASE,
        ),
        r"\1***",
    ),
    # the identifiers of AWS access keys
    (re.compile(r"\b(?:AKIA|ASIA)[A-Z0-9]{12,}\b"), "***"),
)


def one_line(text: str) -> str:
    """Return a message as one line, with credentials left out."""
    line = _BREAK.sub(" ", text).strip()
    for pattern, replacement in _SECRETS:
        line = pattern.sub(replacement, line)
    return line


def say(line: str) -> None:
    """Write a line for people; the work goes on when it cannot be written: `2>&1 | head`, a log on a full disk."""
    if sys.stderr:  # else `2>&-`, and print would take stdout
        with suppress(OSError, ValueError):
            print(printable(line), file=sys.stderr, flush=True)


def answer(text: str) -> None:
    """Write what programs read to stdout; the work is done, also when it cannot be written."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        pass
    except OSError as error:
        say(f"cannot write to stdout: {error.strerror}")


def forget_unwritten() -> None:
    """Drop what stdout and stderr have not taken, which Python would try once more and end with 120."""
    for stream in filter(None, (sys.stdout, sys.stderr)):
        try:
            stream.flush()
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def printable(text: str, instead: str = "\N{REPLACEMENT CHARACTER}") -> str:
    """Return a text that can do nothing to a terminal: names in it come from manifests and storage."""
    return "".join(character if character.isprintable() else instead for character in text)


def counted(number: int, thing: str, things: str | None = None) -> str:
    """Return how many there are of something, as a message tells it: `1 row`, `2 rows`."""
    return f"{number} {thing if number == 1 else things or f'{thing}s'}"


def told(setting: object) -> str:
    """Return a setting's value as a message tells it."""
    return "not given" if setting is None else str(setting)


class _OneLineError(Exception):
    """An error whose message may be printed and stored as it is."""

    def __init__(self, message: str) -> None:
        super().__init__(one_line(message))


class UsageError(_OneLineError):
    """Wrong usage, manifest or model: no picture was made (exit status 2). The message says what to do."""


class JobFailedError(_OneLineError):
    """The job could not finish (exit status 1). State is kept: the same command continues."""


class GaveUpError(_OneLineError):
    """More rows failed than `--max-failed` allows (exit status 4). State is kept."""


class SystemicError(_OneLineError):
    """Something that is no fault of any row: outputs cannot be written, credentials are refused, or storage does
    not answer at all.

    No row fails for it; the shard is tried again, and the job ends (`JobFailedError`) if it stays.
    """

    blameless = True
    """Whether an image that it kept from being read may be sound; see `RowError`."""


class DeviceError(_OneLineError):
    """The device is unusable from now on; only a new process can go on."""


class HandedBackError(_OneLineError):
    """The worker has to go and hands back what it has not finished, by no fault of a row or a device."""


@contextmanager
def os_errors_as(kind: type[_OneLineError], what: str) -> Generator[None]:
    """Turn an OSError inside the block into an error of ours that says what cannot be done, and why."""
    try:
        yield
    except OSError as error:
        raise kind(f"{what}: {error.strerror or error}") from None


class RowError(Exception):
    """One row cannot be made; the job goes on.

    Attributes:
        kind: one of `KINDS`.
        message: one line.
        transient: storage did not answer as it should; trying again later may help.
    """

    def __init__(self, kind: Kind, message: str, transient: bool = False) -> None:
        self.kind: Kind = kind
        self.message = one_line(message)
        self.transient = transient
        super().__init__(kind, self.message, transient)

    @property
    def blameless(self) -> bool:
        """Whether the image itself may be sound: storage did not answer, or there was no memory for it."""
        return self.transient or self.kind == "OutOfMemory"

    def __str__(self) -> str:
        return f"{self.kind}: {self.message}"

    def bare(self) -> RowError:
        """Return the error without the frames it went through: an error that is kept keeps all they held, images too."""
        return RowError(self.kind, self.message, transient=self.transient)
