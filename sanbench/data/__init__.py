"""DATASETS and load_dataset: from a name to the images and labels of the train, validation or test split."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from sanbench.data.corrupted import CIFAR10_C, IMAGENET_C, SEVERITIES, STORED, Arrays
from sanbench.data.imagenet import Layout
from sanbench.data.lists import ImageList, read_list
from sanbench.data.shifted import SHIFTED
from sanbench.errors import InputError, unknown
from sanbench.late import Late, attributes

if TYPE_CHECKING:
    import numpy as np

    from sanbench.data import corrupted_photographs, folders, tensors
    from sanbench.data.images import Batch, Changed, Images, Request, TensorImages
    from sanbench.data.loading import Loader, batches, dead_workers_named, default_workers
else:
    np, folders, tensors = Late("numpy"), Late("sanbench.data.folders"), Late("sanbench.data.tensors")
    corrupted_photographs = Late("sanbench.data.corrupted_photographs")

__getattr__ = attributes(
    __name__,
    {
        **dict.fromkeys(("Batch", "Changed", "Images", "Request", "TensorImages"), "sanbench.data.images"),
        **dict.fromkeys(("Loader", "batches", "dead_workers_named", "default_workers"), "sanbench.data.loading"),
    },
)

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

    options    those of the command line that change what is read: all others are refused
    layout     what `sanbench data check` compares a folder with; None: the set cannot be checked
    test_only  whether there is nothing to train on and nothing to choose an epoch by
    corrupted  `corrupted(kind, severity, options)` reads one of the image sets of a set that has one for each, in place of
               `load`; `sanbench corrupt` measures them
    """

    load: Callable[[Split, ReadOptions], Images] | None = None
    recipe: str = "short"
    options: tuple[str, ...] = ()
    layout: Layout | Arrays | None = None
    test_only: bool = False
    corrupted: Callable[[str, int, ReadOptions], Images] | None = None

    @property
    def photographs(self) -> bool:
        """Whether images are resized and cropped to `image_size`; those of other data sets have a size of their own."""
        return "image_size" in self.options


PHOTOGRAPHS = ("image_size", "decoder", "skip_bad_images")
DOWNLOADED = ("data_root", "download")


def folder(split: Split, options: ReadOptions, name: str, layout: Layout | None = None) -> Images:
    """Class folders under train/, val/ and perhaps test/ of the root; without test/, val/ is both validation and test."""
    subfolders = {"train": "train", "validation": "val", "test": "test" if (options.root / "test").is_dir() else "val"}
    return in_folders(options, subfolders[split], name, split, layout)


def in_folders(options: ReadOptions, subfolder: str, name: str, split: Split, layout: Layout | None) -> Images:
    shown = (options.image_size, options.decoder, layout, options.resize, options.interpolation)
    return folders.FolderImages(options.root, subfolder, name, split, *shown)


def shifted(name: str) -> Dataset:
    """A published test set in class folders, see `sanbench.data.shifted`."""

    def load(split: Split, options: ReadOptions) -> Images:
        (subfolder,) = SHIFTED[name].images
        return in_folders(options, subfolder, name, split, SHIFTED[name])

    return Dataset(load, "paper", ("data_root", *PHOTOGRAPHS), SHIFTED[name], test_only=True)


DATASETS: dict[str, Dataset] = {
    "fashion10k": Dataset(lambda split, options: tensors.load_fashion10k(split)),
    "fashion-mnist": Dataset(
        lambda split, options: tensors.load_fashion_mnist(split, options.root, options.download), options=DOWNLOADED
    ),
    "cifar10": Dataset(lambda split, options: tensors.load_cifar10(split, options.root, options.download), options=DOWNLOADED),
    "imagenet": Dataset(
        lambda split, options: folder(split, options, "imagenet", Layout()), "paper", ("data_root", *PHOTOGRAPHS), Layout()
    ),
    **{name: shifted(name) for name in SHIFTED},
    "imagenet-c": Dataset(
        options=("data_root", *PHOTOGRAPHS),
        layout=IMAGENET_C,
        test_only=True,
        corrupted=lambda kind, severity, options: corrupted_photographs.CorruptedPhotographs(
            kind, severity, options.root, options.image_size, options.decoder, IMAGENET_C
        ),
    ),
    "cifar10-c": Dataset(
        options=("data_root",),
        layout=CIFAR10_C,
        test_only=True,
        corrupted=lambda kind, severity, options: CIFAR10_C.load(kind, severity, options.root),
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


def load_dataset(
    name: str, split: Split, options: ReadOptions = ReadOptions(), corruption: tuple[str, int] | None = None
) -> Images:
    """The images of one split of a data set of DATASETS, or of `folder:PATH`.

    `corruption` is the kind and severity of one of the image sets of `imagenet-c` or `cifar10-c`, which have one for each.
    Raises InputError for an unknown name, for a split that the set does not have, and for images that are missing.
    """
    entry, options = find_dataset(name, options)
    if entry.test_only and split != "test":
        raise InputError(f"{name} has test images only: there are no {split} images, so nothing can be trained on it.")
    if corruption is not None:
        kind, severity = corruption
        if entry.corrupted is None:
            others = ", ".join(other for other, found in DATASETS.items() if found.corrupted is not None)
            raise InputError(f"{name} has no image set for corruption {kind}: accepted are {others}.")
        if kind not in STORED:
            raise unknown("kind of corruption", kind, STORED)
        if severity not in SEVERITIES:
            raise InputError(f"severity {severity} is not accepted: accepted are 1 to 5.")
        return entry.corrupted(kind, severity, options)
    if entry.load is None:
        raise InputError(f"{name} has an image set for each corruption and severity: accepted is `sanbench corrupt`.")
    return entry.load(split, options)


def subset(images: Images, limit: int | None, seed: int, listed: ImageList | None = None) -> list[int]:
    """The indices of all images, or of those that are `listed`, or of `limit` of these that `seed` draws, ascending.

    Drawn is without replacement. Raises InputError for limit < 1 and for a list of other images.
    """
    every = list(range(len(images))) if listed is None else listed.indices(images)
    if limit is None or limit >= len(every):
        return every
    if limit < 1:
        raise InputError(f"limit {limit} is not accepted: it must be at least 1.")
    return [every[place] for place in sorted(np.random.default_rng(seed).permutation(len(every))[:limit].tolist())]


__all__ = [
    "DATASETS",
    "Batch",
    "Changed",
    "ImageList",
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
    "read_list",
    "subset",
]
