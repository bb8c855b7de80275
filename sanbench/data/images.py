"""Images: one split of a data set, which gives batches of uint8 images with labels and indices."""

import copy
import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, Self

import torch
from torch import Tensor
from torch.utils.data import Dataset

from sanbench.errors import UnreadableImage


class Batch(NamedTuple):
    images: Tensor  # N x 3 x H x W, uint8; of `sanbench.data.given` floats in [0, 1]
    labels: Tensor  # N, int64
    indices: Tensor  # N, int64, within the split
    unreadable: tuple[str, ...] = ()  # a sentence for each image that could not be read and is not in the batch
    border: int = 0  # pixels on each side around the network's input


class Stored(NamedTuple):
    """What was done to images before they were stored; `files` is SHA-256 of what the files are."""

    corruption: str
    severity: int
    files: str


class Images(Dataset[Batch], ABC):
    """One split of a data set.

    It is indexed by draws: draw d is image d mod len(self) in epoch d div len(self), so that a random crop depends on the
    draw and `seed` alone, not on the process that reads it or on the order. Evaluation reads draws 0..len(self)-1.
    """

    name: str
    split: str
    classes: list[str]
    labels: Tensor
    side: int  # pixels of the network's input
    fingerprint: str  # SHA-256 of the pixels and labels, of photographs of the files' names and sizes
    decoder: str
    preprocessing = ""  # how photographs are resized and cropped
    fitted = False  # whether they are resized and cropped to the network's input
    among: tuple[int, ...] | None = None  # the network's class of each of `classes`, where it tells more apart
    stored: Stored | None = None  # of a set of corrupted files: `fingerprint` is then that of all severities together
    seed = 0  # of random crops while reading
    held_out = True  # whether validation and test images are disjoint
    crop_padding = 0  # pixels by which a training image is padded before a random crop of its size
    widest = 0  # pixels that a photograph has on each side around the network's input
    border = 0  # how many of those are read
    in_memory = False  # whether reading them costs nothing

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def counted(self) -> str | None:
        """`200 classes, 1a2b3c4d`: of a network that tells more apart than count, how many, and a hash of their indices."""
        if self.among is None:
            return None
        return f"{len(self.among)} classes, {hashlib.sha256(str(list(self.among)).encode()).hexdigest()[:8]}"

    def with_options(self, *, seed: int | None = None, border: int | None = None) -> Self:
        """A shallow copy that reads with another `seed` or `border`."""
        images = copy.copy(self)
        images.seed = self.seed if seed is None else seed
        images.border = self.border if border is None else border
        return images

    @abstractmethod
    def read(self, draws: Sequence[int]) -> Tensor:
        """The images of `draws`, N x 3 x H x W, uint8. Raises UnreadableImage."""

    def locate(self, index: int) -> str:
        """How errors name image `index`: by its path where it has one."""
        return f"{self.name} {self.split} image {index}"

    def paths(self) -> list[str]:
        """The path of each image within the split's folder, as n01440764/ILSVRC2012_val_00000293.JPEG; empty in memory."""
        return []

    def __getitems__(self, draws: Sequence[int]) -> Batch:
        indices = torch.tensor(draws) % len(self)
        try:
            return Batch(self.read(draws), self.labels[indices], indices, border=self.border)
        except UnreadableImage:
            return self.read_singly(draws)

    def read_singly(self, draws: Sequence[int]) -> Batch:
        """The batch without the images that cannot be decoded."""
        found, sentences = [], []
        for draw in draws:
            try:
                found.append((self.read([draw])[0], draw % len(self)))
            except UnreadableImage as error:
                sentences.append(str(error))
        indices = torch.tensor([index for _, index in found], dtype=torch.int64)
        images = torch.stack([image for image, _ in found]) if found else torch.empty(0, 3, 0, 0, dtype=torch.uint8)
        return Batch(images, self.labels[indices], indices, tuple(sentences), self.border)


class TensorImages(Images):
    """A data set that fits in memory: `images` is N x 3 x H x W, uint8."""

    decoder = "none"
    in_memory = True

    def __init__(self, name: str, split: str, images: Tensor, labels: Tensor, classes: list[str], crop_padding: int) -> None:
        self.name, self.split, self.classes = name, split, classes
        self.images, self.labels, self.crop_padding, self.side = images, labels, crop_padding, images.shape[-1]
        digest = hashlib.sha256(images.contiguous().numpy().tobytes())
        digest.update(labels.numpy().tobytes())
        self.fingerprint = digest.hexdigest()

    def read(self, draws: Sequence[int]) -> Tensor:
        return self.images[torch.tensor(draws) % len(self)]


class Request(NamedTuple):
    """The images of `draws` as they are, or changed by the change of that name."""

    change: str | None
    draws: Sequence[int]


class Changed(Dataset[Batch]):
    """Images as processes that read give them: as they are, or after one of `changes`, by `Request`.

    A change takes N x 3 x H x W, uint8 (to which floats are rounded), and the images' indices. Requests for the same images
    follow each other: what was decoded for the last is kept.
    """

    def __init__(self, images: Images, changes: Mapping[str, Callable[[Tensor, Tensor], Tensor]] = {}) -> None:
        self.images, self.changes = images, changes
        self.latest: tuple[Sequence[int], Batch] | None = None

    def __getitems__(self, request: Request) -> Batch:
        if self.latest is None or self.latest[0] != request.draws:
            self.latest = request.draws, self.images.__getitems__(request.draws)
        batch = self.latest[1]
        if request.change is None:
            return batch
        images = without_border(batch.images, batch.border)
        if images.is_floating_point():
            images = (images * 255).round().to(torch.uint8)
        return batch._replace(images=self.changes[request.change](images, batch.indices), border=0)


def pixels(images: Tensor) -> Tensor:
    """uint8, or floats in [0, 1] as a caller may give them -> floats in [0, 1]."""
    return images if images.is_floating_point() else images.float().div_(255)


def without_border(images: Tensor, border: int) -> Tensor:
    return images[..., border:-border, border:-border] if border else images


def centre(images: Tensor, side: int) -> Tensor:
    """The square of `side` pixels in the centre: as torchvision's center_crop, of maps that are no smaller."""
    top, left = (round((size - side) / 2) for size in images.shape[-2:])
    return images[..., top : top + side, left : left + side]
