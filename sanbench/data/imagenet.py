"""ImageNet's classes and sizes, and the class indices of folders named by WNID or by number."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from pathlib import Path

from sanbench.errors import InputError

WNID = re.compile(r"n\d{8}")
NAMES_FILE = "classes.txt"  # lines of FOLDER WORDS, in the root of a data set


@cache
def wnids() -> tuple[str, ...]:
    """The 1000 WNIDs of ILSVRC 2012, sorted: the position is the class index.

    As timm 1.0 (`imagenet_synsets.txt`) and Keras (`imagenet_class_index.json`) list them, which agree.
    """
    return tuple((files("sanbench.data") / "wnids.txt").read_text().split())


@cache
def words() -> tuple[str, ...]:
    """The name of each class index, from the metadata of torchvision's weights."""
    from torchvision.models import ResNet50_Weights

    return tuple(ResNet50_Weights.IMAGENET1K_V1.meta["categories"])


@dataclass(frozen=True)
class Layout:
    """The class folders of a complete data set in the order of their indices, and its number of images by split."""

    classes: tuple[str, ...] = field(default_factory=wnids)
    images: Mapping[str, int] = field(default_factory=lambda: {"train": 1_281_167, "val": 50_000})


def class_indices(folders: Sequence[str], root: Path) -> tuple[dict[str, int], list[str]]:
    """The index of each class folder, and the names of all classes by index.

    WNIDs of ImageNet, and numbers with gaps, have ImageNet's 1000 indices, even if some classes are missing; the numbers
    0, 1, ... without gaps are indices; other folders are numbered in sorted order. A class's name is its line in `classes.txt`
    of `root`, else ImageNet's word, else the folder's name. Raises InputError for numbers that are no ImageNet index.
    """
    if set(folders) <= set(wnids()):
        index, names = {wnid: n for n, wnid in enumerate(wnids())}, list(words())
    elif all(name.isdecimal() for name in folders):
        index = numbered(folders, root)
        names = [str(n) for n in range(len(index))] if len(index) < len(wnids()) else list(words())
    else:
        index, names = {name: n for n, name in enumerate(sorted(folders))}, sorted(folders)
    return index, renamed_classes(index, names, root)


def numbered(folders: Sequence[str], root: Path) -> dict[str, int]:
    index = {name: int(name) for name in folders}
    found = sorted(index.values())
    if found == list(range(len(found))):
        return index
    if len(set(found)) < len(found) or found[-1] >= len(wnids()):
        raise InputError(
            f"{root} has numbers as class folders that are not accepted: write 0, 1, ... without gaps, or ImageNet's class "
            f"indices, each once and below {len(wnids())}."
        )
    return {str(n): n for n in range(len(wnids()))} | index


def renamed_classes(index: Mapping[str, int], names: list[str], root: Path) -> list[str]:
    """The names with those of `classes.txt` in their place. Raises InputError for a line that is not FOLDER WORDS."""
    path = root / NAMES_FILE
    if not path.is_file():
        return names
    names = list(names)
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not accepted: byte {error.start} is not UTF-8.") from error
    for line in filter(str.strip, text.splitlines()):
        folder, _, name = line.strip().partition(" ")
        if folder not in index or not name.strip():
            raise InputError(
                f"{path}: the line {line!r} is not accepted: write a class folder and its name, as in n01440764 tench."
            )
        names[index[folder]] = name.strip()
    twice = {name for name in names if names.count(name) > 1}
    folder_of = {n: folder for folder, n in index.items()}
    return [f"{name} ({folder_of[n]})" if name in twice else name for n, name in enumerate(names)]
