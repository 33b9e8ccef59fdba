"""Training: it learns, it resumes exactly, it balances sources, and it needs no Ray."""

from __future__ import annotations

import csv
import errno
import math
import os
import shutil
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any
from unittest.mock import ANY, Mock

import numpy as np
import pytest
import safetensors.torch
import torch
import yaml
from PIL import Image
from torch import Tensor, nn

from stylize_batch import cli
from stylize_batch.errors import JobFailedError, UsageError
from stylize_batch.job import lease
from stylize_batch.model import checkpoint, container
from stylize_batch.model.decoder import Decoder
from stylize_batch.model.vgg import Encoder
from stylize_batch.root import Root
from stylize_batch.training import data, log, loop, state
from stylize_batch.training.data import ImagePool, to_tensor
from stylize_batch.training.log import Step
from stylize_batch.training.loop import Trainer, check_output
from stylize_batch.training.objective import Objective, Transfer
from stylize_batch.training.recipe import Recipe, load_recipe
from stylize_batch.training.state import Position


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


@pytest.fixture
def other_encoder(tmp_path: Path) -> Path:
    """A model with another VGG-16 than the shipped one."""
    model = checkpoint.loads(container.builtin_bytes(container.DEFAULT))
    with torch.no_grad():
        next(model.encoder.parameters()).mul_(2)
    path = tmp_path / "other.safetensors"
    path.write_bytes(checkpoint.dumps(model.encoder, model.decoder, {"name": "other"}))
    return path


class Constant(nn.Module):
    """A decoder of grey pictures."""

    def forward(self, features: Tensor) -> Tensor:
        return torch.full((len(features), 3, 32, 32), 0.5)


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


def state_files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name.startswith("state")}


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


