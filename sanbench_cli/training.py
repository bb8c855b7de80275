"""The commands train and runs."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sanbench.errors import InputError, SanbenchError, unknown
from sanbench_cli.applicable import check_data_options
from sanbench_cli.console import console, print_plan, print_profile, print_runs, progress
from sanbench_cli.options import (
    ATTENTIONS,
    BATCH,
    DECODERS,
    PRECISIONS,
    PROCESSES,
    ROUNDS,
    SEED,
    SELECTIONS,
    SIDE,
    WORKERS,
    Device,
    Root,
    Runs,
    number_within,
    one_of,
    start,
)

if TYPE_CHECKING:
    from sanbench.runs.config import TrainConfig
    from sanbench.runs.run import Machine, Run


def train(
    model: Annotated[
        str | None, typer.Argument(help="As `sanbench models` lists; san15 means san15_pairwise. Left out with --resume RUN.")
    ] = None,
    attention: Annotated[
        str | None,
        typer.Option(
            help="pairwise, patchwise or scalar. Default: as the name says, else pairwise.",
            callback=one_of("attention", ATTENTIONS),
        ),
    ] = None,
    data: Annotated[
        str | None, typer.Option(help="fashion10k, fashion-mnist, cifar10, imagenet or folder:PATH. Default: fashion10k.")
    ] = None,
    data_root: Root = None,
    download: Annotated[bool | None, typer.Option("--download", help="Fetch fashion-mnist or cifar10.")] = None,
    image_size: Annotated[int | None, typer.Option(help="Side of the crops of images in folders; default 224.", **SIDE)] = None,
    decoder: Annotated[
        str | None,
        typer.Option(help="pil, torchvision or turbo (default), of images in folders.", callback=one_of("decoder", DECODERS)),
    ] = None,
    recipe: Annotated[
        str | None, typer.Option(help="paper or short. Default: the data set's, for imagenet paper, else short.")
    ] = None,
    epochs: Annotated[int | None, typer.Option(help="Rounds over all images. Default: the recipe's.", **ROUNDS)] = None,
    batch_size: Annotated[
        int | None, typer.Option(help="Images a step, of all processes together. Default: the recipe's.", **BATCH)
    ] = None,
    lr: Annotated[
        float | None, typer.Option(help="Base learning rate. Default: the recipe's.", callback=number_within("--lr", 0, 1e6))
    ] = None,
    select: Annotated[
        str | None,
        typer.Option(
            help="Epoch to evaluate: best by validation, or last. Default: the recipe's.", callback=one_of("select", SELECTIONS)
        ),
    ] = None,
    settings: Annotated[list[str] | None, typer.Option("--set", metavar="FIELD=VALUE", help="Recipe or network field.")] = None,
    seed: Annotated[int | None, typer.Option(help="Of weights, order and augmentation. Default: 0.", **SEED)] = None,
    workers: Annotated[int | None, typer.Option(help="Processes that decode; default: one a CPU.", **WORKERS)] = None,
    nproc: Annotated[int, typer.Option(help="Processes on this machine that train together.", **PROCESSES)] = 1,
    accumulate: Annotated[
        int | None, typer.Option(help="Parts that a process computes a step in. Default: 1.", **BATCH)
    ] = None,
    precision: Annotated[
        str | None,
        typer.Option(
            help="bf16, fp16 or fp32; default: bf16 on CUDA, fp32 on a CPU.", callback=one_of("precision", PRECISIONS)
        ),
    ] = None,
    compile: Annotated[bool | None, typer.Option("--compile", help="Compile the network.")] = None,
    deterministic: Annotated[bool | None, typer.Option("--deterministic", help="Repeat bit for bit on CUDA.")] = None,
    skip_bad_images: Annotated[
        bool | None, typer.Option("--skip-bad-images", help="Leave out images that cannot be decoded, up to 0.1% of them.")
    ] = None,
    save_minutes: Annotated[
        float | None,
        typer.Option(
            help="Between two checkpoints within an epoch; default 30.", callback=number_within("--save-minutes", 0, 1e6)
        ),
    ] = None,
    tensorboard: Annotated[bool | None, typer.Option("--tensorboard", help="Write event files too.")] = None,
    profile: Annotated[
        int, typer.Option(min=0, max=10**6, metavar="N", help="Trace N steps, and tell where their time goes.")
    ] = 0,
    device: Device = "auto",
    run: Annotated[str | None, typer.Option(help="Name of the run; default: made of model, data and seed.")] = None,
    resume: Annotated[
        str | None, typer.Option(metavar="RUN|auto", help="Go on with a run; auto: if there is one. Default: a new run.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print what would be trained, and end.")] = False,
    runs: Runs = Path("runs"),
) -> None:
    """Train a network: sanbench train san15 --attention patchwise --set footprint=5."""
    from sanbench.training.interruption import PROCESS, Interruption
    from sanbench.training.launcher import is_launched, launch

    fields = {"attention": attention, "epochs": epochs, "batch_size": batch_size, "lr": lr, "select": select}
    changes = parse_settings(settings or [], named(fields))
    options = named(
        {
            "data_root": data_root,
            "download": download,
            "image_size": image_size,
            "decoder": decoder,
            "seed": seed,
            "workers": workers,
            "accumulate": accumulate,
            "precision": precision,
            "compile": compile,
            "deterministic": deterministic,
            "skip_bad_images": skip_bad_images,
            "save_minutes": save_minutes,
            "tensorboard": tensorboard,
        }
    )
    choices = {"recipe": recipe, "changes": changes, **options}
    choose_run = partial(choose, model, data, choices, run, resume, runs)
    chosen = None if is_launched() else choose_run()  # wrong input is told before there are processes, and before torch
    if nproc > 1 and chosen is not None and not dry_run:
        with nullcontext(PROCESS) if PROCESS.before else Interruption() as interruption:
            raise typer.Exit(launch(nproc, sys.argv[1:], interruption))
    if dry_run and chosen is not None:
        start(device)
        show_plan(chosen[0], nproc)
        return
    os.environ.setdefault("KINETO_LOG_LEVEL", "6")  # torch's profiler is silent; it reads this when torch is imported
    from sanbench.training.distributed import joined
    from sanbench.training.loop import machine
    from sanbench.training.loop import train as train_network

    with lost_process_named(), joined(start(device)) as (group, rank_device):
        try:
            config, folder, continues = group.broadcast_from_rank_zero(lambda: chosen or choose_run())
            if dry_run:
                show_plan(config, max(nproc, group.size))
                return
            if group.is_rank_zero and continues:
                show_changes(folder, config, machine(group.size, rank_device))
            with progress() as report:
                trained = train_network(
                    config,
                    folder,
                    rank_device,
                    report,
                    resume=continues,
                    group=group,
                    profile=profile,
                    interruption=PROCESS if PROCESS.before else None,  # a program that calls this has handlers of its own
                )
        except SanbenchError as error:
            if group.is_rank_zero:
                raise
            raise typer.Exit(error.exit_code) from None  # rank 0 prints the error
        if group.is_rank_zero:
            if profile:
                print_profile(trained, profile)
            show_end(trained)


@contextmanager
def lost_process_named() -> Iterator[None]:
    """One sentence when a process of the training has ended: of `launch`, which knows which and why, or else of rank 0."""
    from sanbench.training.distributed import LostProcess
    from sanbench.training.launcher import LAUNCHER

    try:
        yield
    except LostProcess as error:
        if LAUNCHER in os.environ or os.environ.get("RANK", "0") != "0":
            raise typer.Exit(error.exit_code) from None
        raise


def named(options: dict[str, Any]) -> dict[str, Any]:
    """The options that were typed."""
    return {name: value for name, value in options.items() if value is not None}


def choose(
    model: str | None, data: str | None, choices: dict[str, Any], name: str | None, resume: str | None, runs: Path
) -> "tuple[TrainConfig, Path, bool]":
    """The configuration, the folder, and whether the run in it is resumed. InputError for options without an effect."""
    from sanbench.runs.config import configure, reconfigure
    from sanbench.runs.run import Run, all_runs, check_name, differences, find_unfinished, free_name

    if name is not None:
        check_name(name)
    if resume not in (None, "auto"):
        check_name(str(resume))
        found = Run(runs / str(resume))
        if not found.exists():
            raise unknown("run", str(resume), [run.name for run in all_runs(runs)])
        config = reconfigure(found.config(), model, data, **choices)
        check_typed(config, choices)
        differences(found, config)
        return config, found.folder, True
    if model is None:
        raise InputError("Name a network, as in `sanbench train san10`, or a run to go on with: --resume RUN.")
    config = configure(model, data or "fashion10k", **choices)
    check_typed(config, choices)
    if resume == "auto":
        unfinished = Run(runs / name) if name else find_unfinished(runs, config)
        if unfinished is not None and unfinished.exists():
            differences(unfinished, config)
            return config, unfinished.folder, True
    words = [config.model.label.replace(" ", "-").replace("=", "_"), config.data.rsplit("/")[-1].replace(":", "_")]
    return config, runs / (name or free_name(runs, "-".join([*words, f"s{config.seed}"]))), False


def check_typed(config: "TrainConfig", choices: dict[str, Any]) -> None:
    from sanbench.data import DOWNLOADED, PHOTOGRAPHS

    check_data_options([config.data], {name: choices.get(name) for name in (*DOWNLOADED, *PHOTOGRAPHS)})


def parse_settings(texts: list[str], fields: dict[str, Any]) -> dict[str, Any]:
    """Fields of recipe and network by name, from --set and from options of their own. Raises InputError for one given twice."""
    found = dict(fields)
    for text in texts:
        field, value = parse_setting(text)
        if field in found:
            raise InputError(f"--set {text!r} is not accepted: {field} {found[field]} is given already.")
        found[field] = value
    return found


def parse_setting(text: str) -> tuple[str, str]:
    field, equals, value = text.partition("=")
    if not (field and equals and value):
        raise InputError(f"--set {text!r} is not accepted: write FIELD=VALUE, as in --set footprint=5.")
    return field, value


def show_plan(config: "TrainConfig", processes: int) -> None:
    from sanbench.data import load_dataset
    from sanbench.training.distributed import ProcessGroup
    from sanbench.training.plan import plan

    ProcessGroup(0, processes).check(config.recipe.batch_size, config.accumulate)
    images = load_dataset(config.data, "train", config.read_options)
    spec = config.model.model_copy(update={"num_classes": len(images.classes)})
    told = config.model_copy(update={"model": spec, "image_size": images.side})  # as the images are, whatever is the default
    print_plan(told, plan(config, images, processes), processes)


def show_changes(folder: Path, config: "TrainConfig", machine: "Machine") -> None:
    from sanbench.runs.run import Run, differences

    changed = differences(Run(folder), config, machine)
    console.print(f"Going on with {folder.name}{': ' + ', '.join(changed) if changed else ''}.")


def show_end(run: "Run") -> None:
    best = max(run.epochs(), key=lambda line: line["validation_top1"])
    console.print(
        f"{run.folder}: best validation top-1 {best['validation_top1']:.1%} at epoch {best['epoch']} "
        f"of {run.config().recipe.epochs}. Next: sanbench accuracy {run.name}",
    )


def runs(runs: Runs = Path("runs")) -> None:
    """List the runs: state, epoch, best top-1 on validation images, last change."""
    if not runs.is_dir():
        raise InputError(f"There is no folder {runs}: `sanbench train san10` makes runs, --runs names another folder.")
    from sanbench.runs.run import all_runs

    print_runs(all_runs(runs))
