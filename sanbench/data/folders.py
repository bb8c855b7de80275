"""Images in class folders, with the paper's preprocessing: ImageNet and anything laid out like it."""

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as F

from sanbench.data.decoding import Region, find_decoder, random_box, whole
from sanbench.data.imagenet import Layout, class_indices
from sanbench.data.images import Images
from sanbench.errors import InputError, SanbenchError

SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm", ".pgm", ".tif", ".tiff"}
SIDES = range(1, 4682)  # of photographs, resized and cropped: 4,096 is cropped from 4,681; a batch of 64 takes 3 GB
SPLITS = ("train", "val", "test")  # subfolders whose root may have been shrunk and may name classes
SHRUNK = "shrunk.json"  # in the root of a data set that `sanbench data shrink` wrote


class ClassFolder(NamedTuple):
    """The image files of a class folder, sorted, and their sizes in bytes: -1 for a file that cannot be opened."""

    name: str
    files: list[str]
    sizes: list[int]
    others: list[str]  # files without an image's suffix

    def text(self) -> str:
        """A line for each image, NAME/FILE SIZE: fingerprints are hashes of these."""
        return "".join(f"{self.name}/{file} {size}\n" for file, size in zip(self.files, self.sizes, strict=True))


def class_names(split: Path) -> list[str]:
    return sorted(entry.name for entry in os.scandir(split) if entry.is_dir() and not entry.name.startswith("."))


def list_class(split: Path, name: str) -> ClassFolder:
    found, others = [], []
    for entry in os.scandir(split / name):
        if entry.name.startswith(".") or os.path.splitext(entry.name)[1].lower() not in SUFFIXES:
            others.append(entry.name)
            continue
        readable = os.access(entry.path, os.R_OK) and entry.is_file()
        found.append((entry.name, entry.stat().st_size if readable else -1))
    found.sort()
    return ClassFolder(name, [file for file, _ in found], [size for _, size in found], sorted(others))


def list_classes(split: Path) -> Iterator[ClassFolder]:
    """All class folders of a split's folder in order. No file is opened."""
    for name in class_names(split):
        yield list_class(split, name)


def shrunk(root: Path) -> dict[str, Any] | None:
    """The settings of `sanbench data shrink` if it wrote these images. Raises InputError if it has not finished."""
    if not (root / SHRUNK).is_file():
        return None
    marker = read_marker(root)
    if not marker["finished"]:
        raise InputError(f"{root} is not finished: the same `sanbench data shrink` again goes on with it.")
    return marker


def read_marker(root: Path) -> dict[str, Any]:
    """What `sanbench data shrink` wrote into `root`. Raises SanbenchError for a file that it did not write."""
    path = root / SHRUNK
    try:
        marker = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise SanbenchError(f"{path} cannot be read: shrink the images again into another folder.") from error
    if not isinstance(marker, dict) or not {"finished", "size"} <= marker.keys():
        raise SanbenchError(f"{path} is not what `sanbench data shrink` writes: shrink the images again into another folder.")
    return marker


def fingerprint(root: Path, subfolder: str, classes: Sequence[ClassFolder]) -> str:
    """SHA-256 over the names and sizes of the files of root/subfolder; with `shrunk-256-` before it if they were shrunk."""
    marker = shrunk(root) if subfolder in SPLITS else None
    digest = hashlib.sha256(f"{subfolder}\n{json.dumps(marker, sort_keys=True) if marker else ''}\n".encode())
    for folder in classes:
        digest.update(folder.text().encode(errors="surrogateescape"))
    return (f"shrunk-{marker['size']}-" if marker else "") + digest.hexdigest()


