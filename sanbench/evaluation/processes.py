"""One job by several processes on this machine; they end with the one that started them, even if that is killed."""

import multiprocessing
import multiprocessing.connection
import os
import signal
import threading
from collections.abc import Callable
from multiprocessing.process import parent_process
from queue import Empty
from typing import Any

import torch

from sanbench.errors import SanbenchError

Work = Callable[[Any, torch.device], None]


def run_processes(work: Work, job: Any, count: int, device: torch.device, look: Callable[[], None]) -> None:
    """`work(job, device)` in `count` processes; of several GPUs each takes one. `look` is called while they run.

    Raises what the first process to fail raised.
    """
    context = multiprocessing.get_context("spawn")
    failures = context.Queue()
    threads = max(1, torch.get_num_threads() // count)
    processes = [
        context.Process(target=run_one, args=(work, job, own_device(device, rank), threads, failures)) for rank in range(count)
    ]
    try:
        for process in processes:
            process.start()
        while any(process.is_alive() for process in processes):
            multiprocessing.connection.wait([process.sentinel for process in processes if process.is_alive()], 0.5)
            broken = [process for process in processes if process.exitcode not in (None, 0)]
            if broken:
                raise failure(failures, broken[0].exitcode)
            look()
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


def run_one(work: Work, job: Any, device: torch.device, threads: int, failures: Any) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the starting process ends this one
    threading.Thread(target=end_with_parent, daemon=True).start()
    torch.set_num_threads(threads)
    try:
        work(job, device)
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
