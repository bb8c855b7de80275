"""`sanbench bench`: what networks cost, measured here and kept as records; and what the GPU's kernels would need."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sanbench.errors import InputError
from sanbench_cli.applicable import Typer, check_data_options
from sanbench_cli.console import console, progress
from sanbench_cli.options import (
    BATCH,
    CORRUPTERS,
    COUNT,
    DECODERS,
    DTYPES,
    PRECISIONS,
    ROUNDS,
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
    from sanbench.progress import Report
    from sanbench.store.schema import Benchmark

bench = Typer(no_args_is_help=True, help="Measure speed and memory on this machine.")
Count = Annotated[int, typer.Option("-n", help="Counted rounds: each runs every side once.", **ROUNDS)]
BatchSize = Annotated[int, typer.Option(help="Images at once.", **BATCH)]
FOOTPRINT = {"min": 1, "max": 31}  # pixels a side
RATIO = "ratio [range]"
GpuDtype = Annotated[str, typer.Option(help="bfloat16 or float32.", callback=one_of("dtype", DTYPES))]


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
    dtype: Annotated[str, typer.Option(help="float32 or bfloat16, by autocast.", callback=one_of("dtype", DTYPES))] = "float32",
    compiled: Annotated[bool, typer.Option("--compile", help="Both through torch.compile.")] = False,
    n: Count = 9,
    device: Device = "auto",
    results: Results = Path("results"),
) -> None:
    """Time SANs against the ResNets they compare with, in turn: sanbench bench model san19 --attack."""
    from sanbench.bench.networks import time_pairs

    if train and attack:
        raise InputError("--train and --attack are not accepted together: name one.")
    mode = "train" if train else "attack" if attack else "evaluate"
    step: dict[str, Any] = {"mode": mode, "batch_size": batch_size, "dtype": dtype, "compiled": compiled}
    names, sweep = pairs or ["san19_pairwise", "san19_patchwise"], (image_size or [224], footprint or [7])
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


@bench.command("data")
def reading(
    photographs: Annotated[
        Path | None, typer.Argument(metavar="FOLDER", help="Of photographs; default: the 20 that foolbox ships.")
    ] = None,
    decoders: Annotated[
        str, typer.Option(help="In the order of the table.", callback=list_of("decoder", DECODERS))
    ] = "pil,torchvision,turbo",
    images: Annotated[int, typer.Option(help="Files of 500 x 375 to cut from the photographs.", **COUNT)] = 256,
    n: Count = 9,
    results: Results = Path("results"),
) -> None:
    """Time decoders and the whole input pipeline against torchvision's ImageFolder with PIL, in images/s per core."""
    from sanbench.bench.reading import time_reading

    start("cpu")
    found = record_each(results, lambda bar: time_reading(photographs, decoders.split(","), images, n, bar))
    table = Table("part", "reader", "images/s per core", "against the first [range]")
    for one in found:
        table.add_row(one.setting["part"], one.setting["reader"], f"{one.figures['images_per_second']:,.0f}", ratio(one))
    console.print(table)
    about = dict.fromkeys(one.setting["decoder"] for one in found)
    note(
        f"{images} JPEG files of 500 x 375, {found[0].setting['bytes_per_image'] / 1000:.0f} kB each, to 224 x 224, one "
        f"process that reads, batches of 32, medians of rounds in turn, {conditions(found)}; {'; '.join(about)}."
    )


@bench.command("images")
def made_images(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Where val/ with 1,000 class folders is written.")],
    images: Annotated[int, typer.Option(help="Files of 500 x 375.", **COUNT)] = 50_000,
    photographs: Annotated[Path | None, typer.Option(help="Folder of photographs; default: the 20 that foolbox ships.")] = None,
) -> None:
    """Make a set laid out like ImageNet's, to measure time and memory on: sanbench bench images made-imagenet."""
    from sanbench.bench.photographs import make_imagenet

    with progress() as bar:
        make_imagenet(folder, images, photographs, bar)
    console.print(f"{folder}: {images:,} files. Next: --data imagenet --data-root {folder}", soft_wrap=True)


