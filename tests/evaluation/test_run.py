"""`stylize-batch evaluate`: what it writes, what it does not do twice, and what it refuses."""

from __future__ import annotations

import signal
import subprocess
import time
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pyarrow.parquet as pq
import pytest
import safetensors.torch
import torch
from PIL import Image

from stylize_batch.errors import JobFailedError, UsageError
from stylize_batch.evaluation import run
from stylize_batch.evaluation.protocol import Protocol
from stylize_batch.evaluation.run import Evaluation
from stylize_batch.model import checkpoint, container
from stylize_batch.model.checkpoint import Checkpoint
from stylize_batch.progress import Silent
from tests.conftest import Cli, command

SIZE = 32


@pytest.fixture
def protocol(pictures: Path) -> Protocol:
    folders = str(pictures / "content"), str(pictures / "style")
    return Protocol(*folders, size=SIZE, max_contents=2, max_styles=2, iterations=12)


def parts(output: Path) -> dict[str, int]:
    """The units kept, and when each was written."""
    return {path.name: path.stat().st_mtime_ns for path in (output / "parts").iterdir()}


def other_model(folder: Path) -> Path:
    """A model of the shipped weights under another name, and so another model."""
    data = container.builtin_bytes(container.DEFAULT)
    metadata = container.dump_metadata({**container.check_model(data), "name": "other"})
    path = folder / "other.safetensors"
    path.write_bytes(safetensors.torch.save(safetensors.torch.load(data), metadata))
    return path


def test_one_command_makes_table_summary_plots_and_contact_sheet(
    pictures: Path, tmp_path: Path, cli: Cli
) -> None:
    other = other_model(tmp_path)
    arguments = (pictures / "content", pictures / "style", "-o", "out", "--size", SIZE, "--max-contents", 3)
    models = ("--model", container.DEFAULT, "--model", other)
    done = cli("evaluate", *arguments, "--max-styles", 2, "--iterations", 12, *models)
    assert done.returncode == 0, done.stderr
    output = tmp_path / "out"
    rows = pq.read_table(output / "results.parquet").to_pylist()
    pairs = {(row["content"], row["style"]) for row in rows}
    assert len(pairs) == 6
    methods = {(row["method"], row["iterations"]) for row in rows}
    assert methods == {
        ("unstylized content", None),
        (container.DEFAULT, None),
        (str(other), None),
        ("Gatys et al.", 10),
        ("Gatys et al.", 12),
    }
    assert len(rows) == len(pairs) * len(methods)
    means = {
        method: sum(row["style_loss"] for row in rows if (row["method"], row["iterations"]) == method)
        for method in methods
    }
    assert means["Gatys et al.", 12] < means["Gatys et al.", 10] < means["unstylized content", None]
    assert means[container.DEFAULT, None] == means[str(other), None] < means["unstylized content", None]
    summary = (output / "summary.md").read_text()
    assert done.stdout.strip() in summary
    assert "| adain-vgg16 | 12 iterations |" in summary
    for name in ("trade-off.png", "style-loss.png", "content-distance.png", "sheet.jpg"):
        assert f"]({name})" in summary
        with Image.open(output / name) as image:
            image.load()
    with Image.open(output / "sheet.jpg") as image:  # content, style, two models, two baseline pictures
        assert image.width == 6 * (SIZE + 4) + 4


