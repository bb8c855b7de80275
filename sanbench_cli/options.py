"""Options that several commands have, and what they do first."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    import torch

Runs = Annotated[Path, typer.Option(help="Folder of the runs.")]
Results = Annotated[Path, typer.Option(help="Folder of records, rows and reports.")]
Device = Annotated[str, typer.Option(help="auto, cpu or cuda.")]
Root = Annotated[Path | None, typer.Option(help="Where downloaded sets lie, or ImageNet's train/ and val/.")]

Weights = Annotated[
    list[Path] | None,
    typer.Option(metavar="FILE", help="State dict of a network from elsewhere, .pt or .safetensors; one for each."),
]
Mean = Annotated[str | None, typer.Option(metavar="R,G,B", help="What a network from elsewhere takes off pixels in [0, 1].")]
Std = Annotated[str | None, typer.Option(metavar="R,G,B", help="What it divides by.")]
Resize = Annotated[int | None, typer.Option(help="Shorter side of its photographs before the crop; default: crop x 256/224.")]
Crop = Annotated[int | None, typer.Option("--crop", "--network-crop", help="Side of what it sees of them. Default: 224.")]
Interpolation = Annotated[
    str | None,
    typer.Option("--interpolation", "--network-interpolation", help="nearest, bilinear, bicubic or lanczos, of --resize."),
]


def start(device: str) -> "torch.device":
    """Settings for the whole process, and the device."""
    from sanbench.device import keep_memory, select_device

    keep_memory()
    return select_device(device)
