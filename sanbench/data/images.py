"""What every data set gives: batches of uint8 images with labels and indices."""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.data import Dataset

from sanbench.errors import UnreadableImage


class Batch(NamedTuple):
    images: Tensor  # N x 3 x H x W, uint8
    labels: Tensor  # N, int64
    indices: Tensor  # N, int64, within the split
    unreadable: tuple[str, ...] = ()  # a sentence for each image that was asked for and is not in the batch
    border: int = 0  # pixels on each side that are not the network's input


class Images(Dataset[Batch], ABC):
    """One split of a data set.

    It is read by draws: draw d is image d mod len(self), and d div len(self) numbers the epoch, so that a random crop
    depends on the draw and a seed, not on who reads it or when. Evaluation draws 0..len(self)-1.
    """

    name: str
    split: str
    classes: list[str]
    labels: Tensor
    fingerprint: str  # SHA-256 of what the images are
    decoder: str
    preprocessing = ""  # what else happened to the pixels of a file
    seed = 0  # of the random crops that reading makes
    held_out = True  # whether the test images are others than those an epoch may be chosen on
    crop_padding = 0  # pixels by which a training image is padded before a random crop of its own size
    widest = 0  # pixels that there are on each side of the network's input
    border = 0  # pixels of those that are read

    def __len__(self) -> int:
        return len(self.labels)

    @abstractmethod
    def read(self, draws: Sequence[int]) -> Tensor:
        """N x 3 x H x W, uint8."""

    def locate(self, index: int) -> str:
        """What an error calls image `index`: a path where there is one."""
        return f"{self.name} {self.split} image {index}"

    def __getitems__(self, draws: Sequence[int]) -> Batch:
        indices = torch.tensor(draws) % len(self)
        try:
            return Batch(self.read(draws), self.labels[indices], indices, border=self.border)
        except UnreadableImage:
            return self.read_the_rest(draws)

    def read_the_rest(self, draws: Sequence[int]) -> Batch:
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

    def __init__(self, name: str, split: str, images: Tensor, labels: Tensor, classes: list[str], crop_padding: int) -> None:
        self.name, self.split, self.classes = name, split, classes
        self.images, self.labels, self.crop_padding = images, labels, crop_padding
        digest = hashlib.sha256(images.contiguous().numpy().tobytes())
        digest.update(labels.numpy().tobytes())
        self.fingerprint = digest.hexdigest()

    def read(self, draws: Sequence[int]) -> Tensor:
        return self.images[torch.tensor(draws) % len(self)]
