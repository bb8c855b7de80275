"""How long-running library functions tell where they are: they call `progress(Progress(...))`, the command line draws it."""

from collections.abc import Callable, Mapping
from typing import NamedTuple


class Progress(NamedTuple):
    """`notice` is a sentence that has to be read, once."""

    task: str
    done: int
    total: int
    figures: Mapping[str, float] = {}
    notice: str = ""


Report = Callable[[Progress], None]


def silent(progress: Progress) -> None:
    """Tell nobody."""
