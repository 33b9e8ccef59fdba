"""The command line: parses, calls, prints."""

from __future__ import annotations

import atexit
import gc
import inspect
import json
import os
import re
import signal
import sys
import uuid
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import asdict
from enum import IntEnum
from io import TextIOWrapper
from itertools import pairwise
from typing import Annotated, Any, Literal

import typer
from typer.core import TyperGroup

from stylize_batch import __version__
from stylize_batch.errors import (
    KINDS,
    GaveUpError,
    JobFailedError,
    UsageError,
    answer,
    counted,
    forget_unwritten,
    os_errors_as,
    say,
)
from stylize_batch.heap import keep_freed_memory
from stylize_batch.model.container import DEFAULT


class Exit(IntEnum):
    """Exit statuses."""

    OK = 0
    JOB_FAILED = 1
    USAGE = 2
    ROWS_FAILED = 3
    GAVE_UP = 4
    INTERRUPTED = 130


SHOWN = 20
"""Lines or values of one kind that are printed."""


class Commands(TyperGroup):
    """Turns the errors a user meets into one line and an exit status."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command."""
        try:
            _refuse_other_encodings()
            _refuse_empty(ctx.args)
            return super().invoke(ctx)
        except UsageError as error:
            say(f"error: {error}")
            status = Exit.USAGE
        except JobFailedError as error:
            say(f"error: {error}")
            say("nothing finished is lost: repeat the command to go on")
            status = Exit.JOB_FAILED
        except GaveUpError as error:
            say(f"gave up: {error}")
            status = Exit.GAVE_UP
        except KeyboardInterrupt:
            # Another must not cut off threads, and so abort the end; nor wait for storage that does not answer.
            for number in (signal.SIGINT, signal.SIGTERM):
                signal.signal(number, lambda *_: os._exit(Exit.INTERRUPTED))
            say("interrupted; nothing finished is lost: repeat the command to go on")
            status = Exit.INTERRUPTED
        raise typer.Exit(status)


MORE = {"allow_extra_args": True}
"""Lets a command say itself what is wrong with further arguments."""

