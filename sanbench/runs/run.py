"""Run: a training on disk, a folder under runs/."""

import fcntl
import json
import logging
import os
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple, TextIO

from pydantic import ValidationError

from sanbench.errors import InputError, SanbenchError
from sanbench.models.checkpoints import system_reason, write_file
from sanbench.models.integrity import check_zip
from sanbench.runs.config import RuntimeOptions, TrainConfig

LOOK = 0.05  # seconds between two looks whether a run is locked
NAME = 100  # bytes at most: a file system's limit is 255 for a whole name
log = logging.getLogger(__name__)  # without a handler of the program's, a line on standard error
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
        """Raises SanbenchError if config.json cannot be read."""
        path = self.folder / "config.json"
        try:
            return TrainConfig.model_validate_json(path.read_bytes())
        except OSError as error:
            raise SanbenchError(f"{path} cannot be read: {system_reason(error)}.") from error
        except ValidationError as error:
            first = error.errors()[0]
            field = ".".join(map(str, first["loc"])) or "the whole"
            raise SanbenchError(f"{path} is not a run's configuration: {field}: {first['msg'].lower()[:200]}.") from error

    def exists(self) -> bool:
        return (self.folder / "config.json").is_file()

    def lines(self) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl, without a last one that a kill has cut. Raises SanbenchError if another is broken."""
        path = self.folder / "metrics.jsonl"
        try:
            texts = path.read_bytes().split(b"\n")[:-1] if path.is_file() else []
        except OSError as error:
            raise SanbenchError(f"{path} cannot be read: {system_reason(error)}.") from error
        found: list[dict[str, Any]] = []
        for number, text in enumerate(texts, start=1):
            try:
                line = json.loads(text)
                if not isinstance(line["epoch"], int) or not isinstance(line.get("validation_top1", 0), int | float):
                    raise ValueError
            except (ValueError, TypeError, KeyError, RecursionError) as error:
                raise SanbenchError(f"{path}, line {number}, is not a line of a training: {text[:40]!r}.") from error
            found.append(line)
        return found

    def problem(self) -> str | None:
        """Why the run cannot be used: what of its files cannot be read; None if it can."""
        try:
            self.config()
            self.lines()
            for name in ("best.pt", "last.pt", "resume.pt"):
                if (self.folder / name).is_file():
                    check_zip(self.folder / name)
        except OSError as error:
            return f"{error.filename} cannot be read: {system_reason(error)}."
        except SanbenchError as error:
            return str(error)
        return None

    def epochs(self) -> list[dict[str, Any]]:
        """One entry for each finished epoch."""
        return [line for line in self.lines() if "validation_top1" in line]

    def profile(self) -> dict[str, float] | None:
        """The shares of time of the last profiled steps, None where there are none."""
        return next((line["profile"] for line in reversed(self.lines()) if "profile" in line), None)

    def is_finished(self) -> bool:
        return self.exists() and len(self.epochs()) >= self.config().recipe.epochs

    def state(self) -> str:
        """finished, running, or interrupted. Raises SanbenchError if the run's files cannot be read."""
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
        stack.enter_context(self.locked(looks=5))

    def check_free(self) -> None:
        if self.folder.exists() and any(not path.name.startswith(".") for path in self.folder.iterdir()):
            raise InputError(
                f"The run {self.folder} is there already: --resume {self.name} goes on, --run names another, or remove it."
            )

    def create(self, config: TrainConfig) -> None:
        check_name(self.name)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            reason = system_reason(error)
            raise SanbenchError(f"Cannot make {self.folder}: {reason}. Name another folder with --runs.") from error
        self.write_text("config.json", config.model_dump_json(indent=1) + "\n")

    @contextmanager
    def locked(self, looks: int = 1) -> Iterator[None]:
        """Raises SanbenchError if another process has it locked at each of `looks`. The system ends a lock with its process.

        Whoever asks for the `state` of a run has it locked for a moment: a training looks more than once.
        """
        with (self.folder / "config.json").open() as file:
            while True:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except OSError:
                    looks -= 1
                    if looks <= 0:
                        raise SanbenchError(f"Another process trains the run {self.folder} now.") from None
                    time.sleep(LOOK)
            LOCKED.add(file)
            try:
                yield
            finally:
                LOCKED.discard(file)

    def write_text(self, name: str, text: str) -> None:
        """Write a file of the run, all or nothing. Raises SanbenchError as `write_file` does."""
        write_file(self.folder / name, lambda file: file.write(text.encode()))

    def append(self, line: dict[str, Any]) -> None:
        """Add a line to metrics.jsonl. Raises SanbenchError where it cannot be written."""
        path = self.folder / "metrics.jsonl"
        try:
            with path.open("a") as file:
                file.write(json.dumps(line) + "\n")
        except OSError as error:
            raise SanbenchError(f"Cannot write {path}: {system_reason(error)}.") from error

    def rewind(self, epoch: int, step: int) -> None:
        """Remove the lines that were logged after `step` steps of `epoch` (from 0), and half-written files."""
        for path in self.folder.glob(".*"):
            try:
                path.unlink()
            except OSError as error:
                raise SanbenchError(f"Cannot remove {path}: {system_reason(error)}.") from error
        kept = [line for line in self.lines() if (line["epoch"] - 1, line.get("step", float("inf"))) <= (epoch, step)]
        self.write_text("metrics.jsonl", "".join(json.dumps(line) + "\n" for line in kept))

    def start_line(self, epoch: int, step: int, machine: "Machine") -> None:
        now = datetime.now(UTC).isoformat(timespec="seconds")
        self.append({"epoch": epoch + 1, "step": step, "started": now, **machine._asdict()})