def test_an_iteration_launched_before_the_last_is_read_makes_the_same_model(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a GPU, and stopped in between."""
    train(recipe, tmp_path / "one by one")
    first, second = recipe.stages
    short = recipe.model_copy(update={"stages": [first, second.model_copy(update={"iterations": 1})]})
    for part in (short, recipe):
        trainer = Trainer(part, str(tmp_path / "ahead"))
        monkeypatch.setattr(trainer, "_ahead", 1)
        assert trainer.run(lambda _: None)
    models = (
        safetensors.torch.load((tmp_path / name / "model.safetensors").read_bytes())
        for name in ("one by one", "ahead")
    )
    one, other = models
    assert all(torch.equal(one[key], other[key]) for key in one)
    rows = [log.load((tmp_path / name / "training.csv").read_bytes()) for name in ("one by one", "ahead")]
    assert [row.loss for row in rows[0]] == [row.loss for row in rows[1]]


def test_an_error_loses_no_iteration_that_was_launched(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a GPU, where the last one is not read yet."""
    trainer = Trainer(recipe, str(tmp_path))
    step = trainer._step  # pyright: ignore[reportPrivateUsage]

    def failing(contents: Tensor, styles: Tensor) -> Any:
        if trainer.iteration == 4:
            raise JobFailedError("images cannot be decoded")
        return step(contents, styles)

    monkeypatch.setattr(trainer, "_ahead", 1)
    monkeypatch.setattr(trainer, "_step", failing)
    with pytest.raises(JobFailedError, match="decoded"):
        trainer.run(lambda _: None)
    train(recipe, tmp_path)
    rows = log.load((tmp_path / "training.csv").read_bytes())
    assert [row.iteration for row in rows] == [1, 2, 3, 4, 5, 6]


def test_the_rate_rises_and_decays_where_the_recipe_says_so(recipe: Recipe, tmp_path: Path) -> None:
    first, second = recipe.stages
    rising = second.model_copy(update={"warm_up": 2, "decay": 0.0, "learning_rate": 3e-4})
    falling = first.model_copy(update={"decay": 0.5, "learning_rate": 3e-4})
    steps = train(recipe.model_copy(update={"stages": [falling, rising]}), tmp_path)
    assert [step.learning_rate for step in steps] == pytest.approx([3e-4, 2e-4, 1.5e-4, 1e-4, 2e-4, 3e-4])


def test_a_first_stage_of_few_iterations_may_have_crops_of_its_own(recipe: Recipe, tmp_path: Path) -> None:
    first, second = recipe.stages
    stages = [first.model_copy(update={"iterations": 1}), second.model_copy(update={"crop": 48})]
    assert len(train(recipe.model_copy(update={"stages": stages}), tmp_path)) == 4


def test_what_a_network_has_learnt_beside_its_weights_is_kept_too(recipe: Recipe, tmp_path: Path) -> None:
    class Normalised(Transfer):
        def __init__(self, phi: Encoder) -> None:
            super().__init__(phi, Decoder("vgg16"))
            self.normalisation = nn.BatchNorm2d(512)

        def forward(self, contents: tuple[Tensor, ...], styles: tuple[Tensor, ...]) -> Tensor:
            return super().forward(tuple(map(self.normalisation, contents)), styles)

    def trainer() -> Trainer:
        return Trainer(recipe, str(tmp_path), network=lambda _, phi: Normalised(phi))

    trained = trainer()
    trained.run(lambda _: None)
    found = dict(trainer().objective.transfer.named_buffers())
    for name, buffer in trained.objective.transfer.named_buffers():
        assert torch.equal(found[name], buffer)
    assert found["normalisation.num_batches_tracked"] > 0


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


def test_too_little_memory_for_the_samples_ends_in_one_line_too(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = Trainer(recipe, str(tmp_path))
    monkeypatch.setattr(trainer.objective, "stylize", Mock(side_effect=torch.OutOfMemoryError))
    with pytest.raises(JobFailedError, match="too little memory"):
        trainer.run(lambda step: None)


def test_where_the_gpu_has_too_little_memory_the_advice_can_be_followed(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = Trainer(recipe, str(tmp_path))
    with monkeypatch.context() as patch:
        patch.setattr(trainer.optimizer, "step", Mock(side_effect=torch.OutOfMemoryError))
        with pytest.raises(JobFailedError, match="lower the stage's batch or crop"):
            trainer.run(lambda step: None)
    assert not state_files(tmp_path)
    train(recipe, tmp_path, stop_after=4)
    stages = [stage.model_copy(update={"batch": 1, "crop": 16}) for stage in recipe.stages]
    assert train(recipe.model_copy(update={"stages": stages}), tmp_path)[-1].iteration == 6


def test_a_gradient_that_is_not_finite_ends_the_training_and_spoils_nothing(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "MAX_BAD_STEPS", 3)
    train(recipe, tmp_path, stop_after=2)
    before = state_files(tmp_path)
    trainer = Trainer(recipe.model_copy(update={"checkpoint_minutes": 1e-9}), str(tmp_path))
    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", lambda *_: torch.tensor(float("nan")))
    with pytest.raises(JobFailedError, match="learning_rate"):
        trainer.run(lambda step: None)
    assert state_files(tmp_path) == before


def test_a_batch_that_is_not_finite_costs_its_own_step_alone(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "LOOK_EVERY", 1)
    trainer = Trainer(recipe, str(tmp_path))
    real = to_tensor

    def images(batch: Tensor) -> Tensor:
        return real(batch) * (math.nan if trainer.iteration == 4 else 1)

    monkeypatch.setattr(loop, "to_tensor", images)
    losses: list[float] = []
    means: list[Tensor] = []

    def report(step: Step) -> None:
        losses.append(step.loss)
        with trainer.averaged():
            means.append(trainer.objective.transfer.decoder.get_parameter("conv1_1.bias").detach().clone())

    assert trainer.run(report)
    assert [math.isfinite(loss) for loss in losses] == [True, True, True, True, False, True]
    # Nor does the model, the running mean, move on such a step.
    assert [torch.equal(*each) for each in pairwise(means)] == [False, False, False, True, False]
    model = safetensors.torch.load((tmp_path / "model.safetensors").read_bytes())
    assert all(weight.isfinite().all() for weight in model.values())


def test_an_interruption_among_such_gradients_keeps_the_last_sound_checkpoint(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(recipe, tmp_path, stop_after=2)
    before = state_files(tmp_path)
    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", lambda *_: torch.tensor(float("nan")))
    train(recipe, tmp_path, stop_after=4)
    assert state_files(tmp_path) == before


def test_a_training_that_ends_with_such_a_gradient_is_saved(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = Trainer(recipe, str(tmp_path))
    real = torch.nn.utils.clip_grad_norm_

    def norm(*arguments: Any) -> torch.Tensor:
        return real(*arguments) * (float("nan") if trainer.iteration == 5 else 1)

    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", norm)
    assert trainer.run(lambda step: None)
    assert Trainer(recipe, str(tmp_path)).iteration == trainer.iterations == 6


def test_a_checkpoint_half_written_is_as_if_it_were_not(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full disk, or kill -9: the last checkpoint stays, and training goes on from it."""
    whole = train(recipe, tmp_path / "whole")
    train(recipe, tmp_path / "split", stop_after=2)
    trainer = Trainer(recipe, str(tmp_path / "split"))
    real = trainer.root.put

    def put(key: str, data: bytes) -> None:
        if key.endswith("exp_avg.safetensors"):
            raise OSError(errno.ENOSPC, "No space left on device")
        real(key, data)

    monkeypatch.setattr(trainer.root, "put", put)
    with pytest.raises(JobFailedError, match=r"cannot write the checkpoint to .* No space left"):
        trainer.run(lambda step: None, minutes=0)
    resumed = train(recipe, tmp_path / "split")
    assert [step.loss for step in resumed] == [step.loss for step in whole[2:]]


def test_a_checkpoint_that_cannot_be_named_leaves_the_one_before_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, first = Root(str(tmp_path)), Position(1, 1, 0.5, "", {"seed": 0})
    state.save(root, first, {"weights": {"bias": torch.zeros(2)}})
    real = root.put

    def put(key: str, data: bytes) -> None:
        if key == state.INDEX:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(key, data)

    monkeypatch.setattr(root, "put", put)
    with pytest.raises(OSError, match="No space left"):
        state.save(root, first._replace(iteration=2), {"weights": {"bias": torch.ones(2)}})
    assert state.load(root) == (first, {"weights": {"bias": ANY}})


def test_a_training_that_is_killed_has_its_checkpoint_of_minutes_ago(recipe: Recipe, tmp_path: Path) -> None:
    stage = recipe.stages[0].model_copy(update={"iterations": 2})
    kept: list[int] = []

    def report(_: Step) -> None:
        found = state.load(Root(str(tmp_path)))
        kept.append(found[0].iteration if found else 0)

    often = recipe.model_copy(update={"stages": [stage], "checkpoint_minutes": 1e-9})
    assert Trainer(often, str(tmp_path)).run(report)
    assert kept == [0, 1]


def test_a_second_training_on_one_output_is_refused(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each save removes the files of every other checkpoint."""
    for name in ("RENEW_SECONDS", "POLL_SECONDS"):
        monkeypatch.setattr(lease, name, 0.05)
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe.model_dump()))
    output = tmp_path / "out"
    with (
        lease.lease(Root(str(output)), "first"),
        pytest.raises(UsageError, match="another run is working on"),
    ):
        cli.train(str(path), str(output))
    assert list(output.glob("*.json")) == []


def test_an_output_that_cannot_be_written_is_refused_in_one_line(recipe: Recipe, tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe.model_dump()))
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match=r"cannot use .*out"):
        cli.train(str(tmp_path / "recipe.yaml"), str(tmp_path / "file" / "out"))


def test_only_the_last_checkpoint_is_kept(recipe: Recipe, tmp_path: Path) -> None:
    train(recipe, tmp_path, stop_after=2)
    train(recipe, tmp_path)
    names = [name for name in state_files(tmp_path) if name != "state.json"]
    assert len(names) == 5
    assert all(name.startswith("state-000006-") for name in names)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "state.json").write_text("{}"), "cannot be read"),
        (lambda folder: next(folder.glob("state-*-weights*")).write_bytes(b"x" * 20), "cannot be read"),
        (lambda folder: next(folder.glob("state-*-average*")).unlink(), "cannot be read"),
        (lambda folder: (folder / "training.csv").write_text("iteration\nx"), "cannot be read"),
        (lambda folder: shutil.rmtree(folder) or folder.symlink_to(folder.name), "symbolic links"),
    ],
)
def test_a_damaged_checkpoint_is_refused_in_one_line(
    recipe: Recipe, tmp_path: Path, damage: Callable[[Path], object], message: str
) -> None:
    folder = tmp_path / "out"
    train(recipe, folder, stop_after=2)
    damage(folder)
    with pytest.raises(UsageError, match=message) as caught:
        Trainer(recipe, str(folder))
    assert "\n" not in str(caught.value)


