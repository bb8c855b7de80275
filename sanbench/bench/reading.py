"""What reading images costs: `sanbench bench data`, against torchvision's ImageFolder with PIL in the same run."""

import statistics
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from sanbench.bench.photographs import HEIGHT, QUALITY, WIDTH, cuts, photographs_here
from sanbench.bench.timing import time_in_turn
from sanbench.data import Loader, ReadOptions, Split, load_dataset
from sanbench.data.decoding import Region, find_decoder
from sanbench.errors import InputError
from sanbench.progress import Report, silent
from sanbench.store.schema import Benchmark
from sanbench.training.augment import BatchSlice, augment

BATCH, SIDE = 32, 224
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
REFERENCE = "ImageFolder, PIL"
CPU = torch.device("cpu")


def time_reading(
    photographs: Path | None, decoders: Sequence[str], images: int = 200, n: int = 5, progress: Report = silent
) -> list[Benchmark]:
    """Time each decoder alone on one thread, and the whole pipeline with one process that reads, in turn.

    They read `images` JPEG files of 500 x 375, cut from the `photographs`, a folder of image files (None: those of
    `photographs_here`). `training` and `evaluation` give what a reading process delivers: ours uint8, the reference
    normalised floats; `training + device` adds what is left for the device to do with ours, done by this process on the CPU.

    A benchmark holds one part and reader: the ratio is the time of the part's reference, the first, over the reader's, and
    the figure `images_per_second` is on one core. Raises InputError for an unknown decoder, a folder without photographs,
    and for n or images below 1.
    """
    if n < 1 or images < 1:
        raise InputError(f"n {n} and images {images} are not accepted: both must be at least 1.")
    abouts = {name: find_decoder(name).about for name in ("pil", *decoders)}
    abouts[REFERENCE] = abouts["pil"]
    with tempfile.TemporaryDirectory() as folder, one_thread():
        size = make_photographs(photographs or photographs_here(), Path(folder), images)
        jobs = {(part, reader): job for part, reader, job in list_jobs(Path(folder), decoders)}
        sides = {f"{part}: {reader}": job for (part, reader), job in jobs.items()}
        timing = time_in_turn(sides, n, CPU, progress, "bench data")
        found = []
        for part, reader in jobs:
            side = f"{part}: {reader}"
            reference = next(name for name in sides if name.startswith(f"{part.split(' +')[0]}: "))
            setting = {"part": part, "reader": reader, "decoder": abouts[reader]}
            files = {"images": images, "image_size": [WIDTH, HEIGHT], "bytes_per_image": round(size), "batch_size": BATCH}
            speed = {"images_per_second": images / timing.medians()[side]}
            found.append(timing.of(reference, side).benchmark("data", {**setting, **files}, CPU, figures=speed))
    return found


def make_photographs(photographs: Path, root: Path, count: int) -> float:
    """`count` JPEG files under root/train/0 and root/val/0, each another cut of a photograph; the mean size in bytes."""
    folder = root / "train" / "0"
    folder.mkdir(parents=True)
    (root / "val").symlink_to(root / "train")
    for number, cut in enumerate(islice(cuts(photographs), count)):
        cut.save(folder / f"{number:05d}.jpg", quality=QUALITY)
    return statistics.mean(path.stat().st_size for path in folder.iterdir())


def list_jobs(root: Path, decoders: Sequence[str]) -> Iterator[tuple[str, str, Callable[[], Any]]]:
    """(part, reader, job), the reference of a part first; a job reads all images once, in one process that stays."""
    files = [str(path) for path in sorted((root / "train" / "0").iterdir())]
    chunks = [list(range(start, min(start + BATCH, len(files)))) for start in range(0, len(files), BATCH)]

    def decode(name: str) -> Callable[[], Any]:
        decoder = find_decoder(name)
        return lambda: [decoder.read(path, lambda w, h: Region(0, 0, w, h, (h, w))) for path in files]

    def load(name: str, split: Split, use: Callable[[Tensor], Any]) -> Callable[[], Any]:
        loader = Loader(load_dataset(f"folder:{root}", split, ReadOptions(decoder=name)), workers=1)
        return lambda: [use(batch.images) for batch in loader.read(chunks)]

    for name in dict.fromkeys(["pil", *decoders]):
        yield "decoding", name, decode(name)
    yield "training", REFERENCE, reference(root, chunks, [v2.RandomResizedCrop(SIDE), v2.RandomHorizontalFlip()])
    for name in decoders:
        yield "training", name, load(name, "train", len)
        yield "training + device", name, load(name, "train", on_device)
    yield "evaluation", REFERENCE, reference(root, chunks, [v2.Resize(256), v2.CenterCrop(SIDE)])
    for name in decoders:
        yield "evaluation", name, load(name, "test", len)


def reference(root: Path, chunks: list[list[int]], crop: list[v2.Transform]) -> Callable[[], Any]:
    """As torchvision's reference scripts read ImageNet with their PIL backend."""
    convert = [v2.PILToTensor(), v2.ToDtype(torch.float, scale=True), v2.Normalize(MEAN, STD), v2.ToPureTensor()]
    folder = ImageFolder(str(root / "train"), v2.Compose([*crop, *convert]))
    loader = DataLoader(folder, batch_sampler=chunks, num_workers=1, persistent_workers=True)
    return lambda: [len(images) for images, _ in loader]


def on_device(images: Tensor) -> Tensor:
    batch_slice = BatchSlice(0, 0, 0, range(len(images)), len(images))
    return F.normalize(augment(images, batch_slice, 0), list(MEAN), list(STD))


@contextmanager
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
