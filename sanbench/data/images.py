"""What every data set gives: batches of uint8 images with labels and indices."""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.data import Dataset


class Batch(NamedTuple):
    images: Tensor  # N x 3 x H x W, uint8
    labels: Tensor  # N, int64
    indices: Tensor  # N, int64, within the split


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
    seed = 0  # of the random crops that reading makes
    held_out = True  # whether the test images are others than those an epoch may be chosen on
    crop_padding = 0  # pixels by which a training image is padded before a random crop of its own size

    def __len__(self) -> int:
        return len(self.labels)

    @abstractmethod
    def read(self, draws: Sequence[int]) -> Tensor:
        """N x 3 x H x W, uint8."""

    def __getitems__(self, draws: Sequence[int]) -> Batch:
        indices = torch.tensor(draws) % len(self)
        return Batch(self.read(draws), self.labels[indices], indices)


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
