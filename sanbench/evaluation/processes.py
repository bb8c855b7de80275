"""One job by several processes on this machine; they end with the one that started them, even if that is killed."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Sequence, Sized
from multiprocessing.process import parent_process
from queue import Empty
from typing import Any

import torch

from sanbench.errors import SanbenchError
from sanbench.progress import Progress, Report

Work = Callable[[Any, Any, torch.device], None]


def run_shards(work: Work, job: Any, shards: Sequence[Sized], device: torch.device, progress: Report, task: str) -> None:
    """`work(job, shard, device)` for every shard, each in a process of its own; of several GPUs each takes one.

    Raises what the first process to fail raised.
    """
    context = multiprocessing.get_context("spawn")
    failures = context.Queue()
    threads = max(1, torch.get_num_threads() // len(shards))
    processes = [
        context.Process(target=run_shard, args=(work, job, shard, own_device(device, rank), threads, failures))
        for rank, shard in enumerate(shards)
    ]
    try:
        for process in processes:
            process.start()
        for done, process in enumerate(processes, start=1):
            while process.is_alive() and all(p.exitcode in (None, 0) for p in processes):
                process.join(0.2)
            broken = [p for p in processes if p.exitcode not in (None, 0)]
            if broken:
                raise failure(failures, broken[0].exitcode)
            progress(Progress(task, done, len(processes)))
    finally:
        for process in processes:
            if process.is_alive():
                process.terminate()


def failure(failures: Any, code: int | None) -> Exception:
    try:
        found: Exception = failures.get(timeout=1)
    except Empty:
        return SanbenchError(f"A process of the measurement ended with {code}: the same command measures the rest.")
    return found


def run_shard(work: Work, job: Any, shard: Any, device: torch.device, threads: int, failures: Any) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the starting process ends this one
    threading.Thread(target=end_with_parent, daemon=True).start()
    torch.set_num_threads(threads)
    try:
        work(job, shard, device)
    except Exception as error:
        failures.put(error)
        raise SystemExit(1) from None


def end_with_parent() -> None:
    parent = parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def own_device(device: torch.device, rank: int) -> torch.device:
    return torch.device("cuda", rank % torch.cuda.device_count()) if device.type == "cuda" else device
