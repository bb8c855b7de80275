"""Where a command is, on a terminal of any width and in a log: what it works on, how far it is, the time left of all of it."""

import time
from collections import deque
from collections.abc import Callable, Iterator
from datetime import timedelta

from rich.console import Console, ConsoleOptions, RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table as Grid
from rich.text import Text

from sanbench.printable import printable
from sanbench.progress import Progress, Report

WINDOW = 60.0  # seconds whose pace tells the time left
SOONEST = 2.0  # seconds of work before there is a pace
EVERY = 60.0  # seconds between two lines about the same task in a log
FIGURES = {
    "robust": "robust accuracy so far {:.1%}",
    "loss": "training loss {:.3f}",
    "top1": "training top-1 {:.1%}",
    "lr": "lr {:.2g}",
    "images_per_second": "{:.0f} images/s",
    "data_wait": "waiting {:.0%}",
    "memory_mib": "{:.0f} MiB",
    "skipped_images": "{:.0f} skipped",
}
Clock = Callable[[], float]


class Pace:
    """Seconds left of the whole command, from how much of it was done within the last minute.

    What was done before is no work: of a task that another command has finished in part, only the rest sets the pace.
    """

    def __init__(self, clock: Clock = time.monotonic) -> None:
        self.clock, self.told, self.rate = clock, deque[tuple[float, float]](), 0.0  # (when, share); share a second
        self.task = ""

    def tell(self, now: Progress) -> None:
        if now.task != self.task:  # between two tasks lies what was measured before
            self.told.clear()
            self.task = now.task
        self.told.append((self.clock(), now.whole))
        while self.told[-1][0] - self.told[0][0] > WINDOW and len(self.told) > 2:
            self.told.popleft()
        (began, before), (ended, after) = self.told[0], self.told[-1]
        if ended - began >= SOONEST and after > before:
            self.rate = (after - before) / (ended - began)

    @property
    def left(self) -> float | None:
        """None until it is known."""
        if not self.rate or not self.told:
            return None
        when, share = self.told[-1]
        return max(0.0, (1 - share) / self.rate - (self.clock() - when))

    def words(self) -> str:
        """`about 0:03:12 left`, or nothing."""
        left = self.left
        return "" if left is None else f"about {timedelta(seconds=round(left))} left"


class Bar:
    """What is worked on; bar, percent and time left; figures. Each has a line or more of its own, so nothing is cut."""

    def __init__(self, clock: Clock = time.monotonic) -> None:
        self.now, self.pace = Progress("", 0, 0), Pace(clock)

    def show(self, now: Progress) -> None:
        self.now = now
        self.pace.tell(now)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[RenderableType]:
        now = self.now
        counted = "" if now.detail else f"{now.done:,} of {now.total:,}"
        yield Text(printable(", ".join(filter(None, [now.task, now.detail, counted]))))
        line = Grid.grid(expand=True, padding=(0, 1))
        line.add_column(ratio=1)
        line.add_column(no_wrap=True)
        line.add_row(ProgressBar(1.0, now.whole), f"{now.whole:4.0%} {self.pace.words()}".rstrip())
        yield line
        if told := figures(now):
            yield Text(told)


def lines(write: Callable[[str], None], clock: Clock = time.monotonic) -> Report:
    """Writes what was told last about a task when another begins or it is done, and where it is every minute."""
    latest: Progress | None = None
    finished, written, pace = "", clock(), Pace(clock)

    def show(now: Progress) -> None:
        nonlocal latest, finished, written
        pace.tell(now)
        if latest is not None and latest.task != now.task:
            write(f"{latest.task} {figures(latest)}".rstrip())
        latest = now
        if now.done == now.total:
            if now.task != finished:
                write(f"{now.task} done {figures(now)}".rstrip())
            latest, finished, written = None, now.task, clock()
        elif clock() - written >= EVERY:
            written = clock()
            told = [now.task, now.detail, f"{now.whole:.0%} of all", pace.words()]
            write(f"{', '.join(filter(None, told))} {figures(now)}".rstrip())

    return show


def figures(now: Progress) -> str:
    """`training loss 0.612  training top-1 79.3%  412 images/s`."""
    return "  ".join(FIGURES[name].format(value) for name, value in now.figures.items())
