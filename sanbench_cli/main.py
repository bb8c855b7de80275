"""`sanbench`: the commands. Libraries that take long to import are imported by the command that needs them."""

from pathlib import Path
from typing import Annotated

import typer

from sanbench.errors import InputError
from sanbench.evaluation.kinds import KINDS
from sanbench_cli import evaluation, networks, show, training
from sanbench_cli.applicable import Typer
from sanbench_cli.bench import bench
from sanbench_cli.console import Commands, console, print_comparison, print_records, print_report
from sanbench_cli.data import data
from sanbench_cli.options import PROCESSES, REPORTS, Device, Results, Runs, existing_folder, folder_to_write, list_of
from sanbench_cli.results import results
from sanbench_cli.study import Part, end, looked, study, worked
from sanbench_cli.tables import Table

app = Typer(cls=Commands, pretty_exceptions_enable=False, rich_markup_mode="rich")


COMMITTED = Path("results")  # of a clone: what its authors measured


def version(wanted: bool) -> None:
    if wanted:
        from sanbench import __version__

        console.print(f"sanbench {__version__}")
        raise typer.Exit


@app.callback()
def sanbench(
    debug: Annotated[bool, typer.Option("--debug", help="Show where an error comes from.")] = False,
    _: Annotated[bool, typer.Option("--version", callback=version, is_eager=True, help="Print the version.")] = False,
) -> None:
    """Train self-attention networks (SAN) and their ResNet baselines, and measure how robust they are."""


app.command()(training.train)
app.command()(training.runs)
app.command("import")(networks.import_checkpoint)
app.command()(networks.export)
for _name, _kind in KINDS.items():
    if _kind.command:
        app.command(_kind.command)(evaluation.evaluation_command(_name, _kind))
app.command()(show.show)


@app.command()
def report(
    results: Results = Path("results"),
    formats: Annotated[
        str, typer.Option("--format", help="md, csv, tex, html.", callback=list_of("format", REPORTS))
    ] = "md,csv",
    output: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Folder to write to; default: that of the results.", callback=folder_to_write),
    ] = None,
    pixels: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Show images in html: of data sets in DIR, or in the package.",
            callback=existing_folder("--pixels"),
        ),
    ] = None,
) -> None:
    """Write the report, CSV tables and pictures from the records: sanbench report --format html."""
    from sanbench.evaluation.pixels import pixels_in
    from sanbench.report import write_report
    from sanbench.store.files import Store

    print_report(write_report(Store(results), formats, output, pixels_in(pixels) if pixels else None))


@app.command()
def compare(
    first: Annotated[
        str, typer.Argument(metavar="RUN|NETWORK|FOLDER", help="A run or network of --results, or a results folder.")
    ],
    second: Annotated[str, typer.Argument(metavar="RUN|NETWORK|FOLDER", help="What it is compared with.")],
    results: Results = Path("results"),
) -> None:
    """Two networks on the same images, or two results folders, paired: sanbench compare mine baseline."""
    from sanbench.evaluation.comparing import compare_networks, compare_stores
    from sanbench.evaluation.robust import Findings
    from sanbench.store.files import Store

    folders = [Path(word) for word in (first, second) if (Path(word) / "records").is_dir()]
    if len(folders) == 1:
        (one,) = folders
        raise InputError(
            f"{one} is not accepted beside {second if str(one) == first else first}: the other is no results folder."
        )
    if folders:
        found = compare_stores(*(Findings.of(Store(folder)) for folder in folders))
    else:
        store = Store(results)
        if not (results / "records").is_dir():
            sentence = f"{first!r} and {second!r} cannot be compared: there are no results in {results}, name their folder"
            raise InputError(f"{sentence} with --results.")
        found = compare_networks(Findings.of(store), first, second)
    print_comparison(found, first, second, bool(folders))


@app.command()
def reproduce(
    everything: Annotated[
        bool, typer.Option("--all", help="Every attack, a sweep of angles, all corruptions: about half an hour.")
    ] = False,
    full: Annotated[bool, typer.Option("--full", help="Full width, more epochs and budgets, all test images: hours.")] = False,
    workers: Annotated[
        int | None,
        typer.Option(
            help="Processes that share the work. Default: one a processor, as far as there are networks.", **PROCESSES
        ),
    ] = None,
    device: Device = "auto",
    runs: Runs = Path("runs"),
    results: Results = Path("results"),
) -> None:
    """Train two SANs and a ResNet on fashion10k, measure all three, write the report: the studies quick, all and full."""
    from sanbench.evaluation.robust import Findings
    from sanbench.report import write_report

    if full and everything:
        raise InputError("--all and --full are not accepted together: name one.")
    part = Part("full" if full else "all" if everything else "quick", runs=runs, results=results)
    expansion, store = part.expansion, part.store
    failed = worked(expansion, store, runs, device, workers=workers)
    standing = looked(expansion, store, runs)
    records = [record for own in standing.records.values() for record in own.values()]
    if records:
        print_records(records, Findings.of(store), results)
        print_report(write_report(store))
    end(failed)
    if (COMMITTED / "records").is_dir() and COMMITTED.resolve() != results.resolve():
        console.print(f"Compare with what was committed: sanbench compare {COMMITTED} {results}", soft_wrap=True)


@app.command()
def models() -> None:
    """List the networks: parameters, GMACs at 224, and the published figures."""
    from sanbench.models import MODELS, size

    table = Table("name", "parameters", "GMACs", "published: M", "G", "top-1", "top-5")
    for name, entry in MODELS.items():
        parameters, gmacs = size(name)
        paper = entry.published
        cells = [f"{paper.parameters}", f"{paper.flops}", f"{paper.top1}", f"{paper.top5}"] if paper else []
        table.add_row(name, f"{parameters:,}", f"{gmacs:.3f}", *cells)
    console.print(table)
    console.print(
        "GMACs of an image of 224 x 224: linear maps, gamma and aggregation. Published: 10^6 parameters, 10^9 FLOPs by a "
        "counter that adds normalisation, ReLU and pooling, and ImageNet accuracy in %."
    )


@app.command()
def info() -> None:
    """Show versions, device, kernels in use, threads and the allocator's setting."""
    from sanbench.bench.machine import machine
    from sanbench.device import keep_memory

    allocator = "keeps freed memory" if keep_memory() else "the system's default"
    table = Table("", "")
    for name, value in {**machine(), "allocator": allocator}.items():
        table.add_row(name, value)
    console.print(table)


app.add_typer(bench, name="bench")
app.add_typer(data, name="data")
app.add_typer(results, name="results")
app.add_typer(study, name="study")


def main() -> None:
    app()