def test_an_output_that_cannot_be_read_is_not_taken_for_a_damaged_checkpoint(
    recipe: Recipe, no_credentials: None
) -> None:
    with pytest.raises(UsageError, match=r"^cannot read s3://bucket/run: .*credentials"):
        Trainer(recipe, "s3://bucket/run")


def test_training_starts_from_a_models_weights_and_wakes_its_silent_channels(
    recipe: Recipe, tmp_path: Path
) -> None:
    shipped = checkpoint.loads(container.builtin_bytes(container.DEFAULT))
    shipped.decoder.state_dict()["conv3_3.bias"][:3] = -1e4
    (tmp_path / "start.safetensors").write_bytes(
        checkpoint.dumps(shipped.encoder, shipped.decoder, shipped.metadata)
    )
    stage = recipe.stages[1].model_copy(update={"learning_rate": 1e-9, "iterations": 1})
    started = recipe.model_copy(update={"start": str(tmp_path / "start.safetensors"), "stages": [stage]})
    train(started, tmp_path / "out")
    found = checkpoint.loads((tmp_path / "out" / "model.safetensors").read_bytes()).decoder
    # No ReLU follows the last one, which so cannot be silent.
    kept, wanted = (each.get_submodule("conv1_1").state_dict() for each in (found, shipped.decoder))
    torch.testing.assert_close(kept, wanted, rtol=1e-3, atol=1e-4)
    assert (found.state_dict()["conv3_3.bias"][:3] > -1e3).all()


