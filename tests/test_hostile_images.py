"""Image files that nobody checked: pixels or a sentence with the path, in all decoders, in bounded memory."""

import io
import os
import random
import resource
import socket
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from sanbench.data.check import decode_class
from sanbench.data.decoding import DECODERS, MOST_BYTES, whole
from sanbench.data.listing import list_class
from sanbench.data.shrink import shrink
from sanbench.errors import SanbenchError, UnreadableImage

SEED, MUTATIONS = 14, 1000
GREY = np.arange(0, 65536, 16, dtype=np.uint16).reshape(64, 64)


def read(path, decoder="pil", side=64):
    return DECODERS[decoder].read(str(path), lambda width, height: whole(width, height, side))


def png(width: int, height: int) -> bytes:
    """A PNG of one bit a pixel, all black, of a few bytes."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    lines = zlib.compress((b"\0" * (1 + (width + 7) // 8)) * min(height, 1000), 9)
    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", lines) + chunk(b"IEND", b"")


@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize(("suffix", "options"), [("png", {}), ("tif", {}), ("pgm", {}), ("tif", {"compression": "tiff_lzw"})])
def test_sixteen_bit_grey_is_scaled(decoder, suffix, options, tmp_path):
    path = tmp_path / f"grey.{suffix}"
    Image.fromarray(GREY).save(path, **options)
    found = read(path, decoder)
    expected = torch.from_numpy(np.round(GREY / 65535 * 255).astype(np.uint8)).expand(3, -1, -1)
    assert torch.equal(found, expected)


@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize(("values", "mode"), [(np.float32, "mode F"), (np.int32, "mode I")])
def test_numbers_without_a_white_are_refused(decoder, values, mode, tmp_path):
    path = tmp_path / "x.tif"
    Image.fromarray(GREY.astype(values)).save(path)
    with pytest.raises(UnreadableImage, match=f"x.tif .*{mode}, .* is not accepted"):
        read(path, decoder)


def test_shrink_decides_as_the_decoders_do(tmp_path):
    folder = tmp_path / "set" / "train" / "a"
    folder.mkdir(parents=True)
    Image.fromarray(GREY).save(folder / "grey.png")
    Image.fromarray(GREY.astype(np.float32)).save(folder / "float.tif")
    os.mkfifo(folder / "fifo.jpg")
    with pytest.raises(SanbenchError, match=r"2 images cannot be shrunk: train/a/fifo.jpg.*regular.*float.tif.*mode F"):
        shrink(tmp_path / "set", tmp_path / "small", 32)
    with Image.open(tmp_path / "small/train/a/grey.png") as image:
        assert image.mode == "L" and image.size == (32, 32)
        assert abs(np.asarray(image, dtype=float).mean() - GREY.mean() / 257) < 1
    decoded = decode_class(folder.parent, "train", list_class(folder.parent, "a"))
    assert any("float.tif" in sentence and "mode F" in sentence for sentence in decoded.broken)


@pytest.mark.parametrize("decoder", DECODERS)
def test_an_orientation_is_ignored_and_recorded(decoder, tmp_path):
    pixels = Image.effect_noise((64, 64), 90).convert("RGB")
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by 90 degrees
    pixels.save(tmp_path / "plain.jpg", quality=95)
    pixels.save(tmp_path / "turned.jpg", quality=95, exif=exif)
    assert torch.equal(read(tmp_path / "plain.jpg", decoder), read(tmp_path / "turned.jpg", decoder))
    assert "EXIF orientation ignored" in DECODERS[decoder].about


def postscript(path):
    path.write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n")


def device(path):
    path.symlink_to("/dev/zero")


def sparse(path):
    with path.open("wb") as file:
        file.write(b"\xff\xd8\xff")
        file.truncate(MOST_BYTES + 1)


def sixteen_thousand(path):
    content = io.BytesIO()
    Image.new("L", (64, 64)).save(content, "JPEG")
    data = bytearray(content.getvalue())
    start = data.index(b"\xff\xc0") + 5
    data[start : start + 4] = struct.pack(">HH", 16000, 16000)
    path.write_bytes(data)


def listening(path):
    socket.socket(socket.AF_UNIX).bind(str(path))


HOSTILE = {
    "EPS": (postscript, "none of JPEG, PNG"),
    "FIFO": (os.mkfifo, "no regular file"),
    "device": (device, "no regular file"),
    "socket": (listening, "no regular file"),
    "folder": (Path.mkdir, "no regular file"),
    "missing": (lambda path: None, "No such file"),
    "sparse": (sparse, "bytes, accepted are"),
    "16000 x 16000": (sixteen_thousand, ".*(16000 x 16000|256000000) pixels"),
    "60000 x 1": (lambda path: path.write_bytes(png(60000, 1)), "resized to 3840000 x 64"),
    "10^5 x 10^5": (lambda path: path.write_bytes(png(10**5, 10**5)), ".*(100000 x 100000|10000000000) pixels"),
}


@pytest.mark.timeout(20)
@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize("name", HOSTILE)
def test_what_is_hostile_is_refused_by_name(decoder, name, tmp_path, monkeypatch):
    monkeypatch.setattr(subprocess, "Popen", None)  # nothing may be started
    make, words = HOSTILE[name]
    path = tmp_path / "x.jpg"
    make(path)
    with pytest.raises(UnreadableImage, match=rf"x\.jpg .*{words}"):
        read(path, decoder)


MUTATE = """
import sys
from tests.test_hostile_images import mutations
print(*mutations(sys.argv[1]))
"""


def samples() -> list[bytes]:
    noise = Image.effect_noise((90, 70), 80)
    forms = [("JPEG", "RGB", {}), ("JPEG", "L", {"progressive": True}), ("JPEG", "CMYK", {}), ("TIFF", "RGB", {})]
    forms += [("PNG", mode, {}) for mode in ("RGB", "P", "RGBA")] + [(form, "RGB", {}) for form in ("BMP", "WEBP", "PPM")]
    forms += [("TIFF", "RGB", {"compression": name}) for name in ("tiff_lzw", "jpeg", "tiff_deflate")]
    found = []
    for form, mode, options in forms:
        content = io.BytesIO()
        noise.convert(mode).save(content, form, **options)
        found.append(content.getvalue())
    return found


def mutated(data: bytes, draw: random.Random) -> bytes:
    changed = bytearray(data)
    for _ in range(draw.choice((1, 1, 1, 4, 32))):
        place = min(int(draw.expovariate(1 / 80)), len(changed) - 1) if draw.random() < 0.6 else draw.randrange(len(changed))
        changed[place] = draw.choice((draw.randrange(256), 0, 255))
    return bytes(changed[: draw.randrange(1, len(changed))] if draw.random() < 0.2 else changed)


def mutations(folder: str) -> tuple[int, int, int]:
    """How many mutated files were read, how many refused, and the most memory in MiB."""
    draw, originals, counts = random.Random(SEED), samples(), [0, 0]
    path = Path(folder) / "mutated.jpg"
    for number in range(MUTATIONS):
        path.write_bytes(mutated(originals[number % len(originals)], draw))
        for decoder in DECODERS:
            try:
                pixels = read(path, decoder)
                assert pixels.dtype == torch.uint8 and pixels.shape[0] == 3
                counts[0] += 1
            except UnreadableImage as error:
                counts[1] += str(error).startswith(f"{path} ") and "\n" not in str(error)
    return (*counts, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)


@pytest.mark.slow
def test_mutated_images_give_pixels_or_a_sentence(tmp_path):
    """In a process of its own: a crash of a decoder is seen, and the memory that it took."""
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parent.parent)}
    command = [sys.executable, "-W", "ignore", "-c", MUTATE, str(tmp_path)]
    found = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path)
    assert found.returncode == 0, found.stderr[-2000:]
    good, refused, memory = map(int, found.stdout.split())
    print(f"{good} read, {refused} refused, {memory} MiB")
    assert good + refused == len(DECODERS) * MUTATIONS and refused > 300
    assert memory < 2500
