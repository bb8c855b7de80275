"""Options that several commands have, and what they do first."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    import torch

Runs = Annotated[Path, typer.Option(help="Folder of the runs.")]
Device = Annotated[str, typer.Option(help="auto, cpu or cuda.")]
Root = Annotated[Path | None, typer.Option(help="Where downloaded sets lie, or ImageNet's train/ and val/.")]


def start(device: str) -> "torch.device":
    """Settings for the whole process, and the device."""
    from sanbench.allocator import keep_memory
    from sanbench.device import select_device

    keep_memory()
    return select_device(device)
