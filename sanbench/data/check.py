"""Whether a data set is complete: `sanbench data check`."""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from sanbench.data.corrupted import SEVERITIES, Arrays
from sanbench.data.decoding import eight_bits, opened
from sanbench.data.imagenet import Layout
from sanbench.data.listing import SPLITS, SUFFIXES, ClassFolder, class_names, fingerprint, list_class
from sanbench.data.threads import in_threads
from sanbench.errors import InputError, SanbenchError, UnreadableImage
from sanbench.progress import Progress, Report, silent

JOURNAL = ".decoded.jsonl"  # in the root: which class folders were decoded, until all are
LOST = "its archive has them in class folders: unpack it again."
NAMED = 5  # names in a sentence about many


@dataclass(frozen=True)
class SplitCheck:
    """The content of train/, val/, or another folder or file of a data set.

    fingerprint  that of records of these images: SHA-256 over names and sizes. Another file of equal name and size is not
                 seen: what was measured on the old one counts as measured
    contents     SHA-256 over names and bytes of all files, the same on every machine; only decoding them finds it
    """

    subfolder: str
    classes: int
    images: int
    bytes: int
    fingerprint: str
    contents: str
    problems: tuple[str, ...]  # a sentence each; every unreadable file has its own


def check(
    root: Path,
    layout: Layout | Arrays | None = None,
    decode: bool = False,
    progress: Report = silent,
    journal: Path | None = None,
) -> list[SplitCheck]:
    """Compare the folders of `root` with the `layout`, ImageNet's without one, by names and sizes alone.

    With `decode` every image is decoded too, on all CPUs, and its bytes enter `contents`; an interrupted call goes on, by
    `journal` (default: a file in `root`), with the class folders that are left or have changed. Raises InputError if there
    is no `root`.
    """
    layout = layout or Layout()
    if not root.is_dir():
        holds = f"the {layout.folder} folder" if isinstance(layout, Arrays) else "/ and ".join(list(layout.images)[:2]) + "/"
        raise InputError(f"There is no folder {root}: name the one that holds {holds}.")
    if isinstance(layout, Arrays):
        return [check_array(layout, *file, decode) for file in layout.problems(root)]
    found = {subfolder: list_split(layout.find(root, subfolder), progress) for subfolder in layout.expected(root)}
    decoded: dict[tuple[str, str], Decoded] = {}
    if decode:
        with closing(Journal(journal or root / JOURNAL)) as kept:
            decoded = decode_all(root, layout, found, kept, progress)
            kept.finish()  # the next check decodes all again
    return [check_split(root, subfolder, layout, classes, decoded) for subfolder, classes in found.items()]


def check_array(layout: Arrays, path: Path, sentence: str, decode: bool) -> SplitCheck:
    """One NumPy file. Its names and sizes are no fingerprint, as records of images in memory have that of their pixels."""
    there, contents = path.is_file(), ""
    if there and decode:
        with path.open("rb") as file:
            contents = hashlib.file_digest(file, "sha256").hexdigest()
    images = 0 if sentence else len(SEVERITIES) * layout.images
    size = path.stat().st_size if there else 0
    return SplitCheck(path.name, len(layout.classes), images, size, "", contents, (sentence,) if sentence else ())


def list_split(split: Path, progress: Report) -> list[ClassFolder]:
    names = class_names(split) if split.is_dir() else []
    found = []
    for done, name in enumerate(names, start=1):
        found.append(list_class(split, name))
        progress(Progress(f"list {split.name}", done, len(names)))
    return found


