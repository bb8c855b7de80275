"""ImageNet from its official archives, through torchvision's parser: `sanbench data prepare imagenet`."""

from __future__ import annotations

import os
import platform
import shutil
import tarfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from sanbench.errors import InputError, SanbenchError
from sanbench.late import Late
from sanbench.progress import Progress, Report, silent

if TYPE_CHECKING:
    from torchvision.datasets import imagenet, utils
else:
    imagenet, utils = Late("torchvision.datasets.imagenet"), Late("torchvision.datasets.utils")

META = "meta.bin"  # torchvision's: names of the WNIDs, and the WNID of each validation image
SLACK = 1.05  # bytes on disk for a byte of an archive: file systems store whole blocks
SECONDS = 1.0  # between two reports of progress


def prepare(archives: Path, root: Path, progress: Report = silent) -> None:
    """Unpack the devkit, val and train archives in `archives` into root/train/WNID and root/val/WNID.

    Existing folders are not changed. An interrupted call goes on with the classes of train/ that are still packed, and with
    val/ from its start. MD5 sums are torchvision's. Raises InputError for missing archives, SanbenchError for a broken archive,
    which it names, for a disk that is too small, and on Python before 3.11.4.
    """
    steps = {"devkit": (root / META, unpack_devkit), "val": (root / "val", unpack_val), "train": (root / "train", unpack_train)}
    left = {name: step for name, (target, step) in steps.items() if not target.exists()}
    files = {name: archives / imagenet.ARCHIVE_META[name][0] for name in left}
    missing = [path.name for path in files.values() if not path.is_file()]
    if missing:
        raise InputError(f"{archives} lacks {', '.join(missing)}: download the official archives from image-net.org.")
    if left and not hasattr(tarfile, "data_filter"):  # which keeps files inside the folder
        raise SanbenchError(f"Python {platform.python_version()} cannot unpack archives safely: 3.11.4 or later is needed.")
    try:
        root.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SanbenchError(f"Cannot write {root}: {error.strerror or error}.") from error
    check_space(root, files)
    for name, step in left.items():
        with broken_archive_named(files[name]), only_inside():
            step(files[name].resolve(), root, progress)


@contextmanager
def only_inside() -> Iterator[None]:
    """Extract with tarfile's data filter, whatever the checksum: Python before 3.14 would write outside the folder.

    torchvision calls `extractall` without a filter; this is tarfile's documented attribute for such callers.
    """
    before = tarfile.TarFile.__dict__.get("extraction_filter")
    tarfile.TarFile.extraction_filter = staticmethod(inside)
    try:
        yield
    finally:
        if before is None:
            del tarfile.TarFile.extraction_filter
        else:
            tarfile.TarFile.extraction_filter = before


def inside(member: tarfile.TarInfo, folder: str) -> tarfile.TarInfo | None:
    """Raises tarfile.FilterError for absolute names too, from which the data filter takes the slash."""
    if member.name.startswith(("/", os.sep)):
        raise tarfile.AbsolutePathError(member)
    return tarfile.data_filter(member, folder)


def check_space(root: Path, files: dict[str, Path]) -> None:
    """Raises SanbenchError if the disk of `root` has no space for the content of `files`."""
    unpacked = sum(path.stat().st_size for path in root.glob("*.partial/**/*") if path.is_file())
    needed = sum(SLACK * path.stat().st_size for path in files.values()) - unpacked
    free = shutil.disk_usage(root).free
    if needed > free:
        raise SanbenchError(f"{root} has {free / 1e9:,.1f} GB free, and unpacking needs {needed / 1e9:,.1f} GB more.")


def unpack_devkit(archive: Path, root: Path, progress: Report) -> None:
    """Unpack into devkit.partial, from which the complete meta.bin is moved."""
    partial = root / "devkit.partial"
    partial.mkdir(exist_ok=True)
    imagenet.parse_devkit_archive(partial, str(archive))
    (partial / META).replace(root / META)
    partial.rmdir()
    progress(Progress("unpack devkit", 1, 1))


def unpack_val(archive: Path, root: Path, progress: Report) -> None:
    """Unpack into val.partial, which is renamed to val when it is complete."""
    partial = root / "val.partial"
    shutil.rmtree(partial, ignore_errors=True)
    wnids = imagenet.load_meta_file(root)[1]
    with watched("unpack val", lambda: sum(1 for _ in partial.rglob("*.JPEG")), len(wnids), progress):
        imagenet.parse_val_archive(root, str(archive), wnids, folder=partial.name)
    partial.replace(root / "val")


def unpack_train(archive: Path, root: Path, progress: Report) -> None:
    """Unpack into train.partial first an archive of each class, then these, which torchvision removes one by one."""
    partial = root / "train.partial"
    classes = len(imagenet.load_meta_file(root)[0])

    def done() -> int:
        return sum(path.is_dir() and not path.with_suffix(".tar").exists() for path in partial.glob("n*"))

    with watched("unpack train, classes", done, classes, progress):
        if any(path.is_dir() for path in partial.glob("n*")):  # the archives of all classes were unpacked
            for packed in sorted(partial.glob("n*.tar")):
                utils.extract_archive(str(packed), str(packed.with_suffix("")), remove_finished=True)
        else:
            shutil.rmtree(partial, ignore_errors=True)
            imagenet.parse_train_archive(root, str(archive), folder=partial.name)
    partial.replace(root / "train")


@contextmanager
def watched(task: str, count: Callable[[], int], total: int, progress: Report) -> Iterator[None]:
    """Report progress every second, which torchvision's parser does not."""
    ended = threading.Event()

    def watch() -> None:
        while not ended.wait(SECONDS):
            progress(Progress(task, min(count(), total - 1), total))

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        ended.set()
        watcher.join()
    progress(Progress(task, total, total))


@contextmanager
def broken_archive_named(archive: Path) -> Iterator[None]:
    try:
        yield
    except (RuntimeError, tarfile.TarError, EOFError, KeyError, ValueError) as error:
        raise SanbenchError(f"{archive} is broken, download it again: {str(error).splitlines()[0]}") from error
    except OSError as error:
        raise SanbenchError(f"Cannot unpack {archive}: {error}.") from error
