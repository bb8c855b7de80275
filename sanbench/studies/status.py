"""Standing: what of a study is done, running or failed, by whomever it was begun. Nothing is computed or loaded for it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

from sanbench.data import ReadOptions, find_dataset
from sanbench.errors import InputError, SanbenchError
from sanbench.runs.config import TrainConfig
from sanbench.runs.run import Run, all_runs, differences
from sanbench.store.claims import words_of
from sanbench.store.files import Store
from sanbench.store.schema import Failure, Record
from sanbench.studies.expand import SIZES, Expansion, TablePlan, Training, Wanted, canonical
from sanbench.studies.shape import shape_of

DECODER = "pil"  # of the images that a study measures, as of the commands that measure
TRAIN, MEASURE = "train-", "measure-"  # what a claim of a run's training, of its measuring, begins with


class State(NamedTuple):
    """Of a run: `done`, `measuring`, `trained`, `training`, `interrupted`, `failed` or `missing`; where, or why."""

    word: str
    detail: str = ""


@dataclass(frozen=True)
class Standing:
    """runs      by training's name the run that stands for it: its own, or a finished one of the same configuration
    records   of each run's name, by measurement, those of its newest weights
    failures  by training's name
    holders   by claim its living owner
    """

    expansion: Expansion
    runs: Mapping[str, Run]
    records: Mapping[str, Mapping[Wanted, Record]]
    failures: Mapping[str, Failure]
    holders: Mapping[str, str]

    def missing(self, training: Training) -> list[Wanted]:
        found = self.records[training.name]
        return [each for each in self.expansion.wanted[training.name] if each not in found]

    def is_trained(self, training: Training) -> bool:
        try:
            return training.name in self.runs and self.runs[training.name].is_finished()
        except SanbenchError:  # a damaged run, as `state` says
            return False

    def is_done(self, training: Training) -> bool:
        """Whether all is measured. A training that was begun is to be finished all the same."""
        begun = training.name in self.runs and not self.is_trained(training)
        return not begun and not self.missing(training) and (self.is_trained(training) or bool(self.records[training.name]))

    @cached_property
    def states(self) -> dict[str, State]:
        return {training.name: self.state(training) for training in self.expansion.trainings}

    def state(self, training: Training) -> State:
        for prefix, word in ((TRAIN, "training"), (MEASURE, "measuring")):
            if owner := self.holders.get(f"{prefix}{training.name}"):
                return State(word, words_of(owner))
        if self.is_done(training):
            return State("done")
        if training.name in self.failures:
            return State("failed", self.failures[training.name].sentence)
        if training.name not in self.runs:
            return State("missing")
        run = self.runs[training.name]
        if problem := run.problem():
            return State("failed", problem)
        state = run.state()
        words = {"finished": "trained", "running": "training", "interrupted": "interrupted"}
        epochs = f"{len(run.epochs())} of {run.config().recipe.epochs} epochs" if state != "finished" else ""
        return State(words[state], epochs)

    def trainings(self, table: TablePlan) -> list[Training]:
        return [training for training in self.expansion.trainings if training.network in table.networks]

    def shown(self, table: TablePlan) -> list[tuple[Training, Wanted]]:
        """The measurements that a table shows."""
        columns = [column for column in table.columns if column.figure not in SIZES]
        pairs = [(t, self.expansion.column(t, column)) for t in self.trainings(table) for column in columns]
        return list({(training.name, wanted): (training, wanted) for training, wanted in pairs}.values())


def look(expansion: Expansion, store: Store, root: Path) -> Standing:
    """The standing of a study, whose runs are in the folder `root`."""
    runs, every = find_runs(expansion, root), store.records()
    records = {t.name: matching(expansion, t, runs.get(t.name), every) for t in expansion.trainings}
    holders: dict[str, str] = {}
    if (store.work / "claims").is_dir():
        with store.claims() as claims:
            holders = claims.holders()
    return Standing(expansion, runs, records, store.failures(), holders)


def find_runs(expansion: Expansion, root: Path) -> dict[str, Run]:
    """By training's name its own run, whatever is in it, or a finished one that was trained alike under another name."""
    found = {training.name: run for training in expansion.trainings if (run := Run(root / training.name)).exists()}
    others = [run for run in all_runs(root) if run.name not in found]
    for training in expansion.trainings:
        if training.name not in found:
            alike = next((run for run in others if is_alike(run, training)), None)
            found |= {training.name: alike} if alike else {}
    return found


def is_alike(run: Run, training: Training) -> bool:
    try:
        differences(run, training.config)
        return run.is_finished()
    except (InputError, SanbenchError):
        return False


def matching(expansion: Expansion, training: Training, run: Run | None, records: Sequence[Record]) -> dict[Wanted, Record]:
    """By measurement, the records of the run's newest weights; where it has none, of whatever was trained alike."""
    alike = [record for record in records if is_of(training, record)]
    names = {training.name, run.name if run else training.name}
    own = [record for record in alike if record.run in names] or alike
    if not own:
        return {}
    of, weights = own[-1].data.of, own[-1].network.weights  # the store gives the oldest first
    same = (record for record in alike if record.network.weights == weights)
    told = {(r.kind, canonical(r.setting), r.data.images, r.data.subset_seed): r for r in same}
    found = {}
    for each in expansion.wanted[training.name]:
        drawn = (each.limit, each.seed) if each.limit is not None and each.limit < of else (of, None)
        if record := told.get((each.kind, each.setting, *drawn)):
            found[each] = record
    return found


def is_of(training: Training, record: Record) -> bool:
    """Whether a record is of a network trained as the study says, as far as it tells, on the images that the study measures."""
    config, network, data = training.config, record.network, record.data
    if (network.name, network.variation, data.name) != (config.model.name, config.model.variation, config.data):
        return False
    recipe, shape = config.recipe.model_dump(), shape_of(config)
    told = record.training.get("recipe") or {"": None}
    alike = all(recipe.get(name) == value for name, value in told.items()) and record.training.get("seed") == config.seed
    trained = shape is None or not shape.counted or shape.train == record.training.get("train_images")
    images = (data.split, data.listed) == ("test", None) and data.preprocessing.endswith(side_of(config))
    return alike and trained and images and data.decoder.split()[0].lower() in ("none", DECODER)


def side_of(config: TrainConfig) -> str:
    """How the preprocessing of photographs ends, as records tell it; nothing of other images."""
    return f"crop {config.image_size}" if find_dataset(config.data, ReadOptions())[0].photographs else ""
