"""What rows may reach: allowed schemes, nothing through a chain, no credentials, and each refusal names its row."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

import stylize_batch
from stylize_batch.errors import UsageError
from stylize_batch.manifest.build import build
from stylize_batch.manifest.pairing import Pairing
from stylize_batch.manifest.reach import SCHEMES, VARIABLE, Reach, carries_credential, reach
from stylize_batch.manifest.schema import ManifestError
from stylize_batch.progress import Silent
from stylize_batch.storage import join
from tests.conftest import MakeManifest, Row

ALLOWED = Reach(SCHEMES, "/data")

REFUSED = [
    "http://169.254.169.254/latest/meta-data/", "https://host/x.jpg", "HTTP://host/x", "S3://bucket/x",
    "simplecache::https://host/x.jpg", "simplecache::s3://bucket/x.jpg", "filecache::file:///x",
    "zip://x.jpg::http://host/a.zip", "zip://x.jpg::/data/a.zip", "tar://x::s3://b/a.tar", "s3://b/x::http://h/y",
    "github://org:repo@main/x.jpg", "ftp://host/x", "sftp://host/x", "ssh://host/x", "smb://host/x", "webhdfs://h/x",
    "reference://x", "local:///etc/x.jpg", "root://host/x", "git://x", "jupyter://h/x", "dask://h/x", "data://x",
    "blockcache::x://y", "dir://x::y", "generic://x", "asynclocal://x", "://x", " s3://bucket/x", "s3 ://b/x",
    "http:\n//host/x://y", "/data/x://y", "x.jpg::http://h/y",
]  # fmt: skip

FINE = [
    "x.jpg", "/abs/x.jpg", "../x.jpg", "a:b.jpg", "a::b.jpg", "simplecache::x.jpg", "http:/x.jpg", "s3:x",
    "file:///data/x.jpg", "s3://bucket/a b%20c#?.jpg", "s3://bucket/a:b@c.jpg", "s3a://b/x", "gs://b/x", "gcs://b/x",
    "az://container/x", "abfs://container@account.dfs.core.windows.net/x", "memory://x", "s3://b/x?versionId=7",
    "s3://bucket/design=3/a@2x.jpg", "s3://host:9000/a@2x.jpg",
]  # fmt: skip


def batch(**columns: Any) -> pa.RecordBatch:
    return pa.RecordBatch.from_pydict(columns)


@pytest.mark.parametrize("uri", REFUSED)
@pytest.mark.parametrize("column", ["content", "style", "mask"])
def test_other_schemes_and_chains_are_refused_with_their_row(uri: str, column: str) -> None:
    values: list[Any] = ["x.jpg", uri] if column == "content" else [["x.jpg"], ["y.jpg", uri]]
    with pytest.raises(ManifestError, match=f"row 8: {column} ") as caught:
        ALLOWED.check(batch(**{column: values}), "m.parquet", 7)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("uri", FINE)
def test_paths_and_object_storage_are_allowed(uri: str) -> None:
    ALLOWED.check(batch(content=[uri], style=[uri], mask=[[uri]]), "m", 0)


@given(
    st.lists(st.text("s3htp:/@?=.\n x", max_size=14) | st.sampled_from([*REFUSED, *FINE]), max_size=4),
    st.sampled_from([SCHEMES, ("s3",)]),
    st.sampled_from(["/data", "s3://b/in"]),
)
def test_the_columns_check_agrees_with_that_of_single_uris(
    uris: list[str], schemes: tuple[str, ...], base: str
) -> None:
    rows = Reach(schemes, base)
    try:
        rows.check(batch(content=uris), "m", 0)
    except ManifestError:
        assert any(rows.refusal(uri) for uri in uris)
    else:
        assert not any(rows.refusal(uri) for uri in uris)


@pytest.mark.parametrize(
    ("output", "base", "uri", "own"),
    [
        ("/out", "/data", "/out/images/x.jpg", True),
        ("/out", "/data", "../out/images/a/b/x.jpg", True),
        ("/out", "/data", "file:///out/images/x.jpg", True),
        ("file:///out", "/data", "/data/../out/images/x.jpg", True),
        ("/out", "file:///out", "images/x.jpg", True),
        ("/out", "/out/images", "x.jpg", True),
        ("s3://b/out/", "s3://b", "out/images/x.jpg", True),
        ("s3://b/out", "/data", "s3a://b/out/images/x.jpg", True),
        ("s3://b/out", "s3://b/in", "../out/images/x.jpg", True),
        ("memory://out", "/data", "memory:///out/images/x.jpg", True),
        ("/out", "/data", "/out/x.jpg", False),
        ("/out", "/data", "/out/images2/x.jpg", False),
        ("/out", "/data", "out/images/x.jpg", False),
        ("/out", "/data", "s3://b/out/images/x.jpg", False),
        ("/out", "/data", "\0/x.jpg", False),
    ],
)
@pytest.mark.parametrize("column", ["content", "style", "mask"])
def test_rows_may_not_read_what_the_run_replaces(
    output: str, base: str, uri: str, own: bool, column: str
) -> None:
    rows = reach(base, [join(output, "images")])
    values: list[Any] = ["/y.jpg", uri] if column == "content" else [["/y.jpg"], ["/y.jpg", uri]]
    with pytest.raises(ManifestError, match=r"row 8: .* lies in the output root") if own else nullcontext():
        rows.check(batch(**{column: values}), "m", 7)


def test_rows_may_not_read_what_the_run_replaces_through_a_link(tmp_path: Path) -> None:
    (tmp_path / "out" / "images").mkdir(parents=True)
    (tmp_path / "link").symlink_to("out/images")
    rows = reach(str(tmp_path), [str(tmp_path / "out" / "images")])
    with pytest.raises(ManifestError, match="lies in the output root"):
        rows.check(batch(content=["link/x.jpg"]), "m", 0)


@pytest.mark.parametrize("base", ["s3://b/in", "file:///data"])
def test_a_relative_path_that_would_become_a_chain_beside_a_uri_is_refused(base: str) -> None:
    with pytest.raises(ManifestError, match=r"row 1: content 'img::1\.jpg' becomes a chain") as caught:
        Reach(SCHEMES, base).check(batch(content=["img:1.jpg", "img::1.jpg"]), "m", 0)
    assert "\n" not in str(caught.value)
    Reach(SCHEMES, base).check(batch(content=["/data/img::1.jpg"]), "m", 0)


@pytest.mark.parametrize(
    "kind",
    [
        pa.string(), pa.large_string(), pa.string_view(), pa.dictionary(pa.int32(), pa.string()),
        pa.list_(pa.string()), pa.large_list(pa.large_string()), pa.list_(pa.string(), 1),
    ],
)  # fmt: skip
def test_every_type_a_column_may_have_is_checked(kind: pa.DataType) -> None:
    nested = pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    for uri in ("https://h/x", "s3://b/x"):
        column = pa.array([[uri]]).cast(kind) if nested else pa.array([uri]).cast(kind)
        checked = pa.RecordBatch.from_arrays([column], ["style"])
        if uri.startswith("s3"):
            ALLOWED.check(checked, "m", 0)
        else:
            with pytest.raises(ManifestError):
                ALLOWED.check(checked, "m", 0)


def test_missing_values_are_left_to_the_rows_own_rules() -> None:
    ALLOWED.check(batch(content=["x", None], style=[None, ["x", None]], mask=[None, None]), "m", 0)


SECRETS = [
    "https://user:pass@host/x.jpg",
    "s3://key:secret@bucket/x.jpg",
    "s3://key:se/cret@bucket/x.jpg",
    "https://h/x?X-Amz-Credential=k&X-Amz-Signature=s",
    "https://h/x?Expires=1&Signature=s",
    "https://a.blob.core.windows.net/c/x?sv=1&sig=s",
    "https://h/x?token=s",
]


@pytest.mark.parametrize("uri", SECRETS)
def test_credentials_are_refused_and_not_repeated(uri: str) -> None:
    assert carries_credential(uri)
    with pytest.raises(ManifestError) as caught:
        Reach(("https", "s3"), "/").check(batch(content=[uri]), "m", 0)
    assert "carries a credential" in str(caught.value)
    assert all(
        secret not in str(caught.value)
        for secret in ("pass@", "secret@", "cret@", "Signature=s", "sig=s", "token=s")
    )


def test_the_environment_says_what_else_is_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "s3, https://")
    assert reach("/data").schemes == ("s3", "https")
    assert reach("/data").refusal("https://host/x.jpg") is None
    assert reach("/data").refusal("http://host/x.jpg")
    assert reach("/data").refusal("simplecache::https://host/x.jpg")
    monkeypatch.setenv(VARIABLE, "http|.*")
    with pytest.raises(UsageError, match=VARIABLE):
        reach("/data")


@pytest.mark.parametrize(
    ("base", "uri", "allowed"),
    [
        ("/data", "x.jpg", False),
        ("/data", "/x.jpg", False),
        ("s3://b/in", "x.jpg", True),
        ("s3://b/in", "/x.jpg", False),
    ],
)
def test_without_file_no_local_path_is_read(base: str, uri: str, allowed: bool) -> None:
    strict = Reach(("s3",), base)
    assert (strict.refusal(uri) is None) == allowed
    if allowed:
        strict.check(batch(content=[uri]), "m", 0)
    else:
        with pytest.raises(ManifestError, match="uses plain paths"):
            strict.check(batch(content=[uri]), "m", 0)


@pytest.mark.parametrize("name", ["content", "style", "content_root", "unpack"])
def test_a_built_manifest_keeps_no_credential(tmp_path: Path, name: str) -> None:
    places: dict[str, Any] = {
        "content": str(tmp_path),
        "style": str(tmp_path),
        name: "https://u:hunter2@host/x",
    }
    pairing = Pairing(content_root=places.pop("content_root", None))
    with pytest.raises(UsageError, match="URI carries a credential") as caught:
        build(output=str(tmp_path / "m.parquet"), pairing=pairing, observer=Silent(), **places)
    assert "hunter2" not in str(caught.value)


def test_a_run_refuses_such_a_row_before_anything_is_written(
    make_manifest: MakeManifest, pairs: list[Row], tmp_path: Path
) -> None:
    manifest = make_manifest([pairs[0], {**pairs[1], "style": ["https://host/style.jpg"]}])
    with pytest.raises(UsageError, match=r"row 1: style 'https://host/style\.jpg' uses https://"):
        stylize_batch.run(str(manifest), output=str(tmp_path / "out"), in_process=True)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["manifest", "output", "model"])
def test_a_jobs_own_uris_carry_no_credentials_either(name: str) -> None:
    settings = {"manifest": "m.parquet", name: "https://user:hunter2@host/x"}
    with pytest.raises(UsageError, match=f"the {name}'s URI carries a credential") as caught:
        stylize_batch.run(**settings)
    assert "hunter2" not in str(caught.value)
