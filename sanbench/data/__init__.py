"""DATASETS and load_dataset: from a name to the images and labels of the train, validation or test split."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np

from sanbench.data.folders import FolderImages
from sanbench.data.imagenet import Layout
from sanbench.data.images import Batch, Changed, Images, Request, TensorImages
from sanbench.data.loading import Loader, batches, dead_workers_named, default_workers
from sanbench.data.tensors import load_cifar10, load_fashion10k, load_fashion_mnist
from sanbench.errors import InputError, unknown

Split = Literal["train", "validation", "test"]


@dataclass(frozen=True)
class ReadOptions:
    """How images are found and read.

    root      folder of downloaded data sets, or of ImageNet's train/ and val/
    download  fetch a data set that torchvision can download

    The others are for photographs in folders: `image_size` is the side of the crops in pixels, `resize` what the shorter
    side is resized to before (by default 256/224 of it).
    """

    root: Path = Path("data")
    image_size: int = 224
    download: bool = False
    decoder: str = "pil"
    resize: int | None = None
    interpolation: str = "bilinear"


@dataclass(frozen=True)
class Dataset:
    """`load(split, options)` reads a split; `recipe` is the name of the default recipe.

    options  those of the command line that change what is read: all others are refused
    """

    load: Callable[[Split, ReadOptions], Images]
    recipe: str = "short"
    options: tuple[str, ...] = ()

    @property
    def photographs(self) -> bool:
        """Whether images are resized and cropped to `image_size`; those of other data sets have a size of their own."""
        return "image_size" in self.options


PHOTOGRAPHS = ("image_size", "decoder", "skip_bad_images")
DOWNLOADED = ("data_root", "download")


def folder(split: Split, options: ReadOptions, name: str, layout: Layout | None = None) -> Images:
    """Class folders under train/, val/ and perhaps test/ of the root; without test/, val/ is both validation and test."""
    subfolders = {"train": "train", "validation": "val", "test": "test" if (options.root / "test").is_dir() else "val"}
    resizing = (options.resize, options.interpolation)
    return FolderImages(options.root, subfolders[split], name, split, options.image_size, options.decoder, layout, *resizing)


DATASETS: dict[str, Dataset] = {
    "fashion10k": Dataset(lambda split, options: load_fashion10k(split)),
    "fashion-mnist": Dataset(
        lambda split, options: load_fashion_mnist(split, options.root, options.download), options=DOWNLOADED
    ),
    "cifar10": Dataset(lambda split, options: load_cifar10(split, options.root, options.download), options=DOWNLOADED),
    "imagenet": Dataset(
        lambda split, options: folder(split, options, "imagenet", Layout()), "paper", ("data_root", *PHOTOGRAPHS)
    ),
    "folder:PATH": Dataset(lambda split, options: folder(split, options, f"folder:{options.root}"), options=PHOTOGRAPHS),
}


def find_dataset(name: str, options: ReadOptions) -> tuple[Dataset, ReadOptions]:
    """The entry of `name`, and the options with its root. Raises InputError for an unknown name."""
    if name.startswith("folder:"):
        path = Path(name.removeprefix("folder:")).expanduser()
        return DATASETS["folder:PATH"], replace(options, root=path)
    if name not in DATASETS or name == "folder:PATH":
        raise unknown("data set", name, DATASETS)
    return DATASETS[name], options


def load_dataset(name: str, split: Split, options: ReadOptions = ReadOptions()) -> Images:
    """The images of one split: `fashion10k`, `fashion-mnist`, `cifar10`, `imagenet` or `folder:PATH`.

    Raises InputError for an unknown name and for images that are missing.
    """
    entry, options = find_dataset(name, options)
    return entry.load(split, options)


def subset(images: Images, limit: int | None, seed: int) -> list[int]:
    """The indices of all images, or of `limit` that `seed` draws without replacement, ascending. InputError for limit < 1."""
    if limit is None or limit >= len(images):
        return list(range(len(images)))
    if limit < 1:
        raise InputError(f"limit {limit} is not accepted: it must be at least 1.")
    return sorted(np.random.default_rng(seed).permutation(len(images))[:limit].tolist())


__all__ = [
    "DATASETS",
    "Batch",
    "Changed",
    "Images",
    "Loader",
    "ReadOptions",
    "Request",
    "Split",
    "TensorImages",
    "batches",
    "dead_workers_named",
    "default_workers",
    "find_dataset",
    "load_dataset",
    "subset",
]
