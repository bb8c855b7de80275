"""Loader: batches from persistent worker processes; how many workers there are, and the error when one dies."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing import get_start_method, parent_process
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from multiprocessing.util import Finalize
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sanbench.errors import SanbenchError, UnreadableImage
from sanbench.late import Late

if TYPE_CHECKING:
    import torch

    from sanbench.data.images import Batch, Changed, Images, Request
else:
    torch = Late("torch")

MOST_WORKERS = 16  # they decode faster than a GPU trains, and each takes memory


class DeadWorker(SanbenchError):
    """A worker process died."""


class Chunks:
    """What a DataLoader takes for a sampler of batches: it is asked for the current chunks each time that it starts."""

    current: Iterable[Any] = ()

    def __iter__(self) -> Iterator[Any]:
        return iter(self.current)


class Loader:
    """Batches of one split. Its worker processes start at the first `read` and last as long as the loader.

    Without `workers` there are `default_workers(images)`. What a batch holds depends on `images` and the draws alone.
    """

    def __init__(self, images: Images | Changed, workers: int | None = None, skip_bad_images: bool = False) -> None:
        self.skip_bad_images = skip_bad_images
        count = default_workers(images) if workers is None else workers
        self.chunks = Chunks()
        self.loader = torch.utils.data.DataLoader(
            images,
            batch_sampler=self.chunks,
            collate_fn=unchanged,
            num_workers=count,
            worker_init_fn=begin,
            persistent_workers=count > 0,
            pin_memory=torch.cuda.is_available(),
        )

    def read(self, chunks: Iterable[Sequence[int]] | Iterable[Request]) -> Iterator[Batch]:
        """A batch for each chunk of draws (see `Images`) or request, in order; it is asked for when a process is free to read.

        Raises UnreadableImage for the first image that cannot be decoded; with `skip_bad_images` only if no image of the batch
        can be, and the batch lists the others. Raises DeadWorker if a worker has died.
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
        except (EOFError, ConnectionError) as error:  # while a worker hands over a batch's memory
            workers: Sequence[BaseProcess] = getattr(self.loader._iterator, "_workers", [])
            if not wait([worker.sentinel for worker in workers], timeout=1):
                raise
            self.close()
            raise dead_worker("a DataLoader worker exited while it handed over a batch") from error

    def start(self) -> Iterator[Batch]:
        """The batches of `chunks`. Workers ignore signals: the program kills them at its exit, to not wait for them."""
        started = self.loader._iterator is not None
        with interrupt_postponed():
            stream = iter(self.loader)
        if not started:  # earlier than multiprocessing waits for them: in a process that it started, atexit comes too late
            Finalize(None, kill, (os.getpid(), getattr(stream, "_workers", [])), exitpriority=0)
        return stream

    def close(self) -> None:
        """End the workers. If one had died, torch would raise its error again later, in unrelated code."""
        iterator = self.loader._iterator
        if iterator is not None:
            iterator._shutdown_workers()  # type: ignore[attr-defined]  # PyTorch has no public method for it


def kill(parent: int, workers: Sequence[BaseProcess]) -> None:
    """Kill the workers of the process `parent` at its exit: a loader that is still referenced would keep them alive."""
    if os.getpid() == parent:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch's handler would raise an error for each
        for worker in workers:
            worker.kill()


def batches(
    images: Images | Changed,
    chunks: Iterable[Sequence[int]] | Iterable[Request],
    workers: int | None = None,
    skip_bad_images: bool = False,
) -> Iterator[Batch]:
    """The batches of `chunks`, from a loader that is used once: see `Loader.read`."""
    return Loader(images, workers, skip_bad_images).read(chunks)


def begin(worker: int) -> None:
    """Ignore the signals that a terminal, a launcher or a scheduler sends to child processes too.

    Only the parent reacts to them: it needs its workers while it saves, and they end with it. torch looks from here on whether
    it has another parent than now: of a parent that was killed before, a forked worker would wait for requests for ever.
    """
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    parent = parent_process()
    if parent and get_start_method() == "fork" and os.getppid() != parent.pid:
        os._exit(1)


@contextmanager
def interrupt_postponed() -> Iterator[None]:
    """Postpone Ctrl-C to the end of the block: while Python forks, KeyboardInterrupt would be printed and lost."""
    if threading.current_thread() is not threading.main_thread():  # only the main thread handles signals
        yield
        return
    received: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, _: received.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
        if received:
            signal.raise_signal(signal.SIGINT)


def unchanged(batch: Any) -> Any:
    """The batch: `Images.__getitems__` has collated it already."""
    return batch


@contextmanager
def dead_workers_named() -> Iterator[None]:
    """Raise DeadWorker in place of the RuntimeError that torch raises, in any line of the program, when a worker was killed."""
    try:
        yield
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        raise dead_worker(str(error).splitlines()[0].rstrip(".")) from error


def dead_worker(reason: str) -> DeadWorker:
    return DeadWorker(
        "A process that decodes images died. If the system ended it for want of memory, fewer --workers, a smaller "
        f"--batch-size or more memory help ({reason})."
    )


def default_workers(images: Images | Changed, processes: int | None = None, changing: bool = False) -> int:
    """0 for images in memory that are given as they are; else the available CPUs divided by `processes`, from 1 to 16.

    `processes` are those that use this machine together, by default those that torchrun started on it; `changing` is
    whether they change images too.
    """
    if getattr(images, "in_memory", False) and not changing:
        return 0
    return reading_processes(processes or int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


def reading_processes(sharing: int = 1) -> int:
    """For images in files, where `sharing` processes use this machine together."""
    return max(1, min(MOST_WORKERS, available_cpus() // sharing))


def available_cpus(root: Path = Path("/")) -> int:
    """The CPUs that this process may use by its affinity and by the quota of its control groups under `root`, rounded up."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min([allowed, *quotas(root)]))


def quotas(root: Path) -> Iterator[int]:
    """cpu.max, in CPUs, of this process's control group and of its parents."""
    try:
        group_path = (root / "proc/self/cgroup").read_text().split("::", 1)[1].splitlines()[0].strip("/")
    except (OSError, IndexError):  # not Linux, or control groups of version 1
        group_path = ""
    top = root / "sys/fs/cgroup"
    for group in (top / group_path, *(top / group_path).relative_to(top).parents):
        try:
            quota, period = (top / group / "cpu.max").read_text().split()
        except (OSError, ValueError):
            continue
        if quota != "max":
            yield -(-int(quota) // int(period))
