"""How long whole commands take, each as a process of its own: `sanbench bench startup`."""

import os
import resource
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import torch

from sanbench.bench.timing import Timing, check_rounds, time_in_turn
from sanbench.errors import SanbenchError
from sanbench.progress import Report, silent
from sanbench.store.schema import Benchmark

PLACES = ("--runs", "{runs}", "--results", "{written}")
ONE = ("--limit", "1", "--force", *PLACES)  # image: how long it takes to the first step
WRONG = 2  # the exit code of what is typed wrong
COMMANDS: dict[str, tuple[str, ...]] = {
    "--help": ("--help",),
    "attack --help": ("attack", "--help"),
    "runs": ("runs", "--runs", "{runs}"),
    "models": ("models",),
    "results check": ("results", "check", "--results", "{results}"),
    "compare": ("compare", "{results}", "{results}"),
    "report": ("report", "--results", "{results}", "--output", "{written}"),
    "report, html": ("report", "--format", "html", "--results", "{results}", "--output", "{written}"),
    "train, a wrong field": ("train", "san10", "--set", "nonsense=1"),
    "rotate, a wrong angle": ("rotate", "--angles", "nonsense"),
    "attack, a wrong budget": ("attack", "--eps", "nonsense"),
    "corrupt, a wrong kind": ("corrupt", "--kinds", "nonsense"),
    "train --dry-run": ("train", "san10", "--dry-run", "--runs", "{runs}"),
    "accuracy, one image": ("accuracy", *ONE),
    "rotate 45, one image": ("rotate", "--angles", "45", *ONE),
    "attack fgsm, one image": ("attack", "--attack", "fgsm", *ONE),
}
BESIDE = {"import torch": "import torch"}  # Python's code that commands are compared with


def time_commands(runs: Path, results: Path, n: int, progress: Report = silent) -> Iterator[Benchmark]:
    """Each of COMMANDS, n times in turn, on the finished runs under `runs` and the records in `results`.

    Seconds by the clock; `cpu` in the figures are those of all its threads. BESIDE stands beside them. Both folders
    stay as they are. Raises InputError if n is below 1, SanbenchError for a command that ends otherwise than it should.
    """
    check_rounds(n)
    spent: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as written:
        places = {"runs": runs.resolve(), "results": results.resolve(), "written": written}
        sides = {
            name: [sys.executable, "-m", "sanbench_cli", *(word.format(**places) for word in words)]
            for name, words in COMMANDS.items()
        }
        sides |= {name: [sys.executable, "-c", code] for name, code in BESIDE.items()}
        calls = {name: partial(run, words, spent.setdefault(name, [])) for name, words in sides.items()}
        timing = time_in_turn(calls, n, torch.device("cpu"), progress, "commands")
    for name in calls:
        cpu = statistics.median(spent[name][-n:])  # the first was no counted round
        yield Timing({name: timing.seconds[name]}).benchmark(
            "startup", {"command": name}, torch.device("cpu"), figures={"cpu": cpu}
        )


def run(words: list[str], spent: list[float]) -> None:
    """Run a command, and add its processor time to `spent`."""
    before = children()
    ended = subprocess.run(words, capture_output=True, text=True, env=os.environ)
    spent.append(children() - before)
    if ended.returncode not in (0, WRONG) or (ended.returncode == WRONG) != ("nonsense" in " ".join(words)):
        said = ended.stderr.strip()[-300:]
        raise SanbenchError(f"`sanbench {' '.join(words[3:])}` has ended with {ended.returncode}: {said}")


def children() -> float:
    """Seconds of the processor that ended child processes have taken."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime
