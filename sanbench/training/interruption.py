"""Interruption: signals on which a training saves its state and ends. Nothing slow is imported here: it comes first."""

import os
import signal
import threading
from types import FrameType, TracebackType
from typing import Any

from sanbench.errors import Interrupted

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)  # a scheduler's end, Ctrl-C, Slurm's warning


class Interruption:
    """`with Interruption() as interruption: ...; if interruption: save`.

    A signal is kept in `signal` until the state is saved, and repeating it changes nothing; but a second SIGINT raises
    KeyboardInterrupt at once. Where the training has not `begun`, the first signal ends the process at once, with the same
    exit code: there is nothing to save, and an exception might be caught by whatever is being imported.
    """

    def __init__(self, begun: bool = True) -> None:
        self.signal: signal.Signals | None = None
        self.begun = begun
        self.before: dict[signal.Signals, Any] = {}

    def __bool__(self) -> bool:
        return self.signal is not None

    def __enter__(self) -> "Interruption":
        if threading.current_thread() is threading.main_thread():  # Python delivers signals to no other
            self.before = {number: signal.signal(number, self.receive) for number in SIGNALS}
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)
        self.before = {}

    def receive(self, number: int, frame: FrameType | None) -> None:
        if not self.begun:
            if os.environ.get("RANK", "0") == "0":  # of several processes one speaks
                os.write(2, f"Error: {signal.Signals(number).name} ended the command: nothing was trained yet.\n".encode())
            os._exit(Interrupted.exit_code)
        if self.signal == number == signal.SIGINT:
            raise KeyboardInterrupt
        self.signal = signal.Signals(number)


PROCESS = Interruption(begun=False)  # of the command line, which enters it before all else and never leaves it


def ignore() -> None:
    """For the end of the process: when Python ends it gives back every handler but this one, and a signal that comes while
    libraries are unloaded would take the exit code."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