@bench.command()
def corruptions(
    photographs: Annotated[
        Path | None, typer.Argument(metavar="FOLDER", help="Of photographs; default: the 20 that foolbox ships.")
    ] = None,
    image_size: Annotated[int, typer.Option(help="Side of an image in pixels.", **SIDE)] = 224,
    against: Annotated[
        str | None,
        typer.Option(help="imagecorruptions: time that package too, at severity 3.", callback=one_of("against", CORRUPTERS)),
    ] = None,
    n: Count = 20,
    results: Results = Path("results"),
) -> None:
    """Time each corruption at each severity on one core, a photograph a round: sanbench bench corruptions."""
    from rich.table import Column, Table

    from sanbench.bench.corruptions import ALL, COMPARED, OURS, THEIRS, time_corruptions

    start("cpu")
    found = record_each(results, lambda bar: time_corruptions(photographs, image_size, n, against, bar))
    told = {(one.setting["corruption"], one.setting["severity"]): one for one in found}
    severities = [severity for name, severity in told if name == found[0].setting["corruption"]]
    compared_columns = [f"theirs\nat {COMPARED}", "ratio"] if against else []
    table = Table(Column("ms an image", no_wrap=True), *map(str, severities), *compared_columns)
    for name in dict.fromkeys(name for name, _ in told if name != ALL):
        cells = [f"{1000 * told[name, severity].seconds[OURS]:.2f}" for severity in severities]
        if against:
            compared = told[name, COMPARED]
            cells += [f"{1000 * compared.seconds[THEIRS]:.1f}", ratio(compared, 1).split()[0]]
        table.add_row(name, *cells)
    console.print(table)
    note(f"All {len(told) - (2 if against else 1)}: {1000 * told[ALL, ALL].seconds[OURS]:.0f} ms an image.")
    if against:
        compared = told[ALL, COMPARED]
        ours, theirs = (f"{1000 * compared.seconds[side]:.0f} ms" for side in (OURS, THEIRS))
        note(f"The kinds at severity {COMPARED}: {ours}; {THEIRS} {theirs}, {ratio(compared, 1)} times as long.")
    note(
        f"{image_size} x {image_size}, {found[0].setting['photographs']} photographs, {found[0].setting['threads']} thread, "
        f"medians of rounds in turn, {conditions(found)}."
    )


