"""Training: it learns, it resumes exactly, it balances sources, and it needs no Ray."""

from __future__ import annotations

import csv
import os
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
import yaml
from PIL import Image

from stylize_batch.errors import JobFailedError, UsageError
from stylize_batch.model import checkpoint, container
from stylize_batch.training import loop
from stylize_batch.training.data import ImagePool
from stylize_batch.training.loop import Step, Trainer
from stylize_batch.training.recipe import Recipe, load_recipe


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shipped encoder, keyed as torchvision's features."""
    state = checkpoint.loads(container.builtin_bytes(container.DEFAULT)).encoder.state_dict()
    positions = {"1_1": 0, "1_2": 2, "2_1": 5, "2_2": 7, "3_1": 10, "3_2": 12, "3_3": 14, "4_1": 17}
    tensors = {
        f"features.{position}.{kind}": state[f"conv{name}.{kind}"]
        for name, position in positions.items()
        for kind in ("weight", "bias")
    }
    path = tmp_path_factory.mktemp("encoder") / "vgg16.safetensors"
    safetensors.torch.save_file(tensors, path)
    return path


@pytest.fixture
def recipe(pictures: Path) -> Recipe:
    stage = {"crop": 32, "batch": 2, "learning_rate": 1e-3}
    return Recipe.model_validate(
        {
            "name": "tiny",
            "architecture": "vgg16",
            "encoder": container.DEFAULT,
            "contents": str(pictures / "content"),
            "styles": str(pictures / "style"),
            "holdout": ["cat.jpg", "tapa-cloth.jpg"],
            "stages": [
                {"loss": "reconstruction", "iterations": 3, **stage},
                {"loss": "style", "iterations": 3, **stage},
            ],
            "sample_every": 4,
        }
    )


def train(recipe: Recipe, output: Path, stop_after: int | None = None) -> list[Step]:
    steps: list[Step] = []

    def report(step: Step) -> None:
        steps.append(step)
        if step.iteration == stop_after:
            raise KeyboardInterrupt

    trainer = Trainer(recipe, str(output))
    if stop_after is None:
        trainer.run(report)
    else:
        with pytest.raises(KeyboardInterrupt):
            trainer.run(report)
    return steps


def test_an_interrupted_training_continues_exactly_where_it_was(recipe: Recipe, tmp_path: Path) -> None:
    whole = train(recipe, tmp_path / "whole")
    before = train(recipe, tmp_path / "split", stop_after=4)
    after = train(recipe, tmp_path / "split")
    assert [step.loss for step in before + after] == [step.loss for step in whole]
    model = (tmp_path / "whole" / "model.safetensors").read_bytes()
    resumed = (tmp_path / "split" / "model.safetensors").read_bytes()
    one, other = safetensors.torch.load(model), safetensors.torch.load(resumed)
    assert all(torch.equal(one[key], other[key]) for key in one)
    with (tmp_path / "split" / "training.csv").open() as file:
        assert [int(row["iteration"]) for row in csv.DictReader(file)] == [1, 2, 3, 4, 5, 6]


