"""One job by several processes on this machine; they end with the one that started them, even if that is killed."""

import multiprocessing
import multiprocessing.connection
import os
import signal
import threading
from collections.abc import Callable
from multiprocessing.connection import Connection
from multiprocessing.process import parent_process
from typing import Any, cast

import torch

from sanbench.errors import SanbenchError

Work = Callable[[Any, torch.device, Callable[..., None]], None]


def run_processes(work: Work, job: Any, count: int, device: torch.device, hear: Callable[..., None]) -> None:
    """`work(job, device, say)` in `count` processes; of several GPUs each takes one.

    What a process says is heard here, with its number: `say(*words)` there is `hear(number, *words)`. Raises what the first
    process to fail raised, or SanbenchError where that could not say anything.
    """
    context = multiprocessing.get_context("spawn")
    threads = max(1, torch.get_num_threads() // count)
    pipes = [context.Pipe(duplex=False) for _ in range(count)]
    processes = [
        context.Process(target=run_one, args=(work, job, own_device(device, rank), threads, pipes[rank][1]))
        for rank in range(count)
    ]
    receivers = {pipe: rank for rank, (pipe, _) in enumerate(pipes)}
    try:
        for process, (_, sender) in zip(processes, pipes, strict=True):
            process.start()
            sender.close()  # here, so that its end is heard when the process ends
        while any(process.is_alive() for process in processes) or multiprocessing.connection.wait([*receivers], 0):
            ends = [process.sentinel for process in processes if process.is_alive()]
            for ready in multiprocessing.connection.wait([*receivers, *ends], 0.5):
                if (pipe := cast(Connection, ready)) in receivers:
                    try:
                        said = pipe.recv()
                    except (EOFError, OSError):  # it has ended, perhaps in the middle of a word
                        del receivers[pipe]
                        continue
                    if isinstance(said, Exception):
                        raise said
                    hear(receivers[pipe], *said)
            for process, (pipe, _) in zip(processes, pipes, strict=True):
                if process.exitcode not in (None, 0) and not (pipe in receivers and pipe.poll()):  # all that it said is heard
                    raise SanbenchError(
                        f"A process of the measurement ended with {process.exitcode}: the same command measures the rest."
                    )
    finally:
        for process in processes:
            if process.is_alive():
                process.terminate()


def run_one(work: Work, job: Any, device: torch.device, threads: int, sender: Connection) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the starting process ends this one
    threading.Thread(target=end_with_parent, daemon=True).start()
    torch.set_num_threads(threads)
    try:
        work(job, device, lambda *words: sender.send(words))
    except Exception as error:
        sender.send(error)
        raise SystemExit(1) from None


def end_with_parent() -> None:
    parent = parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def own_device(device: torch.device, rank: int) -> torch.device:
    return torch.device("cuda", rank % torch.cuda.device_count()) if device.type == "cuda" else device
