"""The long version: `python -m tests.faults` strikes real runs hundreds of times and prints what became of them."""

from __future__ import annotations

import argparse
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from tests.faults.faults import KILLS, PROCESSES, STORAGE, Bench, inflict
from tests.faults.job import PAIRS, PHASES

BEGIN, END = "<!-- faults -->", "<!-- end of faults -->"


def main() -> int:
    """Run all faults, and return 1 if there was any damage."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument("--kills", type=int, default=200, help="times the driver is killed")
    parser.add_argument("--times", type=int, default=10, help="times of every other fault")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--only", default="", help="faults whose line holds these words")
    parser.add_argument(
        "-o", "--output", type=Path, help=f"file with {BEGIN} and {END}, to put the table between"
    )
    given = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that servers are stopped
    faults = [(fault, max(1, round(share * given.kills))) for fault, share in KILLS.items()]
    faults += [(fault, given.times) for fault in PROCESSES + STORAGE]

    started = time.monotonic()
    lines = [
        "| fault | run, storage | times | runs | lost | duplicated | left over |",
        "|---|---|--:|--:|--:|--:|--:|",
    ]
    phases: Counter[str] = Counter()
    runs = requests = damaged = 0
    with tempfile.TemporaryDirectory(prefix="stylize-batch-faults-") as folder:
        bench = Bench(Path(folder), given.seed)
        try:
            for fault, times in faults:
                if given.only not in f"{fault.name}, {fault.where}":
                    continue
                damage = inflict(bench, fault, times)
                counts = (damage.times, damage.runs, damage.lost, damage.duplicated, damage.left_over)
                lines.append(f"| {fault.name} | {fault.where} | {' | '.join(map(str, counts))} |")
                seconds = time.monotonic() - started
                print(f"{seconds:6.0f} s {lines[-1]}", dict(damage.phases), flush=True)
                print(*damage.details, sep="\n", end="", flush=True)
                runs += damage.runs
                requests += damage.requests
                damaged += len(damage.details)
                if fault in KILLS:
                    phases += damage.phases
        finally:
            bench.close()
    fallen = ", ".join(f"{phases[phase]} {phase}" for phase in PHASES)
    report = "\n".join(lines) + (
        f"\n\n{runs} output roots of {PAIRS} pairs were checked, after {(time.monotonic() - started) / 60:.0f} "
        f"minutes. The drivers were killed in the phases {fallen}. {requests} requests to storage were spoiled.\n"
    )
    print(report)
    if given.output:
        before, _, rest = given.output.read_text().partition(BEGIN)
        _, _, after = rest.partition(END)
        given.output.write_text(f"{before}{BEGIN}\n\n{report}\n{END}{after}")
    return 1 if damaged else 0


if __name__ == "__main__":
    raise SystemExit(main())
