"""The commands import and export: networks from and for other programs."""

from pathlib import Path
from typing import Annotated

import typer

from sanbench.errors import InputError
from sanbench_cli.console import console
from sanbench_cli.options import COUNT, EXPORTS, SIDE, Output, Runs, export_format, one_of


def import_checkpoint(
    checkpoint: Annotated[Path, typer.Argument(metavar="CHECKPOINT", help="A file in the layout of the paper's authors.")],
    output: Output,
    model: Annotated[
        str | None, typer.Option(help="Which network it is, as `sanbench models` lists; not with --export.")
    ] = None,
    classes: Annotated[int | None, typer.Option(help="Default: as many as the file's head has.", **COUNT)] = None,
    export: Annotated[bool, typer.Option("--export", help="The other way, from here to the authors' layout.")] = False,
) -> None:
    """Read a checkpoint of the paper's authors: sanbench import san15.pth --model san15_pairwise --output san15.pt."""
    from sanbench.models.authors_checkpoints import export_authors_checkpoint, import_authors_checkpoint

    if export:
        if model is not None or classes is not None:
            raise InputError("--export is not accepted with --model or --classes: the checkpoint tells both.")
        network = export_authors_checkpoint(checkpoint, output)
    else:
        if model is None:
            raise InputError("Name the network that the file holds: --model san15_pairwise.")
        network = import_authors_checkpoint(checkpoint, model, output, classes)
    console.print(f"{output}: {network.spec.label}, {network.spec.num_classes:,} classes", soft_wrap=True)


def export(
    run: Annotated[str, typer.Argument(metavar="RUN|CHECKPOINT", help="What is exported.")],
    output: Output,
    form: Annotated[
        str | None,
        typer.Option(
            "--format",
            help="safetensors, onnx, or pt2 (torch.export). Default: as the file's suffix says, else safetensors.",
            callback=one_of("format", EXPORTS),
        ),
    ] = None,
    image_size: Annotated[
        int | None, typer.Option(help="Of onnx and pt2; default: of the images it was trained on.", **SIDE)
    ] = None,
    runs: Runs = Path("runs"),
) -> None:
    """Write a network for other programs: sanbench export RUN --output network.onnx."""
    from sanbench.runs.evaluated import image_side, load_evaluated

    written = export_format(form, output)
    if output.exists():
        raise InputError(f"{output} is there already: remove it, or name another file with --output.")
    (evaluated,) = load_evaluated([run], runs)
    from sanbench.models.export import export_model

    side = image_side(evaluated) if image_size is None else image_size
    export_model(evaluated.model, written, output, side)
    shape = (
        "weights"
        if written == "safetensors"
        else f"N x 3 x {side} x {side} in [0, 1] -> N x {evaluated.model.spec.num_classes}"
    )
    console.print(f"{output}: {evaluated.model.spec.label}, {shape} ({written})", soft_wrap=True)
