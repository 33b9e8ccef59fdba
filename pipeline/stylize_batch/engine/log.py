"""The log of a process that works: one JSON object a line on its standard error, which Ray keeps with its session."""

from __future__ import annotations

import json
import logging
from datetime import datetime, timezone
from typing import Any

_log = logging.getLogger("stylize_batch.work")


class _JsonLines(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        time = datetime.fromtimestamp(record.created, timezone.utc).isoformat(timespec="milliseconds")
        fields = {"time": time, "level": record.levelname, "event": record.getMessage()}
        return json.dumps({**fields, **record.__dict__["fields"]}, ensure_ascii=False)


def keep_log() -> None:
    """Have this process write what it is told by `tell`."""
    handler = logging.StreamHandler()
    handler.setFormatter(_JsonLines())
    _log.handlers = [handler]
    _log.setLevel(logging.INFO)
    _log.propagate = False


def tell(event: str, *, level: int = logging.INFO, **fields: Any) -> None:
    """Write a line: what has happened, and to what."""
    _log.log(level, event, extra={"fields": fields})
