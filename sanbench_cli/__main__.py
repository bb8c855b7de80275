"""`sanbench`, and `python -m sanbench_cli`. A training heeds signals before anything slow is imported."""

import sys

from sanbench.training.interruption import PROCESS
from sanbench.training.launcher import end_with_parent


def main() -> None:
    if next((word for word in sys.argv[1:] if not word.startswith("-")), None) == "train":
        PROCESS.__enter__()
        end_with_parent()
    from sanbench_cli.main import app

    app()


if __name__ == "__main__":
    main()
