"""A small job whose every picture is known: started, watched, continued, and checked for damage."""

from __future__ import annotations

import hashlib
import io
import json
import subprocess
import tarfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image, ImageOps, UnidentifiedImageError

from tests.conftest import SAMPLE, Row
from tests.faults.processes import start_run

STYLES, POISONED_STYLES = 3, 2
PAIRS = 36
"""Six photographs and their mirror images, each with three styles."""

OPTIONS = ("--size", 64, "--style-size", 64, "--shard-pairs", 3, "--device", "cpu", "--json")
LIMIT_SECONDS = 300

Pictures = dict[int, str]
"""What an undisturbed run makes: a digest of each picture, by label."""

PHASES = ("start", "plan", "styles", "shards", "finish", "end")
"""How far a run has come, as its output root shows it."""


@dataclass
class Damage:
    """What faults have done to the jobs they struck.

    Attributes:
        runs: output roots checked.
        times: faults that struck.
        lost: pairs that are not in the results, that failed for no reason of their own, or whose picture is missing, does
            not open, has another size than recorded, or other pixels than without the fault.
        duplicated: result rows too many.
        left_over: objects nobody will use, temporary files, processes.
        phases: faults by the phase they fell into.
        requests: requests to storage that were spoiled.
        details: one line for each piece of damage.
    """

    runs: int = 0
    times: int = 0
    lost: int = 0
    duplicated: int = 0
    left_over: int = 0
    phases: Counter[str] = field(default_factory=Counter)
    requests: int = 0
    details: list[str] = field(default_factory=list)

    def lose(self, detail: str) -> None:
        """Count a lost pair."""
        self.lost += 1
        self.details.append(f"lost: {detail}")

    def double(self, detail: str) -> None:
        """Count a row too many."""
        self.duplicated += 1
        self.details.append(f"duplicated: {detail}")

    def leave(self, detail: str) -> None:
        """Count something left over."""
        self.left_over += 1
        self.details.append(f"left over: {detail}")