def test_a_start_model_of_other_features_is_refused(
    recipe: Recipe, other_encoder: Path, tmp_path: Path
) -> None:
    change = {"start": str(other_encoder)}
    with pytest.raises(UsageError, match=r"is not that of .*; write `encoder: .*other\.safetensors`"):
        Trainer(recipe.model_copy(update=change), str(tmp_path / "out"))
    change["encoder"] = str(other_encoder)
    Trainer(recipe.model_copy(update=change), str(tmp_path / "out"))


def test_the_start_model_is_not_needed_to_continue(recipe: Recipe, tmp_path: Path) -> None:
    start = tmp_path / "start.safetensors"
    start.write_bytes(container.builtin_bytes(container.DEFAULT))
    started = recipe.model_copy(update={"start": str(start)})
    train(started, tmp_path / "out", stop_after=4)
    start.unlink()
    assert train(started, tmp_path / "out")[-1].iteration == 6


def test_the_model_is_the_running_mean_of_the_weights(recipe: Recipe, tmp_path: Path) -> None:
    stage = recipe.stages[0].model_copy(update={"iterations": 2, "learning_rate": 0.01})
    trainer = Trainer(recipe.model_copy(update={"average": 0.15, "stages": [stage]}), str(tmp_path))
    own = trainer.objective.transfer.decoder.get_parameter("conv1_1.bias")
    weights = [own.detach().clone()]
    trainer.run(lambda step: weights.append(own.detach().clone()))
    # Early on it forgets faster: the decay is 1/10 after the first update, then the recipe's.
    expected = torch.lerp(torch.lerp(weights[0], weights[1], 0.9), weights[2], 0.85)
    with trainer.averaged():
        torch.testing.assert_close(own.detach(), expected)
    model = checkpoint.loads((tmp_path / "model.safetensors").read_bytes())
    torch.testing.assert_close(model.decoder.state_dict()["conv1_1.bias"], expected, rtol=1e-3, atol=1e-6)


def test_a_compact_network_learns_on_the_same_losses(recipe: Recipe, tmp_path: Path) -> None:
    stage = recipe.stages[1].model_copy(update={"iterations": 30})
    compact = recipe.model_copy(update={"architecture": "compact", "stages": [stage]})
    steps = train(compact, tmp_path)
    assert np.mean([step.loss for step in steps[-5:]]) < 0.7 * np.mean([step.loss for step in steps[:5]])
    loaded = checkpoint.loads((tmp_path / "model.safetensors").read_bytes())
    assert loaded.encoder.architecture == "compact"


