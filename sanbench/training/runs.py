"""Runs: folders under runs/, and the trained networks in them."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sanbench.errors import InputError, unknown
from sanbench.evaluation.experiments import Subject
from sanbench.training.config import TrainConfig


@dataclass(frozen=True)
class Run:
    """A folder with config.json, metrics.jsonl (a line an epoch), last.pt and best.pt."""

    folder: Path

    @property
    def name(self) -> str:
        return self.folder.name

    def config(self) -> TrainConfig:
        return TrainConfig.model_validate_json((self.folder / "config.json").read_text())

    def epochs(self) -> list[dict[str, Any]]:
        """One entry for each finished epoch."""
        path = self.folder / "metrics.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []

    def is_finished(self) -> bool:
        return (self.folder / "config.json").is_file() and len(self.epochs()) >= self.config().recipe.epochs

    def subject(self) -> Subject:
        """The network of the epoch that the recipe selects."""
        return Subject.load(self.folder / f"{self.config().recipe.select}.pt", self.name)


def all_runs(root: Path) -> list[Run]:
    return [Run(path.parent) for path in sorted(root.glob("*/config.json"))]


def load_subjects(names: Sequence[str], root: Path) -> list[Subject]:
    """The networks of runs or checkpoint files; without names, of every finished run under `root`.

    Raises InputError for a name that is neither, SanbenchError for a checkpoint that cannot be used.
    """
    runs = {run.name: run for run in all_runs(root)}
    if not names:
        finished = [run.subject() for run in runs.values() if run.is_finished()]
        if not finished:
            raise InputError(f"There is no finished run under {root}: `sanbench train san10` makes one.")
        return finished
    subjects = []
    for name in names:
        if name in runs:
            subjects.append(runs[name].subject())
        elif Path(name).is_file():
            subjects.append(Subject.load(Path(name), Path(name).stem))
        else:
            raise unknown("run or checkpoint file", name, runs)
    return subjects


def free_name(root: Path, name: str) -> str:
    """`name`, or `name-2`, `name-3`, ... if there is such a run already."""
    taken = {path.name for path in root.glob("*")}
    return next(word for word in (name, *(f"{name}-{n}" for n in range(2, len(taken) + 3))) if word not in taken)
