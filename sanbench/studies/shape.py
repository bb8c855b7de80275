"""What the images of a study are like, as far as that can be told without reading them."""

from functools import cache
from typing import NamedTuple

from sanbench.data import ReadOptions, find_dataset, load_dataset
from sanbench.data.imagenet import Layout
from sanbench.errors import InputError
from sanbench.runs.config import TrainConfig


class Shape(NamedTuple):
    """Of a data set: side of an image in pixels, classes, images to train on and to measure.

    counted  whether those numbers are of the images that are there, not of a layout
    """

    side: int
    classes: int
    train: int
    test: int
    counted: bool


def shape_of(config: TrainConfig) -> Shape | None:
    """None where the images are not there. Those of ImageNet are known without."""
    return shape(config.data, config.read_options)


@cache
def shape(data: str, options: ReadOptions) -> Shape | None:
    entry, _ = find_dataset(data, options)
    if isinstance(entry.layout, Layout):
        images = entry.layout.images
        return Shape(options.image_size, len(entry.layout.classes), images["train"], images["val"], False)
    try:
        train, test = (load_dataset(data, split, options) for split in ("train", "test"))
    except InputError:
        return None
    return Shape(train.side, len(train.classes), len(train), len(test), True)
