"""`sanbench bench`: what networks cost, measured here and kept as records; and what the GPU's kernels would need."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sanbench.errors import InputError
from sanbench_cli import bench_evaluation
from sanbench_cli.applicable import Typer, check_data_options
from sanbench_cli.benchmarks import RATIO, BatchSize, Count, conditions, note, ratio, record_each
from sanbench_cli.console import console
from sanbench_cli.options import (
    ATTENTIONS,
    BATCH,
    DTYPES,
    KERNELS,
    PRECISIONS,
    SIDE,
    WORKERS,
    Device,
    Results,
    Root,
    Runs,
    list_of,
    number_within,
    one_of,
    start,
)
from sanbench_cli.tables import Table

if TYPE_CHECKING:
    pass

bench = Typer(help="Measure speed and memory on this machine.")
FOOTPRINT = {"min": 1, "max": 31}  # pixels a side
GpuDtype = Annotated[str, typer.Option(help="bfloat16 or float32.", callback=one_of("dtype", DTYPES))]
bench.command("data")(bench_evaluation.reading)
bench.command("images")(bench_evaluation.made_images)
bench.command()(bench_evaluation.corruptions)
bench.command()(bench_evaluation.evaluate)
bench.command()(bench_evaluation.pipeline)
bench.command()(bench_evaluation.attacks)
bench.command()(bench_evaluation.protocol)
bench.command()(bench_evaluation.workers)


@bench.command()
def model(
    pairs: Annotated[list[str] | None, typer.Argument(metavar="SAN", help="Default: san19_pairwise san19_patchwise.")] = None,
    train: Annotated[bool, typer.Option("--train", help="Training steps.")] = False,
    attack: Annotated[bool, typer.Option("--attack", help="Attack steps: forward and the images' gradient.")] = False,
    batch_size: BatchSize = 4,
    image_size: Annotated[list[int] | None, typer.Option(help="Default: 224; several sweep.", **SIDE)] = None,
    footprint: Annotated[
        list[int] | None, typer.Option(help="Of stages 1 to 4; default: 7; several sweep.", **FOOTPRINT)
    ] = None,
    width: Annotated[
        float, typer.Option(help="Multiplies all channels of both.", callback=number_within("--width", 0, 8))
    ] = 1.0,
    dtype: Annotated[str, typer.Option(help="float32 or bfloat16, by autocast.", callback=one_of("dtype", DTYPES))] = "float32",
    compiled: Annotated[bool, typer.Option("--compile", help="Both through torch.compile.")] = False,
    n: Count = 9,
    device: Device = "auto",
    results: Results = Path("results"),
) -> None:
    """Time SANs against the ResNets they compare with, in turn: sanbench bench model san19 --attack."""
    from sanbench.models import resolve

    if train and attack:
        raise InputError("--train and --attack are not accepted together: name one.")
    for name in pairs or ():
        resolve(name)  # a wrong name is told before torch is imported, here and below
    from sanbench.bench.networks import time_pairs

    mode = "train" if train else "attack" if attack else "evaluate"
    step: dict[str, Any] = {"mode": mode, "batch_size": batch_size, "dtype": dtype, "compiled": compiled}
    names, sweep = pairs or ["san19_pairwise", "san19_patchwise"], (image_size or [224], footprint or [7], width)
    used = start(device)
    found = record_each(results, lambda bar: time_pairs(names, *sweep, n, used, bar, **step))
    headings = ("image", "footprint", "ms", "images/s", RATIO, "kept, MB", "peak, MB")
    table = Table("network", *headings)
    for one in found:
        for side in one.seconds:
            size, of_san = str(one.setting["image_size"]), str(one.setting["footprint"]) if side == "san" else ""
            speed = [f"{1000 * one.seconds[side]:.0f}", f"{batch_size / one.seconds[side]:.0f}"]
            memory = [f"{number / 1e6:.0f}" for number in one.bytes[side]]
            table.add_row(one.setting[side]["model"], size, of_san, *speed, ratio(one) if side == "san" else "1", *memory)
        table.add_section()
    console.print(table)
    note(
        f"{mode}, batch {batch_size}, {dtype}, channels_last, {'compiled' if compiled else 'eager'}, {conditions(found)}. "
        "Medians; ratio of neighbouring steps; kept: what autograd keeps for the backward pass; peak: a process of its own."
    )


@bench.command()
def startup(n: Count = 10, runs: Runs = Path("runs"), results: Results = Path("results")) -> None:
    """Time whole commands, each as a process of its own, in turn, on finished runs and on records."""
    from sanbench.bench.startup import time_commands

    found = record_each(results, lambda bar: time_commands(runs, results, n, bar))
    table = Table("command", "s", "processor, s")
    for one in found:
        ((command, seconds),) = one.seconds.items()
        table.add_row(command, f"{seconds:.2f}", f"{one.figures['cpu']:.2f}")
    console.print(table)
    note(f"Medians, {conditions(found)}. Processor: of all threads.")


@bench.command()
def ops(
    batch_size: BatchSize = 4,
    image_size: Annotated[int, typer.Option(help="Side of an image in pixels.", **SIDE)] = 224,
    footprint: Annotated[int | None, typer.Option(help="Of stages 1 to 4; default: 7.", **FOOTPRINT)] = None,
    kernels: Annotated[
        str | None,
        typer.Option(help="Default: every kernel but plain, which expands whole batches.", callback=list_of("kernel", KERNELS)),
    ] = None,
    n: Count = 5,
    results: Results = Path("results"),
) -> None:
    """Time the attention layers of the five stages, forward and backward, with each kernel in turn."""
    from sanbench.bench.layers import time_layers

    start("cpu")
    chosen = None if kernels is None else kernels.split(",")
    found = record_each(results, lambda bar: time_layers(batch_size, image_size, footprint, chosen, n, bar))
    table = Table("attention", "stage", "footprint", "direction", *(f"{name}, ms" for name in found[0].seconds))
    for one in found:
        layer = [str(one.setting[field]) for field in ("attention", "stage", "footprint", "direction")]
        table.add_row(*layer, *(f"{1000 * seconds:.2f}" for seconds in one.seconds.values()))
    console.print(table)
    note(f"Batch {batch_size}, maps of a {image_size} x {image_size} image, float32, evaluation, medians, {conditions(found)}.")


@bench.command()
def train(
    models: Annotated[list[str] | None, typer.Argument(metavar="MODEL", help="Default: san10 resnet26.")] = None,
    data: Annotated[str, typer.Option(help="As for `sanbench train`.")] = "fashion10k",
    data_root: Root = None,
    recipe: Annotated[str | None, typer.Option(help="paper or short; default: the data set's.")] = None,
    batch_size: BatchSize = 64,
    precision: Annotated[
        str, typer.Option(help="auto, fp32, bf16 or fp16.", callback=one_of("precision", PRECISIONS))
    ] = "auto",
    compile: Annotated[bool, typer.Option("--compile", help="Compile the networks.")] = False,
    workers: Annotated[int, typer.Option(help="Processes that read.", **WORKERS)] = 0,
    n: Count = 5,
    device: Device = "auto",
    results: Results = Path("results"),
) -> None:
    """Time the training loop of networks in turn, and what it costs beside them: sanbench bench train san10 resnet26."""
    from sanbench.runs.config import configure

    check_data_options([data], {"data_root": data_root})
    options: dict[str, Any] = {"precision": precision, "compile": compile, "workers": workers}
    options |= {"recipe": recipe, "changes": {"batch_size": batch_size}} | ({"data_root": data_root} if data_root else {})
    configs = [configure(name, data, **options) for name in models or ["san10", "resnet26"]]
    from sanbench.bench.training import LIMIT, time_training
    from sanbench.training.profile import PARTS

    used = start(device)
    (found,) = record_each(results, lambda bar: [time_training(configs, n, used, bar)])
    table = Table("network", "images/s", *PARTS, f"overhead (limit {LIMIT:.0%})")
    for label in found.seconds:
        shares = [f"{found.figures[f'{part} {label}']:.1%}" for part in PARTS]
        overhead = f"{found.figures[f'overhead {label}']:.2%}"
        table.add_row(label, f"{found.figures[f'images_per_second {label}']:.0f}", *shares, overhead)
    console.print(table)
    note(
        f"{data}, batch {batch_size}, {precision} precision, medians of rounds of {found.setting['steps']} steps in turn, "
        f"{conditions([found])}; overhead: all of a step but forward, backward and optimiser."
    )


@bench.command()
def roofline(
    name: Annotated[str, typer.Argument(metavar="SAN", help="One of the pairwise and patchwise networks.")] = "san19",
    dtype: GpuDtype = "bfloat16",
    batch_size: Annotated[int, typer.Option(help="Images that share the reading of gamma's weights.", **BATCH)] = 128,
) -> None:
    """What attention costs on a GPU by its shapes: bytes, multiply-adds and the least time, fused and expanded."""
    from sanbench.models import resolve

    resolve(name)
    from sanbench.bench.roofline import CHIPS
    from sanbench.bench.roofline import roofline as modelled
    from sanbench.bench.shapes import find_dtype

    found = modelled(name, find_dtype(dtype), batch_size)
    for costs in (found.stages, found.statistics):
        chips = [f"{chip}\n{what}" for chip in CHIPS for what in ("us", "plain us")]
        table = Table("stage", "DRAM\nMB", "of\nfewest", "L2\nMB", "halo", "MMACs", *chips, title=costs[0].kernel)
        for one in costs:
            cells = [str(one.stage), f"{one.dram / 1e6:.3f}", f"{one.dram / one.fewest:.2f}", f"{one.l2 / 1e6:.2f}"]
            cells += [f"{one.halo:.2f}", f"{one.multiply_adds / 1e6:.1f}"]
            for chip in CHIPS:
                cells += [f"{1e6 * one.time(chip):.2f}", f"{1e6 * one.expanded_time(chip):.1f}"]
            table.add_row(*cells)
        console.print(table)
    for chip in CHIPS:
        note(
            f"{found.model} on {chip}: attention of all blocks, us an image: {1e6 * found.fused[chip]:.1f} or more, "
            f"{1e6 * found.expanded[chip]:.0f} for expanded memory traffic alone; {dtype}, batch {batch_size}, 224 x 224."
        )


@bench.command()
def kernels(
    attention: Annotated[
        str, typer.Argument(help="pairwise or patchwise.", callback=one_of("attention", ATTENTIONS[:2]))
    ] = "patchwise",
    stages: Annotated[
        str, typer.Option(help="Of 0 to 4, comma-separated.", callback=list_of("stage", tuple("01234")))
    ] = "0,1,2,3,4",
    dtype: GpuDtype = "bfloat16",
    capability: Annotated[str, typer.Option(help="80 or 90.", callback=one_of("capability", ("80", "90")))] = "80",
) -> None:
    """Compile the Triton kernels without a GPU: registers and spilled bytes a thread, shared memory a program."""
    from sanbench.bench.gpu_kernels import compile_kernels, parse_stages
    from sanbench.bench.shapes import find_dtype

    table = Table("kernel", "stage", "tile", "warps", "registers", "spills, bytes", "shared, KB")
    for one in compile_kernels(parse_stages(stages), [find_dtype(dtype)], [int(capability)], [attention]):
        tile = " ".join(f"{name.lower()} {size}" for name, size in one.tile.constants)
        needs = [str(one.needs.registers), str(one.needs.spills), f"{one.needs.shared / 1024:.1f}"]
        table.add_row(one.kernel, str(one.stage), tile, str(one.tile.warps), *needs)
    console.print(table)
    note(f"{attention}, {dtype}, compute capability {int(capability) / 10}, maps of 224 x 224 images; compiled, not run.")