def test_the_bound_of_a_recipe_is_at_work_in_training_and_kept_in_the_model(
    recipe: Recipe, tmp_path: Path
) -> None:
    losses: list[float] = []
    for name, gain in (("free", None), ("bounded", 1.5)):
        stage = recipe.stages[1].model_copy(update={"iterations": 1})
        (step,) = train(recipe.model_copy(update={"stages": [stage], "max_gain": gain}), tmp_path / name)
        losses.append(step.content_loss)
    assert losses[0] != losses[1]
    free, bounded = (
        checkpoint.loads((tmp_path / name / "model.safetensors").read_bytes()) for name in ("free", "bounded")
    )
    assert "max_gain" not in free.metadata
    assert bounded.metadata["max_gain"] == "1.5"


def test_the_target_of_the_content_loss_has_the_bound_of_the_network_at_work() -> None:
    model = checkpoint.loads(container.builtin_bytes(container.DEFAULT))
    assert isinstance(model.encoder, Encoder)
    contents, styles = torch.rand(2, 1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    losses: list[float] = []
    for gain in (math.inf, 0.5):
        objective = Objective(model.encoder, Transfer(model.encoder, Constant(), gain))
        losses.append(objective.style_transfer(contents, styles).content_loss.item())
    assert losses[0] != losses[1]


def test_a_recipe_in_fp32_is_not_trained_in_tf32(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    Trainer(recipe, str(tmp_path))
    assert not torch.backends.cudnn.allow_tf32


def test_losses_are_drawn_as_a_picture(recipe: Recipe, tmp_path: Path) -> None:
    train(recipe, tmp_path)
    with Image.open(tmp_path / "training.png") as image:
        image.load()
        assert image.width > 400


def test_a_trained_model_is_a_model(recipe: Recipe, tmp_path: Path) -> None:
    train(recipe, tmp_path)
    loaded = checkpoint.loads((tmp_path / "model.safetensors").read_bytes())
    assert loaded.metadata["name"] == "tiny"
    assert loaded.metadata["iterations"] == "6"
    assert float(loaded.metadata["training_style_loss"]) > 0


def test_a_trained_model_says_which_encoder_and_which_model_it_stands_on(
    recipe: Recipe, tmp_path: Path
) -> None:
    shipped = container.builtin_bytes(container.DEFAULT)
    encoder = tmp_path / "encoder.safetensors"
    said = {"encoder_source": "vgg.pth", "encoder_licence": "CC BY"}
    encoder.write_bytes(checkpoint.dumps(checkpoint.load_encoder(shipped), None, said))
    started = recipe.model_copy(update={"encoder": str(encoder), "start": container.DEFAULT})
    train(started, tmp_path / "out", stop_after=2)
    train(started, tmp_path / "out")
    found = container.describe((tmp_path / "out" / "model.safetensors").read_bytes())
    assert {key: found[key] for key in said} == said
    assert found["encoder_digest"] == container.digest(encoder.read_bytes())
    assert found["start_digest"] == container.digest(shipped)


def test_sample_grids_are_pictures(recipe: Recipe, tmp_path: Path) -> None:
    train(recipe, tmp_path)
    names = sorted(path.name for path in (tmp_path / "samples").iterdir())
    assert names == ["000004.jpg", "000006.jpg"]
    with Image.open(tmp_path / "samples" / names[-1]) as image:
        image.load()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"architecture": "vgg19"}, "is a vgg16, not a vgg19"),
        ({"encoder": "absent"}, "unknown model 'absent'"),
        ({"start": "absent"}, "unknown model 'absent'"),
        ({"architecture": "compact", "start": container.DEFAULT}, "cannot start from it"),
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


def test_a_grid_weight_teaches_to_leave_no_grid(recipe: Recipe, tmp_path: Path) -> None:
    stage = recipe.stages[1].model_copy(update={"iterations": 1, "grid_weight": 1e6})
    step = train(recipe.model_copy(update={"start": container.DEFAULT, "stages": [stage]}), tmp_path)[0]
    assert step.loss > (step.content_loss + stage.style_weight * step.style_loss) * 1.001


