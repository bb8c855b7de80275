"""Images that a caller brings along: a pair of tensors, a Dataset or a DataLoader."""

import hashlib
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from sanbench.data.images import Images
from sanbench.errors import InputError, UnreadableImage

ACCEPTED = "accepted are floats from 0 to 1, 3 x H x W, before any normalisation: mean and std name the network's"


class GivenImages(Images):
    """What `source[i]` gives: an image in [0, 1], 3 x H x W, and its label.

    Their fingerprint is the SHA-256 of all pixels and labels where `whole` is asked for, which reads each image once, else of
    the labels alone. Raises InputError for a source that is not indexed, and for a first image that is not accepted.
    """

    split, decoder = "given", "none"
    in_memory = True  # one process reads them: whether a source can be handed to others is not known

    def __init__(self, source: Any, classes: Sequence[str], name: str, whole: bool) -> None:
        check_source(source)
        self.source, self.name = source, name
        if problem := wrong(first := self.source[0][0]):
            raise InputError(f"image 0 of {name} is not accepted: it {problem}; {ACCEPTED}.")
        self.side = first.shape[-1]
        self.labels = labels_of(source)
        self.classes = list(classes)
        digest = hashlib.sha256(self.labels.numpy().tobytes())
        if whole:
            for index in range(len(self)):
                digest.update(self.read([index]).numpy().tobytes())
        self.fingerprint = ("" if whole else "labels-") + digest.hexdigest()

    def read(self, draws: Sequence[int]) -> Tensor:
        return torch.stack([self.read_one(draw % len(self)) for draw in draws])

    def read_one(self, index: int) -> Tensor:
        image: Tensor = self.source[index][0]
        if problem := wrong(image):
            raise UnreadableImage(f"Image {index} of {self.name} is not accepted: it {problem}; {ACCEPTED}.")
        return image.float()


class Pairs:
    """Two tensors as a source: images N x 3 x H x W and labels N."""

    def __init__(self, images: Tensor, labels: Tensor) -> None:
        if not isinstance(images, Tensor) or not isinstance(labels, Tensor) or len(images) != len(labels):
            raise InputError("data (images, labels) is not accepted: both have to be tensors of equal length.")
        self.images, self.targets = images.cpu(), labels.cpu()

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.images[index], self.targets[index]


def check_source(source: Any) -> None:
    """Raises InputError for what is not indexed, has no length, or is empty."""
    if not all(hasattr(source, method) for method in ("__getitem__", "__len__")) or len(source) == 0:
        raise InputError(
            f"data {type(source).__name__} is not accepted: accepted are a name, a Dataset with a length, a DataLoader "
            "over one, and a pair of tensors."
        )


def wrong(image: Any) -> str:
    """What is wrong with an image, empty where nothing is."""
    if not isinstance(image, Tensor) or image.dim() != 3 or image.shape[0] != 3:
        form = type(image).__name__
        if isinstance(image, Tensor):
            form = " x ".join(map(str, image.shape)) or "a single number (are images and labels swapped?)"
        return f"is {form}"
    if not image.is_floating_point():
        return f"has pixels of {str(image.dtype).removeprefix('torch.')}"
    low, high = float(image.min()), float(image.max())
    return "" if low >= 0 and high <= 1 else f"has pixels from {low:.3g} to {high:.3g}"


def labels_of(source: Any) -> Tensor:
    """Those that the data set has as `targets` or `labels`; else each item is asked for its own."""
    for name in ("targets", "labels"):
        found = getattr(source, name, None)
        if found is not None and len(found) == len(source):
            return torch.as_tensor(found, dtype=torch.int64)
    return torch.tensor([int(source[index][1]) for index in range(len(source))])


def given_images(data: Any, classes: int, whole: bool) -> Images:
    """`data` as Images for a network of so many classes. Raises InputError for what cannot be taken, by name."""
    if isinstance(data, Images):
        return data
    if isinstance(data, DataLoader):
        data = data.dataset
    name = "tensors" if isinstance(data, tuple | list) else type(data).__name__
    if isinstance(data, tuple | list):
        if len(data) != 2:
            raise InputError(f"data of {len(data)} parts is not accepted: accepted is the pair (images, labels).")
        data = Pairs(*data)
    names = getattr(data, "classes", None)
    fitting = names if names is not None and len(names) == classes else list(map(str, range(classes)))
    images = GivenImages(data, fitting, name, whole)
    least, most = int(images.labels.min()), int(images.labels.max())
    if least < 0 or most >= classes:
        raise InputError(f"labels from {least} to {most} are not accepted: the network tells {classes} classes apart.")
    return images
