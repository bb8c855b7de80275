"""What corrupting an image costs: `sanbench bench corruptions`, on one thread, against imagecorruptions in the same run."""

from collections.abc import Callable, Iterator, Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from sanbench.bench.photographs import photographs_here
from sanbench.bench.reading import CPU, one_thread
from sanbench.bench.timing import Timing, check_rounds, time_in_turn
from sanbench.data.decoding import opened
from sanbench.data.listing import SUFFIXES
from sanbench.errors import InputError
from sanbench.evaluation.corruptions import CORRUPTIONS, SEVERITIES, corrupt
from sanbench.evaluation.distortions.filters import SIDE
from sanbench.progress import Report, silent
from sanbench.store.schema import Benchmark

COMPARED = 3  # the severity at which the other package is timed
OURS, THEIRS = "sanbench", "imagecorruptions"
NAMES = {name: name.replace("-", "_") for name in CORRUPTIONS} | {"jpeg": "jpeg_compression", "elastic": "elastic_transform"}
ALL = "all"


def time_corruptions(
    photographs: Path | None, image_size: int, n: int, against: str | None = None, progress: Report = silent
) -> Iterator[Benchmark]:
    """Time every corruption at every severity on one image after the other, each round on another photograph.

    The photographs of a folder (None: those of `photographs_here`) are resized and cropped to squares of `image_size`. With
    `against` "imagecorruptions" its 15 kinds at severity 3 are timed in the same rounds; its ratio is their time over ours.

    Yields a benchmark for each of the 75 conditions, then one for the sum over all of them, and one for that at severity 3
    where there is something to compare it with. Raises InputError for n below 1, for a folder without photographs, and where
    the other package is not installed.
    """
    check_rounds(n)
    squares = read_squares(photographs or photographs_here(), image_size)
    with one_thread():
        sides, setup = {}, {}
        for name in CORRUPTIONS:
            if against:
                sides[f"{THEIRS} {name}"] = theirs(name)
                setup[f"{THEIRS} {name}"] = arguments([square.permute(1, 2, 0).contiguous().numpy() for square in squares])
            for severity in SEVERITIES:
                sides[f"{OURS} {name} {severity}"] = ours(name, severity)
                setup[f"{OURS} {name} {severity}"] = arguments(squares)
        timing = time_in_turn(sides, n, CPU, progress, "bench corruptions", setup=setup)
        settings = {"image_size": image_size, "photographs": len(squares)}
        for name in CORRUPTIONS:
            for severity in SEVERITIES:
                condition = {"corruption": name, "severity": severity}
                yield joined(timing, [name], [severity], against).benchmark("corruptions", condition | settings, CPU)
        severities = [list(SEVERITIES), [COMPARED]] if against else [list(SEVERITIES)]
        for chosen in severities:
            condition = {"corruption": ALL, "severity": ALL if len(chosen) > 1 else COMPARED}
            yield joined(timing, [*CORRUPTIONS], chosen, against).benchmark("corruptions", condition | settings, CPU)


def joined(timing: Timing, names: Sequence[str], severities: Sequence[int], against: str | None) -> Timing:
    """Sums of each round: theirs, where they were timed at just this severity, and ours."""
    sides = {OURS: [f"{OURS} {name} {severity}" for name in names for severity in severities]}
    if against and list(severities) == [COMPARED]:
        sides = {THEIRS: [f"{THEIRS} {name}" for name in names]} | sides
    rounds = {side: zip(*(timing.seconds[part] for part in parts), strict=True) for side, parts in sides.items()}
    return Timing({side: [sum(each) for each in found] for side, found in rounds.items()})


def ours(name: str, severity: int) -> Callable[[Tensor], Tensor]:
    return lambda image: corrupt(image, name, severity, seed=0, index=0)


def theirs(name: str) -> Callable[[Any], Any]:
    """Raises InputError where imagecorruptions is not installed."""
    try:
        import imagecorruptions
    except ImportError as error:
        raise InputError(f"against {THEIRS} needs the package of that name: pip install imagecorruptions-imaug.") from error
    return lambda image: imagecorruptions.corrupt(image, severity=COMPARED, corruption_name=NAMES[name])


def arguments(images: Sequence[Any]) -> Callable[[], tuple[Any]]:
    """A call gives the next of the images, from the first again after the last."""
    turn = cycle(images)
    return lambda: (next(turn),)


def read_squares(photographs: Path, side: int) -> list[Tensor]:
    """3 x side x side uint8: the middle of each photograph of a folder, the shorter side resized to 8/7 of it."""
    found = []
    for path in sorted(photographs.rglob("*")) if photographs.is_dir() else []:
        if path.suffix.lower() in SUFFIXES:
            with opened(path) as (file, _):
                if min(file.size) < max(side, SIDE):
                    continue
                factor = side * 8 / 7 / min(file.size)
                size = tuple(round(length * factor) for length in file.size)
                left, top = ((length - side) // 2 for length in size)
                picture = file.convert("RGB").resize((size[0], size[1]), Image.Resampling.BILINEAR)
            square = np.array(picture.crop((left, top, left + side, top + side)))
            found.append(torch.from_numpy(square).permute(2, 0, 1).contiguous())
    if not found:
        smallest = max(side, SIDE)
        raise InputError(f"{photographs} holds no photographs of at least {smallest} pixels a side: name a folder that does.")
    return found