def test_finished_pairs_are_not_made_again_and_another_model_adds_only_its_own(
    protocol: Protocol, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    first = Evaluation(protocol, str(output)).run(Silent())
    kept = parts(output)
    assert len(kept) == 4 * 3
    again = Evaluation(protocol, str(output)).run(Silent())
    assert parts(output) == kept
    assert again.table.equals(first.table)
    both = replace(protocol, models=(container.DEFAULT, str(other_model(tmp_path))))
    Evaluation(both, str(output)).run(Silent())
    assert kept.items() < parts(output).items()
    assert len(parts(output)) == 4 * 4


def test_models_stay_as_they_were_loaded_whatever_device_phi_is_put_on(
    protocol: Protocol, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded: list[Checkpoint] = []

    def loads(data: bytes) -> Checkpoint:
        loaded.append(load(data))
        return loaded[-1]

    load = checkpoint.loads
    monkeypatch.setattr(checkpoint, "loads", loads)
    Evaluation(protocol, str(tmp_path / "out"))
    weights = [weight for model in loaded for weight in model.encoder.parameters()]
    assert weights
    assert all(weight.is_contiguous() for weight in weights), (
        "`to` works in place, on the layout as on the device"
    )


@pytest.mark.parametrize("stage", ["encode_style", "Model", "encode_content"])
def test_too_little_memory_ends_in_one_line_wherever_it_is_found_out(
    protocol: Protocol, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: str
) -> None:
    evaluation = Evaluation(protocol, str(tmp_path / "out"))
    monkeypatch.setattr(run, stage, Mock(side_effect=torch.OutOfMemoryError))
    with pytest.raises(JobFailedError, match=f"too little memory for --size {SIZE}"):
        evaluation.run(Silent())


def test_changed_images_are_compared_anew(protocol: Protocol, pictures: Path, tmp_path: Path) -> None:
    folder = tmp_path / "style"
    folder.mkdir()
    for index, colour in enumerate(("red", "blue")):
        picture = folder / "plain.png"
        Image.new("RGB", (SIZE, SIZE), colour).save(picture)
        changed = replace(protocol, styles=str(folder), iterations=0)
        Evaluation(changed, str(tmp_path / "out")).run(Silent())
        assert len(parts(tmp_path / "out")) == 2 * 2 * (index + 1)


def test_a_damaged_part_is_made_again(protocol: Protocol, tmp_path: Path) -> None:
    output = tmp_path / "out"
    first = Evaluation(protocol, str(output)).run(Silent())
    next((output / "parts").iterdir()).write_bytes(b"")
    again = Evaluation(protocol, str(output)).run(Silent())
    columns = ["content", "style", "method", "iterations", "style_loss", "content_distance"]
    assert again.table.select(columns).equals(first.table.select(columns))


def test_an_interrupted_evaluation_says_how_to_go_on_and_keeps_what_is_finished(
    pictures: Path, tmp_path: Path, cli: Cli
) -> None:
    folders = (str(pictures / "content"), str(pictures / "style"))
    arguments = (
        "evaluate",
        *folders,
        "-o",
        "out",
        "--size",
        "32",
        "--max-contents",
        "1",
        "--max-styles",
        "2",
    )
    process = subprocess.Popen(
        [command(), *arguments, "--iterations", "100000"],
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    folder = tmp_path / "out" / "parts"
    deadline = time.monotonic() + 120
    while not (
        folder.exists() and len(list(folder.iterdir())) == 4
    ):  # two pairs, unstylized and by the model
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 130, said
    assert "repeat the command to go on" in said
    assert "Traceback" not in said
    kept = parts(tmp_path / "out")
    done = cli(*arguments, "--iterations", "0")
    assert done.returncode == 0, done.stderr
    assert parts(tmp_path / "out") == kept
    assert "4 already done" in done.stderr


def test_unreadable_images_are_named_and_counted(pictures: Path, tmp_path: Path, cli: Cli) -> None:
    folder = tmp_path / "mixed"
    folder.mkdir()
    (folder / "broken.jpg").write_text("no image")
    (folder / "empty.png").write_bytes(b"")
    (folder / "cat.jpg").write_bytes((pictures / "content" / "cat.jpg").read_bytes())
    flags = ("--size", SIZE, "--max-styles", 1, "--iterations", 0)
    done = cli("evaluate", folder, pictures / "style", "-o", "out", *flags)
    assert done.returncode == 0, done.stderr
    assert f"skipped: {folder / 'broken.jpg'}: Undecodable" in done.stderr
    assert "1 content × 1 style at 32×32, on cpu; 2 unreadable images skipped" in done.stderr


def test_others_take_the_place_of_unreadable_images(protocol: Protocol, tmp_path: Path) -> None:
    (tmp_path / "broken.jpg").write_text("no image")
    for path in Path(protocol.contents).iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    for seed in range(8):
        skipped: dict[str, str] = {}
        found = replace(protocol, seed=seed).load(str(tmp_path), 6, skipped)
        assert len(found) == 6
        assert set(skipped) <= {str(tmp_path / "broken.jpg")}


def test_the_draw_depends_on_the_seed_alone(protocol: Protocol) -> None:
    def draw(seed: int) -> list[str]:
        chosen = replace(protocol, seed=seed)
        return [picture.name for picture in chosen.load(chosen.contents, 3, {})]

    assert draw(0) == draw(0)
    assert len({tuple(draw(seed)) for seed in range(8)}) > 1


def test_papers_protocol_is_a_preset_that_flags_override(pictures: Path, tmp_path: Path, cli: Cli) -> None:
    flags = ("--paper", "--max-contents", 1, "--max-styles", 1)
    done = cli("evaluate", pictures / "content", pictures / "style", "-o", "out", *flags, "--iterations", 0)
    assert done.returncode == 0, done.stderr
    assert "1 content × 1 style at 512×512" in done.stderr


def test_storage_that_fails_ends_the_evaluation_with_its_state_kept(
    protocol: Protocol, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluation = Evaluation(protocol, str(tmp_path / "out"))

    def full(key: str, data: bytes) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(evaluation.root, "put", full)
    with pytest.raises(JobFailedError, match="No space left"):
        evaluation.run(Silent())


def test_an_output_that_is_a_file_is_refused_without_names_of_temporaries(
    protocol: Protocol, tmp_path: Path
) -> None:
    (tmp_path / "out").touch()
    with pytest.raises(UsageError, match=r"^cannot write to .*/out: Not a directory$"):
        Evaluation(protocol, str(tmp_path / "out"))


@pytest.mark.parametrize("name", ["results.parquet", "protocol.json"])
def test_a_folder_that_is_no_evaluations_is_refused_and_left_as_it_is(
    protocol: Protocol, tmp_path: Path, name: str
) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / name).write_text("{}")
    with pytest.raises(UsageError, match=r"out is not empty and holds no protocol\.json of an evaluation"):
        Evaluation(protocol, str(tmp_path / "out"))
    assert [path.read_text() for path in (tmp_path / "out").iterdir()] == ["{}"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"contents": "absent"}, "there is no folder"),
        ({"models": ("picasso",)}, "unknown model"),
        ({"styles": "nosuch://bucket"}, "nosuch"),
    ],
)
def test_what_cannot_be_compared_is_refused(
    protocol: Protocol, tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        Evaluation(replace(protocol, **change), str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()
