"""Lists of the images that are measured: `--images FILE`, or the name of a list that ships with the package."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING

from sanbench.errors import InputError

if TYPE_CHECKING:
    from sanbench.data.images import Images

LISTS = {"robustbench-imagenet-5000": "lists/robustbench-imagenet-5000.txt"}  # sources are told in the README beside them
NUMBER = re.compile(r"\d{1,18}", re.ASCII)
MOST_BYTES = 2**28  # of a list: of the 1,281,167 paths of ImageNet's training images 40 MB


@dataclass(frozen=True)
class ImageList:
    """Which images: `lines` (number in the file, and text) are paths within the split's folder, or indices in the split."""

    name: str
    lines: tuple[tuple[int, str], ...]

    @property
    def sha256(self) -> str:
        """Of the lines without what surrounds them, each with a newline: of a plain file what `sha256sum` prints."""
        return hashlib.sha256("".join(f"{text}\n" for _, text in self.lines).encode()).hexdigest()

    def indices(self, images: Images) -> list[int]:
        """The places of the images in their split, ascending. Raises InputError that names the line that is none, or twice."""
        place = {path: index for index, path in enumerate(images.paths())}
        found: dict[int, int] = {}
        for number, text in self.lines:
            index = int(text) if NUMBER.fullmatch(text) else place.get(text)
            where = f"images {self.name}, line {number}: {text} is not accepted"
            if index is None:
                accepted = f"a path such as {next(iter(place))}, or an index" if place else "an index, as they have no paths"
                raise InputError(f"{where}: {images.name} has no such {images.split} image; write {accepted}.")
            if index >= len(images):
                raise InputError(f"{where}: {images.name} has {len(images):,} {images.split} images, numbered from 0.")
            if index in found:
                raise InputError(f"{where}: line {found[index]} names this image already.")
            found[index] = number
        return sorted(found)


def read_list(name: str) -> ImageList:
    """The list of that name in LISTS, or of that file: a path or an index a line, empty lines left out.

    Raises InputError for a file that cannot be read, is not UTF-8, or holds no line.
    """
    path = files("sanbench.data") / LISTS[name] if name in LISTS else Path(name)
    try:
        if not path.is_file():  # a FIFO would wait for ever
            raise InputError(f"There is no list of images {name}: name a file, or one of {', '.join(LISTS)}.")
        if isinstance(path, Path) and path.stat().st_size > MOST_BYTES:
            raise InputError(f"images {name} is not accepted: it has more than {MOST_BYTES:,} bytes.")
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"images {name} is not accepted: byte {error.start} is not UTF-8.") from error
    except OSError as error:
        raise InputError(f"images {name} cannot be read: {error.strerror or error}.") from error
    lines = tuple((number, line.strip()) for number, line in enumerate(text.split("\n"), start=1) if line.strip())
    if not lines:
        raise InputError(f"images {name} is not accepted: it is empty; write a path or an index a line.")
    return ImageList(name if name in LISTS else Path(name).name, lines)
