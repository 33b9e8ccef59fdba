"""A run as a job of a Ray cluster, through its Job API: the run goes on when this machine goes away.

Sent are the command and, unless the cluster has it, this package: neither files nor environment variables of the
caller. What the job reads and writes, it reaches with the settings and credentials of the cluster's nodes.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import os
import re
import shlex
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import aiohttp
import requests
from ray.job_submission import JobDetails, JobStatus, JobSubmissionClient

import stylize_batch
from stylize_batch.engine.cluster import CONNECT_SECONDS, TOKEN_ADVICE
from stylize_batch.errors import JobFailedError, UsageError
from stylize_batch.job.spec import BUILD_LOCATIONS, LOCATIONS, JobSpec
from stylize_batch.manifest.reach import carries_credential
from stylize_batch.model import container
from stylize_batch.storage import is_uri

OLDEST_RAY, OLDEST_PYTHON = "2.56", "3.10"
"""What the package needs on the cluster, as in pyproject.toml."""

AGENT_SECONDS = 60.0
"""Time for a head that has just started to have the agent that begins jobs."""

STOP_SECONDS = 60
"""Time that a stopped run has to put its affairs in order; Ray's own 3 s would end it by force."""

POLL_SECONDS = 1.0
FOLLOW_SECONDS = 300.0
"""Time for which one connection follows a job's log."""

LOST_SECONDS = 120.0
"""Time for which a head that does not answer is asked again."""

_STARTED = "Running entrypoint for job "
"""What Ray writes into a job's log before the job's own lines."""


class StoppedError(Exception):
    """The job was stopped on the cluster."""


def command(spec: JobSpec, installed: bool) -> str:
    """Return the command line that the cluster's shell shall run: what is set in the spec, and nothing else.

    Args:
        spec: of the run.
        installed: whether the cluster's own package runs, not the one that is sent.
    """
    words = ["stylize-batch"] if installed else ["python", "-m", "stylize_batch"]
    words += ["run", spec.manifest] if spec.manifest else ["run"]
    for name in JobSpec.model_fields:
        value = getattr(spec, name)
        if (
            name in ("manifest", "build", "address", "in_process")
            or name not in spec.model_fields_set
            or value in (None, "")
        ):
            continue
        if name == "metrics":
            words += [] if value else ["--no-metrics"]
        elif isinstance(value, bool):
            words += ["--json" if name == "as_json" else _flag(name)] if value else []
        else:
            if isinstance(value, dict):
                value = ",".join(f"{key}={each}" for key, each in cast("dict[str, object]", value).items())
            words += [_flag(name), str(value)]
    if build := spec.build.model_dump(exclude_defaults=True):
        words += ["--job", json.dumps({"build": build}, ensure_ascii=False)]
    return shlex.join([*words, "--address", "auto"])


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


