"""Interruption: signals on which a training saves its state and ends."""

import signal
import threading
from types import FrameType, TracebackType
from typing import Any

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)  # a scheduler's end, Ctrl-C, Slurm's warning


class Interruption:
    """`with Interruption() as interruption: ...; if interruption: save`. A second SIGINT raises KeyboardInterrupt at once."""

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None

    def __bool__(self) -> bool:
        return self.signal is not None

    def __enter__(self) -> "Interruption":
        self.before: dict[signal.Signals, Any] = {}
        if threading.current_thread() is threading.main_thread():  # Python delivers signals to no other
            self.before = {number: signal.signal(number, self.receive) for number in SIGNALS}
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def receive(self, number: int, frame: FrameType | None) -> None:
        if self.signal == number == signal.SIGINT:
            raise KeyboardInterrupt
        self.signal = signal.Signals(number)
