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
NAMED = 5  # of many things that are wrong alike


@dataclass(frozen=True)
class SplitCheck:
    """What one of train/ and val/ holds. `fingerprint` is the one that records of these images carry."""

    place: str
    classes: int
    images: int
    bytes: int
    fingerprint: str
    problems: tuple[str, ...]  # a sentence each; every unreadable file has its own


def check(
    root: Path, layout: Layout | None = None, decode: bool = False, progress: Report = silent, journal: Path | None = None
) -> list[SplitCheck]:
    """Compare root/train and root/val with the `layout`, ImageNet's without one, by names and sizes alone.

    With `decode` every image is decoded too, on all CPUs; after an interruption the same call goes on, by `journal` (default:
    a file in `root`), with the class folders that are left or have changed. Raises InputError if there is no `root`.
    """
    if not root.is_dir():
        raise InputError(f"There is no folder {root}: name the one that holds train/ and val/.")
    layout = layout or Layout()
    found = {place: list_split(root / place, layout, progress) for place in layout.images}
    broken: dict[str, list[str]] = {place: [] for place in found}
    if decode:
        with closing(Journal(journal or root / JOURNAL)) as kept:
            decode_all(root, found, broken, kept, progress)
            kept.finish()  # another check decodes again
    return [check_split(root, place, layout, classes, broken[place]) for place, classes in found.items()]


def list_split(place: Path, layout: Layout, progress: Report) -> list[ClassFolder]:
    names = class_names(place) if place.is_dir() else []
    found = []
    for done, name in enumerate(names, start=1):
        found.append(list_class(place, name))
        progress(Progress(f"list {place.name}", done, len(names)))
    return found


def check_split(root: Path, place: str, layout: Layout, classes: Sequence[ClassFolder], broken: list[str]) -> SplitCheck:
    images = sum(len(folder.files) for folder in classes)
    problems = [*structure_problems(root / place, layout, classes)]
    if classes and images != layout.images[place]:
        problems.append(f"{place}/ holds {images:,} images: there should be {layout.images[place]:,}.")
    for folder in classes:
        for file, size in zip(folder.files, folder.sizes, strict=True):
            if size <= 0:
                problems.append(f"{place}/{folder.name}/{file} {'is empty' if size == 0 else 'cannot be opened'}.")
    size = sum(size for folder in classes for size in folder.sizes if size > 0)
    digest = fingerprint(root, place, classes) if images else ""
    return SplitCheck(place, len(classes), images, size, digest, (*problems, *broken))


def structure_problems(place: Path, layout: Layout, classes: Sequence[ClassFolder]) -> Iterator[str]:
    """What is wrong with the class folders, a sentence each."""
    name = place.name
    if not place.is_dir():
        yield f"{place} is missing."
        return
    flat = sum(1 for path in place.iterdir() if path.suffix.lower() in SUFFIXES)
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
    """A line for each class folder that was decoded: place, name, a hash of its files' names and sizes, what was broken."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.done: dict[tuple[str, str], dict[str, Any]] = {}
        try:
            lines = path.read_text().split("\n")[:-1] if path.is_file() else []  # the last may be cut by a kill
            for entry in map(json.loads, lines):
                self.done[entry["place"], entry["name"]] = entry
            self.file = path.open("w")
            self.file.writelines(line + "\n" for line in lines)
            self.file.flush()
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise SanbenchError(f"{path} cannot keep what was decoded: {error}. Name another file with --journal.") from error

    def broken(self, place: str, folder: ClassFolder) -> list[str] | None:
        """What was found broken in these very files, or None if they were not decoded yet."""
        entry = self.done.get((place, folder.name))
        return entry["broken"] if entry and entry["files"] == digest(folder) else None

    def add(self, place: str, folder: ClassFolder, broken: list[str]) -> None:
        entry = {"place": place, "name": folder.name, "files": digest(folder), "broken": broken}
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
    """Adds a sentence to `broken[place]` for each image that cannot be decoded. A class folder is one thread's work."""
    left = []
    for place, classes in found.items():
        for folder in classes:
            known = journal.broken(place, folder)
            if known is None:
                left.append((place, folder))
            else:
                broken[place] += known
    total = sum(len(classes) for classes in found.values())
    for done, ((place, folder), sentences) in enumerate(in_threads(lambda job: broken_images(root, *job), left), start=1):
        journal.add(place, folder, sentences)
        broken[place] += sentences
        progress(Progress("decode, by class folder", total - len(left) + done, total))
    for sentences in broken.values():
        sentences.sort()


def broken_images(root: Path, place: str, folder: ClassFolder) -> list[str]:
    """PIL decides; it lets other threads run while it decodes."""
    sentences = []
    for file, size in zip(folder.files, folder.sizes, strict=True):
        if size <= 0:
            continue  # has a sentence of its own
        path = root / place / folder.name / file
        try:
            with Image.open(path) as image:
                image.load()
        except PIL_ERRORS as error:
            sentences.append(f"{place}/{folder.name}/{file} cannot be decoded: {error}.")
    return sentences
