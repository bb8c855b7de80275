"""Stopwatch and Profile: the time of each part of a step, for `sanbench train --profile 20` and `sanbench bench train`."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch.profiler import record_function

PARTS = ("data", "forward", "backward", "optimizer")
WARM_UP = 3  # steps before the profiled ones


class Stopwatch:
    """`with clock("forward"): ...` adds the seconds to `clock.seconds` and names the part in a trace.

    On CUDA the host runs ahead of the device: only between `start` and `stop` does it wait for the device at the end of each
    part, so that the seconds are the device's too.
    """

    def __init__(self) -> None:
        self.waits = False
        self.seconds = dict.fromkeys(PARTS, 0.0)
        self.began = time.perf_counter()

    def start(self) -> None:
        self.waits = True
        self.seconds = dict.fromkeys(PARTS, 0.0)
        self.began = time.perf_counter()

    def stop(self) -> dict[str, float]:
        """Each part's share of the time since `start`, in [0, 1]; `rest` is what no part took."""
        self.waits = False
        total = time.perf_counter() - self.began
        shares = {part: seconds / total for part, seconds in self.seconds.items()}
        return {**shares, "rest": 1 - sum(shares.values())}

    @contextmanager
    def __call__(self, part: str) -> Iterator[None]:
        started = time.perf_counter()
        with record_function(part):
            yield
            if self.waits and torch.cuda.is_available():
                torch.cuda.synchronize()
        self.seconds[part] += time.perf_counter() - started


class Profile:
    """A trace of `steps` steps, after WARM_UP others, in `path` (Chrome's format, which chrome://tracing and Perfetto show).

    There is no trace if the training ends before.
    """

    def __init__(self, steps: int, path: Path, clock: Stopwatch) -> None:
        self.steps, self.path, self.clock = steps, path, clock
        self.left = WARM_UP + steps
        self.profiler = torch.profiler.profile()

    def step(self) -> dict[str, float] | None:
        """To be called after each step; after the last profiled one it returns the shares of time, else None."""
        self.left -= 1
        if self.left == self.steps:
            self.profiler.start()
            self.clock.start()
        if self.left != 0:
            return None
        shares = self.clock.stop()
        self.profiler.stop()
        self.profiler.export_chrome_trace(str(self.path))
        return shares

    def close(self) -> None:
        if 0 < self.left <= self.steps:
            self.profiler.stop()