def test_reconstruction_learns(recipe: Recipe, tmp_path: Path) -> None:
    stage = recipe.stages[0].model_copy(update={"iterations": 40})
    steps = train(recipe.model_copy(update={"stages": [stage]}), tmp_path)
    losses = [step.loss for step in steps]
    assert np.mean(losses[-5:]) < 0.6 * np.mean(losses[:5])


def test_reconstruction_shows_the_decoder_photographs_and_paintings(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, colour in (("photos", "red"), ("paintings", "blue")):
        (tmp_path / name).mkdir()
        for file in ("drawn.png", "held out.png"):
            Image.new("RGB", (40, 40), colour).save(tmp_path / name / file)
    stage = recipe.stages[0].model_copy(update={"batch": 3, "iterations": 1})
    images = {
        "contents": str(tmp_path / "photos"),
        "styles": str(tmp_path / "paintings"),
        "holdout": ["held out.png"],
    }
    trainer = Trainer(recipe.model_copy(update={**images, "stages": [stage]}), str(tmp_path / "out"))
    shown: list[Tensor] = []
    real = trainer.objective.reconstruction
    monkeypatch.setattr(trainer.objective, "reconstruction", lambda seen: real(shown.append(seen) or seen))
    trainer.run(lambda _: None)
    assert shown[0][:, :, 0, 0].tolist() == [[1, 0, 0], [1, 0, 0], [0, 0, 1]]


def test_another_recipe_does_not_continue_a_training(
    recipe: Recipe, other_encoder: Path, tmp_path: Path
) -> None:
    train(recipe, tmp_path)
    stages = [recipe.stages[0], recipe.stages[1].model_copy(update={"style_weight": 3.0})]
    for change, name in (
        ({"seed": 1}, "seed"),
        ({"start": container.DEFAULT}, "start"),
        ({"encoder": str(other_encoder)}, "encoder"),
        ({"stages": stages}, r"stages\.1\.style_weight"),
        ({"stages": recipe.stages[:1]}, r"stages\.1\.loss"),
    ):
        with pytest.raises(UsageError, match=rf"another recipe .*\(changed: {name}\)"):
            Trainer(recipe.model_copy(update=change), str(tmp_path))


@pytest.mark.parametrize("kind", ["content", "style"])
def test_other_images_do_not_continue_a_training_but_the_same_may_lie_elsewhere(
    recipe: Recipe, pictures: Path, tmp_path: Path, kind: str
) -> None:
    train(recipe, tmp_path / "out", stop_after=2)
    moved = tmp_path / "moved"
    shutil.copytree(pictures / kind, moved)
    elsewhere = recipe.model_copy(update={f"{kind}s": f"{moved}/"})
    assert Trainer(elsewhere, str(tmp_path / "out")).iteration == 2
    shutil.copy(next(moved.iterdir()), moved / "one-more.jpg")
    with pytest.raises(UsageError, match=rf"other images \(changed: {kind}s\)"):
        Trainer(elsewhere, str(tmp_path / "out"))


def test_a_setting_that_recipes_gain_later_does_not_end_trainings_under_way(
    recipe: Recipe, tmp_path: Path
) -> None:
    train(recipe, tmp_path, stop_after=4)

    class Longer(Recipe):
        sharpness: float = 0.0

    assert Trainer(Longer.model_validate(recipe.model_dump()), str(tmp_path)).iteration == 4


def test_draws_are_balanced_over_sources_whatever_their_size(tmp_path: Path) -> None:
    colours = {"big": "red", "small": "blue"}
    for name, count in (("big", 30), ("small", 1)):
        for index in range(count):
            Image.new("RGB", (40, 40), colours[name]).save(tmp_path / f"{name}__{index}.png")
    pool = ImagePool(str(tmp_path), "__")
    crops = pool.crops(np.random.default_rng(0), 200, 16, (0.5, 1.0))
    counts = Counter("red" if crop[0, 0, 0] > 128 else "blue" for crop in crops)
    assert 60 < counts["blue"] < 140
    alike = ImagePool(str(tmp_path), "").crops(np.random.default_rng(0), 200, 16, (0.5, 1.0))
    assert sum(int(crop[0, 0, 0] <= 128) for crop in alike) < 20


def test_held_out_images_are_never_drawn(pictures: Path) -> None:
    names = [path.name for path in (pictures / "style").iterdir()]
    pool = ImagePool(str(pictures / "style"), "__", names[:-1])
    assert len(pool) == 1
    assert sorted(pool.held_out) == sorted(names[:-1])


def test_an_image_that_cannot_be_decoded_is_skipped_and_named(pictures: Path, tmp_path: Path) -> None:
    fine = next((pictures / "style").iterdir()).read_bytes()
    for index in range(19):
        (tmp_path / f"fine{index}.jpg").write_bytes(fine)
    (tmp_path / "broken.jpg").write_text("no image")
    pool = ImagePool(str(tmp_path), "")
    assert len(pool.crops(np.random.default_rng(0), 100, 16, (0.5, 1.0))) == 100
    assert pool.skipped == [str(tmp_path / "broken.jpg")]


def test_an_output_that_holds_something_else_or_lies_among_the_images_is_refused(
    recipe: Recipe, tmp_path: Path
) -> None:
    check_output(Root(str(tmp_path / "new")), recipe)
    (tmp_path / "report.html").touch()
    with pytest.raises(UsageError, match=r"is not empty and holds no recipe\.json of a training"):
        check_output(Root(str(tmp_path)), recipe)
    (tmp_path / "link").symlink_to(recipe.contents)
    for output in (recipe.contents, f"{tmp_path}/link/training"):
        with pytest.raises(UsageError, match=r"lies in --contents, where its samples would be listed too"):
            check_output(Root(output), recipe)


def test_a_folder_of_mostly_unreadable_images_is_refused(pictures: Path, tmp_path: Path) -> None:
    (tmp_path / "fine.jpg").write_bytes(next((pictures / "style").iterdir()).read_bytes())
    (tmp_path / "broken.jpg").write_text("no image")
    with pytest.raises(JobFailedError, match=r"1 of 2 images in .* cannot be decoded"):
        ImagePool(str(tmp_path), "").crops(np.random.default_rng(0), 100, 16, (0.5, 1.0))


def test_images_smaller_than_the_crop_are_enlarged(tmp_path: Path) -> None:
    Image.new("RGB", (40, 33), "red").save(tmp_path / "small.png")
    crops = ImagePool(str(tmp_path), "").crops(np.random.default_rng(0), 3, 64, (0.5, 1.0))
    assert crops.shape == (3, 64, 64, 3)


def test_crops_larger_than_images_are_stored_at_keep_their_pixels(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("stylize_batch.training.loop.MAX_STORED_SIDE", 64)
    (tmp_path / "big").mkdir()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (96, 96, 3), np.uint8)).save(
        tmp_path / "big" / "a.png"
    )
    stage = recipe.stages[0].model_copy(update={"crop": 96})
    large = recipe.model_copy(
        update={"stages": [stage], "contents": str(tmp_path / "big"), "max_scale": 0.95}
    )
    (crop,) = Trainer(large, str(tmp_path / "out")).contents.crops(
        np.random.default_rng(1), 1, 96, (0.95, 0.95)
    )
    assert crop.float().std() > 65  # of noise as it was drawn


