"""A storage whose moods the tests choose, each node's apart: files wait to be read, or end the process that reads them.

`moody://` is the local file system. Environment variables of a node name a folder and the node's file in it. A file
read leaves its name in `<node>.read`; after that, as long as `<node>` says `wait`, reading waits, when it says `die`, the
process dies, and when it says `stumble` (or `stumble twice`), storage does not answer for once (or twice).
"""

import os
import signal
import time
from pathlib import Path
from typing import Any

import fsspec
from fsspec.implementations.local import LocalFileSystem

FOLDER, NODE = "MOODY_FOLDER", "MOODY_NODE"


class Moody(LocalFileSystem):
    protocol = "moody"

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return path.removeprefix("moody://")

    def cat_file(self, path: str, *arguments: Any, **options: Any) -> bytes:
        if NODE in os.environ:
            mood = Path(os.environ[FOLDER]) / os.environ[NODE]
            with mood.with_suffix(".read").open("a") as file:
                file.write(f"{Path(path).name}\n")
            while (felt := _read(mood)) is not None:
                if felt == "stumble twice":
                    mood.write_text("stumble")
                    raise TimeoutError("no answer")
                if felt == "stumble":
                    mood.unlink()
                    raise TimeoutError("no answer")
                if felt == "die":
                    os.kill(os.getpid(), signal.SIGKILL)
                time.sleep(0.05)
        return Path(self._strip_protocol(path)).read_bytes()


def _read(mood: Path) -> str | None:
    try:
        return mood.read_text()
    except FileNotFoundError:
        return None


fsspec.register_implementation("moody", Moody, clobber=True)
