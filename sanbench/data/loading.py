"""Batches, read by processes that stay: how many there are, and what is said when one dies."""

import atexit
import os
import signal
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader

from sanbench.data.images import Batch, Images, TensorImages
from sanbench.errors import SanbenchError, UnreadableImage

MOST_WORKERS = 16  # decode more than a GPU trains on, and each costs memory


class DeadWorker(SanbenchError):
    """A process that reads images has died."""


class Chunks:
    """What a DataLoader takes for a sampler of batches: it is asked for the current chunks each time that it starts."""

    current: Iterable[Sequence[int]] = ()

    def __iter__(self) -> Iterator[list[int]]:
        return map(list, self.current)


class Loader:
    """Batches of one split: the processes that read them start at the first `read` and stay until the loader goes.

    Without `workers` there are as many as `default_workers` says. Only `images` and the draws decide what a batch holds.
    """

    def __init__(self, images: Images, workers: int | None = None, skip_bad_images: bool = False) -> None:
        self.skip_bad_images = skip_bad_images
        count = default_workers(images) if workers is None else workers
        self.chunks = Chunks()
        self.loader = DataLoader(
            images,
            batch_sampler=self.chunks,
            collate_fn=as_it_is,
            num_workers=count,
            worker_init_fn=leave_signals,
            persistent_workers=count > 0,
            pin_memory=torch.cuda.is_available(),
        )

    def read(self, chunks: Iterable[Sequence[int]]) -> Iterator[Batch]:
        """A batch for each chunk of draws (see `Images`), in order; a chunk is asked for when a process is free to read it.

        Raises UnreadableImage for the first image that cannot be decoded; with `skip_bad_images` the batch names it instead,
        unless nothing is left of it. Raises DeadWorker if a process that reads has died.
        """
        self.chunks.current = chunks
        try:
            with dead_workers_named():
                for batch in self.start():
                    if batch.unreadable and not (self.skip_bad_images and len(batch.indices)):
                        raise UnreadableImage(batch.unreadable[0])
                    yield batch
        except DeadWorker:
            self.close()
            raise

    def start(self) -> Iterator[Batch]:
        """The batches of `chunks`. The program's end ends the processes too: they heed no signal, so it would wait for ever."""
        begun = self.loader._iterator is not None
        with interrupt_held():
            stream = iter(self.loader)
        if not begun:
            atexit.register(kill, os.getpid(), getattr(stream, "_workers", []))
        return stream

    def close(self) -> None:
        """End the processes. Of a dead one torch would speak again, wherever the program is by then."""
        iterator = self.loader._iterator
        if iterator is not None:
            iterator._shutdown_workers()  # type: ignore[attr-defined]  # the public way is to drop every reference


def kill(parent: int, workers: Sequence[BaseProcess]) -> None:
    """Ended politely or not, none of `parent`'s processes stays: something may still hold a loader, or what is left of it."""
    if os.getpid() == parent:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch's handler would speak of the dead
        for worker in workers:
            worker.kill()


def batches(
    images: Images, chunks: Iterable[Sequence[int]], workers: int | None = None, skip_bad_images: bool = False
) -> Iterator[Batch]:
    """The batches of `chunks`, once: see `Loader.read`."""
    return Loader(images, workers, skip_bad_images).read(chunks)


def leave_signals(worker: int) -> None:
    """A terminal, a launcher and a scheduler send their signals to children too: what they ask is for the parent to do.

    Otherwise it would lose the processes that read while it saves. They end when it does.
    """
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)


@contextmanager
def interrupt_held() -> Iterator[None]:
    """Ctrl-C takes effect afterwards: while Python forks, an exception would be printed and forgotten."""
    if threading.current_thread() is not threading.main_thread():  # signals are the main thread's
        yield
        return
    came: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, _: came.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
        if came:
            signal.raise_signal(signal.SIGINT)


def as_it_is(batch: Any) -> Any:
    """`Images` give whole batches already."""
    return batch


@contextmanager
def dead_workers_named() -> Iterator[None]:
    """Where a process that reads images was killed, torch raises a RuntimeError, anywhere: here it becomes a DeadWorker."""
    try:
        yield
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        raise DeadWorker(
            "A process that decodes images died. If the system ended it for want of memory, fewer --workers, a smaller "
            f"--batch-size or more memory help ({str(error).splitlines()[0].rstrip('.')})."
        ) from error


def default_workers(images: Images, processes: int | None = None) -> int:
    """None for images in memory; else the CPUs of this process's share, at most 16.

    The share is one of `processes` on this machine, which without a number are those that torchrun started.
    """
    if isinstance(images, TensorImages):
        return 0
    return max(1, min(MOST_WORKERS, available_cpus() // (processes or int(os.environ.get("LOCAL_WORLD_SIZE", "1")))))


def available_cpus(root: Path = Path("/")) -> int:
    """CPUs that this process may use: by its affinity, and by the quota of its control groups under `root`, rounded up."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min([allowed, *quotas(root)]))


def quotas(root: Path) -> Iterator[int]:
    """cpu.max of this process's control group and of those above it, in CPUs."""
    try:
        own = (root / "proc/self/cgroup").read_text().split("::", 1)[1].splitlines()[0].strip("/")
    except (OSError, IndexError):  # not Linux, or control groups of version 1
        own = ""
    top = root / "sys/fs/cgroup"
    for group in (top / own, *(top / own).relative_to(top).parents):
        try:
            quota, period = (top / group / "cpu.max").read_text().split()
        except (OSError, ValueError):
            continue
        if quota != "max":
            yield -(-int(quota) // int(period))
