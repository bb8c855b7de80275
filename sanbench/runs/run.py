"""Run: a training on disk, a folder under runs/."""

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TextIO

from sanbench.errors import InputError, SanbenchError
from sanbench.runs.config import RuntimeOptions, TrainConfig

LOCKED: set[TextIO] = set()  # config.json of the runs that this process has locked


def close_locks_in_child() -> None:
    """Close the locked files: a lock lasts as long as any process has its file open, and a worker may outlive the training."""
    for file in LOCKED:
        file.close()


os.register_at_fork(after_in_child=close_locks_in_child)


@dataclass(frozen=True)
class Run:
    """A folder with config.json, metrics.jsonl, last.pt, best.pt and, until training is finished, resume.pt.

    metrics.jsonl has a line for each start, each logged step and each epoch. A line has its `epoch`, counted from 1, and the
    line of a step also the number of `step`s of that epoch that were done. config.json is locked while a process trains.
    """

    folder: Path

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def resume(self) -> Path:
        return self.folder / "resume.pt"

    @property
    def trace(self) -> Path:
        """The trace of torch's profiler, which --profile writes."""
        return self.folder / "trace.json.gz"

    def config(self) -> TrainConfig:
        return TrainConfig.model_validate_json((self.folder / "config.json").read_text())

    def exists(self) -> bool:
        return (self.folder / "config.json").is_file()

    def lines(self) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl, without a last one that a kill has cut."""
        path = self.folder / "metrics.jsonl"
        texts = path.read_text().split("\n")[:-1] if path.is_file() else []
        return [json.loads(text) for text in texts]

    def epochs(self) -> list[dict[str, Any]]:
        """One entry for each finished epoch."""
        return [line for line in self.lines() if "validation_top1" in line]

    def profile(self) -> dict[str, float] | None:
        """The shares of time of the last profiled steps, None where there are none."""
        return next((line["profile"] for line in reversed(self.lines()) if "profile" in line), None)

    def is_finished(self) -> bool:
        return self.exists() and len(self.epochs()) >= self.config().recipe.epochs

    def state(self) -> str:
        """finished, running, or interrupted."""
        if self.is_finished():
            return "finished"
        try:
            with self.locked():
                return "interrupted"
        except SanbenchError:
            return "running"

    @property
    def checkpoint(self) -> Path:
        """The file of the epoch that the recipe selects."""
        return self.folder / f"{self.config().recipe.select}.pt"

    def open(self, config: TrainConfig, resume: bool, stack: ExitStack) -> None:
        """Make the folder, or with `resume` take the one that exists, and lock it until `stack` is closed.

        Raises InputError if the folder is taken or missing. A folder without config.json, which a kill may leave, is free.
        """
        if resume and not self.exists():
            raise InputError(f"There is no run {self.folder} to go on with.")
        if not resume:
            self.check_free()
            self.create(config)
        stack.enter_context(self.locked())

    def check_free(self) -> None:
        if self.folder.exists() and any(not path.name.startswith(".") for path in self.folder.iterdir()):
            raise InputError(
                f"The run {self.folder} is there already: --resume {self.name} goes on, --run names another, or remove it."
            )

    def create(self, config: TrainConfig) -> None:
        partial = self.folder / f".config.json.{os.getpid()}"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            partial.write_text(config.model_dump_json(indent=1) + "\n")
            partial.replace(self.folder / "config.json")
        except OSError as error:
            raise SanbenchError(f"Cannot make {self.folder}: {error.strerror}. Name another folder with --runs.") from error

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Raises SanbenchError if another process has locked the run. The system ends a lock with its process."""
        with (self.folder / "config.json").open() as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise SanbenchError(f"Another process trains the run {self.folder} now.") from None
            LOCKED.add(file)
            try:
                yield
            finally:
                LOCKED.discard(file)

    def append(self, line: dict[str, Any]) -> None:
        with (self.folder / "metrics.jsonl").open("a") as file:
            file.write(json.dumps(line) + "\n")

    def rewind(self, epoch: int, step: int) -> None:
        """Remove the lines that were logged after `step` steps of `epoch` (from 0), and half-written files."""
        for path in self.folder.glob(".*"):
            path.unlink()
        kept = [line for line in self.lines() if (line["epoch"] - 1, line.get("step", float("inf"))) <= (epoch, step)]
        partial = self.folder / f".metrics.jsonl.{os.getpid()}"
        partial.write_text("".join(json.dumps(line) + "\n" for line in kept))
        partial.replace(self.folder / "metrics.jsonl")

    def start_line(self, epoch: int, step: int, processes: int, device: str) -> None:
        now = datetime.now(UTC).isoformat(timespec="seconds")
        self.append({"epoch": epoch + 1, "step": step, "started": now, "processes": processes, "device": device})


def differences(run: Run, config: TrainConfig, processes: int) -> list[str]:
    """The settings that a resume under `config` changes, as `workers 2 -> 4`.

    Raises InputError for one that is no field of `RuntimeOptions`: with it the run would have another result.
    """
    stored = run.config()
    config = config.model_copy(update={"model": config.model.model_copy(update={"num_classes": stored.model.num_classes})})
    before, after = flat(stored), flat(config)
    changed = [name for name in sorted({*before, *after}) if before.get(name) != after.get(name)]
    for name in changed:
        if name not in RuntimeOptions.model_fields:
            raise InputError(
                f"The run {run.name} has {name} {before.get(name)} and cannot go on with {after.get(name)}: "
                "leave the setting as it was, or name another run."
            )
    changes = [f"{name} {before[name]} -> {after[name]}" for name in changed]
    starts = [line for line in run.lines() if "started" in line]
    if starts and starts[-1]["processes"] != processes:
        changes.append(f"processes {starts[-1]['processes']} -> {processes}")
    return changes


def flat(config: TrainConfig) -> dict[str, Any]:
    """Every setting in one dict: the fields of the recipe and of the network beside the others."""
    fields = config.model_dump(mode="json")
    model, recipe = fields.pop("model"), fields.pop("recipe")
    return {**fields, **recipe, "model": model.pop("name"), **model.pop("variation"), **model}


def all_runs(root: Path) -> list[Run]:
    return [Run(path.parent) for path in sorted(root.glob("*/config.json"))]


def find_unfinished(root: Path, config: TrainConfig) -> Run | None:
    """The latest unfinished run that `config` can go on with, for `--resume auto`."""
    fitting = []
    for run in all_runs(root):
        try:
            differences(run, config, 1)
        except InputError:
            continue
        if run.state() == "interrupted":
            fitting.append(run)
    return max(fitting, key=lambda run: run.folder.stat().st_mtime, default=None)


def free_name(root: Path, name: str) -> str:
    """`name`, or `name-2`, `name-3`, ... if there is such a run already."""
    taken = {path.name for path in root.glob("*")}
    return next(word for word in (name, *(f"{name}-{n}" for n in range(2, len(taken) + 3))) if word not in taken)
