"""`sanbench data`: is ImageNet complete, unpack it, make it smaller."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sanbench.errors import SanbenchError, unknown
from sanbench_cli.applicable import Typer
from sanbench_cli.console import console, errors, progress
from sanbench_cli.options import SIDE
from sanbench_cli.tables import Table

if TYPE_CHECKING:
    from sanbench.data.check import SplitCheck

data = Typer(help="Check, unpack and shrink ImageNet and sets laid out like it.")
Name = Annotated[str, typer.Argument(metavar="imagenet", help="The only set with archives to unpack.")]
Checked = Annotated[str, typer.Argument(metavar="imagenet|imagenet-a|imagenet-c|...", help="A set with a published layout.")]
Root = Annotated[Path, typer.Option(help="Folder of train/ and val/, or of what a test set's archive unpacks.")]
SHOWN = 50  # problems; the rest are counted


@data.command()
def check(
    name: Checked,
    data_root: Root,
    decode: Annotated[bool, typer.Option("--decode", help="Decode every image too; goes on where it was interrupted.")] = False,
    journal: Annotated[Path | None, typer.Option(help="Where --decode keeps how far it is; default: in the folder.")] = None,
) -> None:
    """Is it complete? Class folders, numbers of images, files that cannot be read: sanbench data check imagenet."""
    from sanbench.data import DATASETS
    from sanbench.data.check import check as check_set

    layouts = {known: entry.layout for known, entry in DATASETS.items() if entry.layout is not None}
    if name not in layouts:
        raise unknown("data set", name, layouts)
    with progress() as bar:
        found = check_set(data_root, layouts[name], decode=decode, progress=bar, journal=journal)
    show(found, data_root, name)


@data.command()
def prepare(
    name: Name,
    archives: Annotated[Path, typer.Option(help="Folder of the official tar files: train, val, devkit.")],
    data_root: Root,
) -> None:
    """Unpack the official archives into train/WNID and val/WNID, and check them; goes on where it was interrupted."""
    only_imagenet(name)
    from sanbench.data.check import check as check_set
    from sanbench.data.prepare import prepare as unpack

    with progress() as bar:
        unpack(archives, data_root, bar)
        found = check_set(data_root, progress=bar)
    show(found, data_root, name)


@data.command()
def shrink(
    data_root: Root,
    output: Annotated[Path, typer.Option(help="Folder of the smaller images.")],
    size: Annotated[int, typer.Option(help="Shorter side in pixels.", **SIDE)] = 256,
) -> None:
    """Re-encode images to a shorter side, for faster training; goes on where it was interrupted."""
    from sanbench.data.shrink import shrink as shrink_set

    with progress() as bar:
        images = shrink_set(data_root, output, size, bar)
    console.print(
        f"{output}: {images:,} images with shorter sides of at most {size}. Next: --data-root {output}", soft_wrap=True
    )


def only_imagenet(name: str) -> None:
    if name != "imagenet":
        raise unknown("data set", name, ["imagenet"])


def show(found: "list[SplitCheck]", root: Path, name: str) -> None:
    """A line each split, then what is wrong. Raises SanbenchError if anything is."""

    table = Table("split", "classes", "images", "GB", "fingerprint", "problems")
    for split in found:
        cells = [f"{split.classes:,}", f"{split.images:,}", f"{split.bytes / 1e9:.2f}", split.fingerprint or "—"]
        table.add_row(split.subfolder, *cells, f"{len(split.problems):,}")
    console.print(table)
    for split in found:
        if split.contents:
            console.print(f"{split.subfolder}: SHA-256 of names and contents {split.contents}", soft_wrap=True)
    problems = [problem for split in found for problem in split.problems]
    for problem in problems[:SHOWN]:
        errors.print(problem, soft_wrap=True)
    if len(problems) > SHOWN:
        errors.print(f"... and {len(problems) - SHOWN:,} more.")
    if problems:
        raise SanbenchError(f"{root} is not a complete {name}: {len(problems):,} problems.")