app = typer.Typer(
    name="stylize-batch",
    cls=Commands,
    help="Batch arbitrary style transfer (AdaIN) for image collections of any size.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
model_app = typer.Typer(help="Models: look at one, make one of published weights.", no_args_is_help=True)
app.add_typer(model_app, name="model")
manifest_app = typer.Typer(help="Manifests: build one from a dataset, check one.", no_args_is_help=True)
app.add_typer(manifest_app, name="manifest")
styles_app = typer.Typer(
    help="Style banks: styles encoded once for many runs and for training.", no_args_is_help=True
)
app.add_typer(styles_app, name="styles")


def _settings(
    manifest: Annotated[
        str | None, typer.Argument(help="Parquet manifest: file, folder or glob; path or URI.")
    ] = None,
    output: Annotated[
        str | None,
        typer.Option(
            "--output", "-o", help="Where the output goes; for run <manifest name>-stylized by default."
        ),
    ] = None,
    job: Annotated[
        str | None, typer.Option(help="YAML file with any of these settings, or {…} itself; flags win.")
    ] = None,
    content: Annotated[
        str | None,
        typer.Option(
            help="Build the manifest from this folder, list or COCO JSON instead of MANIFEST; it is saved beside the output."
        ),
    ] = None,
    style: Annotated[str | None, typer.Option(help="With --content: the same, of style images.")] = None,
    model: Annotated[
        str | None, typer.Option(help="adain-vgg16 (default), adain-compact, or path or URI of a model.")
    ] = None,
    styles: Annotated[
        str | None, typer.Option(help="Style bank of `styles encode`; what it lacks is encoded.")
    ] = None,
    size: Annotated[int | None, typer.Option(help="Shorter side of the content; its own by default.")] = None,
    crop: Annotated[int | None, typer.Option(help="Side of the centre crop after --size.")] = None,
    style_size: Annotated[int | None, typer.Option(help="Shorter side of the style; 512 by default.")] = None,
    format: Annotated[str | None, typer.Option(help="jpeg (default), png or webp.")] = None,
    quality: Annotated[int | None, typer.Option(help="Of JPEG and WebP; 95 by default.")] = None,
    layout: Annotated[str | None, typer.Option(help="files (default), webdataset or parquet.")] = None,
    no_metrics: Annotated[bool | None, typer.Option("--no-metrics", help="Do not measure losses.")] = None,
    batch_size: Annotated[
        str | None,
        typer.Option(help="Pairs per batch on a GPU, or auto (default); a CPU takes one at a time."),
    ] = None,
    actors: Annotated[
        str | None, typer.Option(help="Workers: a number, by device (cuda=8,cpu=4), or auto (default).")
    ] = None,
    gpus_per_actor: Annotated[
        float | None,
        typer.Option(help="Share of a GPU for each worker, such as 0.5, where one worker does not fill it."),
    ] = None,
    device: Annotated[str | None, typer.Option(help="auto (default), cpu or cuda.")] = None,
    precision: Annotated[
        str | None, typer.Option(help="auto (fp16 on a GPU, fp32 on a CPU), fp32, bf16 or fp16.")
    ] = None,
    shard_pairs: Annotated[
        int | None, typer.Option(help="Pairs per unit of work; about a minute's by default.")
    ] = None,
    retry_failed: Annotated[
        bool | None, typer.Option("--retry-failed", help="Redo failed rows of earlier runs.")
    ] = None,
    overwrite: Annotated[
        bool | None, typer.Option("--overwrite", help="Delete an earlier run's outputs and start anew.")
    ] = None,
    max_failed: Annotated[
        str | None, typer.Option(help="Give up when more rows fail: 20 or 2%; never by default.")
    ] = None,
    limit: Annotated[int | None, typer.Option(help="Only so many of the manifest's first rows.")] = None,
    as_json: Annotated[bool | None, typer.Option("--json", help="Print one JSON object on stdout.")] = None,
) -> dict[str, Any]:
    """The settings that `run` and `submit` share, under the names of a JobSpec."""
    given = {
        name: value
        for name, value in locals().items()
        if value is not None and name not in ("job", "no_metrics")
    }
    return {**given, "metrics": False} if no_metrics else given


def _takes_settings(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the options that are settings of a run; it gets them as a dictionary, then the job file."""
    own = list(inspect.signature(command, eval_str=True).parameters.values())[2:]
    shared = inspect.signature(_settings, eval_str=True).parameters

    def called(context: typer.Context, **given: Any) -> None:
        _refuse_more_manifests([given["manifest"], *context.args])
        taken = {name: given.pop(name) for name in shared}
        command(_settings(**taken), taken["job"], **given)

    called.__name__, called.__doc__ = command.__name__, command.__doc__
    context = inspect.signature(called, eval_str=True).parameters["context"]
    parameters = [context, *shared.values(), *own]
    called.__signature__ = inspect.Signature(parameters)  # pyright: ignore[reportFunctionMemberAccess]
    called.__annotations__ = {each.name: each.annotation for each in parameters}
    return called


@app.command(context_settings=MORE)
@_takes_settings
def run(
    settings: dict[str, Any],
    job: str | None,
    address: Annotated[str | None, typer.Option(help="Ray cluster: auto, host:port or ray://…")] = None,
    in_process: Annotated[bool | None, typer.Option("--in-process", help="Run without Ray.")] = None,
) -> None:
    """Stylize every pair of a manifest.

    --content and --style build a manifest and run it. Running the same command again resumes.
    """
    if in_process:
        keep_freed_memory()  # before a library has threads
    from stylize_batch.job.run import execute
    from stylize_batch.job.spec import make_spec
    from stylize_batch.progress import duration, terminal_progress
    from stylize_batch.stopwatch import where_it_went

    own = {"address": address, "in_process": in_process}
    spec = make_spec({**settings, **{name: value for name, value in own.items() if value is not None}}, job)
    with terminal_progress() as progress:
        summary = execute(spec, progress)
    if spec.as_json:
        answer(json.dumps(summary.to_json()))
    made = summary.pairs - summary.skipped
    left = counted(summary.skipped, "row left as it was", "rows left as they were")
    say(
        f"{summary.ok} of {counted(summary.pairs, 'pair')} stylized in {duration(summary.seconds)}"
        f"{f', {left}' if summary.skipped else ''}"
    )
    if made:
        say(f"{summary.images_per_second:.2f} images/s")
    if where := where_it_went(summary.stages):
        say(f"where the workers' time went: {where}")
    if spec.styles and summary.styles:
        say(f"styles: {summary.styles['from_bank']} from the bank, {summary.styles['encoded']} encoded")
    if summary.mean_style_loss is not None:
        say(
            f"mean content loss {summary.mean_content_loss:.3f}, mean style loss {summary.mean_style_loss:.3f}"
        )
    _say_failures(summary.kinds, summary.examples)
    if summary.kinds:
        say(
            "the `error` column of the results names each, the report shows some; --retry-failed tries them again"
        )
    if spec.content:
        say(f"manifest       {spec.resolved_manifest()}")
    for node, reason in summary.dropped_nodes.items():
        say(f"{node} was given no more work: {reason}")
    pictures = {"files": "", "webdataset": "*.tar", "parquet": "*.parquet"}[spec.layout]
    say(f"pictures       {summary.output}/images/{pictures}")
    for file in summary.annotations:
        say(f"annotations    {file}")
    say(f"results        {summary.output}/results/")
    if summary.report_error:
        say(f"no report: {summary.report_error}; `stylize-batch report {summary.output}` tries again")
    else:
        say(f"report         {summary.output}/report.html")
    if summary.failed:
        raise typer.Exit(Exit.ROWS_FAILED)


@app.command(context_settings=MORE)
@_takes_settings
def submit(
    settings: dict[str, Any],
    job: str | None,
    address: Annotated[
        str, typer.Option(envvar="RAY_API_SERVER_ADDRESS", help="Dashboard of the cluster's head.")
    ] = "http://127.0.0.1:8265",
    job_id: Annotated[
        str | None, typer.Option(help="Name of the job on the cluster; one after the output by default.")
    ] = None,
    installed: Annotated[
        bool, typer.Option("--installed", help="Run the package that the cluster has; else this one is sent.")
    ] = False,
    no_wait: Annotated[
        bool, typer.Option("--no-wait", help="Print the job's name on stdout, and do not follow it.")
    ] = False,
) -> None:
    """Run as a job of a Ray cluster.

    It goes on without this machine; running the same command again follows it or resumes. Manifest (or --content and --style, of which the cluster builds one), output and model must be URIs that the cluster
    reaches, with the credentials of its nodes.
    """
    from stylize_batch.job.spec import make_spec
    from stylize_batch.submission import Cluster, StoppedError, refuse_local, summary_of

    # The cluster runs with the settings given here, without the job file, which it does not have.
    spec = make_spec(settings, job)
    refuse_local(spec)
    cluster = Cluster(address)
    submitted = cluster.submit(spec, job_id, installed)
    at = f"{cluster.address} (Ray {cluster.ray}, Python {cluster.python})"
    say(f"job {submitted.name} {'submitted to' if submitted.new else 'is at work already on'} {at}")
    for verb in ("status", "logs", "stop"):
        say(f"  {submitted.command(verb)}")
    if no_wait:
        answer(submitted.name)
        return

    def hear(line: str) -> None:
        if spec.as_json and summary_of(line):
            answer(line)
        else:
            say(line)

    try:
        try:
            status = submitted.follow(hear)
        except KeyboardInterrupt as interrupt:
            if isinstance(interrupt, _Terminated) or not _asks_to_stop():
                say(
                    f"the job goes on; repeat the command to follow it, or stop it: {submitted.command('stop')}"
                )
                raise typer.Exit(Exit.INTERRUPTED) from None
            submitted.stop()
            say("stopping the job")
            status = submitted.follow(lambda line: None)
    except StoppedError:
        say("the job was stopped; nothing finished is lost: repeat the command to go on")
        raise typer.Exit(Exit.INTERRUPTED) from None
    if status:
        raise typer.Exit(status)


@app.command()
def status(
    output: Annotated[str, typer.Argument(help="Output root of a run; path or URI.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")] = False,
) -> None:
    """Show how far a run has come.

    Works on any machine that reads the output, also while the run is at work.
    """
    from stylize_batch.job.status import status as look
    from stylize_batch.progress import duration

    found = look(output)
    if as_json:
        answer(json.dumps(asdict(found)))
    by = f", by process {found.pid} on {found.host}" if found.host and found.state != "stopped" else ""
    say(f"{found.state}{by}")
    if found.state == "stopped" and found.failed > found.failures_allowed:
        say(
            f"gave up: more rows failed than --max-failed allows ({found.failures_allowed}); "
            "--retry-failed tries them again, and a higher --max-failed goes on"
        )
    elif found.state == "stopped":
        died = f"process {found.pid} on {found.host} died; " if found.host else ""
        say(f"{died}repeat the command to go on")
    if found.pairs:
        done = found.ok + found.failed
        say(
            f"{done} of {counted(found.pairs, 'pair')}, {found.finished_shards} of {counted(found.shards, 'shard')} "
            f"({done / found.pairs:.0%})"
        )
    if found.pairs_per_second and found.seconds_left is not None:
        say(f"{found.pairs_per_second:.2f} pairs/s lately, {duration(found.seconds_left)} left")
    _say_failures(found.kinds)


@app.command()
def report(
    output: Annotated[str, typer.Argument(help="Output root of a run; path or URI.")],
) -> None:
    """Write the report.html of a run anew, finished or not."""
    from stylize_batch.job.reporting import report as write

    answer(write(output))


@app.command()
def train(
    recipe: Annotated[str, typer.Argument(help="YAML recipe; see jobs/train/.")],
    output: Annotated[
        str, typer.Option("--output", "-o", help="Folder or URI for the model, checkpoint, log and samples.")
    ] = "training-runs/latest",
    contents: Annotated[str, typer.Option(help="Folder or URI of photographs; wins over the recipe's.")] = "",
    styles: Annotated[str, typer.Option(help="Folder or URI of style images; wins over the recipe's.")] = "",
    minutes: Annotated[
        float | None, typer.Option(min=0.01, help="Stop after so many minutes; repeat to go on.")
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
) -> None:
    """Train a decoder. Running the same command again continues from the last checkpoint."""
    keep_freed_memory()
    from stylize_batch.job.lease import lease
    from stylize_batch.progress import TrainingLines
    from stylize_batch.root import Root
    from stylize_batch.training.loop import Trainer, check_output
    from stylize_batch.training.recipe import load_recipe

    given = {key: value for key, value in (("contents", contents), ("styles", styles)) if value}
    settings = load_recipe(recipe, **given)
    check_output(Root(output), settings)
    with ExitStack() as held:
        with os_errors_as(UsageError, f"cannot use {output}"):
            held.enter_context(lease(Root(output), uuid.uuid4().hex))
        trainer = Trainer(settings, output, device)
        wanted = set(settings.holdout)
        found = wanted & (trainer.contents.held_out.keys() | trainer.styles.held_out.keys())
        say(
            f"{counted(len(trainer.contents), 'content')}, {counted(len(trainer.styles), 'style')}, on {trainer.device}; "
            f"iteration {trainer.iteration} of {trainer.iterations}"
            + (f"; {len(found)} of {counted(len(wanted), 'held-out name')} found" if found != wanted else "")
        )
        try:
            finished = trainer.run(TrainingLines(), minutes)
        finally:
            _say_some([f"skipped, since it cannot be decoded: {uri}" for uri in trainer.skipped])
    say(f"model {trainer.root.uri_of('model.safetensors')}")
    if not finished:
        say(f"stopped at iteration {trainer.iteration} of {trainer.iterations}; repeat the command to go on")


@app.command()
def evaluate(
    contents: Annotated[str, typer.Argument(help="Folder or URI of photographs.")],
    styles: Annotated[str, typer.Argument(help="Folder or URI of style images.")],
    output: Annotated[
        str, typer.Option("--output", "-o", help="Folder or URI for table, summary, plots and contact sheet.")
    ] = "evaluation",
    model: Annotated[
        list[str] | None, typer.Option(help="Shipped model, or path or URI of one; can be repeated.")
    ] = None,
    paper: Annotated[
        bool, typer.Option("--paper", help="As Fig. 3, 50 contents × 10 styles: --size 512 --iterations 500.")
    ] = False,
    size: Annotated[
        int | None,
        typer.Option(min=16, max=4096, help="Side of the centre squares compared; 256 by default."),
    ] = None,
    max_contents: Annotated[int, typer.Option(min=1, help="Drawn by --seed where there are more.")] = 50,
    max_styles: Annotated[int, typer.Option(min=1, help="Drawn by --seed where there are more.")] = 10,
    iterations: Annotated[
        int | None,
        typer.Option(min=0, help="Of the optimisation baseline; 0 leaves it out; 100 by default."),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the draw of contents and styles.")] = 0,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
) -> None:
    """Compare models with each other and with optimisation.

    The optimisation is that of Gatys et al., as in Fig. 3 of the paper. Running the same command again continues; with another model, only its pictures are made.
    """
    keep_freed_memory()
    from stylize_batch.evaluation.protocol import Protocol
    from stylize_batch.evaluation.run import Evaluation
    from stylize_batch.progress import terminal_progress

    protocol = Protocol(
        contents,
        styles,
        models=tuple(dict.fromkeys(model or [DEFAULT])),
        size=size or (512 if paper else 256),
        max_contents=max_contents,
        max_styles=max_styles,
        iterations=(500 if paper else 100) if iterations is None else iterations,
        seed=seed,
    )
    evaluation = Evaluation(protocol, output, device)
    for uri, reason in evaluation.skipped.items():
        say(f"skipped: {uri}: {reason}")
    say(
        f"{counted(len(evaluation.contents), 'content')} × {counted(len(evaluation.styles), 'style')} "
        f"at {protocol.size}×{protocol.size}, on {evaluation.device}"
        + (f"; {counted(len(evaluation.skipped), 'unreadable image')} skipped" if evaluation.skipped else "")
    )
    with terminal_progress() as progress:
        findings = evaluation.run(progress)
    answer(findings.tables)
    for name in ("summary.md", "results.parquet", "sheet.jpg"):
        say(evaluation.root.uri_of(name))


@model_app.command("show")
def model_show(
    model: Annotated[str, typer.Argument(help="Shipped model, or path or URI of one.")] = DEFAULT,
) -> None:
    """Print what a model file says about itself, as YAML."""
    import yaml

    from stylize_batch.model.container import describe
    from stylize_batch.weights import read_model

    answer(yaml.safe_dump(describe(read_model(model)), allow_unicode=True, width=100).rstrip("\n"))


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
    """Make a model of published weights.

    Of pytorch-AdaIN's checkpoints, or torchvision's VGG to train with.
    """
    from stylize_batch.published import import_model

    made = import_model(
        vgg,
        decoder,
        output,
        input=input,
        normalise=normalise,
        skipped=lambda uri: say(f"skipped, not decodable: {uri}"),
    )
    say(f"model {made}")


@styles_app.command("encode")
def styles_encode(
    styles: Annotated[
        str,
        typer.Argument(help="Folder, list (CSV, JSON lines, Parquet) or archives; path, URI or glob."),
    ],
    output: Annotated[str, typer.Option("--output", "-o", help="The bank: a .parquet file; path or URI.")],
    model: Annotated[str, typer.Option(help="Shipped model, or path or URI of one.")] = DEFAULT,
    style_size: Annotated[int, typer.Option(min=9, max=16384, help="Shorter side of the style.")] = 512,
    device: Annotated[Literal["auto", "cpu", "cuda"], typer.Option(help="Where the network runs.")] = "auto",
    unpack: Annotated[str | None, typer.Option(help="Empty folder or URI to extract archives to.")] = None,
) -> None:
    """Encode styles once, for `run --styles` and RandomStyle.

    Running the same command again encodes only what has changed.
    """
    keep_freed_memory()
    from stylize_batch.job.bank import encode
    from stylize_batch.progress import terminal_progress

    with terminal_progress() as progress:
        made = encode(
            styles,
            output,
            model=model,
            style_size=style_size,
            device=device,
            unpack=unpack,
            observer=progress,
        )
    _say_some(made.notes)
    _say_some(made.problems)
    for uri, error in made.failures.items():
        say(f"failed: {uri}: {error}")
    say(f"{counted(made.styles, 'style')}, {made.encoded} of them encoded now; {len(made.failures)} failed")
    if made.dropped:
        say(f"dropped from the bank: {made.dropped}, which {styles} does not have")
    say(f"style bank     {made.output}")
    if made.failures or made.problems:
        raise typer.Exit(Exit.ROWS_FAILED)


@manifest_app.command("build")
def manifest_build(
    content: Annotated[
        str,
        typer.Argument(
            help="Folder, list (CSV, JSON lines, Parquet), COCO JSON or archives; path, URI or glob."
        ),
    ],
    style: Annotated[str, typer.Argument(help="The same, of style images.")],
    output: Annotated[
        str, typer.Option("--output", "-o", help="The manifest: a .parquet file; path or URI.")
    ],
    styles_per_content: Annotated[
        int | None, typer.Option(help="Styles drawn for each content; 1 by default.")
    ] = None,
    all_pairs: Annotated[bool, typer.Option("--all-pairs", help="Every style for every content.")] = False,
    style_map: Annotated[
        str | None, typer.Option(help="CSV, JSON or Parquet that names the styles of each content.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of everything drawn.")] = 0,
    style_by_label: Annotated[
        bool, typer.Option("--style-by-label", help="All contents of a label get styles of one label.")
    ] = False,
    separate_splits: Annotated[
        bool, typer.Option("--separate-splits", help="No style is shared between splits.")
    ] = False,
    alpha: Annotated[
        str | None, typer.Option(help="Content-style trade-off: 0.8, or a range to draw from: 0.5..1.")
    ] = None,
    preserve_color: Annotated[
        bool, typer.Option("--preserve-color", help="Keep the colours of the contents.")
    ] = False,
    keep_originals: Annotated[
        bool, typer.Option("--keep-originals", help="Each content as it is, too.")
    ] = False,
    sample: Annotated[
        int | None, typer.Option(help="Only so many contents, drawn; they get the styles of the whole.")
    ] = None,
    content_root: Annotated[
        str | None,
        typer.Option(help="Where the paths of a list of contents start; its own folder by default."),
    ] = None,
    unpack: Annotated[str | None, typer.Option(help="Empty folder or URI to extract archives to.")] = None,
) -> None:
    """Pair contents with styles and write a manifest. The same seed gives the same pairs everywhere."""
    from stylize_batch.manifest.build import build
    from stylize_batch.manifest.pairing import Pairing
    from stylize_batch.progress import terminal_progress

    pairing = Pairing(
        styles_per_content=styles_per_content,
        all_pairs=all_pairs,
        style_map=style_map,
        seed=seed,
        style_by_label=style_by_label,
        separate_splits=separate_splits,
        alpha=alpha,
        preserve_color=preserve_color,
        keep_originals=keep_originals,
        sample=sample,
        content_root=content_root,
    )
    with terminal_progress() as progress:
        built = build(content, style, output, pairing, unpack=unpack, observer=progress)
    _say_some(built.notes)
    say(
        f"{counted(built.rows, 'row')}: {counted(built.contents, 'content')} "
        f"with {built.used} of {counted(built.styles, 'style')}"
    )
    if built.splits:
        say("contents by split: " + ", ".join(f"{split} {count}" for split, count in built.splits.items()))
    if built.labels:
        say(f"labels         {built.labels}")
    say(f"manifest       {built.output}")
    if built.problems:
        _say_some(built.problems)
        raise typer.Exit(Exit.ROWS_FAILED)


@manifest_app.command("check")
def manifest_check(
    manifest: Annotated[str, typer.Argument(help="Parquet manifest: file, folder or glob; path or URI.")],
    sample: Annotated[int, typer.Option(min=0, help="Contents and styles to decode, each so many.")] = 100,
    every: Annotated[bool, typer.Option("--all", help="Decode all contents and styles.")] = False,
    size: Annotated[
        int | None,
        typer.Option(
            min=9, max=16384, help="Contents' shorter side in the run, which decides what is too small."
        ),
    ] = None,
    crop: Annotated[
        int | None, typer.Option(min=9, max=16384, help="Side of the run's centre crop, likewise.")
    ] = None,
    format: Annotated[
        str,
        typer.Option(
            help="Of the run's pictures: jpeg, png or webp. With its extension, two names may be one."
        ),
    ] = "jpeg",
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")] = False,
) -> None:
    """Check what a run would refuse, and decode images.

    All of them, or a sample.
    """
    from stylize_batch.manifest.check import check
    from stylize_batch.progress import terminal_progress

    with terminal_progress() as progress:
        report = check(manifest, None if every else sample, progress, size=size, crop=crop, format=format)
    if as_json:
        answer(json.dumps(asdict(report)))
    fewest, mean, most = report.pairs_per_content
    say(
        f"{counted(report.rows, 'row')}: {counted(report.contents, 'content')}, {counted(report.styles, 'style')}"
    )
    say(f"pairs per content: {fewest if fewest == most else f'{fewest} to {most}, {mean:g} on average'}")
    for what, names in (
        ("deciding the pictures", report.controls),
        ("only carried to the results", report.carried),
    ):
        if names:
            say(f"columns {what}: {', '.join(names)}")
    _say_some(report.notes)
    for name, counts in (("split", report.splits), ("label", report.labels)):
        if counts:
            shown = ", ".join(f"{value} {count}" for value, count in list(counts.items())[:SHOWN])
            say(f"rows by {counted(len(counts), name)}: {shown}{', …' if len(counts) > SHOWN else ''}")
    for kind, failures in report.failures.items():
        say(f"failed: {failures.count} × {kind}")
        for example in failures.examples:
            say(f"  {example}")
    say(
        f"{counted(report.checked, 'image')} decoded, {sum(each.count for each in report.failures.values())} failed"
    )
    if report.failures:
        raise typer.Exit(Exit.ROWS_FAILED)


def _print_version(wanted: bool) -> None:
    if wanted:
        answer(__version__)
        raise typer.Exit


@app.callback()
def _options(  # pyright: ignore[reportUnusedFunction]
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


def _refuse_empty(arguments: list[str]) -> None:
    """Raise UsageError for what a shell variable that is not set has left of an argument: it would mean the default."""
    for before, argument in pairwise(["the command", *arguments]):
        if not argument or re.fullmatch(r"--[\w-]+=", argument):
            raise UsageError(
                f"{argument or f'the argument after {before}'} is empty; give it, or leave it out"
            )


def _refuse_more_manifests(given: list[str]) -> None:
    """Raise UsageError for two folders, as `manifest build` takes them, and for a glob that the shell has written out."""
    if len(given) > 1:
        raise UsageError(
            f"one manifest is expected, and these are {len(given)}: {given[0]} {given[1]}{' …' if given[2:] else ''}; for pictures "
            "write --content FOLDER --style FOLDER, for several Parquet files a folder or a quoted glob"
        )


def _refuse_other_encodings() -> None:
    """Raise UsageError for a locale in which names of files would be read otherwise than manifests write them."""
    encoding = sys.getfilesystemencoding()
    if encoding != "utf-8":
        raise UsageError(f"this locale's names of files are {encoding}, not UTF-8; set PYTHONUTF8=1")


def _asks_to_stop() -> bool:
    """Ask who sits at the terminal whether the job shall stop; without a terminal it goes on."""
    if not sys.stdin.isatty():
        return False
    try:
        return typer.confirm("\nThe job runs on the cluster. Stop it?", default=False, err=True)
    except (typer.Abort, KeyboardInterrupt):
        return False


def _say_failures(kinds: dict[str, int], examples: Mapping[str, list[str]] | None = None) -> None:
    for kind, count in kinds.items():
        say(f"failed: {count} × {kind} ({KINDS[kind]})" if kind in KINDS else f"failed: {count} × {kind}")
        for line in (examples or {}).get(kind, ()):
            say(f"  {line}")


def _say_some(lines: list[str]) -> None:
    for line in lines[:SHOWN]:
        say(line)
    if len(lines) > SHOWN:
        say(f"… and {counted(len(lines) - SHOWN, 'more such line')}")


class _Terminated(KeyboardInterrupt):
    """SIGTERM, which is nobody at a terminal who could be asked."""


def _interrupt(signum: int, frame: object) -> None:
    if s3 := sys.modules.get("stylize_batch.s3"):  # which takes half a second to import
        s3.lose_patience()
    raise _Terminated if signum == signal.SIGTERM else KeyboardInterrupt


def main() -> None:
    """Run the command line and exit with the contract's status."""
    # At its end Python looks for cycles among a million objects of torch's, several times; the system frees them anyway.
    atexit.register(gc.freeze)
    signal.signal(signal.SIGTERM, _interrupt)
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # else it is ignored, in the background
        signal.signal(signal.SIGINT, _interrupt)
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # as stderr, whatever the encoding cannot say
    try:
        app()
    except OSError as error:
        if not {"-h", "--help"} & {*sys.argv}:
            raise
        say(f"cannot write to stdout: {error.strerror}")
    finally:
        forget_unwritten()