class Cluster:
    """The Job API of a cluster's head.

    Attributes:
        address: `http://host:port`.
        ray: version on the cluster.
        python: version on the cluster.
    """

    def __init__(self, address: str) -> None:
        """Connect.

        Raises:
            UsageError: nothing answers, it is no Ray head, its versions are too old, or it takes no token of ours.
        """
        if not is_uri(address) and ":" in address:
            address = f"http://{address}"
        if not address.startswith(("http://", "https://")):
            raise UsageError(
                f"--address {address}: jobs are submitted to the dashboard of the head, http://HEAD:8265; "
                "for other addresses use `stylize-batch run --address`"
            )
        if carries_credential(address):
            raise UsageError(
                f"--address carries a credential, which the job's commands would show; {TOKEN_ADVICE}"
            )
        self.address = address.rstrip("/")
        self._headers: dict[str, str] = {}
        self.ray, self.python = self._versions()
        for name, version, oldest in (("Ray", self.ray, OLDEST_RAY), ("Python", self.python, OLDEST_PYTHON)):
            if _numbers(version) < _numbers(oldest):
                raise UsageError(
                    f"the cluster at {self.address} runs {name} {version}; stylize-batch needs {oldest} or newer there"
                )
        for module in ("ray", "ray.dashboard.modules.dashboard_sdk", "ray.dashboard.modules.job.sdk"):
            logging.getLogger(module).setLevel(logging.ERROR)
        # Ray would take the address from these in place of ours.
        aside = {name: os.environ.pop(name, None) for name in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS")}
        try:
            self._client = JobSubmissionClient(self.address, headers=dict(self._headers))
        finally:
            os.environ.update({name: value for name, value in aside.items() if value is not None})

    @property
    def token(self) -> bool:
        """Whether the cluster wants a token, and got ours."""
        return bool(self._headers)

    def submit(self, spec: JobSpec, name: str | None = None, installed: bool = False) -> Job:
        """Start a run as a job, or find it where the same command is at work already.

        Args:
            spec: of the run, as `refuse_local` lets it pass.
            name: submission id; by default one that follows from the output. Later ones get `-2`, `-3`, …
            installed: run the package that the cluster has; otherwise this one is sent.

        Raises:
            UsageError: another command is at work under this name.
            JobFailedError: the cluster refused the job.
        """
        name = name or _name(spec.output)
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
            raise UsageError(f"--job-id {name}: use letters, digits, '.', '_' and '-'")
        entrypoint = command(spec, installed)
        numbered = re.compile(rf"{re.escape(name)}(?:-(\d+))?")
        taken: dict[int, JobDetails] = {}
        for job in self._ask(self._client.list_jobs):
            if job.submission_id and (match := numbered.fullmatch(job.submission_id)):
                taken[int(match[1] or 1)] = job
        for job in taken.values():
            if not job.status.is_terminal():
                found = Job(self, cast("str", job.submission_id), new=False)
                if job.entrypoint != entrypoint:
                    raise UsageError(
                        f"job {found.name} is at work with other settings; wait, stop it ({found.command('stop')}), "
                        "or choose another --job-id and --output"
                    )
                return found
        if taken:
            name = f"{name}-{max(taken) + 1}"
        runtime_env: dict[str, Any] = {"env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": str(STOP_SECONDS)}}
        if not installed:
            runtime_env["py_modules"] = [str(Path(stylize_batch.__file__).parent)]
            runtime_env["excludes"] = ["__pycache__"]
        self._ask(
            lambda: self._client.submit_job(
                entrypoint=entrypoint, submission_id=name, runtime_env=runtime_env
            )
        )
        return Job(self, name, new=True)

    def info(self, name: str) -> JobDetails:
        """Return what the cluster knows of a job."""
        return self._client.get_job_info(name)

    def stop(self, name: str) -> None:
        """Ask a job to stop."""
        self._ask(lambda: self._client.stop_job(name))

    async def tail(self, name: str, hear: Callable[[str], None]) -> None:
        """Hear a job's log from its start until it ends or the connection does."""
        async for text in self._client.tail_job_logs(name):
            hear(text)

    def log(self, name: str) -> str:
        """Return a job's log."""
        return self._client.get_job_logs(name)

    def _versions(self) -> tuple[str, str]:
        """Ask for the versions on the cluster, with a token where it wants one."""
        answer = self._get()
        if _wants_token(answer) and (token := _token()):
            self._headers = {"Authorization": f"Bearer {token}"}
            answer = self._get()
        if _wants_token(answer):
            lack = "does not take this token" if self._headers else "wants a token and there is none"
            raise UsageError(f"the cluster at {self.address} {lack}; {TOKEN_ADVICE}")
        try:
            data = answer.json()["data"]
            return str(data["rayVersion"]), str(data["pythonVersion"])
        except (ValueError, KeyError, TypeError):
            raise UsageError(
                f"what answers at {self.address} is no dashboard of Ray {OLDEST_RAY} or newer (HTTP {answer.status_code}); "
                "its port is 8265 unless the head was started with another"
            ) from None

    def _get(self) -> requests.Response:
        try:
            return requests.get(
                f"{self.address}/api/v0/cluster_metadata", headers=self._headers, timeout=CONNECT_SECONDS
            )
        except requests.exceptions.RequestException as error:
            what = (
                "does not answer" if isinstance(error, requests.exceptions.Timeout) else "cannot be reached"
            )
            raise UsageError(
                f"the cluster at {self.address} {what}; is it up, with its dashboard ('ray[default]' on the head), "
                "and the port open or forwarded to here?"
            ) from None

    def _ask(self, request: Callable[[], Any]) -> Any:
        deadline = time.monotonic() + AGENT_SECONDS
        while True:
            try:
                return request()
            except (RuntimeError, OSError) as error:
                if "No available agent" not in str(error) or time.monotonic() > deadline:
                    raise JobFailedError(f"the cluster at {self.address} refused: {error}") from None
            time.sleep(POLL_SECONDS)


