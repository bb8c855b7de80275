"""`sanbench bench`: what a network costs, measured here."""

from itertools import product
from pathlib import Path
from typing import Annotated, Any

import typer

from sanbench.errors import InputError
from sanbench_cli.console import console, progress
from sanbench_cli.options import Device, Results, Root, start

bench = typer.Typer(no_args_is_help=True, help="Measure speed and memory on this machine.")
Count = Annotated[int, typer.Option("-n", help="Counted steps of each side.")]


@bench.command()
def model(
    pairs: Annotated[list[str] | None, typer.Argument(metavar="SAN", help="Default: san19_pairwise san19_patchwise.")] = None,
    train: Annotated[bool, typer.Option("--train", help="Training steps.")] = False,
    attack: Annotated[bool, typer.Option("--attack", help="Attack steps: forward and the images' gradient.")] = False,
    batch_size: Annotated[int, typer.Option(min=1)] = 4,
    image_size: Annotated[list[int] | None, typer.Option(min=32, help="Default: 224; several sweep.")] = None,
    footprint: Annotated[list[int] | None, typer.Option(help="Of stages 1 to 4; default: 7; several sweep.")] = None,
    dtype: Annotated[str, typer.Option(help="float32 or bfloat16, by autocast.")] = "float32",
    compiled: Annotated[bool, typer.Option("--compile", help="Both through torch.compile.")] = False,
    n: Count = 9,
    device: Device = "auto",
    results: Results = Path("results"),
) -> None:
    """Time SANs against the ResNets they compare with, in turn: sanbench bench model san19 --attack."""
    from dataclasses import replace

    from rich.table import Column, Table

    from sanbench.bench.networks import Case, Mode, Precision, compare
    from sanbench.device import keep_memory, select_device
    from sanbench.models import MODELS, resolve
    from sanbench.store.files import Store

    if train and attack:
        raise InputError("--train and --attack are not accepted together: name one.")
    mode: Mode = "train" if train else "attack" if attack else "evaluate"
    parse_dtype(dtype)
    precision: Precision = "bfloat16" if dtype == "bfloat16" else "float32"
    names = [resolve(name)[0] for name in pairs or ["san19_pairwise", "san19_patchwise"]]
    keep_memory()
    place = select_device(device)
    store = Store(results)
    store.check_writable()
    headings = ("image", "footprint", "ms", "images/s", "ratio [range]", "kept, MB", "peak, MB")
    table = Table(Column("network", no_wrap=True), *headings)
    with progress() as bar:
        for name, side_length, size in product(names, image_size or [224], footprint or [7]):
            baseline = MODELS[name].baseline
            if baseline is None:
                raise InputError(f"{name} is not accepted: name a SAN, it is timed against its ResNet.")
            variation = () if size == 7 else (("footprint", size),)
            san = Case(name, mode, batch_size, side_length, variation, precision, compiled)
            found = compare(san, replace(san, model=baseline, variation=()), n, place, bar)
            store.write_benchmark(found.record())
            ratio = f"{found.ratio:.2f} [{found.ratio_low:.2f}, {found.ratio_high:.2f}]"
            for side, (label, shown) in enumerate(((name, ratio), (baseline, "1"))):
                memory = [f"{number[side] / 1e6:.0f}" for number in (found.kept, found.peak)]
                where = (str(side_length), str(size) if label == name else "")
                speed = [f"{1000 * found.seconds[side]:.0f}", f"{batch_size / found.seconds[side]:.0f}"]
                table.add_row(label, *where, *speed, shown, *memory)
            table.add_section()
    console.print(table)
    console.print(
        f"{mode}, batch {batch_size}, {dtype}, channels_last, {'compiled' if compiled else 'eager'}, n {found.n}, "
        f"{found.threads} threads, kernels {found.kernel}, {found.device}. Medians; ratio of neighbouring steps; "
        "kept: what autograd keeps for the backward pass; peak: a process of its own."
    )


@bench.command("data")
def reading(
    photographs: Annotated[
        Path | None, typer.Argument(metavar="FOLDER", help="Of photographs; default: the 20 that foolbox ships.")
    ] = None,
    decoders: Annotated[str, typer.Option(help="In the order of the table.")] = "pil,torchvision,turbo",
    images: Annotated[int, typer.Option(help="Files of 500 x 375 to cut from the photographs.")] = 256,
    n: Annotated[int, typer.Option("-n", help="Counted rounds.")] = 9,
) -> None:
    """Time decoders and the whole input pipeline against torchvision's ImageFolder with PIL, in images/s per core."""
    from rich.table import Table

    from sanbench.bench.reading import measure_reading, photographs_here
    from sanbench.data.decoding import find_decoder
    from sanbench.device import keep_memory, processor

    keep_memory()
    names = decoders.split(",")
    about = [find_decoder(name).about for name in names]
    with progress() as bar:
        found = measure_reading(photographs or photographs_here(), names, images, n, bar)
    table = Table("part", "reader", "images/s per core", "against the first [range]")
    for speed in found.speeds:
        ratio = f"{speed.ratio:.2f} [{speed.ratio_low:.2f}, {speed.ratio_high:.2f}]"
        table.add_row(speed.part, speed.reader, f"{speed.images_per_second:,.0f}", ratio)
    console.print(table)
    console.print(
        f"{found.images} JPEG files of 500 x 375, {found.kilobytes:.0f} kB each, to 224 x 224, one process that reads, "
        f"batches of 32, medians of n {found.n} rounds in turn, {processor()}; {'; '.join(about)}.",
        soft_wrap=True,
        highlight=False,
    )


