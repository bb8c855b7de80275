"""DATASETS and load_dataset: from a name to images with labels, split so that nothing is chosen on what is reported."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np

from sanbench.data.folders import FolderImages
from sanbench.data.imagenet import Layout
from sanbench.data.images import Batch, Images, TensorImages
from sanbench.data.loading import Loader, batches, dead_workers_named, default_workers
from sanbench.data.tensors import load_cifar10, load_fashion10k, load_fashion_mnist
from sanbench.errors import InputError, unknown

Split = Literal["train", "validation", "test"]


@dataclass(frozen=True)
class Source:
    """Where to look: `root` for downloaded sets and ImageNet; sizes, interpolation and decoder are of images in folders."""

    root: Path = Path("data")
    image_size: int = 224
    download: bool = False
    decoder: str = "pil"
    resize: int | None = None
    interpolation: str = "bilinear"


@dataclass(frozen=True)
class Dataset:
    """`load(split, source)`; `recipe` is the default recipe. `validates` says whether validation differs from test."""

    load: Callable[[Split, Source], Images]
    recipe: str = "short"


def folder(path: Path, source: Source, split: Split, name: str, layout: Layout | None = None) -> Images:
    """Class folders under `train/`, `val/` and perhaps `test/`; without the last, val is both validation and test."""
    places = {"train": "train", "validation": "val", "test": "test" if (path / "test").is_dir() else "val"}
    view = (source.resize, source.interpolation)
    return FolderImages(path, places[split], name, split, source.image_size, source.decoder, layout, *view)


DATASETS: dict[str, Dataset] = {
    "fashion10k": Dataset(lambda split, source: load_fashion10k(split)),
    "fashion-mnist": Dataset(lambda split, source: load_fashion_mnist(split, source.root, source.download)),
    "cifar10": Dataset(lambda split, source: load_cifar10(split, source.root, source.download)),
    "imagenet": Dataset(lambda split, source: folder(source.root, source, split, "imagenet", Layout()), recipe="paper"),
    "folder:PATH": Dataset(lambda split, source: folder(source.root, source, split, f"folder:{source.root}")),
}


def find_dataset(name: str, source: Source) -> tuple[Dataset, Source]:
    """The entry of `name` and where it lies. Raises InputError for an unknown name."""
    if name.startswith("folder:"):
        path = Path(name.removeprefix("folder:")).expanduser()
        return DATASETS["folder:PATH"], replace(source, root=path)
    if name not in DATASETS or name == "folder:PATH":
        raise unknown("data set", name, DATASETS)
    return DATASETS[name], source


def load_dataset(name: str, split: Split, source: Source = Source()) -> Images:
    """The images of one split: `fashion10k`, `fashion-mnist`, `cifar10`, `imagenet` or `folder:PATH`.

    Raises InputError for an unknown name and for images that are not where they are said to be.
    """
    entry, source = find_dataset(name, source)
    return entry.load(split, source)


def subset(images: Images, limit: int | None, seed: int) -> list[int]:
    """Indices of all images, or of `limit` drawn without replacement by `seed`, in ascending order."""
    if limit is None or limit >= len(images):
        return list(range(len(images)))
    if limit < 1:
        raise InputError(f"limit {limit} is not accepted: it must be at least 1.")
    return sorted(np.random.default_rng(seed).permutation(len(images))[:limit].tolist())


__all__ = [
    "DATASETS",
    "Batch",
    "Images",
    "Loader",
    "Source",
    "Split",
    "TensorImages",
    "batches",
    "dead_workers_named",
    "default_workers",
    "load_dataset",
    "subset",
]