class Job:
    """A manifest and an output root on any storage."""

    def __init__(
        self, base: str, fs: Any, cwd: Path, env: dict[str, str], engine: Sequence[object], poison: int = 0
    ) -> None:
        """Take note of what is to be run; nothing is started.

        Args:
            base: folder or URI that holds the inputs, as `write_inputs` made them, under `in/`.
            fs: an fsspec file system that reaches it.
            cwd: a local folder, whose name the output root takes.
            env: environment of the run.
            engine: options that choose who works.
            poison: as for `write_inputs`.
        """
        self.manifest = f"{base}/in/pairs.parquet"
        self.output = f"{base}/{cwd.name}"
        self._pairs = PAIRS + POISONED_STYLES * poison
        self._fs = fs
        self._cwd = cwd
        self._env = env
        self._engine = engine

    def start(self) -> subprocess.Popen[str]:
        """Start the run, or continue it: the command is the same."""
        arguments = (self.manifest, "-o", self.output, *OPTIONS, *self._engine)
        return start_run(arguments, self._env, self._cwd)

    def finish(self, process: subprocess.Popen[str], status: int = 0) -> str:
        """Wait for the end of a run, and return what it has said.

        Raises:
            AssertionError: it takes too long, shows a traceback, or ends with another exit status.
        """
        try:
            _, errors = process.communicate(timeout=LIMIT_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            raise AssertionError(f"the run is not done after {LIMIT_SECONDS} s") from None
        assert "Traceback" not in errors, errors
        assert process.returncode == status, f"exit status {process.returncode}, not {status}: {errors}"
        return errors

    def phase(self) -> str:
        """Say how far the run has come."""
        try:
            record = json.loads(self._fs.cat_file(f"{self.output}/run.json"))
        except FileNotFoundError:
            return "start"
        if record["state"] != "running":
            return "end" if record["state"] == "finished" else "plan"
        if len(self._find("results")) == record["shards"]:
            return "finish"
        return "shards" if self._find("styles") else "styles"

    def state(self) -> tuple[object, int]:
        """Return what changes when a run goes to work, and again with every shard: a time, and how many are done."""
        try:
            info = self._fs.info(f"{self.output}/run.json")
        except FileNotFoundError:
            return None, 0
        return info.get("mtime") or info.get("LastModified"), len(self._find("results"))

    def _find(self, folder: str) -> list[str]:
        try:
            return list(self._fs.find(f"{self.output}/{folder}"))
        except FileNotFoundError:
            return []

    def remove(self) -> None:
        """Delete the output root."""
        self._fs.rm(self.output, recursive=True)

    def check(self, pictures: Pictures, damage: Damage) -> None:
        """Look at everything that is under the output root of a finished run, and count what is wrong with it."""
        damage.runs += 1
        root = self._fs._strip_protocol(self.output)
        keys = {name[len(root) + 1 :] for name in self._fs.find(root)}
        rows: list[Row] = []
        for key in sorted(keys):
            if key.startswith("results/"):
                rows += pq.read_table(io.BytesIO(self._fs.cat_file(f"{root}/{key}"))).to_pylist()

        counted = Counter(row["label"] for row in rows)
        for label in set(range(self._pairs)) - counted.keys():
            damage.lose(f"pair {label} is not in the results")
        for label, count in counted.items():
            for _ in range(count - (label in range(self._pairs))):
                damage.double(f"pair {label}")

        used: set[str] = set()
        for row in rows:
            poisoned = row["content"].startswith("poison://")
            if row["status"] == "ok":
                container = row["output"].rpartition("::")[2]
                key = self._fs._strip_protocol(container)[len(root) + 1 :]
                used.add(key)
                if wrong := self._wrong_with(row, pictures.get(row["label"])):
                    damage.lose(f"pair {row['label']}, {key}: {wrong}")
            elif not (poisoned and row["error"].startswith("WorkerDied: ")):
                damage.lose(f"pair {row['label']}: {row['status']}, {row['error']}")

        shards = json.loads(self._fs.cat_file(f"{root}/run.json"))["shards"]
        used |= {"run.json", "report.html", "lease.json", "plan/styles.parquet"}
        if not used & {f"images/part-000000{extension}" for extension in (".tar", ".parquet")}:
            used.add("images/metadata.parquet")  # for the rows' labels
        used |= {f"plan/shard-{shard:06d}.parquet" for shard in range(shards)}
        used |= {f"results/part-{shard:06d}.parquet" for shard in range(shards)}
        for key in sorted(keys - used):
            if not key.startswith("styles/part-"):
                damage.leave(key)
        if self._fs.exists(f"{root}/.tmp"):
            damage.leave(".tmp")

    def _wrong_with(self, row: Row, digest: str | None) -> str | None:
        try:
            data = self._picture(row)
            with Image.open(io.BytesIO(data)) as image:
                image.load()
                size = (image.height, image.width)
        except (FileNotFoundError, KeyError):
            return "does not exist"
        except (OSError, UnidentifiedImageError) as error:
            return f"does not open: {error}"
        if size != (row["height"], row["width"]):
            return f"is {size}, not {row['height'], row['width']}"
        if digest_of(data) != digest:
            return "has other pixels than without the fault"
        return None

    def _picture(self, row: Row) -> bytes:
        """Read a picture with nothing of the package: a file, or a member of a tar."""
        member, _, path = row["output"].removeprefix("tar://").rpartition("::")
        data: bytes = self._fs.cat_file(path)
        if not member:
            return data
        with tarfile.open(fileobj=io.BytesIO(data)) as archive:
            file = archive.extractfile(member)
            assert file
            return file.read()

    def pictures(self) -> Pictures:
        """Return the digests of all pictures of a finished run."""
        found: Pictures = {}
        for part in self._find("results"):
            for row in pq.read_table(io.BytesIO(self._fs.cat_file(part))).to_pylist():
                ok = row["status"] == "ok"
                found[row["label"]] = digest_of(self._picture(row)) if ok else row["error"]
        return found


def digest_of(data: bytes) -> str:
    """Return what tells one picture from another."""
    return hashlib.blake2b(data, digest_size=16).hexdigest()


def write_inputs(folder: Path, poison: int = 0) -> None:
    """Write the pictures and the manifest into a new folder.

    Args:
        folder: to be made.
        poison: how many contents more, that kill the process that reads them.
    """
    for kind in ("content", "style"):
        (folder / kind).mkdir(parents=True)
        for source in sorted((SAMPLE / kind).glob("*.jpg")):
            with Image.open(source) as image:
                image.thumbnail((192, 192))
                image.save(folder / kind / source.name, quality=90)
                if kind == "content":
                    ImageOps.mirror(image).save(folder / kind / f"mirrored-{source.name}", quality=90)
    contents = [f"content/{path.name}" for path in sorted((folder / "content").iterdir())]
    styles = [f"style/{path.name}" for path in sorted((folder / "style").iterdir())][:STYLES]
    pairs = [(content, style) for content in contents for style in styles]
    assert len(pairs) == PAIRS
    pairs += [
        (f"poison://{index}.jpg", style) for index in range(poison) for style in styles[:POISONED_STYLES]
    ]
    table = pa.table(
        {
            "content": [content for content, _ in pairs],
            "style": [style for _, style in pairs],
            "label": pa.array(range(len(pairs)), pa.int32()),
        }
    )
    pq.write_table(table, folder / "pairs.parquet")
