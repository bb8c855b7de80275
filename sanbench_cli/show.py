"""`sanbench show`: what networks look at, one picture an image."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from sanbench.errors import InputError
from sanbench_cli.applicable import check_data_options, no_effect
from sanbench_cli.console import console, progress
from sanbench_cli.evaluation import Data, Decoder, Evaluation, Networks
from sanbench_cli.options import Crop, Device, Interpolation, Mean, Resize, Root, Runs, Std, Weights, number_within, start

STAGES = {"min": 0, "max": 4}  # of a SAN
MOST_DIGITS = 9


def numbers(option: str, accepted: str, count: int | None = None) -> Callable[[str | None], str | None]:
    """A check that an option's value is numbers from 0 up, separated by commas, `count` of them where that is fixed."""

    def check(value: str | None) -> str | None:
        words = [] if value is None else value.split(",")
        whole = all(re.fullmatch(rf"\s*\d{{1,{MOST_DIGITS}}}\s*", word, re.ASCII) for word in words)
        if not whole or (value is not None and count not in (None, len(words))):
            raise InputError(f"{option} {value} is not accepted: accepted are {accepted}.")
        return value

    return check


def parsed(value: str) -> list[int]:
    return list(dict.fromkeys(int(word) for word in value.split(",")))


def destination(path: Path) -> Path:
    if not path.absolute().parent.is_dir():
        raise InputError(f"--output {path} is not accepted: there is no folder {path.parent}.")
    if path.is_dir() if path.suffix == ".png" else path.exists() and not path.is_dir():
        raise InputError(f"--output {path} is not accepted: accepted are a folder, and a file that ends in .png.")
    return path


def show(
    networks: Networks = None,
    images: Annotated[
        str,
        typer.Option(
            metavar="INDICES", help="Of the test split: 3,17.", callback=numbers("images", "indices from 0 up, as in 3,17")
        ),
    ] = "0",
    stage: Annotated[int | None, typer.Option(help="Of a SAN: mean and spread. Default: the mean of all.", **STAGES)] = None,
    pixel: Annotated[
        str | None,
        typer.Option(
            metavar="Y,X",
            help="Row and column in the image, whose attention is shown. Default: the centre.",
            callback=numbers("pixel", "a row and a column from 0 up, as in 16,12", 2),
        ),
    ] = None,
    rotate: Annotated[
        float | None,
        typer.Option(metavar="DEGREES", help="Also after a clockwise rotation.", callback=number_within("rotate", 0, 360)),
    ] = None,
    attack: Annotated[str | None, typer.Option(help="Also after an attack, as pgd:8/255.")] = None,
    channels: Annotated[bool, typer.Option("--channels", help="Of a SAN, also the weights of every channel group.")] = False,
    output: Annotated[
        Path, typer.Option(help="Folder, or of a single image a file that ends in .png.", callback=destination)
    ] = Path("show"),
    data: Data = None,
    data_root: Root = None,
    decoder: Decoder = None,
    weights: Weights = None,
    mean: Mean = None,
    std: Std = None,
    resize: Resize = None,
    network_crop: Crop = None,
    network_interpolation: Interpolation = None,
    device: Device = "auto",
    runs: Runs = Path("runs"),
) -> None:
    """Draw what networks look at, one below the other: sanbench show san10 resnet26 --images 3,17 --rotate 90."""
    chosen = parsed(images)
    if output.suffix == ".png" and len(chosen) > 1:
        raise InputError(f"--output {output} is not accepted for {len(chosen)} images: name a folder.")
    view = Evaluation(
        mean=mean, std=std, resize=resize, network_crop=network_crop, network_interpolation=network_interpolation
    ).preprocessing
    from sanbench.data import ReadOptions, find_dataset
    from sanbench.explain.asked import Asked, check_attack
    from sanbench.runs.evaluated import load_evaluated, test_images

    if attack is not None:
        check_attack(attack)
    if data is not None:
        find_dataset(data, ReadOptions())
    found = load_evaluated(networks or [], runs, weights or (), view)
    from sanbench.explain.attention import find_san
    from sanbench.explain.draw import draw
    from sanbench.explain.panels import explain

    names = list(dict.fromkeys(name for each in found if (name := data or each.data["name"])))
    if len(names) > 1:
        raise InputError(f"These networks were trained on {' and '.join(names)}: name one data set with --data.")
    check_data_options(names, {"data_root": data_root, "decoder": decoder})
    if not any(find_san(each.model) for each in found):
        for option, value in {"--stage": stage, "--pixel": pixel, "--channels": channels or None}.items():
            if value is not None:
                raise no_effect(option, value, f"{', '.join(each.run for each in found)} has no attention")
    where = None if pixel is None else (int(pixel.split(",")[0]), int(pixel.split(",")[1]))
    asked = Asked(where, stage, channels, rotate, attack)
    sets = [test_images(each, data, data_root, decoder or "pil") for each in found]
    to = start(device)
    for each in found:
        each.model.to(to)
    with progress() as bar:
        for index in chosen:
            rows = [row for each, shown in zip(found, sets, strict=True) for row in explain(each, shown, index, asked, bar)]
            path = output if output.suffix == ".png" else output / f"image-{index}.png"
            path.parent.mkdir(exist_ok=True)
            draw(rows, path, f"{sets[0].name}, test image {index}")
            console.print(path, soft_wrap=True)
