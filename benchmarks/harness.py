"""What the benchmarks share: their options, the page each writes, the machine it names, and the clock.

Every benchmark prints a Markdown page: its command, the machine, tables. `-o FILE` keeps it, once it is whole. Machines
differ and are noisy, so what counts are ratios within a page. Without torch, which would add to the memory of those
that measure memory.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

from stylize_batch.job.record import installed

SAMPLE = Path(__file__).parent.parent / "manifests" / "sample"
COMMAND = (sys.executable, "-m", "stylize_batch")

_VECTORS = {"amx_bf16": "AVX-512 and AMX", "avx512f": "AVX-512", "avx2": "AVX2"}
"""By the processor's flags, of which the first is what counts."""

PASSES = 7
PASS_SECONDS = 4.0
"""A call is timed at most so many times, and not again after so long."""


def options(about: str | None) -> argparse.ArgumentParser:
    """Return a parser of the options that all benchmarks have."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("-o", "--output", type=Path, help="Markdown file to write, once all is measured")
    parser.add_argument("--quick", action="store_true", help="a few small cases, to see that it works")
    return parser


class Page:
    """A Markdown page, printed as it comes; a context manager that writes the file when nothing went wrong."""

    def __init__(self, title: str, given: argparse.Namespace, *, device: str = "cpu") -> None:
        """Begin with the title, the command and the machine."""
        self._output: Path | None = given.output
        self._lines: list[str] = []
        self.say(f"# {title}\n\n`{command()}`, on {machine(device)}.")

    def say(self, text: str) -> None:
        """Add a paragraph."""
        self._add(f"{text}\n")

    def table(self, *columns: str) -> None:
        """Begin a table; all columns but the first are set to the right."""
        self._add(f"| {' | '.join(columns)} |")
        self._add(f"|---|{'--:|' * (len(columns) - 1)}")

    def row(self, *cells: object) -> None:
        """Add a row."""
        self._add(f"| {' | '.join(map(str, cells))} |")

    def end_table(self) -> None:
        """End it."""
        self._add("")

    def _add(self, line: str) -> None:
        print(line, flush=True)
        self._lines.append(line)

    def __enter__(self) -> Page:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None and self._output is not None:
            self._output.parent.mkdir(parents=True, exist_ok=True)
            self._output.write_text("\n".join(self._lines).rstrip() + "\n")


def command() -> str:
    """Return the command line that made the page, without where the page goes."""
    words = [f"benchmarks/{Path(sys.argv[0]).name}", *sys.argv[1:]]
    for name in ("-o", "--output"):
        if name in words:
            place = words.index(name)
            del words[place : place + 2]
    return " ".join(["python", *words])


def machine(device: str = "cpu") -> str:
    """Name the machine as far as it can be known, its load, and the versions that speed depends on."""
    first = Path("/proc/cpuinfo").read_text().partition("\n\n")[0]
    said = {
        key.strip(): value.strip() for key, _, value in (line.partition(":") for line in first.splitlines())
    }
    flags = said.get("flags", "").split()
    vectors = next((name for flag, name in _VECTORS.items() if flag in flags), "no AVX2")
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    found = installed("torch", "numba", "pillow", "pyarrow", "ray")
    versions = ", ".join(" ".join(each) for each in found.items())
    return (
        f"a {'virtual ' if 'hypervisor' in flags else ''}machine with {len(os.sched_getaffinity(0))} cores of "
        f"{said.get('model name', 'an unknown processor')} (family {said.get('cpu family', '?')}, model "
        f"{said.get('model', '?')}, {vectors}) and {memory:.0f} GiB, "
        f"{f'on its {card()}' if device == 'cuda' else 'no GPU used'}; load {os.getloadavg()[0]:.1f} when it began; "
        f"{versions}"
    )


def card() -> str:
    """Name the GPU."""
    import torch

    return torch.cuda.get_device_name()


def best(
    call: Callable[..., object],
    *given: object,
    sync: Callable[[], object] = lambda: None,
    passes: int = PASSES,
) -> float:
    """Return the shortest of several times of a call, in seconds: the one that was disturbed least.

    Args:
        call: is called once before, to warm up.
        given: its arguments.
        sync: waits for the device.
        passes: at most.
    """
    call(*given)
    sync()
    times: list[float] = []
    while len(times) < passes and sum(times) < PASS_SECONDS:
        started = time.perf_counter()
        call(*given)
        sync()
        times.append(time.perf_counter() - started)
    return min(times)


def stylize(*arguments: object) -> dict[str, Any]:
    """Run `stylize-batch run` with `--json`; return what it prints."""
    line = [*COMMAND, "run", *map(str, arguments), "--json"]
    done = subprocess.run(line, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(line)} ended with {done.returncode}:\n{done.stderr}")
    return json.loads(done.stdout)


def written(output: Path) -> list[float]:
    """Return when each picture of a run was written, in seconds since 1970, sorted."""
    return sorted(path.stat().st_mtime for path in (output / "images").rglob("*.jpg"))


def stages_of(output: Path) -> dict[str, float]:
    """Return the last run's seconds by stage, summed over its threads."""
    return json.loads((output / "run.json").read_text())["totals"]["stages"]
