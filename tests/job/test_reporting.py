"""The report of an output root: asked for at any time, and never able to fail a run."""

from __future__ import annotations

from pathlib import Path

import pytest

import stylize_batch
from stylize_batch.errors import UsageError
from stylize_batch.job import reporting
from stylize_batch.job.reporting import report
from stylize_batch.results import Outcome
from stylize_batch.root import Root
from tests.conftest import Cli, MakeManifest, Row
from tests.report.roots import make_root, row


def failed(*contents: str) -> list[Row]:
    return [row(content, ["style"], Outcome(error="NotFound: gone")) for content in contents]


def test_the_command_reports_on_an_unfinished_run_and_leaves_nothing_else_behind(
    cli: Cli, tmp_path: Path
) -> None:
    make_root(tmp_path / "out", [failed("a", "b")], tmp_path, pairs=7)
    done = cli("report", "out")
    assert (done.returncode, done.stdout) == (0, f"{tmp_path}/out/report.html\n"), done.stderr
    assert "2 of 7 pairs so far" in (tmp_path / "out" / "report.html").read_text()
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "report.html",
        "results",
        "run.json",
    ]


def test_temporaries_of_a_run_at_work_are_left_alone(tmp_path: Path) -> None:
    make_root(tmp_path / "out", [failed("a")], tmp_path, pairs=7)
    others = tmp_path / "out" / ".tmp" / "another" / "half-written"
    others.parent.mkdir(parents=True)
    others.touch()
    report(str(tmp_path / "out"))
    assert [path.name for path in (tmp_path / "out" / ".tmp").iterdir()] == ["another"]
    assert others.exists()


def test_a_root_without_a_run_is_a_usage_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="there is no run at"):
        report(str(tmp_path))
    assert not list(tmp_path.iterdir())


def test_a_root_that_cannot_be_written_is_a_usage_error(tmp_path: Path) -> None:
    make_root(tmp_path / "out", [failed("a")], tmp_path)
    (tmp_path / "out" / "report.html").mkdir()
    with pytest.raises(UsageError, match="cannot use"):
        report(str(tmp_path / "out"))


@pytest.mark.parametrize("error", [OSError("disk full"), ZeroDivisionError("of whatever kind")])
def test_a_report_that_fails_does_not_fail_the_run_whose_work_is_done(
    error: Exception, make_manifest: MakeManifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> bytes:
        raise error

    monkeypatch.setattr(reporting, "make_report", broken)
    manifest = str(make_manifest([{"content": "absent.jpg", "style": ["absent.jpg"]}]))
    summary = stylize_batch.run(manifest, output=str(tmp_path / "out"), in_process=True, device="cpu")
    assert summary.failed == 1
    assert summary.report_error == f"{type(error).__name__}: {error}"
    assert '"state": "finished"' in Root(str(tmp_path / "out")).read("run.json").decode()
