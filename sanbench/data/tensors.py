"""Data sets that are one tensor: fashion10k (in this package), Fashion-MNIST and CIFAR-10 (through torchvision)."""

import gzip
import hashlib
from importlib.resources import files
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from sanbench.data.images import TensorImages
from sanbench.errors import InputError, SanbenchError

SPLIT_SEED = 20200413  # fixed: everyone trains, chooses and reports on the same images
FASHION_CLASSES = ["T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"]
FASHION_VALIDATION, CIFAR_VALIDATION = 600, 500  # images of each class that are held out of the training images
IDX_HEADER = {"images": 16, "labels": 8}  # bytes
FASHION10K = {  # SHA-256 of the files in this package
    "images": "cc1d090a38ace84dfa1aa66e3ada7c336ef481a96936906477e6dd344da56eaa",
    "labels": "8d3605d196f4be44669e46906da9733c8131fef761fdbfec72c424d5222f1a05",
}


def stratified(labels: NDArray[np.int64], sizes: list[int]) -> list[NDArray[np.int64]]:
    """Disjoint ascending index sets with `sizes` images of every class each."""
    generator = np.random.default_rng(SPLIT_SEED)
    parts: list[list[NDArray[np.int64]]] = [[] for _ in sizes]
    for label in np.unique(labels):
        shuffled = generator.permutation(np.flatnonzero(labels == label))
        for part, chosen in zip(parts, np.split(shuffled, np.cumsum(sizes)), strict=False):
            part.append(chosen)
    return [np.sort(np.concatenate(part)) for part in parts]


def grey_to_rgb(images: NDArray[np.uint8]) -> Tensor:
    """N x 28 x 28 -> N x 3 x 32 x 32: two black pixels on each side, grey in all three channels."""
    return F.pad(torch.from_numpy(images.copy()), (2, 2, 2, 2))[:, None].expand(-1, 3, -1, -1).contiguous()


def load_fashion10k(split: str) -> TensorImages:
    """The 10,000 Fashion-MNIST test images (MIT): 7,000 to train, 1,000 to choose the epoch, 2,000 to report."""
    arrays = {}
    for kind, header in IDX_HEADER.items():
        dimensions = 3 if kind == "images" else 1
        path = files("sanbench.data") / f"fashion10k/t10k-{kind}-idx{dimensions}-ubyte.gz"
        content = path.read_bytes()
        if hashlib.sha256(content).hexdigest() != FASHION10K[kind]:
            raise SanbenchError(f"{path} is not the file that sanbench ships: install it again.")
        arrays[kind] = np.frombuffer(gzip.decompress(content), np.uint8, offset=header)
    labels = arrays["labels"].astype(np.int64)
    chosen = dict(zip(("train", "validation", "test"), stratified(labels, [700, 100, 200]), strict=True))[split]
    images = grey_to_rgb(arrays["images"].reshape(-1, 28, 28)[chosen])
    return TensorImages("fashion10k", split, images, torch.from_numpy(labels[chosen]), FASHION_CLASSES, crop_padding=2)


def load_fashion_mnist(split: str, root: Path, download: bool) -> TensorImages:
    """Fashion-MNIST: 54,000 to train, 6,000 of the training images to choose the epoch, 10,000 to report."""
    from torchvision.datasets import FashionMNIST

    return from_torchvision("fashion-mnist", FashionMNIST, split, root, download, FASHION_VALIDATION, crop_padding=2)


def load_cifar10(split: str, root: Path, download: bool) -> TensorImages:
    """CIFAR-10: 45,000 to train, 5,000 of the training images to choose the epoch, 10,000 to report."""
    from torchvision.datasets import CIFAR10

    return from_torchvision("cifar10", CIFAR10, split, root, download, CIFAR_VALIDATION, crop_padding=4)


def from_torchvision(
    name: str, dataset: type, split: str, root: Path, download: bool, validation: int, crop_padding: int
) -> TensorImages:
    """`validation` images of each class are held out of torchvision's training images."""
    try:
        source = dataset(root, train=split != "test", download=download)
    except RuntimeError as error:
        raise InputError(f"{name} is not under {root}: name its folder with --data-root, or add --download.") from error
    labels = np.asarray(source.targets, np.int64)
    pixels = np.asarray(source.data)
    per_class = int(np.bincount(labels)[0])
    if split != "test":
        chosen = stratified(labels, [per_class - validation, validation])[split == "validation"]
        pixels, labels = pixels[chosen], labels[chosen]
    images = grey_to_rgb(pixels) if pixels.ndim == 3 else torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous()
    return TensorImages(name, split, images, torch.from_numpy(labels), list(source.classes), crop_padding)