class Machine(NamedTuple):
    """What computes a run: so many processes of so many threads each, and the device's name."""

    processes: int
    threads: int
    device: str


def differences(run: Run, config: TrainConfig, machine: Machine | None = None) -> list[str]:
    """The settings that a resume under `config` changes, as `workers 2 -> 4`, and what differs in the `machine`.

    Raises InputError for a setting that is no field of `RuntimeOptions`: with it the run would have another result.
    """
    stored = run.config()
    config = config.model_copy(update={"model": config.model.model_copy(update={"num_classes": stored.model.num_classes})})
    before, after = flat(stored), flat(config)
    changed = [name for name in sorted({*before, *after}) if before.get(name) != after.get(name)]
    for name in changed:
        if name not in RuntimeOptions.model_fields:
            raise InputError(
                f"The run {run.name} has {name} {before.get(name)} and cannot go on with {after.get(name)}: "
                "leave the setting as it was, or give the run, or the study that it is of, another name."
            )
    changes = [f"{name} {before[name]} -> {after[name]}" for name in changed]
    starts = [line for line in run.lines() if "started" in line]
    if machine is None or not starts:
        return changes
    others = {name: value for name, value in machine._asdict().items() if starts[-1].get(name) != value}
    if not machine.device.startswith("cpu"):
        others.pop("threads", None)  # a GPU's sums do not depend on them
    changes += [f"{name} {starts[-1].get(name)} -> {value}" for name, value in others.items()]
    if others or "accumulate" in changed:
        changes[-1] += ": the weights may differ in the last bits from those of a run that was not interrupted"
    return changes


def flat(config: TrainConfig) -> dict[str, Any]:
    """Every setting in one dict: the fields of the recipe and of the network beside the others."""
    fields = config.model_dump(mode="json")
    model, recipe = fields.pop("model"), fields.pop("recipe")
    return {**fields, **recipe, "model": model.pop("name"), **model.pop("variation"), **model}


def all_runs(root: Path) -> list[Run]:
    return [Run(path.parent) for path in sorted(root.glob("*/config.json"))]


def readable_runs(root: Path) -> list[Run]:
    """Those of `all_runs` whose files can be read. Each other one is named on standard error, with its `problem`."""
    found = []
    for run in all_runs(root):
        if problem := run.problem():
            leave_out(run, problem)
        else:
            found.append(run)
    return found


def leave_out(run: Run, problem: str) -> None:
    """Say on standard error why a run is left out."""
    log.warning("%s", f"The run {run.name!r} is left out: {problem}".replace("\n", " "))


def find_unfinished(root: Path, config: TrainConfig) -> Run | None:
    """The latest unfinished run that `config` can go on with, for `--resume auto`."""
    fitting = []
    for run in readable_runs(root):
        try:
            differences(run, config)
        except InputError:
            continue
        if run.state() == "interrupted":
            fitting.append(run)
    return max(fitting, key=lambda run: run.folder.stat().st_mtime, default=None)


def check_name(name: str) -> None:
    """Raises InputError unless `name` can be a run's: one component of a path, of printable characters."""
    if not name.isprintable() or "/" in name or name[:1] in ("", "-", ".") or len(os.fsencode(name)) > NAME:
        shown = repr(name) if len(name) <= NAME else f"{name[:20]!r}... of {len(name)} characters"
        raise InputError(
            f"The run's name {shown} is not accepted: printable characters without /, at most {NAME}, "
            "not beginning with - or '.'."
        )


def free_name(root: Path, name: str) -> str:
    """`name`, or `name-2`, `name-3`, ... if there is such a run already; without what `check_name` does not accept."""
    name = "".join(c if c.isprintable() and c != "/" else "_" for c in name).lstrip("-.") or "run"
    while len(os.fsencode(name)) > NAME - 10:
        name = name[:-1]
    taken = {path.name for path in root.glob("*")}
    return next(word for word in (name, *(f"{name}-{n}" for n in range(2, len(taken) + 3))) if word not in taken)
