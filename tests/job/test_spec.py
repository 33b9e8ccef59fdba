"""Settings of a run: ranges, files, and what the default output is."""

from __future__ import annotations

import inspect
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, get_args

import pytest
from pydantic.fields import FieldInfo

from stylize_batch.cli import manifest_build
from stylize_batch.errors import UsageError
from stylize_batch.job.spec import JobSpec, allowed_failures, make_spec
from stylize_batch.manifest.pairing import Pairing, Real, Whole

MANIFEST_BUILD = {f"--{name.replace('_', '-')}" for name in inspect.signature(manifest_build).parameters}
"""The options of `manifest build`."""


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "no manifest"),
        ({"manifest": "m", "size": 4}, "--size"),
        ({"manifest": "m", "quality": 0}, "--quality"),
        ({"manifest": "m", "format": "gif"}, "--format"),
        ({"manifest": "m", "device": "tpu"}, "--device: "),
        ({"manifest": "m", "actors": "many"}, r"--actors: many: give a number \(8\), numbers by device"),
        ({"manifest": "m", "actors": 0}, "--actors: 0: give a number"),
        ({"manifest": "m", "actors": "cuda=8,cpu=0"}, "--actors: .* each from 1 to 9999"),
        ({"manifest": "m", "actors": 10_000}, "--actors: .* each from 1 to 9999"),
        ({"manifest": "m", "actors": "cuda=8,tpu=4"}, "--actors: "),
        ({"manifest": "m", "actors": "cpu=1,cpu=2"}, "--actors: .* twice"),
        ({"manifest": "m", "actors": {}}, "--actors: "),
        ({"manifest": "m", "actors": "cuda=8,cpu=4", "device": "cuda"}, "name different devices"),
        ({"manifest": "m", "actors": "cpu=1", "in_process": True}, "leave --actors out"),
        ({"manifest": "m", "gpus_per_actor": 1.5}, "--gpus-per-actor"),
        ({"manifest": "m", "gpus_per_actor": 0.00001}, "--gpus-per-actor"),
        (
            {"manifest": "m", "gpus_per_actor": 0.5, "device": "cpu"},
            "--gpus-per-actor is for workers on GPUs",
        ),
        (
            {"manifest": "m", "gpus_per_actor": 0.5, "actors": "cpu=2"},
            "--gpus-per-actor is for workers on GPUs",
        ),
        ({"manifest": "m", "gpus_per_actor": 0.5, "in_process": True}, "leave --gpus-per-actor out"),
        ({"manifest": "m", "max_failed": "some"}, "--max-failed"),
        ({"manifest": "m", "max_failed": "200%"}, "--max-failed: .* up to 100%"),
        ({"manifest": "m", "output": "out\udcff"}, "is not UTF-8"),
        ({"manifest": "m\udcff"}, "is not UTF-8"),
        ({"manifest": "m\0"}, "has a NUL in it"),
        ({"manifest": "m", "size": 64, "crop": 65}, "larger than --size"),
        ({"manifest": "m", "output": "memory://x"}, "add --in-process"),
        ({"manifest": "memory://x/m.parquet"}, "add --in-process"),
        ({"manifest": "m", "in_process": True, "address": "auto"}, "exclude each other"),
        ({"manifest": "m", "sise": 3}, "unknown setting 'sise'; known: manifest, content, "),
        ({"manifest": "m", "size": "big"}, "^--size: it must be a valid integer"),
        ({"content": "c"}, "--content and --style go together"),
        ({"style": "s"}, "--content and --style go together"),
        ({"manifest": "m", "content": "c", "style": "s"}, "exclude each other"),
        ({"manifest": "m", "build": {"seed": 1}}, "leave them out"),
        ({"content": "c", "style": "s", "output": "c/x/out"}, "lies in --content"),
        ({"content": ".", "style": "s"}, "lies in --content"),
        ({"content": "o/images", "style": "s", "output": "o"}, "^--content o/images lies in the output root"),
        (
            {"content": "c", "style": f"file://{Path.cwd()}/o/x", "output": "o"},
            "^--style .* lies in the output root",
        ),
        (
            {"content": "c", "style": "s3a://b/o/x/", "output": "s3://b/o/"},
            "^--style .* lies in the output root",
        ),
        (
            {"content": "c", "style": "s", "output": "o", "build": {"style_map": "o/x/map.csv"}},
            "^build.style-map o/x/map.csv lies in the output root",
        ),
        (
            {"content": "c", "style": "s", "build": {"alfa": 1}},
            "unknown setting 'build.alfa'; known: styles_per",
        ),
        ({"content": "c", "style": "s", "build": {"seed": "x"}}, "^build.seed: "),
        ({"content": "c", "style": "s", "build": 3}, "^build: "),
        ({"content": "memory://c", "style": "s"}, "add --in-process"),
        (
            {"content": "c", "style": "s", "build": {"style_map": "https://h/x.csv?X-Amz-Signature=abc"}},
            "the style map's URI carries a credential",
        ),
    ],
)
def test_wrong_settings_are_refused_in_one_line_that_names_them(
    settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        make_spec(settings)
    assert "\n" not in str(caught.value)


def test_links_are_followed_where_sources_and_output_must_not_overlap(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "link").symlink_to("data")
    data, link = str(tmp_path / "data"), str(tmp_path / "link")
    for one, other in ((data, link), (link, data)):
        with pytest.raises(UsageError, match="lies in --content"):
            make_spec({"content": one, "style": "s", "output": f"{other}/out"})
        with pytest.raises(UsageError, match=r"--style .* lies in the output root"):
            make_spec({"content": "c", "style": f"{one}/images", "output": other})
    assert make_spec({"content": data, "style": "s", "output": f"{data}-out"})


def is_number(field: FieldInfo) -> bool:
    return bool({int, float, Whole, Real} & {field.annotation, *get_args(field.annotation)})


@pytest.mark.parametrize(
    "name",
    [name for name, field in JobSpec.model_fields.items() if is_number(field)]
    + [f"build.{name}" for name, field in Pairing.model_fields.items() if is_number(field)],
)
def test_yes_and_no_are_no_numbers(tmp_path: Path, name: str) -> None:
    section, _, name = name.rpartition(".")
    setting = f"{name}: yes"
    job = tmp_path / "job.yaml"
    job.write_text(f"content: c\nstyle: s\n{f'build: {{{setting}}}' if section else setting}\n")
    with pytest.raises(UsageError, match=rf"{name.replace('_', '-')}: .*; give a number|True: give a number"):
        make_spec({}, job)


def test_workers_are_numbered_by_device_in_words_and_as_a_mapping() -> None:
    pools = {"cuda": 8, "cpu": 4}
    for given in ("cuda=8,cpu=4", " cpu=4, cuda=8", pools):
        spec = make_spec({"manifest": "m", "actors": given, "gpus_per_actor": 0.5})
        assert spec.actors == pools
        assert set(spec.devices) == set(pools)
    assert make_spec({"manifest": "m", "actors": "cpu=4", "device": "cpu"}).devices == ["cpu"]
    assert make_spec({"manifest": "m", "actors": "8"}).actors == 8
    assert make_spec({"manifest": "m", "actors": "8"}).devices == []


@pytest.mark.parametrize(
    ("manifest", "output"),
    [
        ("data/pairs.parquet", "pairs-stylized"),
        ("s3://bucket/nightly/", "nightly-stylized"),
        ("parts/train-*.parquet", "train-stylized"),
        ("*.parquet", "manifest-stylized"),
    ],
)
def test_output_defaults_to_the_manifests_name_in_the_working_directory(manifest: str, output: str) -> None:
    assert make_spec({"manifest": manifest}).resolved_output() == str(Path.cwd() / output)


@pytest.mark.parametrize(
    ("max_failed", "pairs", "allowed"),
    [("100%", 7, 7), ("2%", 1000, 20), ("0.1%", 10_000_000, 10_000), ("3", 9, 3)],
)
def test_allowed_failures_are_a_number_or_a_share(max_failed: str, pairs: int, allowed: int) -> None:
    assert (
        allowed_failures(make_spec({"manifest": "m", "max_failed": max_failed}).max_failed, pairs) == allowed
    )


def test_a_built_manifest_lies_beside_the_output() -> None:
    spec = make_spec({"content": "data/photos/", "style": "s"})
    assert spec.resolved_output() == str(Path.cwd() / "photos-stylized")
    assert spec.resolved_manifest() == str(Path.cwd() / "photos-stylized.parquet")
    spec = make_spec({"content": "s3://b/photos", "style": "s", "output": "s3://b/out/"})
    assert spec.resolved_manifest() == "s3://b/out.parquet"


def test_the_section_build_takes_the_names_of_manifest_build(tmp_path: Path) -> None:
    job = tmp_path / "job.yaml"
    job.write_text(
        "manifest: old.parquet\nbuild:\n  styles-per-content: 2\n  alpha: 0.5\n  style_by_label: true\n"
    )
    spec = make_spec({"content": "c", "style": "s"}, str(job))
    build = spec.build
    assert (spec.manifest, build.styles_per_content, build.alpha, build.style_by_label) == (
        "",
        2,
        "0.5",
        True,
    )
    for name in Pairing.model_fields:
        assert f"--{name.replace('_', '-')}" in MANIFEST_BUILD


def test_a_tilde_in_a_job_file_is_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    job = tmp_path / "job.yaml"
    job.write_text("content: ~/photos\nstyle: ~paintings\noutput: ~/out/\nbuild: {style-map: ~/map.csv}\n")
    spec = make_spec({}, job)
    assert (spec.content, spec.style) == (f"{tmp_path}/photos", "~paintings")
    assert spec.output == f"{tmp_path}/out/"
    assert spec.build.style_map == f"{tmp_path}/map.csv"


def test_flags_win_over_the_job_file(tmp_path: Path) -> None:
    job = tmp_path / "job.yaml"
    job.write_text("manifest: m.parquet\nsize: 256\nstyle-size: 384\nbatch_size: auto\njson: false\n")
    spec = make_spec({"size": 128, "as_json": True}, str(job))
    assert (spec.manifest, spec.size, spec.style_size, spec.batch_size) == ("m.parquet", 128, 384, None)
    assert spec.as_json


def test_a_manifest_given_directly_takes_the_place_of_what_the_job_file_builds_one_of(tmp_path: Path) -> None:
    job = tmp_path / "job.yaml"
    job.write_text("content: photos\nstyle: paintings\nbuild:\n  alpha: 0.5\nsize: 256\n")
    spec = make_spec({"manifest": "m.parquet"}, str(job))
    assert (spec.manifest, spec.content, spec.style, spec.build, spec.size) == (
        "m.parquet",
        "",
        "",
        Pairing(),
        256,
    )
    with pytest.raises(UsageError, match="exclude each other"):
        make_spec({"manifest": "m.parquet", "content": "photos"}, str(job))


def test_every_option_may_stand_in_a_job_file_under_its_own_name(tmp_path: Path) -> None:
    job = tmp_path / "job.yaml"
    job.write_text("no-metrics: true\njson: true\nretry-failed: true\nin-process: true\n")
    spec = make_spec({"manifest": "m"}, str(job))
    assert (spec.metrics, spec.as_json, spec.retry_failed, spec.in_process) == (False, True, True, True)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- a\n- b\n", "lines"),
        ("a: [", "not YAML"),
        ("limit: 2024-13-45", "not YAML: month must be"),
        ("limit: !!int abc", "not YAML: invalid literal"),
        ("limit: " + "[" * 5000, "not YAML: maximum recursion depth"),
        (None, "cannot read"),
        ("size: 64\nformat: png\nsize: 32\n", "the job file gives size twice"),
        ("batch-size: 2\nbatch_size: 4\n", "the job file gives batch_size twice"),
        ("actors: {cpu: 1, cpu: 2}\n", "the job file gives cpu twice"),
        ("json: maybe\n", "^--json: "),
        ("jsn: true\n", "known: .*, json$"),
        ("no-metrics: 'false'", "no-metrics is 'false', it must be true or false"),
    ],
)
def test_a_bad_job_file_is_refused(tmp_path: Path, text: str | None, message: str) -> None:
    job = tmp_path / "job.yaml"
    if text is not None:
        job.write_text(text)
    with pytest.raises(UsageError, match=message):
        make_spec({"manifest": "m"}, str(job))


def test_python_code_may_give_paths_and_names_as_job_files_have_them(tmp_path: Path) -> None:
    job = tmp_path / "job.yaml"
    job.write_text("size: 64")
    build = {"styles-per-content": 2, "style_map": tmp_path / "map.json"}
    spec = make_spec(
        {
            "content": tmp_path / "c",
            "style": tmp_path / "s",
            "output": tmp_path / "out",
            "style-size": 32,
            "build": build,
        },
        job,
    )
    assert (spec.content, spec.size, spec.style_size) == (str(tmp_path / "c"), 64, 32)
    assert (spec.build.styles_per_content, spec.build.style_map) == (2, str(tmp_path / "map.json"))


def test_a_job_file_is_utf_8_whatever_the_locale(tmp_path: Path) -> None:
    job = tmp_path / "job.yaml"
    job.write_text("manifest: \u00fc.parquet\n", encoding="utf-8")
    code = f"from stylize_batch.job.spec import allowed_failures, make_spec; print(ascii(make_spec({{}}, {str(job)!r}).manifest))"
    locale = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **locale},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.strip().endswith(r"\xfc.parquet'"), done.stderr
