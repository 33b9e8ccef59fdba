"""The errors a user meets: a usage error ends the command, a row error ends one row."""

from __future__ import annotations


class UsageError(Exception):
    """Wrong usage, manifest or model: nothing was started (exit status 2). The message says what to do."""


class JobFailedError(Exception):
    """The job could not finish (exit status 1). State is kept: the same command continues."""


class GaveUpError(Exception):
    """More rows failed than `--max-failed` allows (exit status 4). State is kept."""


class SystemicError(Exception):
    """Something that is no fault of any row: outputs cannot be written, or storage does not answer at all.

    No row fails for it; the shard is tried again, and the job ends (`JobFailedError`) if it stays.
    """


class DeviceError(Exception):
    """The device is unusable from now on; only a new process can go on."""


class RowError(Exception):
    """One row cannot be made; the job goes on.

    Attributes:
        kind: a stable word, e.g. `NotFound`, `AccessDenied`, `Undecodable`, `TooLarge`, `TooSmall`.
        transient: storage did not answer as it should; trying again later may help.
    """

    def __init__(self, kind: str, message: str, *, transient: bool = False) -> None:
        self.kind = kind
        self.message = " ".join(message.split())
        self.transient = transient
        super().__init__(kind, self.message)

    def __str__(self) -> str:
        return f"{self.kind}: {self.message}"

    def __reduce__(self) -> tuple[object, ...]:
        return (_row_error, (self.kind, self.message, self.transient))


def _row_error(kind: str, message: str, transient: bool) -> RowError:
    return RowError(kind, message, transient=transient)
