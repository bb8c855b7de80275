"""Whether a file is whole, and as small as it seems: checksums and sizes, checked before and after it is unpickled."""

from __future__ import annotations

import hashlib
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sanbench.errors import SanbenchError
from sanbench.late import Late

if TYPE_CHECKING:
    import torch
    from torch import Tensor
else:
    torch = Late("torch")

MOST_VALUES = 10**6  # tensors and plain values in a file; a training state has about a thousand
# resnet50-0676ba61.pth: the beginning of its SHA-256. Eight digits that read as a date are a date.
DIGEST_IN_NAME = re.compile(r"-(?!(?:19|20)\d{6}\.)([0-9a-f]{8,64})\.[a-z]+$")


class Unreadable(SanbenchError):
    """A file is damaged, or holds what is not accepted."""


def check_zip(path: Path) -> None:
    """Raises Unreadable where a zip's checksums do not fit, or where it unpacks to more than it is: torch.save packs nothing.

    A file that is no zip passes: torch before 1.6 wrote none.
    """
    with path.open("rb") as file:
        if file.read(2) != b"PK":
            return
    try:
        with zipfile.ZipFile(path) as archive:
            unpacked = sum(entry.file_size for entry in archive.infolist())
            broken = archive.testzip() if unpacked <= path.stat().st_size else None
    except Exception as error:  # zipfile raises what the damage leads to: BadZipFile, struct.error, NotImplementedError ...
        raise Unreadable(f"{path} is damaged: it is a zip that cannot be read, as one that is truncated.") from error
    if unpacked > path.stat().st_size:
        raise Unreadable(f"{path} is refused: it unpacks to {unpacked:,} bytes, and torch.save packs nothing.")
    if broken is not None:
        raise Unreadable(f"{path} is damaged: the checksum of {broken!r} in it does not fit.")


def check_published(path: Path) -> None:
    """Compare the SHA-256 of `path` with FILE.sha256 beside it, as sha256sum writes it, and with the digest in its name.

    Without either nothing is checked. Raises Unreadable where one does not fit.
    """
    expected = [(match[1], "its name") for match in [DIGEST_IN_NAME.search(path.name)] if match]
    beside = path.with_name(f"{path.name}.sha256")
    if beside.is_file():
        found = re.search(r"^\\?([0-9a-fA-F]{64})(?:\s|$)", beside.read_text(errors="replace"))
        if found is None:
            raise Unreadable(f"{beside} is not what sha256sum writes: a digest of 64 hexadecimal digits and a name.")
        expected.append((found[1].lower(), beside.name))
    if not expected:
        return
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    for beginning, source in expected:
        if not digest.startswith(beginning):
            raise Unreadable(
                f"{path} is not the file that {source} tells: its SHA-256 is {digest[:12]}..., not {beginning[:12]}...: "
                "fetch it again."
            )


def values(content: Any) -> Iterator[Any]:
    """The containers, tensors and plain values in `content`, in order, containers before what they hold.

    Raises ValueError for more than `MOST_VALUES`: a few references to each other make lists without end.
    """
    waiting = [content]
    for _ in range(MOST_VALUES):
        if not waiting:
            return
        value = waiting.pop()
        yield value
        if isinstance(value, dict):
            waiting += [part for item in reversed(value.items()) for part in reversed(item)]
        elif isinstance(value, list | tuple):
            waiting += reversed(value)
    raise ValueError(f"it holds more than {MOST_VALUES:,} values")


def check_tensors(content: Any, size: int) -> int:
    """The bytes that all tensors in `content` show, of a file of `size` bytes.

    Raises ValueError for one that shows more than the file has, as one that repeats a few values does, or has no values.
    """
    total, kind = 0, torch.Tensor
    for value in values(content):
        if not isinstance(value, kind):
            continue
        if value.layout != torch.strided or value.is_quantized or value.is_meta:
            raise ValueError(f"it holds a tensor of {value.dtype}, {value.layout} on {value.device}: accepted are dense ones")
        shown = value.numel() * value.element_size()
        if shown > size:
            raise ValueError(f"it holds a tensor of shape {tuple(value.shape)}, which needs more than its {size:,} bytes")
        total += shown
    return total


def content_digest(content: Any) -> str:
    """SHA-256 over names, shapes, types and values of tensors, and over plain values, whatever the file."""
    digest, kind = hashlib.sha256(), torch.Tensor
    for value in values(content):
        if isinstance(value, kind):
            add_tensor(digest, value)
        elif isinstance(value, dict | list | tuple):
            digest.update(f"{type(value).__name__} {len(value)}\n".encode())
        else:
            digest.update(f"{value!r}\n".encode())
    return digest.hexdigest()


def add_tensor(digest: Any, tensor: Tensor) -> None:
    """Update a hash of hashlib by a tensor's shape, type and values."""
    values = tensor.detach().cpu().contiguous()
    digest.update(f"{tuple(values.shape)} {values.dtype} ".encode())
    digest.update(values.view(-1).view(torch.uint8).numpy())
