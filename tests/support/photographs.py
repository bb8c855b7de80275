"""foolbox's 20 ImageNet photographs as data sets, made where a test wants them."""

import re
import shutil
from pathlib import Path

import foolbox
import numpy as np
import torch
from PIL import Image

from sanbench.data.imagenet import Layout, wnids

PHOTOGRAPHS = {
    path: int(re.fullmatch(r"imagenet_\d+_(\d+)\.jpg", path.name)[1])
    for path in sorted((Path(foolbox.__file__).parent / "data").glob("imagenet_*.jpg"))
}
LABELS = sorted(set(PHOTOGRAPHS.values()))


def place(root: Path, splits=("train", "val"), name=str, side: int | None = None) -> Path:
    """root/SPLIT/name(class index)/photograph; with a `side`, re-encoded as squares of it, which are read faster."""
    for path, label in PHOTOGRAPHS.items():
        for split in splits:
            folder = root / split / name(label)
            folder.mkdir(parents=True, exist_ok=True)
            if side is None:
                shutil.copyfile(path, folder / path.name)
            else:
                with Image.open(path) as image:
                    image.resize((side, side)).save(folder / path.name, quality=95)
    return root


def wnid(label: int) -> str:
    return wnids()[label]


SMALL = Layout(tuple(sorted(map(wnid, LABELS))), {"train": 20, "val": 20})


def one_file(root: Path, split="val", label=LABELS[0]) -> Path:
    return next((root / split / wnid(label)).iterdir())


def thousand(root: Path, train: int, val: int) -> Path:
    """A tree of all 1000 class folders with so many files each, of a byte: names and sizes are all the checker reads."""
    for split, count in (("train", train), ("val", val)):
        for name in wnids():
            folder = root / split / name
            folder.mkdir(parents=True)
            for number in range(count):
                (folder / f"{name}_{number}.JPEG").write_bytes(b"x")
    return root


def photograph_batch(side, number=3):
    """Real pixels, N x 3 x side x side in [0, 1]."""
    images = [np.asarray(Image.open(path).convert("RGB").resize((side, side))) for path in list(PHOTOGRAPHS)[:number]]
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float() / 255
