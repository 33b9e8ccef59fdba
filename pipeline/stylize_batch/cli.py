"""The command line: parses, calls, prints."""

from __future__ import annotations

import json
import signal
import sys
from enum import IntEnum
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from stylize_batch import __version__
from stylize_batch.errors import GaveUpError, JobFailedError, UsageError


class Exit(IntEnum):
    """Exit statuses."""

    OK = 0
    JOB_FAILED = 1
    USAGE = 2
    ROWS_FAILED = 3
    GAVE_UP = 4
    INTERRUPTED = 130


class Commands(TyperGroup):
    """Turns the errors a user meets into one line and an exit status."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command."""
        try:
            return super().invoke(ctx)
        except UsageError as error:
            _say(f"error: {error}")
            status = Exit.USAGE
        except JobFailedError as error:
            _say(f"error: {error}")
            _say("nothing finished is lost: repeat the command to go on")
            status = Exit.JOB_FAILED
        except GaveUpError as error:
            _say(f"gave up: {error}")
            status = Exit.GAVE_UP
        except KeyboardInterrupt:
            _say("interrupted; nothing finished is lost: repeat the command to go on")
            status = Exit.INTERRUPTED
        raise typer.Exit(status)


app = typer.Typer(
    name="stylize-batch",
    cls=Commands,
    help="Batch arbitrary style transfer (AdaIN) for image collections of any size.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
model_app = typer.Typer(help="Models: look at one, make one of published weights.", no_args_is_help=True)
app.add_typer(model_app, name="model")


@app.command()
def run(
    context: typer.Context,
    manifest: Annotated[
        str | None, typer.Argument(help="Parquet manifest: file, folder or glob; path or URI.")
    ] = None,
    output: Annotated[
        str | None, typer.Option("--output", "-o", help="Output root; <manifest name>-stylized by default.")
    ] = None,
    job: Annotated[str | None, typer.Option(help="YAML file with any of these settings; flags win.")] = None,
    model: Annotated[str | None, typer.Option(help="Shipped model, or path or URI of one.")] = None,
    size: Annotated[int | None, typer.Option(help="Shorter side of the content; its own by default.")] = None,
    crop: Annotated[int | None, typer.Option(help="Side of the centre crop after --size.")] = None,
    style_size: Annotated[int | None, typer.Option(help="Shorter side of the style; 512 by default.")] = None,
    format: Annotated[str | None, typer.Option(help="jpeg, png or webp.")] = None,
    quality: Annotated[int | None, typer.Option(help="Of JPEG and WebP; 95 by default.")] = None,
    no_metrics: Annotated[bool | None, typer.Option("--no-metrics", help="Do not measure losses.")] = None,
    batch_size: Annotated[
        str | None, typer.Option(help="Pairs per batch on a GPU, or auto; a CPU takes one at a time.")
    ] = None,
    actors: Annotated[str | None, typer.Option(help="Workers, or auto.")] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu or cuda.")] = None,
    precision: Annotated[str | None, typer.Option(help="auto, fp32, bf16 or fp16.")] = None,
    address: Annotated[str | None, typer.Option(help="Ray cluster: auto, host:port or ray://…")] = None,
    in_process: Annotated[bool | None, typer.Option("--in-process", help="Run without Ray.")] = None,
    shard_pairs: Annotated[int | None, typer.Option(help="Pairs per shard.")] = None,
    retry_failed: Annotated[
        bool | None, typer.Option("--retry-failed", help="Redo failed rows of earlier runs.")
    ] = None,
    overwrite: Annotated[
        bool | None, typer.Option("--overwrite", help="Delete an earlier run's outputs and start anew.")
    ] = None,
    max_failed: Annotated[str | None, typer.Option(help="Failed rows allowed: 20 or 2%.")] = None,
    limit: Annotated[int | None, typer.Option(help="Only the manifest's first rows.")] = None,
    as_json: Annotated[bool | None, typer.Option("--json", help="Print one JSON object on stdout.")] = None,
) -> None:
    """Stylize every pair of a manifest. Running the same command again resumes."""
    from stylize_batch.job.run import execute
    from stylize_batch.job.spec import make_spec
    from stylize_batch.progress import TerminalProgress, duration

    given: dict[str, Any] = {
        name: value
        for name, value in context.params.items()
        if value is not None and name not in ("job", "no_metrics")
    }
    if no_metrics:
        given["metrics"] = False
    spec = make_spec(given, job)
    with TerminalProgress() as progress:
        summary = execute(spec, progress)
    if spec.as_json:
        print(json.dumps(summary.to_json()))
    made = summary.pairs - summary.skipped
    earlier = f" ({summary.skipped} by earlier runs)" if summary.skipped else ""
    _say(f"{summary.ok} of {summary.pairs} pairs stylized{earlier} in {duration(summary.seconds)}")
    if made:
        _say(f"{summary.images_per_second:.2f} images/s")
    if summary.mean_style_loss is not None:
        _say(
            f"mean content loss {summary.mean_content_loss:.3f}, mean style loss {summary.mean_style_loss:.3f}"
        )
    for kind, count in summary.kinds.items():
        _say(f"failed: {count} × {kind}")
    if summary.kinds:
        _say("the `error` column of the results names each; --retry-failed tries them again")
    _say(f"pictures       {summary.output}/images/")
    _say(f"results        {summary.output}/results/")
    _say(f"contact sheet  {summary.output}/report.html")
    if summary.failed:
        raise typer.Exit(Exit.ROWS_FAILED)


@app.command()
def train(
    recipe: Annotated[str, typer.Argument(help="YAML recipe; see jobs/train/.")],
    output: Annotated[
        str, typer.Option("--output", "-o", help="Folder or URI for the model, checkpoint, log and samples.")
    ] = "training-runs/latest",
    contents: Annotated[str, typer.Option(help="Folder or URI of photographs; wins over the recipe's.")] = "",
    styles: Annotated[str, typer.Option(help="Folder or URI of style images; wins over the recipe's.")] = "",
    minutes: Annotated[
        float | None, typer.Option(help="Stop after so many minutes; repeat to go on.")
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
) -> None:
    """Train a decoder. Running the same command again continues from the last checkpoint."""
    import torch

    from stylize_batch.progress import TrainingLines
    from stylize_batch.training.loop import Trainer
    from stylize_batch.training.recipe import load_recipe

    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    given = {key: value for key, value in (("contents", contents), ("styles", styles)) if value}
    trainer = Trainer(load_recipe(recipe, **given), output, device)
    for image in trainer.skipped:
        _say(f"skipped, not decodable: {image}")
    _say(
        f"{len(trainer.contents)} contents, {len(trainer.styles)} styles, on {device}; "
        f"iteration {trainer.iteration} of {trainer.iterations}"
    )
    finished = trainer.run(TrainingLines(), minutes)
    _say(f"model {trainer.root.uri_of('model.safetensors')}")
    if not finished:
        _say(f"stopped at iteration {trainer.iteration} of {trainer.iterations}; repeat the command to go on")


@model_app.command("show")
def model_show(
    model: Annotated[str, typer.Argument(help="Shipped model, or path or URI of one.")] = "adain-vgg16",
) -> None:
    """Print what a model file says about itself, as YAML."""
    import yaml

    from stylize_batch.model.container import describe
    from stylize_batch.weights import read_model

    print(yaml.safe_dump(describe(read_model(model)), allow_unicode=True, width=100), end="")


@model_app.command("import")
def model_import(
    vgg: Annotated[
        str,
        typer.Argument(help="State dict of a VGG (vgg_normalised.pth, torchvision's), or torchvision:vgg19."),
    ],
    output: Annotated[
        str, typer.Option("--output", "-o", help="The model's file, .safetensors; path or URI.")
    ],
    decoder: Annotated[
        str | None,
        typer.Argument(help="State dict of its decoder; without one the file serves to train one."),
    ] = None,
    input: Annotated[
        str | None, typer.Option(help="What a VGG in torchvision's layout takes: imagenet, caffe or unit.")
    ] = None,
    normalise: Annotated[
        str | None,
        typer.Option(help="Folder of photographs over which every filter's mean activation shall be 1."),
    ] = None,
) -> None:
    """Make a model of published weights: pytorch-AdaIN's checkpoints, or torchvision's VGG to train with."""
    from stylize_batch.published import import_model

    made = import_model(
        vgg,
        decoder,
        output,
        input=input,
        normalise=normalise,
        skipped=lambda uri: _say(f"skipped, not decodable: {uri}"),
    )
    _say(f"model {made}")


def _print_version(wanted: bool) -> None:
    if wanted:
        print(__version__)
        raise typer.Exit


@app.callback()
def _options(  # pyright: ignore[reportUnusedFunction]
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


def _say(line: str) -> None:
    # Names come from manifests and storage: no escape sequence of theirs may reach the terminal.
    print(
        "".join(each if each.isprintable() else "\N{REPLACEMENT CHARACTER}" for each in line), file=sys.stderr
    )


def _interrupt(signum: int, frame: object) -> None:
    raise KeyboardInterrupt


def main() -> None:
    """Run the command line and exit with the contract's status."""
    signal.signal(signal.SIGTERM, _interrupt)
    app()
