"""Images in class folders, with the paper's preprocessing: ImageNet and anything laid out like it."""

import hashlib
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import PIL
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from sanbench.data.images import Images
from sanbench.errors import InputError, UnreadableImage

SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm", ".pgm", ".tif", ".tiff"}
WNID = re.compile(r"n\d{8}")


class FolderImages(Images):
    """root/place/CLASS/image files; the sorted class folders of train/ (or, without one, of val/) are the class indices.

    Training images are a RandomResizedCrop to `image_size`, others have their shorter side resized to 256/224 of it and the
    centre cropped; both bilinear with PIL's antialiasing. Raises InputError when there is nothing to read.
    """

    decoder = f"PIL {PIL.__version__}"

    def __init__(self, root: Path, place: str, name: str, split: str, image_size: int, classes: int | None) -> None:
        self.name, self.split, self.image_size = name, split, image_size
        self.held_out = (root / "test").is_dir()
        if not (root / place).is_dir():
            raise InputError(f"There is no folder {root / place}: {name} needs class folders under train/ and val/ of {root}.")
        reference = root / "train" if (root / "train").is_dir() else root / "val"
        self.classes = sorted(path.name for path in reference.iterdir() if path.is_dir())
        if classes is not None and (len(self.classes) != classes or not all(map(WNID.fullmatch, self.classes))):
            raise InputError(
                f"{reference} has {len(self.classes)} class folders: {name} has {classes}, named by WNID (n01440764)."
            )
        index = {name: i for i, name in enumerate(self.classes)}
        files = sorted(path for path in (root / place).glob("*/*") if path.suffix.lower() in SUFFIXES)
        if not files:
            raise InputError(f"{root / place} holds no images: accepted are CLASS/*{{{','.join(sorted(SUFFIXES))}}} files.")
        strangers = sorted({path.parent.name for path in files} - set(index))
        if strangers:
            raise InputError(f"{root / place} has class folders that {reference} has not: {', '.join(strangers[:5])}.")
        self.files = files
        self.labels = torch.tensor([index[path.parent.name] for path in files])
        digest = hashlib.sha256(f"{image_size} {self.split == 'train'} {self.classes}".encode())
        for path in files:
            digest.update(f"{path.relative_to(root)} {path.stat().st_size}\n".encode())
        self.fingerprint = digest.hexdigest()

    def locate(self, index: int) -> str:
        return str(self.files[index])

    def read(self, draws: Sequence[int]) -> Tensor:
        return torch.stack([self.read_one(draw) for draw in draws])

    def read_one(self, draw: int) -> Tensor:
        path = self.files[draw % len(self)]
        try:
            with Image.open(path) as file:
                image = file.convert("RGB")
        except (UnidentifiedImageError, OSError, SyntaxError) as error:
            raise UnreadableImage(f"{path} is not a readable image: {error}.") from error
        crop = self.random_crop(image, draw) if self.split == "train" else self.centre_crop(image)
        return F.pil_to_tensor(crop)

    def centre_crop(self, image: Image.Image) -> Image.Image:
        resized = F.resize(image, [round(self.image_size * 256 / 224)])
        return F.center_crop(resized, [self.image_size])

    def random_crop(self, image: Image.Image, draw: int) -> Image.Image:
        state = np.random.SeedSequence((self.seed, draw)).generate_state(1)[0]
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(int(state))
            crop: Image.Image = v2.RandomResizedCrop(self.image_size)(image)
        return crop