@dataclass(frozen=True)
class Job:
    """A run on a cluster.

    Attributes:
        name: its submission id.
        new: whether it was submitted now; otherwise it was at work already.
    """

    cluster: Cluster
    name: str
    new: bool

    def command(self, verb: str) -> str:
        """Return the command of Ray's that shows (`status`, `logs`) or stops (`stop`) the job."""
        mode = "RAY_AUTH_MODE=token " if self.cluster.token else ""
        follow = " --follow" if verb == "logs" else ""
        return f"{mode}ray job {verb} --address {self.cluster.address} {self.name}{follow}"

    def follow(self, hear: Callable[[str], None]) -> int:
        """Hear the run's lines until it ends; returns its exit status.

        Raises:
            StoppedError: somebody stopped it.
            UsageError: the cluster cannot run the command.
            JobFailedError: it did not start, was killed, or the cluster is lost.
        """
        log = _Log(hear)
        lost: float | None = None
        while True:
            try:
                with suppress(RuntimeError, OSError, asyncio.TimeoutError, aiohttp.ClientError):
                    # A connection may end without a word; then the log is followed anew.
                    asyncio.run(asyncio.wait_for(self.cluster.tail(self.name, log.again()), FOLLOW_SECONDS))
                info = self.cluster.info(self.name)
            except (RuntimeError, OSError) as error:
                lost = lost or time.monotonic()
                if time.monotonic() - lost > LOST_SECONDS:
                    raise JobFailedError(
                        f"the cluster at {self.cluster.address} no longer answers ({error}); the run may go on: "
                        f"{self.command('status')}"
                    ) from None
            else:
                lost = None
                if info.status.is_terminal():
                    break
            time.sleep(POLL_SECONDS)
        with suppress(RuntimeError, OSError):
            log.again()(self.cluster.log(self.name))
        log.end()
        return _status(info)

    def stop(self) -> None:
        """Stop the run; it ends as after Ctrl-C."""
        self.cluster.stop(self.name)


class _Log:
    """Passes on a log line by line, each once although every connection begins with the first."""

    def __init__(self, hear: Callable[[str], None]) -> None:
        self._hear = hear
        self._seen = self._position = 0
        self._rest = ""
        self._started = False

    def again(self) -> Callable[[str], None]:
        """Begin at the start of the log again."""
        self._position = 0
        return self._take

    def end(self) -> None:
        """Pass on a last line without an end."""
        if self._rest:
            self._line(self._rest)
            self._rest = ""

    def _take(self, text: str) -> None:
        start, self._position = self._position, self._position + len(text)
        self._rest += text[max(0, self._seen - start) :]
        self._seen = max(self._seen, self._position)
        *lines, self._rest = self._rest.split("\n")
        for line in lines:
            self._line(line)

    def _line(self, line: str) -> None:
        if self._started:
            self._hear(line)
        self._started = self._started or line.startswith(_STARTED)


def refuse_local(spec: JobSpec) -> None:
    """Refuse what only this machine has.

    Raises:
        UsageError: a location is a plain path, or the run is not one for a cluster.
    """
    if spec.in_process:
        raise UsageError("in-process runs on this machine; leave it out of the job file")
    if not spec.output:
        raise UsageError("--output: name one that the cluster reaches, such as s3://BUCKET/stylized")
    places = {name: getattr(spec, name) for name in LOCATIONS}
    places |= {f"build.{name}": getattr(spec.build, name) for name in BUILD_LOCATIONS}
    for name, value in places.items():
        if value and not is_uri(value) and not (name == "model" and value in container.BUILTIN):
            raise UsageError(
                f"{name} {value}: a plain path is one of this machine, which the cluster does not see; put it on object "
                "storage (s3://…), or write file:///… for a path that all nodes of the cluster have"
            )


def summary_of(line: str) -> dict[str, Any] | None:
    """Return the object that `run --json` prints, if a line of the log is one."""
    if not line.startswith("{"):
        return None
    try:
        found = json.loads(line)
    except ValueError:
        return None
    return found if {"pairs", "ok", "output"} <= found.keys() else None


def _status(info: JobDetails) -> int:
    code = info.driver_exit_code
    if info.status == JobStatus.STOPPED:
        raise StoppedError
    if code is None and info.status != JobStatus.SUCCEEDED:
        reason = " ".join((info.message or "").split())[-500:]
        raise JobFailedError(f"the job did not start or was lost: {reason}")
    if code in (126, 127):
        raise UsageError(
            "the cluster's shell does not find the command: start Ray on the head from an environment whose "
            "`bin` folder is in PATH"
        )
    if code is not None and (code < 0 or code > 130):
        signal = -code if code < 0 else code - 128
        raise JobFailedError(f"the run was ended by signal {signal} on the cluster")
    return code or 0


def _numbers(version: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", version)[:2]]


def _name(output: str) -> str:
    stem = re.sub(r"[^A-Za-z0-9]+", "-", output.rstrip("/").rsplit("/", 1)[-1]).strip("-") or "run"
    return f"{stem[:40]}-{hashlib.blake2b(output.encode(), digest_size=4).hexdigest()}"


def _wants_token(answer: requests.Response) -> bool:
    return answer.status_code in (401, 403) and "authentication token" in answer.text


def _token() -> str | None:
    """Return the token, from where Ray takes it."""
    if token := os.environ.get("RAY_AUTH_TOKEN"):
        return token.strip()
    path = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token")
    with suppress(OSError):
        return path.read_text().strip() or None
    return None