def check_split(
    root: Path, subfolder: str, layout: Layout, classes: Sequence[ClassFolder], decoded: "Mapping[tuple[str, str], Decoded]"
) -> SplitCheck:
    images, wanted = sum(len(folder.files) for folder in classes), layout.expected(root)[subfolder]
    problems = [*structure_problems(layout.find(root, subfolder), subfolder, layout, classes)]
    if classes and images != wanted:
        problems.append(f"{subfolder}/ holds {images:,} images: there should be {wanted:,}.")
    for folder in classes:
        for file, size in zip(folder.files, folder.sizes, strict=True):
            if size <= 0:
                problems.append(f"{subfolder}/{folder.name}/{file} {'is empty' if size == 0 else 'cannot be opened'}.")
    size = sum(size for folder in classes for size in folder.sizes if size > 0)
    names_and_sizes = fingerprint(root, subfolder, classes) if images else ""
    whole = [decoded[subfolder, folder.name] for folder in classes] if decoded else []
    contents = hashlib.sha256("".join(part.contents for part in whole).encode()).hexdigest() if whole else ""
    broken = sorted(sentence for part in whole for sentence in part.broken)
    return SplitCheck(subfolder, len(classes), images, size, names_and_sizes, contents, (*problems, *broken))


def structure_problems(split: Path, name: str, layout: Layout, classes: Sequence[ClassFolder]) -> Iterator[str]:
    """What is wrong with the class folders of the subfolder `name`, a sentence each."""
    if not split.is_dir():
        yield f"{split} is missing."
        return
    flat = sum(1 for path in split.iterdir() if path.suffix.lower() in SUFFIXES)
    if flat:
        yield (
            f"{name}/ holds {flat:,} images outside of class folders: "
            + ("the archive was unpacked flat, as it is; " if not classes else "")
            + ("`sanbench data prepare imagenet` sorts images into class folders, by the devkit." if name in SPLITS else LOST)
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


class Decoded(NamedTuple):
    """Of a class folder: a sentence for each image that cannot be decoded, and SHA-256 over names and bytes of all."""

    broken: list[str]
    contents: str


class Journal:
    """A line for each decoded class folder: subfolder, name, a hash of its files' names and sizes, and its `Decoded`."""

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

    def find(self, subfolder: str, folder: ClassFolder) -> Decoded | None:
        """What decoding this folder gave, None if these files were not decoded yet."""
        entry = self.done.get((subfolder, folder.name))
        return Decoded(entry["broken"], entry["contents"]) if entry and entry["files"] == digest(folder) else None

    def add(self, subfolder: str, folder: ClassFolder, decoded: Decoded) -> None:
        entry = {"subfolder": subfolder, "name": folder.name, "files": digest(folder), **decoded._asdict()}
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
    root: Path, layout: Layout, found: dict[str, list[ClassFolder]], journal: Journal, progress: Report
) -> dict[tuple[str, str], Decoded]:
    """By subfolder and class, what decoding it gave. One thread decodes a class folder."""
    jobs = [(subfolder, folder) for subfolder, classes in found.items() for folder in classes]
    decoded = {(subfolder, folder.name): known for subfolder, folder in jobs if (known := journal.find(subfolder, folder))}
    left = [(subfolder, folder) for subfolder, folder in jobs if (subfolder, folder.name) not in decoded]
    for (subfolder, folder), outcome in in_threads(lambda job: decode_class(layout.find(root, job[0]), *job), left):
        journal.add(subfolder, folder, outcome)
        decoded[subfolder, folder.name] = outcome
        progress(Progress("decode, by class folder", len(decoded), len(jobs)))
    return decoded


def decode_class(split: Path, subfolder: str, folder: ClassFolder) -> Decoded:
    """Decode each image of the class folder split/NAME with PIL; sentences and hash name it by its `subfolder`."""
    sentences, contents = [], hashlib.sha256()
    for file, size in zip(folder.files, folder.sizes, strict=True):
        if size <= 0:
            continue  # check_split names it
        path, name = split / folder.name / file, f"{subfolder}/{folder.name}/{file}"
        try:
            with opened(path) as (image, _):
                image.load()
                eight_bits(image)
            with path.open("rb") as content:
                contents.update(
                    f"{name} {hashlib.file_digest(content, 'sha256').hexdigest()}\n".encode(errors="surrogateescape")
                )
        except UnreadableImage as error:
            sentences.append(f"{name} cannot be decoded: {str(error).removeprefix(str(path)).strip()}")
        except OSError as error:
            sentences.append(f"{name} cannot be read: {error.strerror or error}.")
    return Decoded(sentences, contents.hexdigest())
