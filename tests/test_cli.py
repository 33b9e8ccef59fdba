"""The command line: exit statuses, the JSON object, and one line for every mistake."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from stylize_batch.results import Outcome
from tests.conftest import Cli, MakeManifest, Row, command
from tests.report.roots import make_root, row

FAST = ("--in-process", "--device", "cpu", "--style-size", "48")


@pytest.fixture
def manifest(make_manifest: MakeManifest, pairs: list[Row]) -> Path:
    return make_manifest(pairs[:3])


def test_json_prints_the_contracts_object_and_nothing_else_on_stdout(manifest: Path, cli: Cli) -> None:
    done = cli("run", manifest, *FAST, "--json")
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout)
    assert set(summary) == {
        "pairs", "ok", "failed", "skipped", "seconds", "images_per_second", "output",
        "mean_content_loss", "mean_style_loss",
    }  # fmt: skip
    assert (summary["pairs"], summary["ok"], summary["failed"], summary["skipped"]) == (3, 3, 0, 0)
    assert summary["images_per_second"] == pytest.approx(3 / summary["seconds"], rel=0.01)
    assert Path(summary["output"]).name == "pairs-stylized"


def test_a_run_says_where_everything_is(manifest: Path, cli: Cli, tmp_path: Path) -> None:
    done = cli("run", manifest, *FAST, "-o", "out")
    assert done.stdout == ""
    for line in ("pictures", "results", "report  "):
        assert line in done.stderr
    report = tmp_path / "out" / "report.html"
    assert str(report) in done.stderr
    (shares,) = re.findall(r"where the workers' time went: (.*)", done.stderr)
    assert re.match(r"(network|losses|waiting) \d+ %, ", shares)
    assert shares in report.read_text()


def test_failed_rows_exit_3_and_are_summed_up_by_kind(
    make_manifest: MakeManifest, pairs: list[Row], cli: Cli
) -> None:
    manifest = make_manifest([pairs[0], {**pairs[0], "content": "absent.jpg"}])
    done = cli("run", manifest, *FAST)
    assert done.returncode == 3
    assert "failed: 1 × NotFound (the image does not exist)\n  " in done.stderr
    assert f"  {manifest.parent}/absent.jpg does not exist\n" in done.stderr


def test_too_many_failed_rows_exit_4(make_manifest: MakeManifest, pairs: list[Row], cli: Cli) -> None:
    done = cli("run", make_manifest([{**pairs[0], "content": "absent.jpg"}]), *FAST, "--max-failed", "0")
    assert done.returncode == 4
    assert "gave up: 1 row failed" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("run", "absent.parquet"), "there is no manifest absent.parquet"),
        (("run",), "no manifest"),
        (("run", "{manifest}", "--model", "picasso"), "unknown model 'picasso'"),
        (("run", "{manifest}", "--model", "{manifest}"), "not a safetensors file"),
        (("run", "{manifest}", "--size", "3"), "--size"),
        (("run", "{manifest}", "--format", "gif"), "--format"),
        (("run", "{manifest}", "--job", "absent.yaml"), "cannot read the job file"),
        (("run", "{manifest}", "-o", "nosuch://bucket/out"), "nosuch"),
        (("run", "{manifest}", "-o", "memory://out"), "--in-process"),
        (("run", "{manifest}", "--colour", "blue"), "No such option"),
        (("run", "{manifest}", "-o", "", "--size", "9"), "the argument after -o is empty; give it, or leave"),
        (("run", "{manifest}", "--job="), "--job= is empty; give it, or leave it out"),
        (("status", "--address=out/date="), "No such option"),
        (("status", ""), "the argument after the command is empty"),
        (("train", "absent.yaml"), "cannot read the recipe"),
        (("train", "absent.yaml", "--minutes", "0"), "Invalid value for '--minutes'"),
        (("model", "show", "picasso"), "unknown model"),
        (("manifest", "build", ".", ".", "-o", "pairs.csv"), "a manifest's name ends in .parquet"),
        (("manifest", "check", "absent.parquet"), "there is no manifest absent.parquet"),
        (("styles", "encode", "absent/", "-o", "bank.parquet"), "there is no style source absent/"),
        (("styles", "encode", ".", "-o", "bank"), "a style bank's name ends in .parquet"),
        (("run", "{manifest}", "--styles", "absent.parquet"), "there is no style bank absent.parquet"),
        (("run", "{manifest}", "--styles", "{manifest}"), "is no style bank"),
        (("run", "photos/", "paintings/"), "these are 2: photos/ paintings/; for pictures write --content"),
        (
            ("submit", "a.parquet", "b.parquet", "c.parquet"),
            "these are 3: a.parquet b.parquet …; for pictures",
        ),
    ],
)
def test_mistakes_exit_2_with_one_line_and_no_traceback(
    manifest: Path, cli: Cli, arguments: tuple[str, ...], message: str
) -> None:
    done = cli(*(argument.format(manifest=manifest) for argument in arguments))
    assert done.returncode == 2, done.stderr
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stderr.startswith(("error: ", "Usage: "))
    if done.stderr.startswith("error: "):
        assert done.stderr.count("\n") == 1


def test_a_locale_that_is_not_utf_8_is_refused_and_a_plain_one_is_not(pictures: Path, cli: Cli) -> None:
    build = ("manifest", "build", pictures / "content", pictures / "style", "-o", "pairs.parquet")
    other = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}  # ASCII, which every system has
    refused = cli(*build, env=other)
    assert refused.returncode == 2
    assert refused.stderr == "error: this locale's names of files are ascii, not UTF-8; set PYTHONUTF8=1\n"
    assert cli(*build, env={**other, "PYTHONUTF8": "1"}).returncode == 0
    assert cli(*build, env={"LC_ALL": "C"}).returncode == 0


def test_a_second_ctrl_c_ends_a_run_that_waits_for_storage_for_ever(
    make_manifest: MakeManifest, pairs: list[Row], tmp_path: Path
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        content = f"http://127.0.0.1:{silent.getsockname()[1]}/cat.jpg"
        run = subprocess.Popen(
            [command(), "run", str(make_manifest([{**pairs[0], "content": content}])), *FAST],
            cwd=tmp_path, stderr=subprocess.PIPE, text=True,
            env={**os.environ, "STYLIZE_BATCH_SCHEMES": "file,http"},
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )  # fmt: skip
        assert run.stderr
        connection, _ = silent.accept()
        with connection:
            run.send_signal(signal.SIGINT)
            assert any(line.startswith("interrupted") for line in run.stderr)
            time.sleep(0.5)
            run.send_signal(signal.SIGINT)
            assert run.wait(timeout=60) == 130
            assert run.stderr.read() == ""


def test_an_output_that_cannot_be_written_exits_2_without_a_traceback(manifest: Path, cli: Cli) -> None:
    done = cli("run", manifest, "-o", f"{manifest}/out")
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("error: cannot write to the output root")
    assert "Traceback" not in done.stderr


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_a_gpu_demanded_where_there_is_none_is_refused(manifest: Path, cli: Cli) -> None:
    done = cli("run", manifest, "--device", "cuda", "--in-process")
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("error: device cuda: torch")


def test_storage_without_credentials_is_refused_in_one_line(
    manifest: Path, make_manifest: MakeManifest, pairs: list[Row], cli: Cli, tmp_path: Path
) -> None:
    nobody = {
        "HOME": str(tmp_path),
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_PROFILE": "",
        "AWS_ACCESS_KEY_ID": "",
    }
    remote = make_manifest([{**pairs[0], "content": "s3://bucket/x.jpg"}], "remote.parquet")
    for arguments, message in (
        (("run", manifest, "-o", "s3://bucket/out", "--in-process"), "cannot write to the output root"),
        (("manifest", "check", remote), "credentials for s3://bucket/x.jpg are refused or missing"),
    ):
        done = cli(*arguments, env=nobody)
        assert done.returncode == 2, done.stderr
        assert message in done.stderr
        assert done.stderr.count("error: ") == 1
        assert "Traceback" not in done.stderr


def test_escape_sequences_of_names_do_not_reach_the_terminal(cli: Cli) -> None:
    done = cli("run", "\x1b[31mred.parquet")
    assert done.returncode == 2
    assert "\x1b" not in done.stderr


@pytest.mark.parametrize("end", [">/dev/full", "2>/dev/full", ">/dev/full 2>&1", "2>&-", "| true"])
def test_nobody_who_reads_changes_no_exit_status(end: str) -> None:
    for arguments, status in (("--version", 0), ("status absent", 2)):
        line = f"set -o pipefail; {shlex.quote(command())} {arguments} {end}"
        done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, check=False)
        assert done.returncode == status, done.stderr
        assert "Traceback" not in done.stderr


def test_help_that_a_full_disk_does_not_take_is_one_line_and_no_traceback() -> None:
    done = subprocess.run(
        ["bash", "-c", f"{shlex.quote(command())} run --help >/dev/full"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "cannot write to stdout: No space left on device\n")


def test_a_terminal_that_lacks_a_letter_gets_its_number(cli: Cli, tmp_path: Path) -> None:
    make_root(tmp_path / "ö", [[row("a", ["b"], Outcome(error="NotFound: gone"))]], tmp_path)
    done = cli("report", "ö", env={"PYTHONIOENCODING": "ascii"})
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("/\\xf6/report.html\n")


def test_a_bad_row_is_named_and_nothing_is_started(
    make_manifest: MakeManifest, pairs: list[Row], cli: Cli, tmp_path: Path
) -> None:
    done = cli("run", make_manifest([pairs[0], {**pairs[1], "alpha": 7.0}]), "-o", "out")
    assert done.returncode == 2
    assert "row 1: alpha is 7" in done.stderr
    assert not (tmp_path / "out").exists()


def test_model_show_tells_what_the_shipped_model_is(cli: Cli) -> None:
    done = cli("model", "show")
    assert done.returncode == 0
    for key in ("architecture: vgg16", "encoder_licence: ", "recipe:\n", "digest: "):
        assert key in done.stdout


def test_importing_the_package_loads_neither_torch_nor_ray() -> None:
    program = "import stylize_batch, sys; print([m for m in ('torch', 'ray', 'pyarrow') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_driver_of_a_ray_job_needs_no_torch() -> None:
    program = "import stylize_batch.job.run, stylize_batch.engine.on_ray, sys; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_a_bank_of_styles_serves_a_run_and_what_cannot_be_encoded_is_named(
    make_manifest: MakeManifest, pairs: list[Row], styles: list[str], cli: Cli, tmp_path: Path
) -> None:
    (tmp_path / "paintings").mkdir()
    (tmp_path / "paintings" / "broken.jpg").write_bytes(b"no picture")
    (tmp_path / "paintings" / "good.jpg").write_bytes(Path(styles[0]).read_bytes())
    encode = ("styles", "encode", "paintings", "-o", "bank.parquet", *FAST[1:])
    made = cli(*encode)
    assert made.returncode == 3, made.stderr
    assert f"failed: {tmp_path}/paintings/broken.jpg: Undecodable" in made.stderr
    assert "1 style, 1 of them encoded now; 1 failed" in made.stderr
    manifest = make_manifest([{**pairs[0], "style": ["paintings/good.jpg"]}, pairs[1]])
    done = cli("run", manifest, *FAST, "--styles", "bank.parquet")
    assert done.returncode == 0, done.stderr
    assert "Encoding styles (1 in the bank): 2" in done.stderr
    assert "styles: 1 from the bank, 1 encoded" in done.stderr
