"""Errors: a closed list of kinds, one line each, and never a credential; lines that nobody takes."""

from __future__ import annotations

import io
import os
import pickle
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO, get_args

import pytest

from stylize_batch.errors import (
    KINDS,
    GaveUpError,
    JobFailedError,
    Kind,
    RowError,
    SystemicError,
    UsageError,
    answer,
    counted,
    one_line,
    say,
)

PIPELINE = Path(__file__).parents[1] / "pipeline"


def test_every_kind_of_failed_row_is_in_the_one_list_with_its_meaning() -> None:
    assert set(KINDS) == set(get_args(Kind))
    used = {
        kind
        for path in PIPELINE.rglob("*.py")
        for kind in re.findall(r"RowError\(\s*\"(\w+)\"", path.read_text())
    }
    assert used <= set(KINDS)
    assert all(meaning == one_line(meaning) for meaning in KINDS.values())


SECRET = "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY"


@pytest.mark.parametrize(
    "text",
    [
        f"https://user:{SECRET}@host/x.jpg does not exist",
        f"ftp://user:{SECRET}@host",
        f"403, message='Forbidden', url='https://b.s3.amazonaws.com/x.jpg?X-Amz-Credential=k&X-Amz-Signature={SECRET}'",
        f"https://h/x?AWSAccessKeyId=k&Signature={SECRET}&Expires=1",
        f"https://h/x?X-Amz-Security-Token={SECRET}",
        f"https://account.blob.core.windows.net/c/x?sv=1&sig={SECRET}",
        f"https://h/x?access_token={SECRET}",
        f"AuthorizationHeaderMalformed: Credential={SECRET}/20260101/us-east-1, Signature={SECRET}",
        f"{{'key': 'x', 'aws_secret_access_key': '{SECRET}'}}",
        f"aws_secret_access_key = {SECRET}",
        f"password: {SECRET}",
    ],
)
def test_no_error_shows_a_credential(text: str) -> None:
    for error in (UsageError(text), JobFailedError(text), GaveUpError(text), SystemicError(text)):
        assert SECRET not in str(error)
        assert SECRET not in repr(pickle.loads(pickle.dumps(error)))
    assert SECRET not in str(pickle.loads(pickle.dumps(RowError("NotFound", text))))


def test_access_key_identifiers_are_left_out() -> None:
    message = "InvalidAccessKeyId: The AWS Access Key Id AKIAIOSFODNN7EXAMPLE you provided does not exist"
    assert "AKIA" not in str(UsageError(message))


@pytest.mark.parametrize(
    "text",
    [
        "NotFound: s3://bucket/a:b@c/x.jpg does not exist",
        "s3://bucket/photos/sig/design=2/x?versionId=abc is a folder",
        "size was 256 for this output root and is now 512; choose another --output",
        "Signature mismatch in token stream",
        "RPC error: InvalidAuthToken: Authentication token is missing",
    ],
)
def test_other_text_stays_as_it_is(text: str) -> None:
    assert one_line(text) == text


def test_errors_are_one_line() -> None:
    assert str(SystemicError("a\n  b\tc")) == "a b c"


def test_blanks_of_a_name_stay_and_line_breaks_go() -> None:
    assert one_line("  a  b.jpg \r\n does\tnot   exist\n") == "a  b.jpg does not   exist"


def test_one_thing_is_counted_in_the_singular_and_none_in_the_plural() -> None:
    assert [counted(number, "row") for number in (0, 1, 2)] == ["0 rows", "1 row", "2 rows"]
    assert [counted(number, "box is", "boxes are") for number in (1, 2)] == ["1 box is", "2 boxes are"]


def test_a_message_of_a_million_blanks_is_written_at_once() -> None:
    assert len(one_line("a" + 1_000_000 * " " + "b")) == 1_000_002


@pytest.fixture
def full_disk(monkeypatch: pytest.MonkeyPatch) -> Iterator[TextIO]:
    """A file that takes nothing more, as stderr."""
    with open("/dev/full", "w") as file:  # noqa: PTH123 (a device)
        monkeypatch.setattr(sys, "stderr", file)
        yield file
        os.dup2(os.open(os.devnull, os.O_WRONLY), file.fileno())


@pytest.mark.usefixtures("full_disk")
def test_a_line_that_cannot_be_written_ends_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    for _ in range(2000):  # more than a buffer holds
        say("Starting workers")
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    sys.stderr.close()
    say("Starting workers")


def test_lines_for_people_do_not_get_into_stdout_where_stderr_is_closed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stderr", None)
    say("Starting workers")
    assert capsys.readouterr().out == ""


def test_an_answer_that_cannot_be_written_is_told_of_and_ends_nothing(
    full_disk: TextIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdout", full_disk)
    monkeypatch.setattr(sys, "stderr", stderr := io.StringIO())
    answer("{}")
    assert stderr.getvalue() == "cannot write to stdout: No space left on device\n"
