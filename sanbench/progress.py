"""How long-running library functions tell where they are: they call `progress(Progress(...))`, the command line draws it."""

from collections.abc import Callable, Mapping
from typing import NamedTuple


class Progress(NamedTuple):
    """`done` of `total` pieces of a task.

    notice  a sentence that has to be read, once
    detail  what of the task is worked on
    share   how far the whole command is, in [0, 1]; None: as far as the task
    """

    task: str
    done: int
    total: int
    figures: Mapping[str, float] = {}
    notice: str = ""
    detail: str = ""
    share: float | None = None

    @property
    def whole(self) -> float:
        """`share`, or else that of the task."""
        return self.share if self.share is not None else self.done / self.total if self.total else 0.0


Report = Callable[[Progress], None]


def silent(progress: Progress) -> None:
    """Tell nobody."""


def within(report: Report, begin: float, end: float) -> Report:
    """`report` of a task that takes from `begin` to `end` of a longer one, both in [0, 1]."""
    return lambda now: report(now._replace(share=begin + (end - begin) * now.whole))
