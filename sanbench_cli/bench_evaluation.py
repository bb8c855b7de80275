"""What measuring robustness costs: reading, corruptions, attacks, the evaluation loop, and all of it at ImageNet's size."""

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sanbench_cli.benchmarks import RATIO, BatchSize, Count, conditions, note, ratio, record_each
from sanbench_cli.console import console, progress
from sanbench_cli.options import (
    CORRUPTERS,
    COUNT,
    DECODERS,
    SIDE,
    WORKERS,
    Device,
    Results,
    Runs,
    existing_folder,
    list_of,
    number_within,
    one_of,
    start,
)
from sanbench_cli.tables import Table

if TYPE_CHECKING:
    import torch

    from sanbench.progress import Report
    from sanbench.store.schema import Benchmark

Photographs = Annotated[
    Path | None,
    typer.Argument(
        metavar="FOLDER",
        help="Of photographs; default: the 20 that foolbox ships.",
        callback=existing_folder("photographs"),
    ),
]


def reading(
    photographs: Photographs = None,
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


def made_images(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Where val/ with 1,000 class folders is written.")],
    images: Annotated[int, typer.Option(help="Files of 500 x 375.", **COUNT)] = 50_000,
    photographs: Annotated[
        Path | None,
        typer.Option(
            help="Folder of photographs; default: the 20 that foolbox ships.", callback=existing_folder("--photographs")
        ),
    ] = None,
) -> None:
    """Make a set laid out like ImageNet's, to measure time and memory on: sanbench bench images made-imagenet."""
    from sanbench.bench.photographs import make_imagenet

    with progress() as bar:
        make_imagenet(folder, images, photographs, bar)
    console.print(f"{folder}: {images:,} files. Next: --data imagenet --data-root {folder}", soft_wrap=True)


def corruptions(
    photographs: Photographs = None,
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


def evaluate(
    name: Annotated[
        str,
        typer.Argument(metavar="MODEL", help="A name that `sanbench models` lists; with --attack also a run or checkpoint."),
    ] = "san10",
    width: Annotated[float, typer.Option(help="Multiplies all channels.", callback=number_within("--width", 0, 8))] = 0.5,
    attack: Annotated[
        str | None,
        typer.Option(help="standard: time it against the official AutoAttack.", callback=one_of("attack", ("standard",))),
    ] = None,
    eps: Annotated[str, typer.Option(help="Budget of --attack in [0, 1] pixels.")] = "8/255",
    norm: Annotated[str, typer.Option(help="Of --attack: linf or l2.", callback=one_of("norm", ("linf", "l2")))] = "linf",
    images: Annotated[int, typer.Option(help="Test images.", **COUNT)] = 128,
    batch_size: BatchSize = 64,
    n: Count = 5,
    device: Device = "auto",
    runs: Runs = Path("runs"),
    results: Results = Path("results"),
) -> None:
    """Time a sweep of rotations and an attack against the network's own passes, or `standard` against the official one."""
    from sanbench.models import resolve
    from sanbench.runs.evaluated import has_weights

    if attack is None:  # a wrong name is told before torch is imported, here and below
        resolve(name)
    else:
        has_weights(name, runs)
    from sanbench.bench.evaluation import LIMIT, time_evaluation

    used = start(device)
    if attack is not None:
        against_official(name, runs, eps, norm, images, batch_size, n, used, results)
        return
    found = record_each(results, lambda bar: time_evaluation(name, width, images, batch_size, n, used, bar))
    table = Table("perturbations", "evaluation, s", "own passes, s", f"{RATIO} (limit {LIMIT})")
    for one in found:
        table.add_row(one.setting["perturbations"], *(f"{seconds:.2f}" for seconds in one.seconds.values()), ratio(one, 3))
    console.print(table)
    network = " ".join(f"{field}={value}" for field, value in found[0].setting["network"].items())
    note(f"{network}, {found[0].setting['images']} images, batch {batch_size}, medians, {conditions(found)}.")


def against_official(
    name: str, runs: Path, eps: str, norm: str, images: int, batch_size: int, n: int, device: "torch.device", results: Path
) -> None:
    from sanbench.bench.official import time_against_official

    asked = (name, runs, eps, norm, images, batch_size, n, device)
    (found,) = record_each(results, lambda bar: time_against_official(*asked, bar))
    table = Table("standard", "seconds", "right before", "stand", "stand there alone")
    for side, standing in (("standard", "standing"), ("official", "standing_official")):
        counts = (f"{found.figures[field]:.0f}" for field in ("right_before", standing, f"only_{standing}"))
        table.add_row({"standard": "this library's"}.get(side, side), f"{found.seconds[side]:.1f}", *counts)
    console.print(table)
    setting = found.setting
    note(
        f"Time over the official's: {ratio(found)}. Examples that decide a difference and are none: "
        f"{found.figures['invalid']:.0f}. {setting['network']}, {setting['images']} images, {norm} ε = {setting['eps']}, "
        f"batch {batch_size}, in turn, {conditions([found])}."
    )


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
    from sanbench.runs.evaluated import has_weights

    if network != "stub":
        has_weights(network, runs)
    from sanbench.bench.pipeline import time_pipeline

    used, readers = start(device), workers or [1, 2]
    found = record_each(results, lambda bar: time_pipeline(network, runs, data_root, images, readers, used, bar))
    table = Table("perturbation", "readers", "images/s", "waiting", "MB in the first tenth", "MB in the last")
    for one in found:
        cells = [one.setting["case"], str(one.setting["workers"]), f"{one.figures['images_per_second']:.1f}"]
        memory = [f"{one.figures[when] / 1e6:.0f}" for when in ("resident_early", "resident_late")]
        table.add_row(*cells, f"{one.figures['waiting']:.1%}", *memory)
    console.print(table)
    note(f"{found[0].setting['network']}, {images:,} images, {conditions(found)}. Readers: processes that read and corrupt.")


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
    from sanbench.evaluation.attacks.table import ATTACKS, parse_attacks
    from sanbench.runs.evaluated import has_weights

    has_weights(network, runs)
    names = list(ATTACKS) if attack is None else [word.strip() for word in attack.split(",")]
    parse_attacks(",".join(names), eps)
    from sanbench.bench.attacks import time_attacks

    used = start(device)
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
    from sanbench.runs.evaluated import fresh_or_evaluated, has_weights

    has_weights(network, runs)
    from sanbench.bench.protocol import Line, time_protocol

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


def workers(
    name: Annotated[str, typer.Argument(metavar="STUDY", help="Whose networks are trained.")] = "quick",
    limit: Annotated[int | None, typer.Option(help="Measure at most so many images. Default: the study's.", **COUNT)] = None,
    n: Count = 3,
    runs: Runs = Path("runs"),
    results: Results = Path("results"),
) -> None:
    """Two workers of a thread each on a study's measurements, against one: sanbench bench workers quick."""
    from sanbench.studies.study import read

    study = read(name)  # what is wrong in it is told before torch is imported
    from sanbench.bench.workers import LIMITS, time_workers
    from sanbench.studies.expand import Choice, expand

    expansion, words = expand(study, Choice(limit=limit)), [name, *([] if limit is None else ["--limit", str(limit)])]
    used = start("cpu")
    (found,) = record_each(results, lambda bar: [time_workers(expansion, words, runs, n, used, bar)])
    table = Table(
        "workers", "s", title=f"{found.setting['measurements']:,} measurements of {found.setting['networks']} networks"
    )
    for side, seconds in found.seconds.items():
        table.add_row(side, f"{seconds:.1f}")
    console.print(table)
    figures = found.figures
    note(
        f"One over two: {ratio(found)} (limit {LIMITS['speedup']}), without their start of {figures['start']:.1f} s "
        f"{figures['speedup without start']:.2f}; two that share nothing do {figures['apart']:.2f} times the work of one in "
        f"its time. Claiming takes {figures['claiming'] / figures['part']:.2%} of a part's "
        f"{1000 * figures['part']:.0f} ms (limit {LIMITS['claiming']:.0%}). {conditions([found])}."
    )
