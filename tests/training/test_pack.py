"""jobs/train/pack.py: one file of all training images, or none."""

from __future__ import annotations

import subprocess
import sys
import tarfile
from pathlib import Path

from tests.conftest import SAMPLE

PACK = SAMPLE.parent.parent / "jobs" / "train" / "pack.py"


def pack(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(PACK), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


def test_images_are_packed_under_their_names_into_a_folder_that_was_not_there(
    pictures: Path, tmp_path: Path
) -> None:
    output = tmp_path / "absent" / "images.tar"
    done = pack(pictures / "content", pictures / "style", "-o", output, "--side", 32)
    assert done.returncode == 0, done.stderr
    with tarfile.open(output) as tar:
        names = sorted(tar.getnames())
    wanted = [
        str(path.relative_to(pictures))
        for kind in ("content", "style")
        for path in (pictures / kind).iterdir()
    ]
    assert names == sorted(wanted)


def test_a_wrong_folder_leaves_no_tar_of_the_other_alone(pictures: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for styles, message in (
        (tmp_path / "absent", "there is no folder"),
        (tmp_path / "empty", "no images in"),
    ):
        done = pack(pictures / "content", styles, "-o", tmp_path / "images.tar")
        assert done.returncode == 1
        assert done.stderr.startswith(f"error: {message}")
        assert done.stderr.count("\n") == 1
    assert not list(tmp_path.glob("*.tar"))


def test_an_output_that_cannot_be_written_is_refused_in_one_line(pictures: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    done = pack(pictures / "content", pictures / "style", "-o", tmp_path / "file" / "images.tar")
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
