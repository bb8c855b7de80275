"""Class folders: which files they hold, and what `sanbench data shrink` left beside them. No file is opened, and no torch."""

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from sanbench.errors import InputError, SanbenchError

SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm", ".pgm", ".tif", ".tiff"}
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