@bench.command()
def ops(
    batch_size: Annotated[int, typer.Option(min=1)] = 4,
    footprint: Annotated[int | None, typer.Option(help="Of stages 1 to 4; default: 7.")] = None,
    kernels: Annotated[str | None, typer.Option(help="Default: every kernel but plain, which expands whole batches.")] = None,
    n: Count = 5,
    results: Results = Path("results"),
) -> None:
    """Time the attention layers of the five stages, forward and backward, with each kernel in turn."""
    from rich.table import Table

    from sanbench.bench.networks import time_layers
    from sanbench.device import keep_memory
    from sanbench.ops import cpu
    from sanbench.store.files import Store

    keep_memory()
    store = Store(results)
    store.check_writable()
    chosen = [name for name in cpu.available() if name != "plain"] if kernels is None else kernels.split(",")
    with progress() as bar:
        times = time_layers(batch_size, footprint, n, chosen, bar)
    table = Table("attention", "stage", "footprint", "direction", *(f"{name}, ms" for name in chosen))
    for layer in times:
        store.write_benchmark(layer.record())
        cells = [f"{1000 * layer.seconds[name]:.2f}" for name in chosen]
        table.add_row(layer.attention, str(layer.stage), str(layer.footprint), layer.direction, *cells)
    console.print(table)
    console.print(f"Batch {batch_size}, maps of a 224 x 224 image, float32, evaluation, medians of {n}.")


@bench.command()
def evaluate(
    name: Annotated[str, typer.Argument(metavar="MODEL", help="A name that `sanbench models` lists.")] = "san10",
    width: Annotated[float, typer.Option(help="Multiplies all channels.")] = 0.5,
    images: Annotated[int, typer.Option(min=1)] = 128,
    batch_size: Annotated[int, typer.Option(min=1)] = 64,
    n: Count = 5,
    device: Device = "auto",
) -> None:
    """Time a sweep of rotations and an attack against the network's own passes, on fashion10k."""
    from sanbench.bench.evaluation import LIMIT, benchmark
    from sanbench.data import load_dataset
    from sanbench.device import describe, keep_memory, select_device
    from sanbench.models import build_model

    keep_memory()
    place = select_device(device)
    network = build_model(name, 10, width=width).to(place)
    for cost in benchmark(network, load_dataset("fashion10k", "test"), place, images, batch_size, n):
        console.print(
            f"{cost.what}: {cost.seconds:.2f} s, own passes {cost.own_seconds:.2f} s, ratio {cost.ratio:.3f} (limit {LIMIT}), "
            f"{network.spec.label}, {cost.images} images, n {cost.runs}, {describe(place)}",
            highlight=False,
            soft_wrap=True,
        )


DTYPES = ("bfloat16", "float32")


@bench.command()
def roofline(
    name: Annotated[str, typer.Argument(metavar="SAN", help="One of the pairwise and patchwise networks.")] = "san19",
    dtype: Annotated[str, typer.Option(help="bfloat16 or float32.")] = "bfloat16",
    batch_size: Annotated[int, typer.Option(help="Images that share the reading of gamma's weights.")] = 128,
) -> None:
    """What attention costs on a GPU by its shapes: bytes, multiply-adds and the least time, fused and expanded."""
    from rich.box import SIMPLE
    from rich.table import Table

    from sanbench.bench.roofline import CHIPS
    from sanbench.bench.roofline import roofline as modelled

    found = modelled(name, parse_dtype(dtype), batch_size)
    for costs in (found.stages, found.statistics):
        chips = [f"{chip}\n{what}" for chip in CHIPS for what in ("us", "plain us")]
        table = Table("stage", "DRAM\nMB", "of\nfewest", "L2\nMB", "halo", "MMACs", *chips, box=SIMPLE, title=costs[0].kernel)
        for one in costs:
            cells = [str(one.stage), f"{one.dram / 1e6:.3f}", f"{one.dram / one.fewest:.2f}", f"{one.l2 / 1e6:.2f}"]
            cells += [f"{one.halo:.2f}", f"{one.multiply_adds / 1e6:.1f}"]
            for chip in CHIPS:
                cells += [f"{1e6 * one.time(chip):.2f}", f"{1e6 * one.expanded_time(chip):.1f}"]
            table.add_row(*cells)
        console.print(table)
    for chip in CHIPS:
        console.print(
            f"{found.model} on {chip}: attention of all blocks, us an image: {1e6 * found.fused[chip]:.1f} or more, "
            f"{1e6 * found.expanded[chip]:.0f} for expanded memory traffic alone; {dtype}, batch {batch_size}, 224 x 224.",
            highlight=False,
            soft_wrap=True,
        )


