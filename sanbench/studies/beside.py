"""Other workers of a study on this machine, started and ended by the command that was typed."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress

import torch

SAVE = 120  # seconds in which they must have saved


def command_of(words: Sequence[str]) -> list[str]:
    return [sys.executable, "-m", "sanbench_cli", "study", "work", *words]


@contextmanager
def workers_beside(number: int, words: Sequence[str], cpus: int, notice: Callable[[str], None]) -> Iterator[None]:
    """Run `sanbench study work WORDS` in so many processes until the block ends. All, this process among them, share the CPUs,
    unless OMP_NUM_THREADS says how many each has.

    They are ordinary workers: what fails in one is kept in the store, where this process finds it; what one holds that dies is
    free, and `notice` is told. At the end, also by an exception, they are told to save and end; killed by SIGKILL, this process
    leaves them at work.
    """
    if not number:
        yield
        return
    environment = dict(os.environ)
    if "OMP_NUM_THREADS" not in environment:
        threads = max(1, cpus // (number + 1))
        torch.set_num_threads(threads)
        environment["OMP_NUM_THREADS"] = str(threads)
    quiet = subprocess.DEVNULL
    # a session of their own: Ctrl-C on a terminal shall reach them once, through this process
    workers = [
        subprocess.Popen(command_of(words), env=environment, stdin=quiet, stdout=quiet, stderr=quiet, start_new_session=True)
        for _ in range(number)
    ]
    try:
        yield
    finally:
        died = [code for worker in workers if (code := worker.poll()) not in (None, 0, 1)]  # 1: a run failed, which is told
        for code in died:
            notice(f"One of the workers died (exit code {code}): what it worked on was left to the others.")
        for worker in workers:
            worker.terminate()
        for worker in workers:
            with suppress(subprocess.TimeoutExpired):
                worker.wait(SAVE)
            worker.kill()
            worker.wait()