def test_crops_have_the_scales_the_recipe_asks_for_and_half_are_mirrored(tmp_path: Path) -> None:
    """At half of the shorter side (the paper's 256 of 512) a ramp shows half of its range."""
    ramp = np.broadcast_to(np.arange(256, dtype=np.uint8)[None, :, None], (256, 256, 3))
    Image.fromarray(np.ascontiguousarray(ramp)).save(tmp_path / "ramp.png")
    crops = ImagePool(str(tmp_path), "").crops(np.random.default_rng(0), 50, 128, (0.5, 0.5))
    extent = crops.amax((1, 2, 3)).int() - crops.amin((1, 2, 3)).int()
    assert extent.eq(127).all()
    mirrored = crops[:, 0, 0, 0] > crops[:, 0, -1, 0]
    assert 10 < mirrored.sum() < 40


def test_more_images_than_memory_holds_are_decoded_again(
    pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = str(pictures / "style")
    cached = ImagePool(folder, "").crops(np.random.default_rng(0), 12, 32, (0.5, 1.0))
    monkeypatch.setattr(data, "MAX_CACHED_BYTES", 0)
    assert torch.equal(ImagePool(folder, "").crops(np.random.default_rng(0), 12, 32, (0.5, 1.0)), cached)


def test_a_folder_without_images_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="there is no folder"):
        ImagePool(str(tmp_path / "absent"), "__")
    with pytest.raises(UsageError, match="no training images"):
        ImagePool(str(tmp_path), "__")
    with pytest.raises(UsageError, match="--contents and --styles"):
        ImagePool("", "__")


