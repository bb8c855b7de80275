"""Options that several commands have, the limits of their values, and what commands do first.

A value that no command can use is refused here, before torch is imported.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sanbench.errors import InputError, unknown

if TYPE_CHECKING:
    import torch

SIDE = {"min": 32, "max": 4096}  # pixels: networks need 32; 64 images of 4,096 take 13 GB as float32
BATCH = {"min": 1, "max": 2**20}
SEED = {"min": 0, "max": 2**63 - 1}  # what torch, NumPy and Parquet all hold
PROCESSES = {"min": 1, "max": 1024}
WORKERS = {"min": 0, "max": 1024}
COUNT = {"min": 1, "max": 10**9}  # of images
ROUNDS = {"min": 1, "max": 10**6}  # of epochs, of steps, of a timing

DEVICES = ("auto", "cpu", "cuda")  # these words are compared with the library's by a test
DECODERS = ("pil", "torchvision", "turbo")
PRECISIONS = ("auto", "fp32", "bf16", "fp16")
ATTENTIONS = ("pairwise", "patchwise", "scalar")
SELECTIONS = ("best", "last")
INTERPOLATIONS = ("nearest", "bilinear", "bicubic", "lanczos")
EXPORTS = ("safetensors", "onnx", "pt2")
REPORTS = ("md", "csv", "html", "tex")
DTYPES = ("float32", "bfloat16")
CORRUPTERS = ("imagecorruptions",)
KERNELS = ("avx512", "avx2", "portable", "tiled", "plain")  # on the CPU


def one_of(option: str, words: Sequence[str]) -> Callable[[str | None], str | None]:
    """A check that an option's value is one of `words`."""

    def check(value: str | None) -> str | None:
        if value is not None and value not in words:
            raise unknown(option, value, words)
        return value

    return check


def list_of(option: str, words: Sequence[str]) -> Callable[[str | None], str | None]:
    """A check that an option's value is a list of `words`, separated by commas."""

    def check(value: str | None) -> str | None:
        for word in [] if value is None else value.split(","):
            if word.strip() not in words:
                raise unknown(option, word.strip(), words)
        return value

    return check


def number_within(option: str, low: float, high: float) -> Callable[[float | None], float | None]:
    """A check that an option's value is a number above `low` and up to `high`; NaN is none."""

    def check(value: float | None) -> float | None:
        if value is not None and not low < value <= high:
            raise InputError(f"{option} {value} is not accepted: accepted are numbers above {low} and up to {high}.")
        return value

    return check


def export_format(form: str | None, output: Path) -> str:
    """What --format says, or else the file's suffix; safetensors without either. Raises InputError where they disagree."""
    told = output.suffix.removeprefix(".")
    if form is not None and told in EXPORTS and told != form:
        raise InputError(f"--format {form} is not accepted for {output}: its suffix says {told}.")
    return form or (told if told in EXPORTS else "safetensors")


def folder(path: Path) -> Path:
    if path.exists() and not path.is_dir():
        raise InputError(f"--runs {path} is not accepted: it is no folder.")
    return path


def results_folder(path: Path) -> Path:
    if path.exists() and not path.is_dir():
        raise InputError(f"--results {path} is not accepted: it is no folder.")
    return path


def writable(path: Path) -> Path:
    if not path.absolute().parent.is_dir():
        raise InputError(f"--output {path} is not accepted: there is no folder {path.parent}.")
    return path


def folder_to_write(path: Path | None) -> Path | None:
    if path is not None and path.exists() and not path.is_dir():
        raise InputError(f"--output {path} is not accepted: it is no folder.")
    return None if path is None else writable(path)


def existing_folder(option: str) -> Callable[[Path | None], Path | None]:
    """A check that an option's value is a folder that is there."""

    def check(path: Path | None) -> Path | None:
        if path is not None and not path.is_dir():
            raise InputError(f"{option} {path} is not accepted: there is no such folder.")
        return path

    return check


Runs = Annotated[Path, typer.Option(help="Folder of the runs.", callback=folder)]
Output = Annotated[Path, typer.Option(help="File to write.", callback=writable)]
Results = Annotated[Path, typer.Option(help="Folder of records, rows and reports.", callback=results_folder)]
Device = Annotated[str, typer.Option(help="auto, cpu or cuda.", callback=one_of("device", DEVICES))]
Root = Annotated[
    Path | None,
    typer.Option(help="Where downloaded sets lie, or ImageNet's train/ and val/. Default: data, or where a run had it."),
]

Weights = Annotated[
    list[Path] | None,
    typer.Option(metavar="FILE", help="State dict of a network from elsewhere, .pt or .safetensors; one for each."),
]
Mean = Annotated[
    str | None,
    typer.Option(
        metavar="R,G,B", help="What a network from elsewhere takes off pixels in [0, 1]. Default: timm's own, else ImageNet's."
    ),
]
Std = Annotated[str | None, typer.Option(metavar="R,G,B", help="What it divides by. Default: timm's own, else ImageNet's.")]
Resize = Annotated[
    int | None, typer.Option(help="Shorter side of its photographs before the crop; default: crop x 256/224.", **SIDE)
]
Crop = Annotated[
    int | None, typer.Option("--crop", "--network-crop", help="Side of what it sees of them. Default: 224.", **SIDE)
]
Interpolation = Annotated[
    str | None,
    typer.Option(
        "--interpolation",
        "--network-interpolation",
        help="nearest, bilinear, bicubic or lanczos, of --resize. Default: timm's own, else bilinear.",
        callback=one_of("interpolation", INTERPOLATIONS),
    ),
]


def start(device: str) -> "torch.device":
    """Settings for the whole process, and the device."""
    from sanbench.device import keep_memory, select_device

    keep_memory()
    return select_device(device)
