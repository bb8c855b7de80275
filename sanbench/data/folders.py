"""Images in class folders, with the paper's preprocessing: ImageNet and anything laid out like it."""

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from sanbench.data.decoding import Region, find_decoder, random_box, whole
from sanbench.data.imagenet import Layout, class_indices
from sanbench.data.images import Images, centre
from sanbench.data.listing import SPLITS, SUFFIXES, class_names, fingerprint, list_classes
from sanbench.errors import InputError

SIDES = range(1, 4682)  # of photographs, resized and cropped: 4,096 is cropped from 4,681; a batch of 64 takes 3 GB


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
        return centre(self.decode.read(path, self.whole_region), self.side + 2 * self.border)

    def whole_region(self, width: int, height: int) -> Region:
        return whole(width, height, self.resized_side)._replace(interpolation=self.interpolation)

    def random_region(self, draw: int, width: int, height: int) -> Region:
        return random_box(np.random.default_rng((self.seed, draw)), width, height, self.side)
