"""Runs: folders under runs/, and the trained networks in them."""

import fcntl
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TextIO

from sanbench.errors import InputError, SanbenchError, unknown
from sanbench.runs.evaluated import EvaluatedModel
from sanbench.models.external import is_external
from sanbench.runs.config import RuntimeOptions, TrainConfig

LOCKED: set[TextIO] = set()  # config.json of the runs that this process holds


def leave_locks() -> None:
    """A lock lives as long as any process has the file: those that read images may outlive a killed training."""
    for file in LOCKED:
        file.close()


os.register_at_fork(after_in_child=leave_locks)


@dataclass(frozen=True)
class Run:
    """A folder with config.json, metrics.jsonl, last.pt, best.pt and, until training is finished, resume.pt.

    metrics.jsonl has a line for each start, each logged step and each epoch. A line tells its `epoch`, counted from 1, and
    the line of a step also how many `step`s of that epoch were done. config.json is locked while a process trains.
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
        """What torch's profiler saw, after --profile."""
        return self.folder / "trace.json.gz"

    def config(self) -> TrainConfig:
        return TrainConfig.model_validate_json((self.folder / "config.json").read_text())

    def exists(self) -> bool:
        return (self.folder / "config.json").is_file()

    def lines(self) -> list[dict[str, Any]]:
        """metrics.jsonl, but for a line that a kill has cut."""
        path = self.folder / "metrics.jsonl"
        texts = path.read_text().split("\n")[:-1] if path.is_file() else []
        return [json.loads(text) for text in texts]

    def epochs(self) -> list[dict[str, Any]]:
        """One entry for each finished epoch."""
        return [line for line in self.lines() if "validation_top1" in line]

    def profile(self) -> dict[str, float] | None:
        """Shares of time of the steps that were profiled last."""
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

    def evaluated(self) -> EvaluatedModel:
        """The network of the epoch that the recipe selects."""
        return EvaluatedModel.load(self.folder / f"{self.config().recipe.select}.pt", self.name)

    def open(self, config: TrainConfig, resume: bool, held: ExitStack) -> None:
        """Make the folder, or with `resume` take the one that is there, and lock it until `held` ends.

        Raises InputError if the folder is taken or missing. What a kill left before config.json was written is nothing.
        """
        if resume and not self.exists():
            raise InputError(f"There is no run {self.folder} to go on with.")
        if not resume:
            self.check_free()
            self.create(config)
        held.enter_context(self.locked())

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
        """Raises SanbenchError if another process holds the run. A lock ends with its process, however that ends."""
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
        """Forget what was logged after `step` steps of `epoch` (from 0), and half-written files."""
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
    """What a resume under `config` changes, as `workers 2 -> 4`.

    Raises InputError for a setting that would make another run of it.
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
    said = [f"{name} {before[name]} -> {after[name]}" for name in changed]
    starts = [line for line in run.lines() if "started" in line]
    if starts and starts[-1]["processes"] != processes:
        said.append(f"processes {starts[-1]['processes']} -> {processes}")
    return said


def flat(config: TrainConfig) -> dict[str, Any]:
    """Every setting by its own name: the recipe's and the network's fields beside the others."""
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


def load_evaluated(
    names: Sequence[str], root: Path, weights: Sequence[Path] = (), preprocessing: Mapping[str, Any] | None = None
) -> list[EvaluatedModel]:
    """The networks of runs, of checkpoint files or from elsewhere; without names, of every finished run under `root`.

    Each network from elsewhere (see `load_external`) takes the next of `weights`, and all of them `preprocessing`. Raises
    InputError for a name that is none of these and for `weights` that are too few or too many, SanbenchError for a file that
    cannot be used.
    """
    runs = {run.name: run for run in all_runs(root)}
    names = names or [run.name for run in runs.values() if run.is_finished()]
    if not names:
        raise InputError(f"There is no finished run under {root}: `sanbench train san10` makes one.")
    foreign = [name for name in names if is_external(name) and name not in runs and not Path(name).is_file()]
    check_weights(foreign, weights, preprocessing or {})
    files = iter(weights)
    evaluated_models = []
    for name in names:
        if name in foreign:
            evaluated_models.append(EvaluatedModel.foreign(name, next(files), **(preprocessing or {})))
        elif name in runs:
            evaluated_models.append(runs[name].evaluated())
        elif Path(name).is_file():
            evaluated_models.append(EvaluatedModel.load(Path(name), Path(name).stem))
        else:
            raise unknown("run or checkpoint file", name, runs)
    return evaluated_models


def check_weights(foreign: Sequence[str], weights: Sequence[Path], preprocessing: Mapping[str, Any]) -> None:
    if not foreign and (weights or preprocessing):
        options = ", ".join(f"--{name}" for name in ["weights"] * bool(weights) + [*preprocessing])
        raise InputError(f"{options} is not accepted for a run: it is for networks from elsewhere, as torchvision:resnet50 is.")
    if len(foreign) != len(weights):
        raise InputError(
            f"{', '.join(foreign)} with {len(weights)} --weights is not accepted: each network from elsewhere takes one "
            "--weights FILE, in the same order."
        )


def free_name(root: Path, name: str) -> str:
    """`name`, or `name-2`, `name-3`, ... if there is such a run already."""
    taken = {path.name for path in root.glob("*")}
    return next(word for word in (name, *(f"{name}-{n}" for n in range(2, len(taken) + 3))) if word not in taken)
