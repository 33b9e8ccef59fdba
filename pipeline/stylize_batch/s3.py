"""S3 as a long run needs it: a store that is throttled, or away for a while, slows the run down and fails nothing.

botocore counts attempts, and gives them up altogether where a third of all requests fails: its clients have a quota of
them. Here requests are repeated by time, and what others hear of the store decides. While it answers some, each is
repeated for two minutes. A store that has answered nobody for so long is given up: from then on a request is tried
once, until one is answered.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Iterator
from typing import Any

import s3fs
from botocore.exceptions import ConnectionError as NoConnection
from fsspec.asyn import sync_wrapper
from s3fs.core import S3_RETRYABLE_ERRORS as BROKEN_OFF

PATIENCE = 120.0
"""Seconds for which a request is repeated, and for which a store may answer nobody."""

FIRST_PATIENCE = 30.0
"""Seconds for which a store may answer nobody that never has: its address may be wrong."""

HASTE = 3.0
"""Both, in a process that is about to end."""

FIRST_WAIT, LONGEST_WAIT = 0.2, 8.0
"""Most seconds before the second attempt, doubled for each further one, and before any. They are drawn, or many clients
would all come back at once."""

DEFAULTS: dict[str, Any] = {
    # Listings cached by a long run would hide what other actors and earlier runs wrote.
    "use_listings_cache": False,
    # More would ask for each object's size first: twice the requests, and S3 gives no reason when it refuses that.
    "max_concurrency": 1,
    "config_kwargs": {
        "retries": {"total_max_attempts": 1},  # or they would multiply with ours
        "connect_timeout": 5,
        "read_timeout": 60,
        "max_pool_connections": 64,
    },
}


class PatientS3(s3fs.S3FileSystem):
    """S3 whose requests, parts and pages each for itself, are repeated until the store has answered."""

    # By s3fs, at once: for answers that break off half way, which come to their end after a request's.
    retries = 2

    patience = PATIENCE
    _answered = False
    _silent_since: float | None = None

    @classmethod
    def at(cls, uri: str, settings: dict[str, Any]) -> tuple[PatientS3, str]:
        """Return the store that a URI names, and the path in it."""
        return cls(**{**settings, **cls._get_kwargs_from_urls(uri)}), str(cls._strip_protocol(uri))

    def find_by_page(self, path: str) -> Iterator[str]:
        """Yield the names of the objects below a path, with a page of them in memory: `find` has a kilobyte of each."""
        bucket, key, _ = self.split_path(path)
        asked: dict[str, Any] = {"Bucket": bucket, "Prefix": key and f"{key.rstrip('/')}/", **self.req_kw}
        while True:
            page: Any = self.call_s3("list_objects_v2", **asked)
            # Some stores list a folder as an object, as long as it lasts.
            yield from (
                f"{bucket}/{each['Key']}" for each in page.get("Contents", ()) if each["Key"][-1] != "/"
            )
            if not page.get("IsTruncated"):
                return
            asked["ContinuationToken"] = page["NextContinuationToken"]

    async def _call_s3(self, method: Any, *akwarglist: Any, **kwargs: Any) -> Any:
        began, most = time.monotonic(), FIRST_WAIT
        while True:
            try:
                answer = await super()._call_s3(method, *akwarglist, **kwargs)
            except Exception as error:
                if not self._goes_on(error, began):
                    raise
            else:
                self._hear()
                return answer
            await asyncio.sleep(random.uniform(0, most))
            most = min(2 * most, LONGEST_WAIT)

    call_s3 = sync_wrapper(_call_s3)
    """The same for threads; that of s3fs would not ask again."""

    def _goes_on(self, error: Exception, began: float) -> bool:
        """Whether a request that began at a time is worth another attempt."""
        if not unanswered(error):
            self._hear()
            return False
        now = time.monotonic()
        self._silent_since = self._silent_since or now
        silence = self.patience if self._answered else min(self.patience, FIRST_PATIENCE)
        return now < min(began + self.patience, self._silent_since + silence)

    def _hear(self) -> None:
        self._answered, self._silent_since = True, None


def lose_patience() -> None:
    """Let requests that wait for a store fail within seconds, for threads that hold up the end of a process."""
    PatientS3.patience = HASTE


def unanswered(error: Exception) -> bool:
    """Whether a store did not answer, or answered that it cannot now, as it does to throttle who asks."""
    response = getattr(error.__cause__, "response", None)
    if not isinstance(response, dict):
        return isinstance(error, (NoConnection, *BROKEN_OFF))
    status = response["ResponseMetadata"]["HTTPStatusCode"]
    # A request that was cut off on its way is a bad one to S3. 501 and 507, not implemented and no room, stay.
    cut_off = response["Error"].get("Code") in ("RequestTimeout", "IncompleteBody", "BadDigest")
    return cut_off or status in (408, 425, 429) or (status >= 500 and status not in (501, 507))
