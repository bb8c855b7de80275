"""The one loop that times. In a round each side runs once, in order: a machine that drifts does so for all of them."""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from sanbench.device import describe, versions
from sanbench.errors import InputError
from sanbench.progress import Progress, Report, silent
from sanbench.store.schema import Benchmark

NO_SETUP: Mapping[str, Callable[[], tuple[Any, ...]]] = {}


@dataclass(frozen=True)
class Timing:
    """Seconds of the counted rounds by side, in the order in which a round runs the sides."""

    seconds: Mapping[str, Sequence[float]]

    def medians(self) -> dict[str, float]:
        return {name: statistics.median(rounds) for name, rounds in self.seconds.items()}

    def ratio(self) -> tuple[float, float, float] | None:
        """The first side over the second in the same round: median, least and most. None without a second side."""
        if len(self.seconds) < 2:
            return None
        first, second = list(self.seconds.values())[:2]
        ratios = [a / b for a, b in zip(first, second, strict=True)]
        return statistics.median(ratios), min(ratios), max(ratios)

    def of(self, *names: str) -> "Timing":
        return Timing({name: self.seconds[name] for name in names})

    def benchmark(self, kind: str, setting: dict[str, Any], device: torch.device, **found: Any) -> Benchmark:
        """The record; the number of rounds and of threads joins the setting, `found` are other fields of Benchmark."""
        rounds = len(next(iter(self.seconds.values())))
        return Benchmark(
            kind=kind,
            setting={**setting, "n": rounds, "threads": torch.get_num_threads()},
            device=describe(device),
            seconds=self.medians(),
            ratio=self.ratio(),
            versions=versions(),
            **found,
        )


def check_rounds(n: int) -> None:
    """Raises InputError if n is below 1: called first by what works long before it times."""
    if n < 1:
        raise InputError(f"n {n} is not accepted: it must be at least 1.")


def time_in_turn(
    sides: Mapping[str, Callable[..., object]],
    n: int,
    device: torch.device,
    progress: Report = silent,
    task: str = "",
    *,
    warm_up: int = 1,
    setup: Mapping[str, Callable[[], tuple[Any, ...]]] = NO_SETUP,
    clock: Callable[[], float] = time.perf_counter,
) -> Timing:
    """Time n rounds, after `warm_up` rounds that are not counted. The device's work is part of a side's time.

    `setup` makes the arguments of a side anew for each call, and is not timed. Raises InputError if n is below 1.
    """
    check_rounds(n)
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    total = (n + warm_up) * len(sides)
    for done, (number, name) in enumerate(((number, name) for number in range(n + warm_up) for name in sides), start=1):
        elapsed = seconds_of(sides[name], setup[name]() if name in setup else (), device, clock)
        if number >= warm_up:
            seconds[name].append(elapsed)
        progress(Progress(task, done, total))
    return Timing(seconds)


def seconds_of(
    action: Callable[..., object],
    arguments: tuple[Any, ...],
    device: torch.device,
    clock: Callable[[], float] = time.perf_counter,
) -> float:
    """Seconds of one call. On CUDA the device is idle before and after it."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    started = clock()
    action(*arguments)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return clock() - started
