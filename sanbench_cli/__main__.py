"""`sanbench`, and `python -m sanbench_cli`. A training heeds signals before anything slow is imported."""

import sys

from sanbench.training.interruption import PROCESS, ignore
from sanbench.training.launcher import end_with_parent


def main() -> None:
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