class FolderImages(Images):
    """The files root/subfolder/CLASS/*; `class_indices` numbers the class folders of train/ (or, without it, of val/).

    Training images are a RandomResizedCrop to `image_size`. The shorter side of others is resized to `resize`, by default
    256/224 of `image_size`, with `interpolation`, and the centre cropped. Both are antialiased. With a `layout` the class
    folders must be those of the layout, which also tells where they are and which of a network's classes they are. Raises
    InputError for other folders and when there are no images.
    """

    fitted = True

    def __init__(
        self,
        root: Path,
        subfolder: str,
        name: str,
        split: str,
        image_size: int,
        decoder: str = "pil",
        layout: Layout | None = None,
        resize: int | None = None,
        interpolation: str = "bilinear",
    ) -> None:
        self.name, self.split, self.side = name, split, image_size
        self.resized_side, self.interpolation = resize or round(image_size * 256 / 224), interpolation
        for option, side in (("image_size", image_size), ("resize", self.resized_side)):
            if side not in SIDES:
                raise InputError(f"{option} {side} is not accepted: accepted are {SIDES.start} to {SIDES.stop - 1} pixels.")
        if interpolation == "lanczos" and decoder != "pil":
            raise InputError(f"interpolation {interpolation} is not accepted with decoder {decoder}: accepted is pil.")
        self.held_out = (root / "test").is_dir()
        self.widest = (self.resized_side - image_size) // 2
        self.decode = find_decoder(decoder)
        self.decoder = self.decode.about
        directory = layout.find(root, subfolder) if layout else root / subfolder
        if not directory.is_dir():
            where = f"under train/ and val/ of {root}" if subfolder in SPLITS else f"in {subfolder}/, as its archive has them"
            raise InputError(f"There is no folder {directory}: {name} needs class folders {where}.")
        reference = directory
        if subfolder in SPLITS:
            reference = root / "train" if (root / "train").is_dir() else root / "val"
        folders = class_names(reference)
        if layout is not None and set(folders) != set(layout.classes):
            raise InputError(
                f"{reference} has {len(folders)} class folders: {name} has {len(layout.classes)}, as {layout.classes[0]}. "
                f"`sanbench data check {name} --data-root {root}` tells what is wrong."
            )
        if layout is None or subfolder in SPLITS:
            index, self.classes = class_indices(folders, root)
        else:
            index = {name: n for n, name in enumerate(layout.classes)}
            self.classes, self.among = layout.words, layout.among
        found = list(list_classes(directory))
        if not any(folder.files for folder in found):
            raise InputError(f"{directory} holds no images: accepted are CLASS/*{{{','.join(sorted(SUFFIXES))}}} files.")
        unexpected = [folder.name for folder in found if folder.files and folder.name not in index]
        if unexpected:
            raise InputError(f"{directory} has class folders that {reference} has not: {', '.join(unexpected[:5])}.")
        paths = [os.path.join(directory, folder.name, file) for folder in found for file in folder.files]
        self.files = np.array(
            [os.fsencode(path) for path in paths]
        )  # a list would be copied by workers, as its reference counts change
        self.labels = torch.tensor([index[folder.name] for folder in found for _ in folder.files])
        self.fingerprint = fingerprint(root, subfolder, found)
        method = "" if interpolation == "bilinear" else f" {interpolation}"
        crop = "random resized crop" if split == "train" else f"shorter side {self.resized_side}{method}, centre crop"
        self.preprocessing = f"{crop} {image_size}"

    def locate(self, index: int) -> str:
        return os.fsdecode(self.files[index])

    def paths(self) -> list[str]:
        return ["/".join(self.locate(index).split(os.sep)[-2:]) for index in range(len(self))]

    def read(self, draws: Sequence[int]) -> Tensor:
        return torch.stack([self.read_one(draw) for draw in draws])

    def read_one(self, draw: int) -> Tensor:
        path = self.locate(draw % len(self))
        if self.split == "train":
            return self.decode.read(path, lambda width, height: self.random_region(draw, width, height))
        return F.center_crop(self.decode.read(path, self.whole_region), [self.side + 2 * self.border])

    def whole_region(self, width: int, height: int) -> Region:
        return whole(width, height, self.resized_side)._replace(interpolation=self.interpolation)

    def random_region(self, draw: int, width: int, height: int) -> Region:
        return random_box(np.random.default_rng((self.seed, draw)), width, height, self.side)