@bench.command()
def kernels(
    kind: Annotated[str, typer.Argument(help="pairwise or patchwise.")] = "patchwise",
    stages: Annotated[str, typer.Option(help="Of 0 to 4, comma-separated.")] = "0,1,2,3,4",
    dtype: Annotated[str, typer.Option(help="bfloat16 or float32.")] = "bfloat16",
    capability: Annotated[int, typer.Option(help="80 or 90.")] = 80,
) -> None:
    """Compile the Triton kernels without a GPU: registers and spilled bytes a thread, shared memory a program."""
    from rich.table import Table

    from sanbench.bench.gpu_kernels import KINDS, compile_kernels
    from sanbench.ops.gpu.launch import SHARED_MEMORY

    for value, known, what in ((kind, KINDS, "kind"), (capability, tuple(SHARED_MEMORY), "capability")):
        if value not in known:
            raise InputError(f"{what} {value} is not accepted: accepted are {', '.join(map(str, known))}.")
    if not set(stages.split(",")) <= set("01234"):
        raise InputError(f"stages {stages} is not accepted: numbers of 0 to 4, comma-separated.")
    chosen = [int(stage) for stage in stages.split(",")]
    table = Table("kernel", "stage", "tile", "warps", "registers", "spills, bytes", "shared, KB")
    for one in compile_kernels(chosen, [parse_dtype(dtype)], [capability], [kind]):
        tile = " ".join(f"{name.lower()} {size}" for name, size in one.tile.constants)
        needs = [str(one.needs.registers), str(one.needs.spills), f"{one.needs.shared / 1024:.1f}"]
        table.add_row(one.kernel, str(one.stage), tile, str(one.tile.warps), *needs)
    console.print(table)
    console.print(f"{kind}, {dtype}, compute capability {capability / 10}, maps of 224 x 224 images; compiled, not run.")


def parse_dtype(name: str) -> Any:
    import torch

    if name not in DTYPES:
        raise InputError(f"dtype {name} is not accepted: accepted are {', '.join(DTYPES)}.")
    return getattr(torch, name)


@bench.command()
def train(
    models: Annotated[list[str] | None, typer.Argument(metavar="MODEL", help="Default: san10 resnet26.")] = None,
    data: Annotated[str, typer.Option(help="As for `sanbench train`.")] = "fashion10k",
    data_root: Root = None,
    recipe: Annotated[str | None, typer.Option(help="paper or short; default: the data set's.")] = None,
    batch_size: Annotated[int, typer.Option(min=1)] = 64,
    precision: Annotated[str, typer.Option(help="auto, fp32, bf16 or fp16.")] = "auto",
    compile: Annotated[bool, typer.Option("--compile", help="Compile the networks.")] = False,
    workers: Annotated[int, typer.Option(min=0)] = 0,
    n: Count = 5,
    device: Device = "auto",
) -> None:
    """Time the training loop of networks in turn, and what it costs beside them: sanbench bench train san10 resnet26."""
    from rich.table import Table

    from sanbench.bench.training import LIMIT, STEPS, throughput
    from sanbench.device import describe
    from sanbench.runs.config import configure

    place = start(device)
    means = {"data_root": data_root} if data_root else {}
    changes = {"batch_size": batch_size}
    options: dict[str, Any] = {"precision": precision, "compile": compile, "workers": workers, **means}
    configs = [configure(name, data, recipe=recipe, changes=changes, **options) for name in models or ["san10", "resnet26"]]
    with progress() as bar:
        found = throughput(configs, n, place, bar)
    parts = [part for part in found[0].shares if part != "rest"]
    table = Table("network", "images/s", *parts, f"overhead (limit {LIMIT:.0%})")
    for one in found:
        shares = [f"{one.shares[part]:.1%}" for part in parts]
        table.add_row(one.network, f"{one.images_per_second:.0f}", *shares, f"{one.overhead:.2%}")
    console.print(table)
    console.print(
        f"{data}, batch {batch_size}, {precision} precision, medians of n {n} rounds of {STEPS} steps in turn, "
        f"{describe(place)}; overhead: all of a step but forward, backward and optimiser.",
        highlight=False,
        soft_wrap=True,
    )
