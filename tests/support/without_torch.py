"""Commands in a process in which torch cannot be imported: `python -m tests.support.without_torch`, words as JSON on stdin.

It writes one JSON list: of each command the exit code and what it printed.
"""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from pathlib import Path
from typing import Any

BLOCKED = "is blocked"


class Blocked(MetaPathFinder):
    def find_spec(self, name: str, path: Any, target: Any = None) -> None:
        if name.partition(".")[0] in ("torch", "torchvision", "torchattacks", "scipy", "matplotlib"):
            raise ImportError(f"{name} {BLOCKED}")


def without_torch(commands: Sequence[Sequence[object]]) -> list[tuple[int, str]]:
    """Exit code and output of each command, in the working directory and one process for all of them."""
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    typed = json.dumps([[str(word) for word in words] for words in commands])
    command = [sys.executable, "-m", "tests.support.without_torch"]
    found = subprocess.run(command, input=typed, env=environment, capture_output=True, text=True, check=True)
    return [tuple(each) for each in json.loads(found.stdout)]


if __name__ == "__main__":
    sys.meta_path.insert(0, Blocked())
    from tests.support.commands import sanbench

    outcomes = [sanbench(*words) for words in json.load(sys.stdin)]
    print(json.dumps([(outcome.exit_code, outcome.output) for outcome in outcomes]))
