"""What a network was shown: the images of a record again, where their data set and the condition are at hand."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from sanbench.data import ReadOptions, Split, load_dataset
from sanbench.errors import SanbenchError
from sanbench.evaluation.kinds import KINDS, Request, parse
from sanbench.evaluation.loop import Perturbation
from sanbench.late import Late
from sanbench.store.schema import Record

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray

    from sanbench.data import Images
else:
    torch = Late("torch")

Pixels = Callable[[Record, Sequence[int]], "list[NDArray[np.uint8]] | None"]


def pixels_in(root: Path) -> Pixels:
    """A function of a record and indices of its images: H x W x 3 each as the network saw it, or None.

    None is the answer where the images in `root` are others than the record's, and where the condition needs the network, as an
    attack does, or is of another definition than this version's.
    """

    @cache
    def load(name: str, split: Split, decoder: str, preprocessing: str) -> Images | None:
        sizes = {"resize": r"shorter side (\d+)", "image_size": r"centre crop (\d+)"}
        shown: dict[str, Any] = {size: int(found[1]) for size in sizes if (found := re.search(sizes[size], preprocessing))}
        decoder = next((word for word in ("turbo", "torchvision") if word in decoder.lower()), "pil")
        try:
            return load_dataset(name, split, ReadOptions(root, decoder=decoder, **shown))
        except (SanbenchError, OSError):
            return None

    def pixels(record: Record, indices: Sequence[int]) -> list[NDArray[np.uint8]] | None:
        data = record.data
        images = load(data.name, cast(Split, data.split), data.decoder, data.preprocessing)
        told = data.fingerprint, data.preprocessing, data.of
        if images is None or (images.fingerprint, images.preprocessing, len(images)) != told:
            return None
        perturbation = made_again(record, images)
        if perturbation is None:
            return None
        read, numbers = images.read(list(indices)), torch.tensor(indices)
        if perturbation.by_reader:
            read = perturbation.change(read, numbers)
        seen = perturbation(read / 255, torch.zeros(len(indices)), numbers).images
        return list((seen * 255).round().byte().permute(0, 2, 3, 1).numpy())

    return pixels


def made_again(record: Record, images: Images) -> Perturbation | None:
    """The perturbation whose setting is the record's, among those that the kind's command makes of it."""
    setting = record.setting
    chosen: dict[str, Any] = {}
    if record.kind == "rotation":
        chosen = {"angles": str(setting["angle"])}
        chosen |= {name: setting[name] for name in ("interpolation", "fill", "crop", "mask") if name in setting}
    elif record.kind == "corruption":
        chosen = {"kinds": setting["corruption"], "severity": str(setting["severity"])}
    elif record.kind != "accuracy":
        return None
    options = KINDS[record.kind].options
    assert options is not None
    request = Request(setting.get("seed", 0), 1, cast(Any, None))  # no kind above asks for a network
    try:
        made = parse(record.kind, options(**chosen), request)(cast(Any, None), images)
    except SanbenchError:  # a corruption that this version does not know
        return None
    return next((each for each in made if (each.kind, each.setting) == (record.kind, setting) and not each.border), None)
