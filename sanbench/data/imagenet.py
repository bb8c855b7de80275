"""ImageNet's classes, the layouts of complete data sets, and the class indices of folders named by WNID or by number."""

import os
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
    """A complete data set in class folders.

    classes   names of the class folders, in the order of their indices
    images    number of images by subfolder of the root
    optional  the same of subfolders that may be missing
    others    further names that the one subfolder may have
    groups    folders of the root in which subfolders may lie, as archives are unpacked into folders of their own
    """

    classes: tuple[str, ...] = field(default_factory=wnids)
    images: Mapping[str, int] = field(default_factory=lambda: {"train": 1_281_167, "val": 50_000})
    optional: Mapping[str, int] = field(default_factory=dict)
    others: tuple[str, ...] = ()
    groups: tuple[str, ...] = ()

    @property
    def indices(self) -> tuple[int, ...] | None:
        """ImageNet's index of each class folder, by WNID or as 1,000 numbers; None where they are other classes."""
        known = {wnid: index for index, wnid in enumerate(wnids())}
        if len(self.classes) == len(known):
            known |= {str(index): index for index in range(len(known))}
        return tuple(known[name] for name in self.classes) if set(self.classes) <= known.keys() else None

    @property
    def among(self) -> tuple[int, ...] | None:
        """ImageNet's class indices that count; None where all do, and of other classes."""
        return None if len(self.classes) == len(wnids()) else self.indices

    @property
    def words(self) -> list[str]:
        """The names of the classes."""
        return list(self.classes) if self.indices is None else [words()[index] for index in self.indices]

    def find(self, root: Path, subfolder: str) -> Path:
        """Where `subfolder` is: in the root, in a group's folder there, or, of a set of one folder, the root of that name."""
        names = (subfolder, *self.others)
        places = [root / name for name in names] + [root / group / subfolder for group in self.groups]
        if len(self.images) == 1 and Path(os.path.abspath(root)).name in names:
            places.append(root)
        return next((place for place in places if place.is_dir()), root / subfolder)

    def expected(self, root: Path) -> dict[str, int]:
        """`images`, and what of `optional` is there."""
        return {**self.images, **{name: n for name, n in self.optional.items() if self.find(root, name).is_dir()}}


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
