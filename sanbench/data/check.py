"""Whether a data set in class folders is complete: `sanbench data check`."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from sanbench.data.decoding import PIL_ERRORS
from sanbench.data.folders import SUFFIXES, ClassFolder, class_names, fingerprint, list_class
from sanbench.data.imagenet import Layout
from sanbench.data.threads import in_threads
from sanbench.errors import InputError, SanbenchError
from sanbench.progress import Progress, Report, silent

JOURNAL = ".decoded.jsonl"  # in the root: which class folders were decoded, until all are
NAMED = 5  # names in a sentence about many


@dataclass(frozen=True)
class SplitCheck:
    """The content of train/ or val/. `fingerprint` is that of records of these images."""

    subfolder: str
    classes: int
    images: int
    bytes: int
    fingerprint: str
    problems: tuple[str, ...]  # a sentence each; every unreadable file has its own


def check(
    root: Path, layout: Layout | None = None, decode: bool = False, progress: Report = silent, journal: Path | None = None
) -> list[SplitCheck]:
    """Compare root/train and root/val with the `layout`, ImageNet's without one, by names and sizes alone.

    With `decode` every image is decoded too, on all CPUs; an interrupted call goes on, by `journal` (default: a file in
    `root`), with the class folders that are left or have changed. Raises InputError if there is no `root`.
    """
    if not root.is_dir():
        raise InputError(f"There is no folder {root}: name the one that holds train/ and val/.")
    layout = layout or Layout()
    found = {subfolder: list_split(root / subfolder, layout, progress) for subfolder in layout.images}
    broken: dict[str, list[str]] = {subfolder: [] for subfolder in found}
    if decode:
        with closing(Journal(journal or root / JOURNAL)) as kept:
            decode_all(root, found, broken, kept, progress)
            kept.finish()  # the next check decodes all again
    return [check_split(root, subfolder, layout, classes, broken[subfolder]) for subfolder, classes in found.items()]


def list_split(split: Path, layout: Layout, progress: Report) -> list[ClassFolder]:
    names = class_names(split) if split.is_dir() else []
    found = []
    for done, name in enumerate(names, start=1):
        found.append(list_class(split, name))
        progress(Progress(f"list {split.name}", done, len(names)))
    return found


def check_split(root: Path, subfolder: str, layout: Layout, classes: Sequence[ClassFolder], broken: list[str]) -> SplitCheck:
    images = sum(len(folder.files) for folder in classes)
    problems = [*structure_problems(root / subfolder, layout, classes)]
    if classes and images != layout.images[subfolder]:
        problems.append(f"{subfolder}/ holds {images:,} images: there should be {layout.images[subfolder]:,}.")
    for folder in classes:
        for file, size in zip(folder.files, folder.sizes, strict=True):
            if size <= 0:
                problems.append(f"{subfolder}/{folder.name}/{file} {'is empty' if size == 0 else 'cannot be opened'}.")
    size = sum(size for folder in classes for size in folder.sizes if size > 0)
    digest = fingerprint(root, subfolder, classes) if images else ""
    return SplitCheck(subfolder, len(classes), images, size, digest, (*problems, *broken))


def structure_problems(split: Path, layout: Layout, classes: Sequence[ClassFolder]) -> Iterator[str]:
    """What is wrong with the class folders, a sentence each."""
    name = split.name
    if not split.is_dir():
        yield f"{split} is missing."
        return
    flat = sum(1 for path in split.iterdir() if path.suffix.lower() in SUFFIXES)
    if flat:
        yield (
            f"{name}/ holds {flat:,} images outside of class folders: "
            + ("the archive was unpacked flat, as it is; " if not classes else "")
            + "`sanbench data prepare imagenet` sorts images into class folders, by the devkit."
        )
    found, wanted = {folder.name for folder in classes}, set(layout.classes)
    for words, names in (("lacks", wanted - found), ("has unexpected", found - wanted)):
        if names and classes:
            yield f"{name}/ {words} {len(names):,} class folders: {shortened(sorted(names))}."
    empty = [folder.name for folder in classes if not folder.files and folder.name in wanted]
    if empty:
        yield f"{name}/ has {len(empty):,} class folders without images: {shortened(empty)}."
    others = [f"{folder.name}/{other}" for folder in classes for other in folder.others]
    if others:
        yield f"{name}/ has {len(others):,} files that are no images by their names: {shortened(others)}."


def shortened(names: Sequence[str]) -> str:
    return ", ".join(names[:NAMED]) + (", ..." if len(names) > NAMED else "")


class Journal:
    """A line for each decoded class folder: subfolder, name, a hash of its files' names and sizes, sentences on broken ones."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.done: dict[tuple[str, str], dict[str, Any]] = {}
        try:
            lines = path.read_text().split("\n")[:-1] if path.is_file() else []  # a kill may have cut the last
            for entry in map(json.loads, lines):
                self.done[entry["subfolder"], entry["name"]] = entry
            self.file = path.open("w")
            self.file.writelines(line + "\n" for line in lines)
            self.file.flush()
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise SanbenchError(f"{path} cannot keep what was decoded: {error}. Name another file with --journal.") from error

    def broken(self, subfolder: str, folder: ClassFolder) -> list[str] | None:
        """The sentences on broken files of this folder, None if these files were not decoded yet."""
        entry = self.done.get((subfolder, folder.name))
        return entry["broken"] if entry and entry["files"] == digest(folder) else None

    def add(self, subfolder: str, folder: ClassFolder, broken: list[str]) -> None:
        entry = {"subfolder": subfolder, "name": folder.name, "files": digest(folder), "broken": broken}
        self.file.write(json.dumps(entry) + "\n")
        self.file.flush()

    def close(self) -> None:
        self.file.close()

    def finish(self) -> None:
        self.close()
        self.path.unlink()


def digest(folder: ClassFolder) -> str:
    return hashlib.sha256(folder.text().encode(errors="surrogateescape")).hexdigest()


def decode_all(
    root: Path, found: dict[str, list[ClassFolder]], broken: dict[str, list[str]], journal: Journal, progress: Report
) -> None:
    """Add a sentence to `broken[subfolder]` for each image that cannot be decoded. One thread decodes a class folder."""
    left = []
    for subfolder, classes in found.items():
        for folder in classes:
            known = journal.broken(subfolder, folder)
            if known is None:
                left.append((subfolder, folder))
            else:
                broken[subfolder] += known
    total = sum(len(classes) for classes in found.values())
    for done, ((subfolder, folder), sentences) in enumerate(in_threads(lambda job: broken_images(root, *job), left), start=1):
        journal.add(subfolder, folder, sentences)
        broken[subfolder] += sentences
        progress(Progress("decode, by class folder", total - len(left) + done, total))
    for sentences in broken.values():
        sentences.sort()


def broken_images(root: Path, subfolder: str, folder: ClassFolder) -> list[str]:
    """A sentence for each image of the class folder that PIL cannot decode."""
    sentences = []
    for file, size in zip(folder.files, folder.sizes, strict=True):
        if size <= 0:
            continue  # check_split names it
        path = root / subfolder / folder.name / file
        try:
            with Image.open(path) as image:
                image.load()
        except PIL_ERRORS as error:
            sentences.append(f"{subfolder}/{folder.name}/{file} cannot be decoded: {error}.")
    return sentences
