"""Photographs to measure on where there are none: cuts of 500 x 375, and a made set laid out like ImageNet's."""

import os
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from PIL import Image

from sanbench.data.decoding import opened
from sanbench.data.imagenet import wnids
from sanbench.data.listing import SUFFIXES
from sanbench.errors import InputError, SanbenchError
from sanbench.progress import Progress, Report, silent

WIDTH, HEIGHT, QUALITY = 500, 375, 96  # ImageNet's most frequent size; about its bytes an image


def photographs_here() -> Path:
    """The 20 ImageNet photographs that the test extra `foolbox` ships. Raises InputError without it."""
    found = find_spec("foolbox")
    if found is None or found.origin is None:
        raise InputError("Name a folder of photographs, or pip install foolbox, which ships 20 of ImageNet's.")
    return Path(os.path.dirname(found.origin)) / "data"


def cuts(photographs: Path, smallest: float = 1.0) -> Iterator[Image.Image]:
    """Without end, 500 x 375 each: places of the photographs in turn, drawn with a fixed seed.

    A cut takes at least `smallest` of the largest that fits. Raises InputError, at the call, where no photograph has 375
    pixels a side.
    """
    suitable = []
    for path in sorted(photographs.rglob("*")) if photographs.is_dir() else []:
        if path.suffix.lower() in SUFFIXES:
            with opened(path) as (file, _):
                if min(file.size) >= HEIGHT:
                    suitable.append(file.convert("RGB"))
    if not suitable:
        raise InputError(f"{photographs} holds no photographs of at least {HEIGHT} pixels a side: name a folder that does.")
    return endless_cuts(suitable, smallest)


def endless_cuts(photographs: list[Image.Image], smallest: float) -> Iterator[Image.Image]:
    generator = np.random.default_rng(0)
    while True:
        for photograph in photographs:
            part = generator.uniform(smallest, 1) if smallest < 1 else 1.0
            scale = part * min(photograph.width / WIDTH, photograph.height / HEIGHT)
            width, height = int(WIDTH * scale), int(HEIGHT * scale)
            left, top = (
                int(generator.integers(0, room + 1)) for room in (photograph.width - width, photograph.height - height)
            )
            box = (left, top, left + width, top + height)
            yield photograph.resize((WIDTH, HEIGHT), Image.Resampling.LANCZOS, box)


def make_imagenet(root: Path, images: int = 50_000, photographs: Path | None = None, progress: Report = silent) -> None:
    """root/val/WNID/ILSVRC2012_val_00000001.JPEG, ...: `images` files in 1,000 class folders, for measuring time and memory.

    Each class has one cut of a photograph (None: those of `photographs_here`), and its files are hard links to it. Raises
    InputError for a folder that is not empty, and SanbenchError where nothing can be written.
    """
    classes, views = wnids(), cuts(photographs or photographs_here(), smallest=0.4)
    try:
        if root.exists() and any(root.iterdir()):
            raise InputError(f"{root} is not empty: name another folder.")
        for number, wnid in enumerate(classes[:images]):
            folder = root / "val" / wnid
            folder.mkdir(parents=True)
            own = range(number, images, len(classes))
            first, *others = (folder / f"ILSVRC2012_val_{index + 1:08d}.JPEG" for index in own)
            next(views).save(first, quality=QUALITY)
            for other in others:
                other.hardlink_to(first)
            progress(Progress("make photographs, by class", number + 1, len(classes)))
    except OSError as error:
        raise SanbenchError(f"Cannot write {root}: {error.strerror or error}.") from error
