"""The faults: each strikes a run, brings it to its end by repeating the command, and leaves it to be checked."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import ExitStack, contextmanager
from functools import cached_property, partial
from pathlib import Path
from typing import NamedTuple
from unittest.mock import patch

from fsspec.implementations.local import LocalFileSystem
from ray.cluster_utils import Cluster

from tests.faults.job import LIMIT_SECONDS, PHASES, Damage, Job, Pictures, write_inputs
from tests.faults.processes import MARK, left_over, marked_environment, processes
from tests.faults.proxy import Proxy, Spoil, proxy
from tests.integration.s3 import BUCKET, S3Server, s3_server

Env = dict[str, str]

IN_PROCESS = ("--in-process",)
RAY = ("--actors", 2)
TARS = ("--layout", "webdataset")
POISONOUS = 2
"""Contents of the poisoned job that kill the process that reads them."""

SPREAD = {"start": 2.0, "plan": 0.05, "styles": 0.7, "shards": 1.0, "finish": 0.3}
"""Seconds within which a fault strikes after a phase was seen to begin."""

STRIKES_PER_RUN = 5
KILLS_PER_ACTOR = 2  # an actor that dies three times before it can work ends the job, rightly
SPOILT_SHARE = 0.5
SILENT_SECONDS = 20.0
SPOILS: tuple[Spoil, ...] = ("error", "slow down", "reset", "drop", "truncate")
PROCESS_SECONDS = 120.0


class Bench:
    """The inputs of jobs, on local disk and on a real S3 server, and a source of chance."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.random = random.Random(seed)
        self.environments: list[Env] = []
        self._folder = folder
        self._folders = 0
        self._stack = ExitStack()
        write_inputs(folder / "sound" / "in")
        write_inputs(folder / "poisoned" / "in", POISONOUS)

    @cached_property
    def server(self) -> S3Server:
        """The S3 server, with the inputs in its bucket."""
        server = self._stack.enter_context(s3_server(self._folder / "s3"))
        server.client().put(f"{self._folder}/sound/in/", f"{BUCKET}/in/", recursive=True)
        return server

    @cached_property
    def proxy(self) -> Proxy:
        """A proxy in front of the S3 server."""
        return self._stack.enter_context(proxy(self.server.port, self.random.randrange(2**32)))

    @cached_property
    def pictures(self) -> Pictures:
        """What a run makes that nothing disturbs."""
        job = self.local_job(self.new_environment(), IN_PROCESS)
        job.finish(job.start())
        return job.pictures()

    def new_environment(self) -> Env:
        """Make an environment with a mark of its own."""
        self.environments.append(marked_environment(self.new_folder()))
        return self.environments[-1]

    def new_folder(self) -> Path:
        """Make an empty folder."""
        self._folders += 1
        path = self._folder / f"{self._folders:04d}"
        path.mkdir()
        return path

    def local_job(self, env: Env, engine: Sequence[object]) -> Job:
        """Return a job on local disk with a new output root."""
        return Job(str(self._folder / "sound"), LocalFileSystem(), self.new_folder(), env, engine)

    def poisoned_job(self, env: Env) -> Job:
        """Return a job on local disk with contents that kill the process that reads them."""
        base = str(self._folder / "poisoned")
        return Job(base, LocalFileSystem(), self.new_folder(), env, RAY, POISONOUS)

    def s3_job(self, env: Env, engine: Sequence[object], port: int | None = None) -> Job:
        """Return a job with everything on the S3 server, reached at another port if one is given."""
        env = {**env, **self.server.env(port=port)}
        return Job(f"s3://{BUCKET}", self.server.client(), self.new_folder(), env, engine)

    def close(self) -> None:
        """Stop the servers."""
        self._stack.close()


class Strike(NamedTuple):
    """A new run for a fault to strike, at most `most` times, and where to count it."""

    bench: Bench
    env: Env
    most: int
    damage: Damage


class Fault(NamedTuple):
    """One line of the table.

    Attributes:
        name: what happens.
        where: the run and its storage.
        strike: runs a job to its end while the fault strikes, and returns the job.
    """

    name: str
    where: str
    strike: Callable[[Strike], Job]