def test_a_signal_in_the_middle_of_an_iteration_is_heard_after_it(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = train(recipe, tmp_path / "whole")
    trainer = Trainer(recipe, str(tmp_path / "split"))
    real, calls = trainer.optimizer.step, []

    def step() -> None:
        real()
        calls.append(1)
        if len(calls) == 4:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(trainer.optimizer, "step", step)
    before: list[Step] = []
    with pytest.raises(KeyboardInterrupt):
        trainer.run(before.append)
    after = train(recipe, tmp_path / "split")
    assert [step.loss for step in before + after] == [step.loss for step in whole]


def test_repeating_a_finished_training_changes_nothing(recipe: Recipe, tmp_path: Path) -> None:
    train(recipe, tmp_path)
    before = (tmp_path / "model.safetensors").read_bytes()
    assert train(recipe, tmp_path) == []
    trainer = Trainer(recipe, str(tmp_path))
    trainer.save()
    assert (tmp_path / "model.safetensors").read_bytes() == before


def test_the_learning_rate_may_change_under_way(recipe: Recipe, tmp_path: Path) -> None:
    train(recipe, tmp_path, stop_after=4)
    stages = [stage.model_copy(update={"learning_rate": 1e-5}) for stage in recipe.stages]
    assert train(recipe.model_copy(update={"stages": stages}), tmp_path)[-1].learning_rate < 1e-4


def test_a_gradient_that_is_not_finite_ends_the_training_and_spoils_nothing(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "MAX_BAD_STEPS", 3)
    train(recipe, tmp_path, stop_after=2)
    before = (tmp_path / "state.safetensors").read_bytes()
    trainer = Trainer(recipe, str(tmp_path))
    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", lambda *_: torch.tensor(float("nan")))
    with pytest.raises(JobFailedError, match="learning_rate"):
        trainer.run(lambda step: None)
    assert (tmp_path / "state.safetensors").read_bytes() == before


def test_a_trained_model_is_a_model(recipe: Recipe, tmp_path: Path) -> None:
    train(recipe, tmp_path)
    loaded = checkpoint.loads((tmp_path / "model.safetensors").read_bytes())
    assert loaded.metadata["name"] == "tiny"
    assert loaded.metadata["iterations"] == "6"
    assert float(loaded.metadata["training_style_loss"]) > 0


def test_sample_grids_are_pictures(recipe: Recipe, tmp_path: Path) -> None:
    train(recipe, tmp_path)
    names = sorted(path.name for path in (tmp_path / "samples").iterdir())
    assert names == ["000004.jpg", "000006.jpg"]
    with Image.open(tmp_path / "samples" / names[-1]) as image:
        image.load()


def test_an_encoder_keyed_as_torchvisions_trains_the_same_network(
    recipe: Recipe, encoder: Path, tmp_path: Path
) -> None:
    keyed = recipe.model_copy(update={"encoder": str(encoder)})
    ours, theirs = train(recipe, tmp_path / "a"), train(keyed, tmp_path / "b")
    assert [step.loss for step in ours] == [step.loss for step in theirs]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"architecture": "vgg19"}, "is a vgg16, not a vgg19"),
        ({"encoder": "absent"}, "unknown model 'absent'"),
    ],
)
def test_a_wrong_encoder_is_refused(
    recipe: Recipe, tmp_path: Path, change: dict[str, str], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        Trainer(recipe.model_copy(update=change), str(tmp_path))


def test_identity_pairs_teach_the_photograph_itself(recipe: Recipe, tmp_path: Path) -> None:
    stage = recipe.stages[1].model_copy(update={"identity_pairs": 1})
    plain = train(recipe.model_copy(update={"stages": [recipe.stages[1]]}), tmp_path / "plain")[0]
    with_identity = train(recipe.model_copy(update={"stages": [stage]}), tmp_path / "identity")[0]
    expected = with_identity.content_loss + stage.style_weight * with_identity.style_loss
    assert plain.loss == pytest.approx(plain.content_loss + stage.style_weight * plain.style_loss, rel=1e-5)
    assert with_identity.loss > expected + 0.1


def test_reconstruction_learns(recipe: Recipe, tmp_path: Path) -> None:
    stage = recipe.stages[0].model_copy(update={"iterations": 40})
    steps = train(recipe.model_copy(update={"stages": [stage]}), tmp_path)
    losses = [step.loss for step in steps]
    assert np.mean(losses[-5:]) < 0.6 * np.mean(losses[:5])


def test_another_recipe_does_not_continue_a_training(recipe: Recipe, tmp_path: Path) -> None:
    train(recipe, tmp_path)
    with pytest.raises(UsageError, match="another recipe"):
        Trainer(recipe.model_copy(update={"seed": 1}), str(tmp_path))


def test_draws_are_balanced_over_sources_whatever_their_size(tmp_path: Path) -> None:
    colours = {"big": "red", "small": "blue"}
    for name, count in (("big", 30), ("small", 1)):
        for index in range(count):
            Image.new("RGB", (40, 40), colours[name]).save(tmp_path / f"{name}__{index}.png")
    pool = ImagePool(str(tmp_path), "__")
    crops = pool.crops(np.random.default_rng(0), 200, 16, 0.5)
    counts = Counter("red" if crop[0, 0, 0] > 0.5 else "blue" for crop in crops)
    assert 60 < counts["blue"] < 140


def test_held_out_images_are_never_drawn(pictures: Path) -> None:
    names = [path.name for path in (pictures / "style").iterdir()]
    pool = ImagePool(str(pictures / "style"), "__", names[:-1])
    assert len(pool) == 1
    assert sorted(pool.held_out) == sorted(names[:-1])


def test_images_that_cannot_be_decoded_are_named(pictures: Path, tmp_path: Path) -> None:
    (tmp_path / "broken.jpg").write_text("no image")
    (tmp_path / "fine.jpg").write_bytes(next((pictures / "style").iterdir()).read_bytes())
    assert ImagePool(str(tmp_path), "__").skipped == [str(tmp_path / "broken.jpg")]


def test_a_folder_without_images_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no training images"):
        ImagePool(str(tmp_path / "absent"), "__")
    with pytest.raises(UsageError, match="--contents and --styles"):
        ImagePool("", "__")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"stages": []}, "stages"),
        ({"stages": [{"loss": "magic", "iterations": 1}]}, "loss"),
        ({"colour": "blue"}, "colour"),
        ({"seed": -1}, "seed"),
        ({"stages": [{"loss": "style", "iterations": 1, "crop": 36}]}, "crop"),
    ],
)
def test_a_wrong_recipe_is_refused_in_one_line(
    recipe: Recipe, tmp_path: Path, change: dict[str, object], message: str
) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump({**recipe.model_dump(), **change}))
    with pytest.raises(UsageError, match=message) as caught:
        load_recipe(str(path))
    assert "\n" not in str(caught.value)


def test_every_recipe_of_the_repository_is_valid() -> None:
    recipes = sorted((Path(__file__).parents[2] / "jobs" / "train").glob("*.yaml"))
    assert recipes
    for path in recipes:
        load_recipe(str(path))


def test_training_runs_where_ray_and_pyarrow_are_not_installed(recipe: Recipe, tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe.model_dump()))
    program = (
        "import sys\n"
        "sys.modules['ray'] = sys.modules['pyarrow'] = None\n"
        "from stylize_batch.cli import main\n"
        f"sys.argv = ['stylize-batch', 'train', {str(path)!r}, '-o', {str(tmp_path / 'run')!r}]\n"
        "main()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run" / "model.safetensors").exists()
    assert "reconstruction" in done.stderr or "style 6/6" in done.stderr
