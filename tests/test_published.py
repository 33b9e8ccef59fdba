"""`stylize-batch model import` and `model show`, as a user types them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import pytest
import safetensors.torch
import torch
import yaml

from stylize_batch.errors import SystemicError, UsageError
from stylize_batch.model import checkpoint, importing
from stylize_batch.model.importing import File
from stylize_batch.published import import_model
from stylize_batch.storage import read_bytes
from tests.conftest import Cli, MakeManifest, Row, read_results
from tests.model.test_importing import published, saved, torchvision_state


def fail(uri: str) -> None:
    """Stand where no image is expected to be skipped."""
    raise AssertionError(uri)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what pytorch-AdaIN publishes, and torchvision's VGG-19, all with random weights."""
    folder = tmp_path_factory.mktemp("published")
    torch.manual_seed(0)
    vgg, decoder = published()
    (folder / "vgg_normalised.pth").write_bytes(saved(vgg.state_dict()))
    (folder / "decoder.pth").write_bytes(saved(decoder.state_dict()))
    (folder / "vgg19.pth").write_bytes(saved(torchvision_state("vgg19")))
    return folder


def test_an_imported_model_stylizes_and_tells_what_it_is(
    files: Path, make_manifest: MakeManifest, pairs: list[Row], cli: Cli, tmp_path: Path
) -> None:
    made = cli(
        "model", "import", files / "vgg_normalised.pth", files / "decoder.pth", "-o", "m/vgg19.safetensors"
    )
    assert made.returncode == 0, made.stderr
    assert made.stderr == f"model {tmp_path}/m/vgg19.safetensors\n"
    assert list((tmp_path / "m").iterdir()) == [tmp_path / "m" / "vgg19.safetensors"]
    shown = cli("model", "show", "m/vgg19.safetensors")
    told = yaml.safe_load(shown.stdout)
    assert list(told) == sorted(told)
    assert told["encoder_parameters"] == 3_505_728
    assert told["variance"] == "unbiased"
    assert told["decoder_source"].startswith("decoder.pth, SHA-256 ")
    done = cli(
        "run", make_manifest(pairs[:2]), "--model", "m/vgg19.safetensors", "--in-process", "--device", "cpu",
        "--style-size", "48", "-o", "out",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert all(row["style_loss"] > 0 for row in read_results(tmp_path / "out"))


def test_an_encoder_alone_is_refused_by_run_in_one_line(
    files: Path, make_manifest: MakeManifest, pairs: list[Row], cli: Cli, tmp_path: Path
) -> None:
    import_model(str(files / "vgg_normalised.pth"), None, str(tmp_path / "encoder.safetensors"), skipped=fail)
    done = cli("run", make_manifest(pairs[:1]), "--model", "encoder.safetensors", "--in-process")
    assert done.returncode == 2
    assert "has no decoder; train one with `stylize-batch train`" in done.stderr
    assert done.stderr.count("\n") == 1


def test_an_encoder_is_normalised_on_a_folder_of_photographs(
    files: Path, pictures: Path, tmp_path: Path
) -> None:
    (tmp_path / "photos").mkdir()
    for source in sorted((pictures / "content").iterdir())[:2]:
        (tmp_path / "photos" / source.name).write_bytes(source.read_bytes())
    (tmp_path / "photos" / "broken.jpg").write_bytes(b"no picture")
    skipped: list[str] = []
    arguments = (str(files / "vgg19.pth"), None)
    options: dict[str, Any] = {"input": "imagenet", "skipped": skipped.append}
    made = import_model(
        *arguments, str(tmp_path / "a.safetensors"), normalise=str(tmp_path / "photos"), **options
    )
    raw = import_model(*arguments, str(tmp_path / "b.safetensors"), **options)
    assert skipped == [str(tmp_path / "photos" / "broken.jpg")]
    found, before = (checkpoint.load_encoder(Path(path).read_bytes()) for path in (made, raw))
    means = found(torch.rand(1, 3, 64, 64)).mean(), before(torch.rand(1, 3, 64, 64)).mean()
    assert 0.1 < means[0] < 10
    assert not 0.1 < means[1] < 10


def test_credentials_that_expire_among_the_photographs_are_told_in_one_line(
    files: Path, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read(uri: str) -> bytes:
        if uri.endswith(".pth"):
            return read_bytes(uri)
        raise SystemicError(f"the credentials for {uri} are refused or missing")

    monkeypatch.setattr("stylize_batch.published.read_bytes", read)
    photos = str(pictures / "content")
    with pytest.raises(UsageError, match=f"^the credentials for {photos}"):
        import_model(
            str(files / "vgg19.pth"), None, str(tmp_path / "e.safetensors"),
            input="imagenet", normalise=photos, skipped=fail,
        )  # fmt: skip


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of torch.hub, and no network: whatever is asked for is refused at once."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    for name in ("https_proxy", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    return tmp_path / "hub" / "checkpoints"


def test_torchvisions_weights_come_from_its_cache(files: Path, hub: Path, tmp_path: Path) -> None:
    hub.mkdir(parents=True)
    data = (files / "vgg19.pth").read_bytes()
    (hub / "vgg19-dcbb9e9d.pth").write_bytes(data)
    made = import_model("torchvision:vgg19", None, str(tmp_path / "e.safetensors"), skipped=fail)
    expected = importing.load_encoder(File("vgg19.pth", data), "imagenet").state_dict()
    found = checkpoint.load_encoder(Path(made).read_bytes()).state_dict()
    assert all(torch.equal(found[key], expected[key].half().float()) for key in expected)


def test_without_a_network_the_message_says_where_torchvisions_file_goes(hub: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot download https://") as caught:
        import_model("torchvision:vgg19", None, str(tmp_path / "e.safetensors"), skipped=fail)
    assert str(hub / "vgg19-dcbb9e9d.pth") in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not list(hub.iterdir())


@pytest.mark.parametrize(
    ("vgg", "options", "message"),
    [
        ("absent.pth", {}, "cannot read .*absent.pth: NotFound"),
        ("vgg19.pth", {"input": "bgr"}, "--input bgr is unknown; use imagenet, caffe, unit"),
        ("vgg19.pth", {"output": "decoder.pth"}, "ends in .safetensors"),
        ("vgg19.pth", {"input": "unit", "normalise": "{files}"}, "no images to normalise on in .*jpg"),
        ("vgg19.pth", {"input": "unit", "output": "{files}/vgg19.pth/e.safetensors"}, "cannot write"),
        ("vgg19.pth", {"input": "unit", "output": "nosuch://bucket/e.safetensors"}, "cannot open nosuch"),
        ("torchvision:alexnet", {}, "use torchvision:vgg19 or torchvision:vgg16"),
        ("torchvision:vgg19", {"input": "unit"}, "leave --input out"),
    ],
)
def test_mistakes_are_answered_in_one_line(
    files: Path, tmp_path: Path, vgg: str, options: dict[str, str], message: str
) -> None:
    given = {key: value.format(files=files) for key, value in options.items()}
    output = given.pop("output", str(tmp_path / "e.safetensors"))
    source = vgg if ":" in vgg else str(files / vgg)
    with pytest.raises(UsageError, match=message) as caught:
        import_model(
            source, None, output, input=given.get("input"), normalise=given.get("normalise"), skipped=fail
        )
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "e.safetensors").exists()


@pytest.mark.parametrize(
    "write",
    [lambda target: target.write_bytes(b"old"), lambda target: None],
    ids=["replaces", "makes"],
)
def test_writing_leaves_the_model_and_nothing_else(
    files: Path, tmp_path: Path, write: Callable[[Path], None]
) -> None:
    target = tmp_path / "new" / "e.safetensors"
    target.parent.mkdir()
    write(target)
    import_model(str(files / "vgg_normalised.pth"), None, str(target), skipped=fail)
    assert list(target.parent.iterdir()) == [target]
    checkpoint.load_encoder(target.read_bytes())


def test_files_come_from_and_go_to_object_storage_too(files: Path) -> None:
    fs = fsspec.filesystem("memory")
    fs.pipe_file("/published/vgg.pth", (files / "vgg_normalised.pth").read_bytes())
    made = import_model("memory://published/vgg.pth", None, "memory://models/e.safetensors", skipped=fail)
    assert made == "memory://models/e.safetensors"
    checkpoint.load_encoder(fs.cat_file("/models/e.safetensors"))


def test_escape_sequences_in_a_model_file_do_not_reach_the_terminal(cli: Cli, tmp_path: Path) -> None:
    data = checkpoint.dumps(*checkpoint.build("compact"), {"name": "\x1b[31mred"})
    (tmp_path / "red.safetensors").write_bytes(data)
    shown = cli("model", "show", "red.safetensors")
    assert shown.returncode == 0
    assert "\x1b" not in shown.stdout
    assert yaml.safe_load(shown.stdout)["name"] == "\x1b[31mred"


def test_weights_that_are_no_model_yet_are_not_shown_as_one(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "raw.safetensors").write_bytes(safetensors.torch.save(torchvision_state("vgg16")))
    shown = cli("model", "show", "raw.safetensors")
    assert shown.returncode == 2
    assert "not a model of stylize-batch" in shown.stderr
