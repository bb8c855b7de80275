"""The photographs of ImageNet-C as they are stored; what kinds and severities there are tells `sanbench.data.corrupted`."""

import hashlib
from pathlib import Path

from torch import Tensor

from sanbench.data.corrupted import SIDE, STORED
from sanbench.data.decoding import Region
from sanbench.data.folders import FolderImages
from sanbench.data.imagenet import Layout
from sanbench.data.images import Stored
from sanbench.errors import InputError, UnreadableImage


class CorruptedPhotographs(FolderImages):
    """ImageNet-C's root/KIND/SEVERITY/WNID/*.JPEG or root/ARCHIVE/KIND/SEVERITY/WNID/*.JPEG, shown as they are stored.

    `fingerprint` is SHA-256 over the names of the files, which all kinds and severities share; that over names and sizes is
    `stored.files`. Raises InputError for a network of another input than 224 pixels.
    """

    fitted = False

    def __init__(self, corruption: str, severity: int, root: Path, image_size: int, decoder: str, layout: Layout) -> None:
        if image_size != SIDE:
            raise InputError(
                f"imagenet-c is not accepted for a network that sees {image_size} x {image_size} pixels: its files have "
                f"{SIDE} x {SIDE}, and resizing corrupted images gives other figures."
            )
        super().__init__(root, f"{STORED[corruption]}/{severity}", "imagenet-c", "test", SIDE, decoder, layout, resize=SIDE)
        self.stored = Stored(corruption, severity, self.fingerprint)
        names = "".join(f"{path}\n" for path in self.paths())
        self.fingerprint = hashlib.sha256(names.encode(errors="surrogateescape")).hexdigest()
        self.preprocessing = f"as stored, {SIDE} x {SIDE}"

    def read_one(self, draw: int) -> Tensor:
        path = self.locate(draw % len(self))
        pixels = self.decode.read(path, lambda width, height: Region(0, 0, width, height, (height, width)))
        if pixels.shape[1:] != (SIDE, SIDE):
            high, wide = pixels.shape[1:]
            raise UnreadableImage(f"{path} has {wide} x {high} pixels: the files of {self.name} have {SIDE} x {SIDE}.")
        return pixels