def inflict(bench: Bench, fault: Fault, times: int, patient: bool = True) -> Damage:
    """Let a fault strike so many times, in as many runs as that takes, and count the damage.

    Args:
        bench: where.
        fault: what.
        times: how often.
        patient: whether to wait for Ray's agents too, which need a minute to end after their driver was killed.
    """
    damage = Damage()
    env = bench.new_environment()
    while damage.times < times:
        try:
            job = fault.strike(Strike(bench, env, times - damage.times, damage))
            job.check(bench.pictures, damage)
            job.remove()
        except (AssertionError, subprocess.TimeoutExpired) as error:
            damage.times += 1
            damage.lose(f"a whole job, which has no end: {error}")
    for pid, line in left_over(env, PROCESS_SECONDS, patient).items():
        damage.leave(f"process {pid}: {line}")
    for path in Path(env["TMPDIR"]).iterdir():
        damage.leave(f"temporary {path.name}")
    return damage


def await_moment(strike: Strike, job: Job, process: subprocess.Popen[str], phases: Sequence[str]) -> bool:
    """Wait for a random moment of a phase that the run has yet to come to, and count it; False if it ends before."""
    chance, (written, done), reached = strike.bench.random, job.state(), PHASES.index(job.phase())
    ahead = [phase for phase in phases if phase == "start" or PHASES.index(phase) >= reached]
    phase = chance.choice(ahead or phases)

    def has_come() -> bool:
        now, parts = job.state()
        at_work = now != written and PHASES.index(job.phase()) >= PHASES.index(phase)
        return at_work and (phase != "shards" or parts > done)

    while phase != "start" and process.poll() is None and not has_come():
        time.sleep(0.001)
    time.sleep(chance.uniform(0, SPREAD[phase]))
    if process.poll() is not None:
        return False
    strike.damage.times += 1
    strike.damage.phases[job.phase()] += 1
    return True


def kill_driver(make: Callable[[Strike], Job], strike: Strike) -> Job:
    """SIGKILL the driver and repeat the command, again and again."""
    job = make(strike)
    for _ in range(min(strike.most, STRIKES_PER_RUN)):
        process = job.start()
        if not await_moment(strike, job, process, list(SPREAD)):
            job.finish(process)
            return job
        process.kill()
        process.wait()
    job.finish(job.start())
    return job


def interrupt(how: signal.Signals, engine: Sequence[object], strike: Strike) -> Job:
    """SIGTERM the driver, or SIGINT its whole process group as a terminal does; it ends by itself, with 130."""
    job = strike.bench.local_job(strike.env, engine)
    for _ in range(min(strike.most, STRIKES_PER_RUN)):
        process = job.start()
        if not await_moment(strike, job, process, ["plan", "styles", "shards"]):
            job.finish(process)
            return job
        if how == signal.SIGINT:
            os.killpg(process.pid, how)
        else:
            process.send_signal(how)
        process.wait(LIMIT_SECONDS)
        if job.phase() == "end" and process.returncode == 0:
            break  # it was just done
        errors = job.finish(process, status=130)
        assert "repeat the command to go on" in errors
    job.finish(job.start())
    return job


def kill_actors(strike: Strike) -> Job:
    """SIGKILL the processes that do the work, and their successors."""
    job = strike.bench.local_job(strike.env, RAY)
    process = job.start()
    for _ in range(min(strike.most, KILLS_PER_ACTOR)):
        if await_moment(strike, job, process, ["styles", "shards"]):
            for pid, line in processes(strike.env).items():
                if line.startswith("ray::WorkerActor"):
                    os.kill(pid, signal.SIGKILL)
    job.finish(process)
    return job


def poison(strike: Strike) -> Job:
    """Have contents kill the process that reads them."""
    job = strike.bench.poisoned_job(strike.env)
    job.finish(job.start(), status=3)
    strike.damage.times += POISONOUS
    return job


def lose_node(strike: Strike) -> Job:
    """Remove a node that works, and bring one back."""
    with cluster(strike.env) as nodes:
        node = nodes.add_node(num_cpus=1)
        job = strike.bench.local_job(strike.env, ("--address", nodes.address, "--actors", 2))
        process = job.start()
        if await_moment(strike, job, process, ["styles", "shards"]):
            nodes.remove_node(node, allow_graceful=False)
            time.sleep(strike.bench.random.uniform(0, 3))
            nodes.add_node(num_cpus=1)
        job.finish(process)
    return job


@contextmanager
def cluster(env: Env) -> Generator[Cluster]:
    """Run a Ray cluster of one small node in a marked environment."""
    with patch.dict(os.environ, {key: env[key] for key in (MARK, "PYTHONPATH")}):
        nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
        try:
            yield nodes
        finally:
            nodes.shutdown()


