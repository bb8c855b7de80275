"""Processes on this machine that train together: started, watched and ended by the command that was typed."""

import ctypes
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence

from sanbench.errors import Interrupted, SanbenchError
from sanbench.training.interruption import Interruption

LAUNCHER = "SANBENCH_LAUNCHER"  # in the environment of the processes: which process started them
PR_SET_PDEATHSIG = 1  # linux/prctl.h
LOOK = 0.05  # seconds between two looks at the processes
SAVE = 120  # seconds in which they must have saved after a signal
END = 10  # seconds in which the others must have ended when one has failed


def is_launched() -> bool:
    """Whether torchrun, or `launch`, started this process."""
    return "TORCHELASTIC_RUN_ID" in os.environ or LAUNCHER in os.environ


def end_with_parent() -> None:
    """Have the system kill this process when the one that started it ends, however that does: without it, a process would
    train on, or wait for others. Only Linux can."""
    prctl = getattr(ctypes.CDLL(None), "prctl", None)
    if not is_launched() or prctl is None:
        return
    prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.environ.get(LAUNCHER, str(os.getppid())) != str(os.getppid()):  # it has ended already
        os._exit(1)


def launch(processes: int, arguments: Sequence[str], interruption: Interruption) -> int:
    """Run `sanbench ARGUMENTS` in so many processes; the exit code of the first that failed, or 0. Signals are passed on.

    Raises SanbenchError for a process that a signal has ended, Interrupted where the processes ended before they had begun.
    """
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": str(processes)}
    shared |= {LAUNCHER: str(os.getpid())}
    threads = {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // processes))}
    interruption.begun = True  # from here on a signal is the processes'
    ranks = []
    try:
        for rank in range(processes):
            environment = threads | dict(os.environ) | shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)}
            command = [sys.executable, "-m", "sanbench_cli", *arguments]
            # a session of its own: Ctrl-C on a terminal shall reach a process once, through this one
            ranks.append(subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, start_new_session=True))
        failed = watch(ranks, interruption)
    finally:
        for process in ranks:
            process.kill()
            process.wait()
    codes = [process.returncode for process in ranks]
    if Interrupted.exit_code in codes:
        if codes[0] != Interrupted.exit_code:  # it says what was saved
            raise Interrupted("A signal ended the training before all processes had begun: the same command goes on.")
        return Interrupted.exit_code
    if failed is not None and codes[failed] < 0:
        raise SanbenchError(
            f"Process {failed} of {processes} was ended by {signal.Signals(-codes[failed]).name}, as by a system that is out "
            "of memory: --resume goes on after the last step that was saved."
        )
    return 0 if failed is None else codes[failed]


def watch(ranks: Sequence["subprocess.Popen[bytes]"], interruption: Interruption) -> int | None:
    """Wait for all `ranks`; the number of the first that failed. Those that do not end in time are left running."""
    failed, deadline, passed = None, float("inf"), None
    while any(process.poll() is None for process in ranks) and time.monotonic() < deadline:
        time.sleep(LOOK)
        if interruption.signal != passed:
            passed = interruption.signal
            for process in ranks:
                process.send_signal(passed or signal.SIGTERM)
            deadline = min(deadline, time.monotonic() + SAVE)
        if failed is None:
            failed = next((rank for rank, process in enumerate(ranks) if process.poll()), None)
            if failed is not None:
                deadline = min(deadline, time.monotonic() + END)
    return failed if failed is not None else next((rank for rank, process in enumerate(ranks) if process.poll()), None)


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])
