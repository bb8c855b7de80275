"""Commands in a process in which some modules cannot be imported: `python -m tests.support.without_modules`.

It reads JSON from stdin, the modules and the words of each command, and writes one JSON list: of each command the exit code
and what it printed.
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
TORCH = ("torch", "torchvision", "torchattacks", "scipy", "matplotlib")


class Blocked(MetaPathFinder):
    def __init__(self, modules: Sequence[str]) -> None:
        self.modules = modules

    def find_spec(self, name: str, path: Any, target: Any = None) -> None:
        if any(f"{name}.".startswith(f"{module}.") for module in self.modules):
            raise ImportError(f"{name} {BLOCKED}")


def without(modules: Sequence[str], commands: Sequence[Sequence[object]]) -> list[tuple[int, str]]:
    """Exit code and output of each command, in the working directory and one process for all of them."""
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    typed = json.dumps([modules, [[str(word) for word in words] for words in commands]])
    command = [sys.executable, "-m", "tests.support.without_modules"]
    found = subprocess.run(command, input=typed, env=environment, capture_output=True, text=True, check=True)
    return [tuple(each) for each in json.loads(found.stdout)]


if __name__ == "__main__":
    blocked, typed = json.load(sys.stdin)
    sys.meta_path.insert(0, Blocked(blocked))
    from tests.support.commands import sanbench

    outcomes = [sanbench(*words) for words in typed]
    print(json.dumps([(outcome.exit_code, outcome.output) for outcome in outcomes]))
