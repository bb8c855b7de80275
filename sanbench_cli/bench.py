"""`sanbench bench`: what a network costs, measured here."""

from typing import Annotated, Any

import typer

from sanbench.errors import InputError
from sanbench_cli.console import console, progress

bench = typer.Typer(no_args_is_help=True, help="Measure speed and memory on this machine.")
Count = Annotated[int, typer.Option("-n", help="Counted steps of each side.")]


@bench.command()
def model(
    pairs: Annotated[list[str] | None, typer.Argument(metavar="SAN", help="Default: san19_pairwise san19_patchwise.")] = None,
    train: Annotated[bool, typer.Option("--train", help="Training steps.")] = False,
    attack: Annotated[bool, typer.Option("--attack", help="Attack steps: forward and the images' gradient.")] = False,
    batch_size: Annotated[int, typer.Option(min=1)] = 4,
    image_size: Annotated[int, typer.Option(min=32)] = 224,
    footprint: Annotated[int, typer.Option(help="Of stages 1 to 4.")] = 7,
    n: Count = 9,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
) -> None:
    """Time SANs against the ResNets they compare with, in turn: sanbench bench model san19 --attack."""
    from rich.table import Column, Table

    from sanbench.allocator import keep_memory
    from sanbench.benchmark import Case, Mode, compare
    from sanbench.device import select_device
    from sanbench.models import MODELS, resolve

    if train and attack:
        raise InputError("--train and --attack are not accepted together: name one.")
    mode: Mode = "train" if train else "attack" if attack else "evaluate"
    names = [resolve(name)[0] for name in pairs or ["san19_pairwise", "san19_patchwise"]]
    keep_memory()
    place = select_device(device)
    table = Table(Column("network", no_wrap=True), "ms", "ratio [range]", "kept, MB", "peak, MB")
    with progress() as bar:
        for name in names:
            baseline = MODELS[name].baseline
            if baseline is None:
                raise InputError(f"{name} is not accepted: name a SAN, it is timed against its ResNet.")
            variation = () if footprint == 7 else (("footprint", footprint),)
            san = Case(name, mode, batch_size, image_size, variation)
            found = compare(san, Case(baseline, mode, batch_size, image_size), n, place, bar)
            ratio = f"{found.ratio:.2f} [{found.ratio_low:.2f}, {found.ratio_high:.2f}]"
            for side, (label, shown) in enumerate(((name, ratio), (baseline, "1"))):
                memory = [f"{number[side] / 1e6:.0f}" for number in (found.kept, found.peak)]
                table.add_row(label, f"{1000 * found.seconds[side]:.0f}", shown, *memory)
            table.add_section()
    console.print(table)
    console.print(
        f"{mode}, batch {batch_size}, {image_size} x {image_size}, footprint {footprint}, float32, channels_last, "
        f"n {found.n}, {found.threads} threads, kernels {found.kernel}, {found.device}. Medians; ratio of neighbouring steps; "
        "kept: what autograd keeps for the backward pass; peak: a process of its own."
    )


@bench.command()
def ops(
    batch_size: Annotated[int, typer.Option(min=1)] = 4,
    footprint: Annotated[int | None, typer.Option(help="Of stages 1 to 4; default: 7.")] = None,
    kernels: Annotated[str | None, typer.Option(help="Default: every kernel but plain, which expands whole batches.")] = None,
    n: Count = 5,
) -> None:
    """Time the attention layers of the five stages, forward and backward, with each kernel in turn."""
    from rich.table import Table

    from sanbench.allocator import keep_memory
    from sanbench.benchmark import time_layers
    from sanbench.ops import cpu

    keep_memory()
    chosen = [name for name in cpu.available() if name != "plain"] if kernels is None else kernels.split(",")
    with progress() as bar:
        times = time_layers(batch_size, footprint, n, chosen, bar)
    table = Table("attention", "stage", "footprint", "direction", *(f"{name}, ms" for name in chosen))
    for layer in times:
        cells = [f"{1000 * layer.seconds[name]:.2f}" for name in chosen]
        table.add_row(layer.attention, str(layer.stage), str(layer.footprint), layer.direction, *cells)
    console.print(table)
    console.print(f"Batch {batch_size}, maps of a 224 x 224 image, float32, evaluation, medians of {n}.")


@bench.command()
def evaluate(
    name: Annotated[str, typer.Argument(metavar="MODEL", help="A name that `sanbench models` lists.")] = "san10",
    width: Annotated[float, typer.Option(help="Multiplies the channels of a SAN.")] = 0.5,
    images: Annotated[int, typer.Option(min=1)] = 128,
    batch_size: Annotated[int, typer.Option(min=1)] = 64,
    n: Count = 5,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
) -> None:
    """Time a sweep of rotations and an attack against the network's own passes, on fashion10k."""
    from sanbench.allocator import keep_memory
    from sanbench.data import load_dataset
    from sanbench.device import describe, select_device
    from sanbench.evaluation.benchmark import LIMIT, benchmark
    from sanbench.models import build_model

    keep_memory()
    place = select_device(device)
    variation: dict[str, Any] = {} if name.startswith("resnet") else {"width": width}
    network = build_model(name, 10, **variation).to(place)
    for cost in benchmark(network, load_dataset("fashion10k", "test"), place, images, batch_size, n):
        console.print(
            f"{cost.what}: {cost.seconds:.2f} s, own passes {cost.own_seconds:.2f} s, ratio {cost.ratio:.3f} (limit {LIMIT}), "
            f"{network.spec.label}, {cost.images} images, n {cost.runs}, {describe(place)}",
            highlight=False,
            soft_wrap=True,
        )