def test_what_cannot_be_listed_or_shown_is_refused_before_training(
    tmp_path: Path, no_credentials: None
) -> None:
    (tmp_path / "shown.jpg").write_text("no image")
    with pytest.raises(UsageError, match=r"held-out image .*shown\.jpg: Undecodable"):
        ImagePool(str(tmp_path), "", ["shown.jpg"])
    with pytest.raises(UsageError, match=r"cannot list s3://bucket/photos: the credentials .* missing"):
        ImagePool("s3://bucket/photos", "")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"stages": []}, "stages"),
        ({"stages": [{"loss": "magic", "iterations": 1}]}, "loss"),
        ({"colour": "blue"}, "colour"),
        ({"seed": -1}, "seed"),
        ({"min_scale": 0.6, "max_scale": 0.5}, r"max_scale: 0\.5 is less than min_scale, 0\.6$"),
        ({"stages": [{"loss": "style", "iterations": 1, "crop": 36}]}, "crop"),
        (
            {"stages": [{"loss": "style", "iterations": 1, "batch": 4, "identity_pairs": 5}]},
            r"stages\.0\.identity_pairs: 5 is more than the batch, 4$",
        ),
        ({"stages": [{"loss": "style", "iterations": 1, "learning_rate": float("inf")}]}, "learning_rate"),
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


@pytest.mark.parametrize("text", [b"name: \xff", b"seed: 2024-13-45", b"seed: " + b"[" * 5000])
def test_a_recipe_that_is_no_yaml_is_refused(tmp_path: Path, text: bytes) -> None:
    (tmp_path / "recipe.yaml").write_bytes(text)
    with pytest.raises(UsageError, match="is not YAML"):
        load_recipe(str(tmp_path / "recipe.yaml"))


def test_every_recipe_of_the_repository_is_valid() -> None:
    recipes = sorted((Path(__file__).parents[2] / "jobs" / "train").glob("*.yaml"))
    assert recipes
    for path in recipes:
        load_recipe(str(path))


def test_held_out_names_that_match_nothing_are_counted(
    recipe: Recipe, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stage = recipe.stages[0].model_copy(update={"iterations": 1})
    path = tmp_path / "recipe.yaml"
    for absent in ([], ["absent.jpg"]):
        change = {"holdout": [*recipe.holdout, *absent], "stages": [stage]}
        path.write_text(yaml.safe_dump(recipe.model_copy(update=change).model_dump()))
        cli.train(str(path), str(tmp_path / f"out{len(absent)}"), device="cpu")
        first = capsys.readouterr().err.splitlines()[0]
        assert ("2 of 3 held-out names found" in first) is bool(absent)


def test_skipped_images_are_all_named_and_nothing_else_is_hinted_at(
    recipe: Recipe, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = recipe.stages[0].model_copy(update={"iterations": 1})
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe.model_copy(update={"stages": [stage]}).model_dump()))
    monkeypatch.setattr(Trainer, "skipped", ["broken.jpg"])
    cli.train(str(path), str(tmp_path / "out"), device="cpu")
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("skipped")]
    assert lines == ["skipped, since it cannot be decoded: broken.jpg"]


def test_training_runs_where_ray_and_pyarrow_are_not_installed(recipe: Recipe, tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe.model_dump()))
    program = (
        "import sys\n"
        "for name in ('ray', 'pyarrow', 's3fs', 'torchvision'):\n    sys.modules[name] = None\n"
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