def restart_server(strike: Strike) -> Job:
    """SIGKILL the S3 server, and start it again with what is on its disk."""
    bench = strike.bench
    job = bench.s3_job(strike.env, IN_PROCESS)
    process = job.start()
    if await_moment(strike, job, process, ["start", "styles", "shards"]):
        bench.server.kill()
        time.sleep(bench.random.uniform(0, 3))
        assert bench.server.start(), "the S3 server does not come back"
    job.finish(process)
    return job


def spoil(kinds: Sequence[Spoil], engine: Sequence[object], strike: Strike) -> Job:
    """Put the faulty proxy between the run and the S3 server."""
    proxy = strike.bench.proxy
    job = strike.bench.s3_job(strike.env, engine, proxy.port)
    with proxy.spoiling(kinds, SPOILT_SHARE):
        job.finish(job.start())
    strike.damage.times += 1
    strike.damage.requests += proxy.spoiled
    return job


def fall_silent(strike: Strike) -> Job:
    """Have storage answer nothing for a while, in the middle of the work."""
    proxy = strike.bench.proxy
    job = strike.bench.s3_job(strike.env, IN_PROCESS, proxy.port)
    process = job.start()
    if await_moment(strike, job, process, ["styles", "shards"]):
        with proxy.spoiling(["reset"], 1.0):
            time.sleep(SILENT_SECONDS)
        strike.damage.requests += proxy.spoiled
    job.finish(process)
    return job


def on_disk(engine: Sequence[object], strike: Strike) -> Job:
    """Make a job on local disk."""
    return strike.bench.local_job(strike.env, engine)


def on_s3(engine: Sequence[object], strike: Strike) -> Job:
    """Make a job with everything on the S3 server."""
    return strike.bench.s3_job(strike.env, engine)


KILLS = {
    Fault("driver SIGKILLed", "in-process, disk", partial(kill_driver, partial(on_disk, IN_PROCESS))): 0.65,
    Fault(
        "driver SIGKILLed",
        "in-process, disk, tars",
        partial(kill_driver, partial(on_disk, (*IN_PROCESS, *TARS))),
    ): 0.1,
    Fault("driver SIGKILLed", "in-process, S3", partial(kill_driver, partial(on_s3, IN_PROCESS))): 0.15,
    Fault("driver SIGKILLed", "local Ray, disk", partial(kill_driver, partial(on_disk, RAY))): 0.1,
}
"""Ways to kill the driver, and the share of each."""

PROCESSES = [
    Fault("worker processes SIGKILLed", "local Ray, disk", kill_actors),
    Fault("node removed, another added", "Ray on two nodes, disk", lose_node),
    Fault("content kills its process", "local Ray, disk", poison),
    Fault("SIGTERM", "in-process, disk", partial(interrupt, signal.SIGTERM, IN_PROCESS)),
    Fault("Ctrl-C", "local Ray, disk", partial(interrupt, signal.SIGINT, RAY)),
    Fault("SIGTERM", "local Ray, disk", partial(interrupt, signal.SIGTERM, RAY)),
    Fault("Ctrl-C", "in-process, disk", partial(interrupt, signal.SIGINT, IN_PROCESS)),
    Fault("S3 server SIGKILLed, restarted", "in-process, S3", restart_server),
]
"""What else may end or hear a signal."""

STORAGE = [
    Fault("9 s without storage at first", "in-process, S3", partial(spoil, ["outage"], IN_PROCESS)),
    Fault("20 s without storage later", "in-process, S3", fall_silent),
    Fault("50 % of requests: 500", "in-process, S3", partial(spoil, ["error"], IN_PROCESS)),
    Fault("50 % of requests: 503 SlowDown", "in-process, S3", partial(spoil, ["slow down"], IN_PROCESS)),
    Fault("50 % of requests: connection reset", "in-process, S3", partial(spoil, ["reset"], IN_PROCESS)),
    Fault("50 % of answers lost, writes landed", "in-process, S3", partial(spoil, ["drop"], IN_PROCESS)),
    Fault("50 % of bodies truncated", "in-process, S3", partial(spoil, ["truncate"], IN_PROCESS)),
    Fault("50 % of requests: any of these", "local Ray, S3", partial(spoil, SPOILS, RAY)),
]
"""Bad days of storage."""
