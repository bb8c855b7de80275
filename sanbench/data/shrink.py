"""A folder data set with smaller images, for faster training: `sanbench data shrink`."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import PIL
from PIL import Image

from sanbench.data.decoding import eight_bits, opened
from sanbench.data.imagenet import NAMES_FILE
from sanbench.data.listing import SHRUNK, SPLITS, fingerprint, list_classes, read_marker, shrunk
from sanbench.data.threads import in_threads
from sanbench.errors import InputError, SanbenchError, UnreadableImage
from sanbench.progress import Progress, Report, silent

QUALITY, SIZES = 95, range(32, 4097)
NAMED = 5


def shrink(source: Path, target: Path, size: int = 256, progress: Report = silent) -> int:
    """Write source/{train,val,test}/CLASS/* to `target` with shorter sides of `size`; the number of images there.

    Images are resized by Lanczos and written as JPEG of quality 95 (other formats are kept), on all CPUs; smaller images are
    copied. Files that exist are not written again, so that an interrupted call goes on. The fingerprint of `target` says that
    it was shrunk. Raises InputError for wrong folders or sizes, SanbenchError, when all others are written, for images that
    cannot be read.
    """
    if size not in SIZES:
        raise InputError(f"size {size} is not accepted: accepted are {SIZES.start} to {SIZES.stop - 1}.")
    subfolders = [name for name in SPLITS if (source / name).is_dir()]
    if not subfolders:
        raise InputError(f"There is no data set in {source}: it needs class folders under train/ or val/.")
    if target.resolve() == source.resolve():
        raise InputError(f"{target} is not accepted: name another folder than that of the images.")
    if shrunk(source):
        raise InputError(f"{source} was shrunk already: name the folder of the original images.")
    classes = {subfolder: list(list_classes(source / subfolder)) for subfolder in subfolders}
    settings = {"size": size, "quality": QUALITY, "filter": "lanczos", "pil": PIL.__version__}
    fingerprints = {subfolder: fingerprint(source, subfolder, found) for subfolder, found in classes.items()}
    finished = settings | {"finished": True, "source": fingerprints}
    begin(target, settings | {"finished": False, "source": str(source.resolve())}, finished)
    for name in (NAMES_FILE, "meta.bin"):
        if (source / name).is_file():
            shutil.copy2(source / name, target / name)
    jobs = [(name, folder.name, file) for name, found in classes.items() for folder in found for file in folder.files]
    for subfolder, found in classes.items():
        for folder in found:
            (target / subfolder / folder.name).mkdir(parents=True, exist_ok=True)
    broken = []
    for done, (_, sentence) in enumerate(in_threads(lambda job: shrink_one(source, target, job, size), jobs), start=1):
        broken += [sentence] if sentence else []
        progress(Progress(f"shrink to {size}", done, len(jobs)))
    if broken:
        more = "" if len(broken) <= NAMED else f" and {len(broken) - NAMED:,} more"
        raise SanbenchError(
            f"{len(broken):,} images cannot be shrunk: {'; '.join(sorted(broken)[:NAMED])}{more}. All others are."
        )
    write_marker(target, finished)
    return len(jobs)


def begin(target: Path, under_way: dict[str, Any], finished: dict[str, Any]) -> None:
    """Write the marker `under_way`. Raises InputError unless `target` is empty or has this marker or that of `finished`.

    The unfinished marker names the source by its path, so that its broken images can be replaced, the finished one by its
    fingerprints.
    """
    try:
        target.mkdir(parents=True, exist_ok=True)
        if (target / SHRUNK).is_file():
            if read_marker(target) not in (under_way, finished):
                raise InputError(f"{target} holds images that were shrunk otherwise or from others: name another folder.")
        elif any(target.iterdir()):
            raise InputError(f"{target} is not empty: name another folder, or remove what is there.")
        write_marker(target, under_way)
    except OSError as error:
        raise SanbenchError(f"Cannot write {target}: {error.strerror or error}.") from error


def write_marker(target: Path, marker: dict[str, Any]) -> None:
    partial = target / f".{SHRUNK}"
    with partial.open("w") as file:
        json.dump(marker, file, indent=1)
    partial.replace(target / SHRUNK)


def shrink_one(source: Path, target: Path, job: tuple[str, str, str], size: int) -> str:
    """Write one image, all or nothing; the error's sentence, empty where there is none."""
    path, final = source.joinpath(*job), target.joinpath(*job)
    if final.is_file():
        return ""
    partial = final.with_name(f".{os.getpid()}.{final.name}")
    try:
        with opened(path) as (image, _):
            kind, sides, plain = image.format, image.size, eight_bits(image)  # raises for a broken image, which is not copied
            plain = image if image.mode == "L" else plain
            if min(sides) > size:
                smaller = [max(size, round(side * size / min(sides))) for side in sides]
                plain = plain.resize((smaller[0], smaller[1]), Image.Resampling.LANCZOS)
        if min(sides) > size:
            plain.save(partial, format=kind, quality=QUALITY)
        else:
            shutil.copyfile(path, partial)
        partial.replace(final)
    except UnreadableImage as error:
        return f"{'/'.join(job)}{str(error).removeprefix(str(path)).removesuffix('.')}"
    except OSError as error:
        return f"{final} cannot be written: {error.strerror or error}"
    finally:
        partial.unlink(missing_ok=True)
    return ""
