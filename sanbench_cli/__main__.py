"""`sanbench`, and `python -m sanbench_cli`. A training heeds signals before anything slow is imported."""

import os
import sys

from sanbench.training.interruption import PROCESS, ignore
from sanbench.training.launcher import end_with_parent

WAITING = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")  # how OpenMP's threads wait, in the order of the standard


def sleep_while_waiting() -> None:
    """Have OpenMP's threads sleep between operators: those that spin take the processor from other programs.

    Read when torch is imported, and inherited by processes that are started. What the user has set stays.
    """
    if not any(name in os.environ for name in WAITING):
        os.environ["OMP_WAIT_POLICY"] = "PASSIVE"


def main() -> None:
    sleep_while_waiting()
    words = [word for word in sys.argv[1:] if not word.startswith("-")]
    trains = words[:1] == ["train"] or words[:2] in (["study", "run"], ["study", "work"])
    if trains:
        PROCESS.__enter__()
        end_with_parent()
    from sanbench_cli.main import app

    try:
        app()
    finally:
        if trains:
            ignore()


if __name__ == "__main__":
    main()
