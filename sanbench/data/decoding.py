"""DECODERS: from an image file to the resized pixels of a region.

Published figures were measured with PIL: its pixels are the reference. The other decoders read JPEG files of colour or grey;
every other file, and every file that libjpeg rejects, is read by PIL, so that all decoders fail on the same files.

A file may come from a stranger: what is opened, which formats and how many pixels are accepted is decided here alone.
An EXIF orientation is ignored, as torchvision's ImageFolder and timm do, by which the published figures were measured.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from io import BytesIO
from typing import TYPE_CHECKING, Any, NamedTuple

from PIL import Image, UnidentifiedImageError

from sanbench.errors import InputError, UnreadableImage, unknown
from sanbench.late import Late

if TYPE_CHECKING:
    import numpy as np
    import torch
    from torch import Tensor
    from torchvision import transforms
    from torchvision.transforms.v2 import functional as F
else:
    np, torch, transforms = Late("numpy"), Late("torch"), Late("torchvision.transforms")
    F = Late("torchvision.transforms.v2.functional")

JPEG = b"\xff\xd8\xff"
ACCEPTED = ("JPEG", "PNG", "BMP", "WEBP", "PPM", "TIFF")  # PIL's others include EPS, for which it starts Ghostscript
MOST_PIXELS = 89_478_485  # of a file: 256 MiB in RGB, where PIL begins to warn
MOST_BYTES = 2 * 3 * MOST_PIXELS + 2**20  # of a file: so many pixels of three 16-bit channels, not compressed
MOST_RESIZED = 2**25  # pixels after resizing, 96 MiB in RGB: a square of 5,792, or 512 to 1 with a shorter side of 256
SIXTEEN_BITS = ("PNG", "PPM")  # formats whose mode I, of 32-bit integers, holds 16 bits: PIL has no mode of its own for them
ORIENTATION = "EXIF orientation ignored"


class Region(NamedTuple):
    """A box in pixels of the file, and the height and width that it is resized to, with `interpolation`, antialiased.

    `coarse` allows a decoder to decode at 1/2, 1/4 or 1/8 of the resolution if the box is then no smaller than `size`, and to
    repeat subsampled colour instead of interpolating it.
    """

    left: int
    top: int
    width: int
    height: int
    size: tuple[int, int]
    coarse: bool = False
    interpolation: str = "bilinear"

    @property
    def reduction(self) -> int:
        """The largest of 1, 2, 4, 8 by which the box can be divided and is no smaller than `size`."""
        if not self.coarse:
            return 1
        return next(n for n in (8, 4, 2, 1) if n == 1 or (self.height >= n * self.size[0] and self.width >= n * self.size[1]))


Choose = Callable[[int, int], Region]  # from a file's width and height


def regular_file(path: str | os.PathLike[str]) -> None:
    """Raise UnreadableImage for what is no regular file before it is opened: a FIFO waits for ever, a device never ends."""
    try:
        status = os.stat(path)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        raise UnreadableImage(f"{path} is not a readable image: {getattr(error, 'strerror', None) or error}.") from error
    if not stat.S_ISREG(status.st_mode):
        raise UnreadableImage(f"{path} is not a readable image: it is no regular file.")
    if status.st_size > MOST_BYTES:
        raise UnreadableImage(f"{path} is not a readable image: it has {status.st_size:,} bytes, accepted are {MOST_BYTES:,}.")


def limited(path: str, width: int, height: int, choose: Choose | None = None) -> Region:
    """The region that `choose` takes (by default all) of a file of this size. Raises UnreadableImage if either is too large."""
    if not 0 < width * height <= MOST_PIXELS:
        raise UnreadableImage(f"{path} has {width} x {height} pixels: accepted are up to {MOST_PIXELS:,}.")
    region = choose(width, height) if choose else Region(0, 0, width, height, (height, width))
    if choose and region.size[0] * region.size[1] > MOST_RESIZED:
        high, wide = region.size
        raise UnreadableImage(
            f"{path} has {width} x {height} pixels and would be resized to {wide} x {high}: accepted are up to "
            f"{MOST_RESIZED:,} pixels."
        )
    return region


@contextmanager
def opened(path: str | os.PathLike[str], choose: Choose | None = None) -> Iterator[tuple[Image.Image, Region]]:
    """The file as PIL opens it, before its pixels are decoded, and the region that `choose` takes of it.

    Whatever PIL raises in the block becomes UnreadableImage with the path.
    """
    regular_file(path)
    try:
        with open(path, "rb") as file, Image.open(file, formats=ACCEPTED) as image:
            yield image, limited(str(path), *image.size, choose)
    except UnreadableImage:
        raise
    except Exception as error:  # a broken file may end PIL in any error: IndexError, struct.error, zlib.error, ...
        reason = f"it is none of {', '.join(ACCEPTED)}" if isinstance(error, UnidentifiedImageError) else plain_reason(error)
        raise UnreadableImage(f"{path} is not a readable image: {reason}.") from error


def plain_reason(error: Exception) -> str:
    """The first line of what `error` says."""
    if isinstance(error, MemoryError):
        return "it needs more memory than there is"
    return (getattr(error, "strerror", None) or str(error) or "it is broken").splitlines()[0].rstrip(".")


def eight_bits(image: Image.Image) -> Image.Image:
    """`image` as RGB, as published pipelines convert it; 16-bit grey, which they make white, as grey of 8 bits (mode L).

    Raises ValueError for floating point and other integers, whose white is not known.
    """
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format in SIXTEEN_BITS):
        values = np.asarray(image).astype(np.uint32)
        return Image.fromarray(((values * 255 + 32767) // 65535).astype(np.uint8))
    if image.mode in ("I", "F"):
        numbers = "32-bit integers" if image.mode == "I" else "floating point numbers"
        raise ValueError(f"mode {image.mode}, {numbers}, is not accepted: write 8 or 16 bits a channel")
    return image.convert("RGB")


def read_pil(path: str, choose: Choose) -> Tensor:
    """3 x H x W, uint8, resized by PIL. Raises UnreadableImage."""
    with opened(path, choose) as (file, region):
        image = eight_bits(file).convert("RGB")
    box = (region.left, region.top, region.left + region.width, region.top + region.height)
    part = image if box == (0, 0, *image.size) else image.crop(box)
    if part.size != region.size[::-1]:
        part = part.resize(region.size[::-1], Image.Resampling[region.interpolation.upper()])
    return torch.from_numpy(np.array(part)).permute(2, 0, 1)


def decode_torchvision(data: bytes, choose: Choose) -> tuple[Tensor, Region]:
    from torchvision.io import ImageReadMode, decode_jpeg  # deprecated since 0.29

    with Image.open(BytesIO(data), formats=("JPEG",)) as header:  # decode_jpeg would make room for any size
        region = choose(*header.size)
    return decode_jpeg(torch.frombuffer(bytearray(data), dtype=torch.uint8), ImageReadMode.RGB), region


def decode_turbo(data: bytes, choose: Choose) -> tuple[Tensor, Region]:
    """An image at reduced resolution where the region allows it, and the region in its pixels."""
    from simplejpeg import decode_jpeg, decode_jpeg_header

    height, width, colours, _ = decode_jpeg_header(data)
    if colours in ("CMYK", "YCCK"):
        raise ValueError(f"{colours} is left to PIL")
    region = choose(width, height)
    n = region.reduction
    least = {"min_height": -(-height // n), "min_width": -(-width // n), "min_factor": 2} if n > 1 else {}
    pixels = torch.from_numpy(decode_jpeg(data, fastupsample=region.coarse, **least)).permute(2, 0, 1)
    rows, columns = pixels.shape[1] / height, pixels.shape[2] / width
    left, top = round(region.left * columns), round(region.top * rows)
    box = {"left": left, "top": top, "width": round(region.width * columns), "height": round(region.height * rows)}
    return pixels, region._replace(**box, coarse=False)


@dataclass(frozen=True)
class Decoder:
    """`read(path, choose)` gives 3 x H x W, uint8.

    packages  those that decide the pixels
    needs     module and name of a function that must be there
    """

    packages: tuple[str, ...]
    decode: Callable[[bytes, Choose], tuple[Tensor, Region]] | None = None
    needs: tuple[str, str] = ("PIL.Image", "open")

    @property
    def about(self) -> str:
        """`PIL 12.0.0, EXIF orientation ignored`: how a record names it."""
        return ", ".join([*(f"{name} {import_module(name).__version__}" for name in self.packages), ORIENTATION])

    def read(self, path: str, choose: Choose) -> Tensor:
        """The region that `choose` takes. Raises UnreadableImage, with the path, for a file that PIL cannot read either."""
        if self.decode is None:
            return read_pil(path, choose)
        decoded = self.read_jpeg(path, choose)
        if decoded is None:
            return read_pil(path, choose)
        pixels, region = decoded
        part = pixels[None, :, region.top : region.top + region.height, region.left : region.left + region.width]
        return F.resize(part, list(region.size), transforms.InterpolationMode(region.interpolation), antialias=True)[0]

    def read_jpeg(self, path: str, choose: Choose) -> tuple[Tensor, Region] | None:
        assert self.decode is not None
        regular_file(path)
        try:
            with open(path, "rb") as file:
                start = file.read(len(JPEG))
                if start != JPEG:
                    return None
                data = start + file.read()
            return self.decode(data, lambda width, height: limited(path, width, height, choose))
        except UnreadableImage:
            raise
        except Exception:  # PIL has the last word on a file that libjpeg rejects
            return None


DECODERS: dict[str, Decoder] = {
    "pil": Decoder(("PIL",)),
    "torchvision": Decoder(("torchvision",), decode_torchvision, ("torchvision.io", "decode_jpeg")),
    "turbo": Decoder(("simplejpeg", "torchvision"), decode_turbo, ("simplejpeg", "decode_jpeg")),
}


def find_decoder(name: str) -> Decoder:
    """The entry of `name`. Raises InputError for an unknown name and for a decoder that is not installed."""
    if name not in DECODERS:
        raise unknown("decoder", name, DECODERS)
    module, function = DECODERS[name].needs
    try:
        getattr(import_module(module), function)
    except (ImportError, AttributeError):
        raise InputError(
            f"decoder {name} needs {module}.{function}, which is not installed: name another of {', '.join(DECODERS)}."
        ) from None
    return DECODERS[name]


def whole(width: int, height: int, side: int) -> Region:
    """The whole image, its shorter side resized to `side`."""
    shorter, longer = min(width, height), max(width, height)
    long_side = int(side * longer / shorter)
    return Region(0, 0, width, height, (side, long_side) if height <= width else (long_side, side))


def random_box(generator: Any, width: int, height: int, side: int) -> Region:
    """A box of 8 to 100% of the area with sides of 3:4 to 4:3, resized to a square, as torchvision's RandomResizedCrop.

    The NumPy `generator` draws ten boxes; if none fits into the image, it is the largest centred one of such sides.
    """
    for share, logarithm, across, down in generator.random((10, 4)):
        area = width * height * (0.08 + 0.92 * share)
        ratio = (4 / 3) ** (2 * logarithm - 1)
        w, h = round((area * ratio) ** 0.5), round((area / ratio) ** 0.5)
        if 0 < w <= width and 0 < h <= height:
            return Region(int(across * (width - w + 1)), int(down * (height - h + 1)), w, h, (side, side), coarse=True)
    w, h = min(width, round(height * 4 / 3)), min(height, round(width * 4 / 3))
    return Region((width - w) // 2, (height - h) // 2, w, h, (side, side), coarse=True)