@bench.command()
def ops(
    batch_size: BatchSize = 4,
    image_size: Annotated[int, typer.Option(help="Side of an image in pixels.", **SIDE)] = 224,
    footprint: Annotated[int | None, typer.Option(help="Of stages 1 to 4; default: 7.", **FOOTPRINT)] = None,
    kernels: Annotated[str | None, typer.Option(help="Default: every kernel but plain, which expands whole batches.")] = None,
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
def evaluate(
    name: Annotated[str, typer.Argument(metavar="MODEL", help="A name that `sanbench models` lists.")] = "san10",
    width: Annotated[float, typer.Option(help="Multiplies all channels.", callback=number_within("--width", 0, 8))] = 0.5,
    images: Annotated[int, typer.Option(help="Test images.", **COUNT)] = 128,
    batch_size: BatchSize = 64,
    n: Count = 5,
    device: Device = "auto",
    results: Results = Path("results"),
) -> None:
    """Time a sweep of rotations and an attack against the network's own passes, on fashion10k."""
    from sanbench.bench.evaluation import LIMIT, time_evaluation

    used = start(device)
    found = record_each(results, lambda bar: time_evaluation(name, width, images, batch_size, n, used, bar))
    table = Table("perturbations", "evaluation, s", "own passes, s", f"{RATIO} (limit {LIMIT})")
    for one in found:
        table.add_row(one.setting["perturbations"], *(f"{seconds:.2f}" for seconds in one.seconds.values()), ratio(one, 3))
    console.print(table)
    network = " ".join(f"{field}={value}" for field, value in found[0].setting["network"].items())
    note(f"{network}, {found[0].setting['images']} images, batch {batch_size}, medians, {conditions(found)}.")


@bench.command()
def pipeline(
    network: Annotated[
        str, typer.Argument(metavar="stub|RUN|CHECKPOINT|MODEL", help="stub is one 1 x 1 convolution.")
    ] = "stub",
    data_root: Annotated[Path, typer.Option(help="ImageNet's, or one that `sanbench bench images` made.")] = Path("data"),
    images: Annotated[int, typer.Option(help="Of the validation images.", **COUNT)] = 2000,
    workers: Annotated[
        list[int] | None, typer.Option(help="Reading processes; several sweep. Default: 1, 2.", **WORKERS)
    ] = None,
    device: Device = "auto",
    runs: Runs = Path("runs"),
    results: Results = Path("results"),
) -> None:
    """How fast images are read, perturbed and measured, how long the network waits, and in how much memory."""
    from sanbench.bench.pipeline import time_pipeline

    used, readers = start(device), workers or [1, 2]
    found = record_each(results, lambda bar: time_pipeline(network, runs, data_root, images, readers, used, bar))
    table = Table("perturbation", "readers", "images/s", "waiting", "MB after a tenth", "MB at the end")
    for one in found:
        cells = [one.setting["case"], str(one.setting["workers"]), f"{one.figures['images_per_second']:.1f}"]
        memory = [f"{one.figures[when] / 1e6:.0f}" for when in ("resident_early", "resident_late")]
        table.add_row(*cells, f"{one.figures['waiting']:.1%}", *memory)
    console.print(table)
    note(f"{found[0].setting['network']}, {images:,} images, {conditions(found)}. Readers: processes that read and corrupt.")


@bench.command()
def attacks(
    network: Annotated[str, typer.Argument(metavar="RUN|CHECKPOINT|MODEL", help="MODEL has fresh weights.")] = "san10",
    attack: Annotated[str | None, typer.Option(help="Default: every attack.")] = None,
    eps: Annotated[str, typer.Option(help="Budget in [0, 1] pixels.")] = "4/255",
    images: Annotated[int, typer.Option(help="Photographs.", **COUNT)] = 8,
    batch_size: BatchSize = 64,
    device: Device = "auto",
    runs: Runs = Path("runs"),
    results: Results = Path("results"),
) -> None:
    """What each attack costs on photographs, in its default setting: sanbench bench attacks san10 --attack pgd,fab."""
    from sanbench.bench.attacks import time_attacks
    from sanbench.evaluation.attacks.table import ATTACKS

    used, names = start(device), list(ATTACKS) if attack is None else [word.strip() for word in attack.split(",")]
    found = record_each(results, lambda bar: time_attacks(network, runs, names, eps, images, batch_size, used, bar))
    table = Table("attack", "s", "fell", "forward passes", "backward passes", "peak, MB")
    for one in found:
        passes = (f"{one.figures[field]:,.0f}" for field in ("fell", "forward_passes", "backward_passes"))
        table.add_row(one.setting["attack"], f"{one.seconds['attack']:.1f}", *passes, f"{one.figures['peak'] / 1e6:,.0f}")
    console.print(table)
    note(
        f"{found[0].setting['network']}, {images} photographs of {found[0].setting['image_size']} pixels, ε = {eps}, "
        f"its own predictions as labels, all images together, {conditions(found)}."
    )


@bench.command()
def protocol(
    network: Annotated[str, typer.Argument(metavar="RUN|CHECKPOINT|MODEL", help="MODEL has fresh weights.")] = "san10",
    images: Annotated[int, typer.Option(help="Test images.", **COUNT)] = 50_000,
    top1: Annotated[
        float, typer.Option(help="Share that it has right, on which attacks work.", callback=number_within("--top1", 0, 1))
    ] = 1.0,
    batch_size: BatchSize = 64,
    device: Device = "auto",
    runs: Runs = Path("runs"),
    results: Results = Path("results"),
) -> None:
    """What all measurements of a network would take here, in hours: sanbench bench protocol san10 --top1 0.77."""
    from sanbench.bench.protocol import Line, time_protocol
    from sanbench.runs.evaluated import fresh_or_evaluated

    used, lines = start(device), list[Line]()
    evaluated = fresh_or_evaluated(network, runs)
    evaluated.model.to(used)

    def timed(bar: "Report") -> "Iterable[Benchmark]":
        found, benchmark = time_protocol(evaluated, images, top1, batch_size, used, bar)
        lines.extend(found)
        return [benchmark]

    (found,) = record_each(results, timed)
    table = Table("command", "conditions", "images", "hours")
    for line in lines:
        table.add_row(line.command, str(line.conditions), f"{line.images:,}", f"{line.seconds / 3600:.3g}")
    table.add_row("all", "", "", f"{sum(line.seconds for line in lines) / 3600:.3g}")
    console.print(table)
    note(
        f"{evaluated.network.label}, images of {found.setting['image_size']} pixels, {top1:.0%} of them right, "
        f"batch {batch_size}; from costs of {found.setting['sample']} photographs, {conditions([found])}."
    )


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
    from sanbench.bench.training import LIMIT, time_training
    from sanbench.runs.config import configure
    from sanbench.training.profile import PARTS

    check_data_options([data], {"data_root": data_root})
    used = start(device)
    options: dict[str, Any] = {"precision": precision, "compile": compile, "workers": workers}
    options |= {"recipe": recipe, "changes": {"batch_size": batch_size}} | ({"data_root": data_root} if data_root else {})
    configs = [configure(name, data, **options) for name in models or ["san10", "resnet26"]]
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
    attention: Annotated[str, typer.Argument(help="pairwise or patchwise.")] = "patchwise",
    stages: Annotated[str, typer.Option(help="Of 0 to 4, comma-separated.")] = "0,1,2,3,4",
    dtype: GpuDtype = "bfloat16",
    capability: Annotated[int, typer.Option(help="80 or 90.")] = 80,
) -> None:
    """Compile the Triton kernels without a GPU: registers and spilled bytes a thread, shared memory a program."""
    from sanbench.bench.gpu_kernels import compile_kernels, parse_stages
    from sanbench.bench.shapes import find_dtype

    table = Table("kernel", "stage", "tile", "warps", "registers", "spills, bytes", "shared, KB")
    for one in compile_kernels(parse_stages(stages), [find_dtype(dtype)], [capability], [attention]):
        tile = " ".join(f"{name.lower()} {size}" for name, size in one.tile.constants)
        needs = [str(one.needs.registers), str(one.needs.spills), f"{one.needs.shared / 1024:.1f}"]
        table.add_row(one.kernel, str(one.stage), tile, str(one.tile.warps), *needs)
    console.print(table)
    note(f"{attention}, {dtype}, compute capability {capability / 10}, maps of 224 x 224 images; compiled, not run.")


def record_each(results: Path, measure: "Callable[[Report], Iterable[Benchmark]]") -> "list[Benchmark]":
    """Write each benchmark as soon as it is there; all of them."""
    from sanbench.store.files import Store

    store, found = Store(results), []
    store.check_writable()
    with progress() as bar:
        for benchmark in measure(bar):
            store.write_benchmark(benchmark)
            found.append(benchmark)
    return found


def ratio(benchmark: "Benchmark", digits: int = 2) -> str:
    """`1.92 [1.85, 2.01]`, or 1 for what all else is compared with."""
    if benchmark.ratio is None:
        return "1"
    median, least, most = (f"{value:.{digits}f}" for value in benchmark.ratio)
    return f"{median} [{least}, {most}]"


def conditions(benchmarks: "list[Benchmark]") -> str:
    """`n 9, kernels avx512, cpu, 2 threads, AMD EPYC`."""
    setting = benchmarks[0].setting
    kernel = f"kernels {setting['kernel']}, " if "kernel" in setting else ""
    return f"n {setting['n']}, {kernel}{benchmarks[0].device}"


def note(text: str) -> None:
    console.print(text, soft_wrap=True)
