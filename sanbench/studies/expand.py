"""Expansion: from a study to the trainings and measurements that single commands make, with the same keys."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field, fields
from functools import cached_property
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, NamedTuple

from pydantic import TypeAdapter, ValidationError

from sanbench.data import ReadOptions, find_dataset
from sanbench.errors import InputError, unknown
from sanbench.evaluation.kinds import KINDS, Request, kind_of, parse
from sanbench.evaluation.measurements import options_of
from sanbench.late import Late
from sanbench.models import FAMILIES, family_name, resolve
from sanbench.runs.config import RECIPES, TrainConfig, configure
from sanbench.runs.evaluated import EvaluatedModel
from sanbench.store.schema import ModelSpec, slug
from sanbench.studies.study import Measure, Study, TableEntry

if TYPE_CHECKING:
    from torch import nn

    from sanbench.models import classifier
else:
    nn, classifier = Late("torch.nn"), Late("sanbench.models.classifier")

SIZES = ("parameters", "gmacs")  # figures of a network, all others are measured
HITS = ("top1", "top5")  # figures of upright images
FIGURES = ("drop", "success")  # figures of another measurement, beside its top-1
SIDE = 32  # of images in memory, in pixels


@dataclass(frozen=True)
class Choice:
    """What a command changes of a study: a part of it, other data, fewer images. None is as the study says.

    folders  the options of runs and results, where they are not the default's
    """

    tables: Sequence[str] | None = None
    networks: Sequence[str] | None = None
    seeds: Sequence[int] | None = None
    data: str | None = None
    data_root: Path | None = None
    limit: int | None = None
    folders: Sequence[str] = ()

    @property
    def words(self) -> list[str]:
        """The options that it came from, without tables, networks and folders."""
        options = {"seeds": self.seed_list, "data": self.data, "data-root": self.data_root, "limit": self.limit}
        return [word for name, value in options.items() if value is not None for word in (f"--{name}", str(value))]

    @property
    def seed_list(self) -> str | None:
        return None if self.seeds is None else ",".join(map(str, self.seeds))


@dataclass(frozen=True)
class Training:
    """A network of the study with one seed; `name` is that of its run, `changes` are those of its recipe and network."""

    network: str
    name: str
    config: TrainConfig
    recipe: str | None
    changes: Mapping[str, Any]

    @property
    def words(self) -> list[str]:
        """The command that trains it, after `sanbench`."""
        config = self.config
        given = {name: getattr(config, name) for name in ("data_root", "image_size")}
        words = ["train", config.model.name, "--data", config.data, "--run", self.name, "--seed", str(config.seed)]
        for name, value in given.items():
            words += [] if value == TrainConfig.model_fields[name].default else [f"--{name.replace('_', '-')}", str(value)]
        words += [] if self.recipe is None else ["--recipe", self.recipe]
        of_network = {name for name in self.changes if name not in type(config.recipe).model_fields}
        changes = {name: value for name, value in self.changes.items() if name not in of_network} | config.model.variation
        return [*words, *(word for name, value in sorted(changes.items()) for word in ("--set", f"{name}={value}"))]


class Wanted(NamedTuple):
    """A measurement of a network: kind and setting of its record, and on which images.

    setting  as JSON with sorted keys
    about    what is done to the images, in a few words
    passes   of the network for an image, at most
    """

    kind: str
    setting: str
    limit: int | None
    seed: int
    about: str
    passes: int


@dataclass(frozen=True)
class Asked:
    """An entry `measure` of the study: options of a kind, whose perturbations are known once network and images are."""

    kind: str
    options: Any
    entry: Measure
    limit: int | None
    data: str
    side: int

    def request(self) -> Request:
        return Request(self.entry.seed, 64, no_network, self.data)

    def bind(self, evaluated: EvaluatedModel, images: Any) -> list[Any]:
        """Perturbations, as `sanbench.evaluation.kinds.parse`."""
        return list(parse(self.kind, self.options, self.request())(evaluated, images))

    @cached_property
    def wanted(self) -> list[Wanted]:
        """The same as what records will say of them. No image is read."""
        spec = ModelSpec(name="any")
        network = EvaluatedModel(classifier.Classifier(spec, nn.Identity()), "", "any", {}, {}, "not trained")
        images = SimpleNamespace(name=self.data, widest=0, among=None, side=self.side)
        return [self.told(perturbation) for perturbation in self.bind(network, images)]

    def told(self, perturbation: Any) -> Wanted:
        kind, setting = perturbation.kind, perturbation.setting
        about = kind_of(kind).short(setting)
        return Wanted(kind, canonical(setting), self.limit, self.entry.seed, about, perturbation.passes)


class Column(NamedTuple):
    """A figure of a table, top1 or one of SIZES, HITS and FIGURES: of a network, or of what was done to the images.

    setting  of the measurement, as its text alone has it; the study may `set` other options of it
    """

    heading: str
    figure: str
    kind: str = "accuracy"
    about: str = "upright"
    setting: str = "{}"


@dataclass(frozen=True)
class TablePlan:
    key: str
    entry: TableEntry
    columns: list[Column]

    @property
    def networks(self) -> list[str]:
        return list(dict.fromkeys(name for rows in self.entry.rows for name in rows.networks))


@dataclass(frozen=True)
class Expansion:
    """What a study asks for under a choice. `wanted` are the measurements of each run, by its name."""

    study: Study
    choice: Choice
    data: str
    trainings: list[Training]
    asked: list[Asked]
    tables: list[TablePlan]
    wanted: dict[str, list[Wanted]] = field(default_factory=dict)

    @property
    def title(self) -> str:
        """What the file of its tables is called; those of fewer seeds or images have another."""
        whole = self.study.name if self.choice.data is None else titled(self.study, self.data)
        fewer = {"seeds": self.choice.seed_list, "limit": self.choice.limit}
        return whole + "".join(f"-{name}-{value}" for name, value in fewer.items() if value is not None)

    def of(self, network: str) -> list[Training]:
        return [training for training in self.trainings if training.network == network]

    def column(self, training: Training, column: Column) -> Wanted:
        """Of a network what a column shows. Raises InputError where that is not one measurement."""
        every = measured(self.asked, training.network)
        alike = [each for each in every if (each.kind, each.about) == (column.kind, column.about)]
        fitting = [each for each in alike if each.setting == column.setting] or alike
        if len(fitting) != 1:
            how = f"measured {len(fitting)} times, differently," if fitting else "not measured"
            known = ", ".join(dict.fromkeys(each.about for each in every))
            shown = known if len(known) < 300 else f"{known[:300]} ..."
            raise InputError(f"column {column.heading!r} is {how} for {training.network}: it has {shown}.")
        return fitting[0]

    def upright(self, training: Training, of: Wanted) -> Wanted:
        """The upright images that a drop is measured from: the same images. Raises InputError where there are none."""
        for each in measured(self.asked, training.network):
            if each.kind == "accuracy" and (each.limit, each.seed) == (of.limit, of.seed):
                return each
        raise InputError(f"{of.about} has no upright images of the same selection that it could drop from.")


def expand(study: Study, choice: Choice = Choice()) -> Expansion:
    """Raises InputError, with the line of the file where it is at fault, for whatever has no meaning."""
    data = choice.data or study.networks.content.data
    if data.startswith("folder:"):
        data = f"folder:{Path(data.removeprefix('folder:')).expanduser()}"  # as records name it
    with nullcontext() if choice.data else study.networks.at("data"):
        if find_dataset(data, ReadOptions())[0].test_only:
            raise InputError(f"{data} has test images only: nothing can be trained on it.")
    names = study.networks.content.networks
    for word in choice.tables or ():
        if word not in study.content.tables:
            raise unknown(f"table of {study.name}", word, study.content.tables)
    for word in choice.networks or ():
        if word not in names:
            raise unknown(f"network of {study.name}", word, names)
    trainings = list(configured(study, choice, data))
    side = trainings[0].config.image_size if find_dataset(data, ReadOptions())[0].photographs else SIDE
    tables = [TablePlan(key, entry, columns(study, key, entry, side)) for key, entry in study.content.tables.items()]
    whole = Expansion(study, choice, data, trainings, list(asked(study, choice, data, side)), tables)
    check_columns(whole)
    kept = [table for table in tables if choice.tables is None or table.key in choice.tables]
    shown = [name for table in kept for name in table.networks] if choice.tables is not None else list(names)
    shown = [name for name in shown if choice.networks is None or name in choice.networks]
    found = Expansion(study, choice, data, [t for t in trainings if t.network in shown], whole.asked, kept)
    for training in found.trainings:
        found.wanted[training.name] = list(dict.fromkeys(wanted(found, training)))
    return found


def wanted(expansion: Expansion, training: Training) -> Iterator[Wanted]:
    """All measurements of the network; of chosen tables those that they show."""
    if expansion.choice.tables is None:
        yield from measured(expansion.asked, training.network)
        return
    for table in expansion.tables:
        for column in table.columns if training.network in table.networks else ():
            if column.figure not in SIZES:
                found = expansion.column(training, column)
                yield from [expansion.upright(training, found), found] if column.figure == "drop" else [found]


def measured(every: Iterable[Asked], network: str) -> list[Wanted]:
    """What is measured of a network, each once."""
    own = (asked for asked in every if asked.entry.networks is None or network in asked.entry.networks)
    return list(dict.fromkeys(found for asked in own for found in asked.wanted))


def configured(study: Study, choice: Choice, data: str) -> Iterator[Training]:
    """Every network with every seed, network by network. Raises InputError for two that are the same."""
    base = study.networks
    content = base.content
    options: dict[str, Any] = {} if choice.data_root is None else {"data_root": choice.data_root}
    if content.image_size is not None and find_dataset(data, ReadOptions())[0].photographs:
        options["image_size"] = content.image_size
    for name in content.set:
        with base.at("set", name):
            if name not in FAMILIES:
                raise unknown("family", name, FAMILIES)
    with base.at("recipe"):
        if content.recipe is not None and content.recipe not in RECIPES:
            raise unknown("recipe", content.recipe, RECIPES)
    first: dict[str, str] = {}
    for name, entry in content.networks.items():
        with base.at("networks", name, "model"):
            model, variation = resolve(entry.model or name)
        shared = content.set.get(family_name(model), {})
        changes = {**shared, **variation, **entry.set}
        for seed in choice.seeds or content.seeds:
            try:
                config = configure(model, data, recipe=content.recipe, changes=changes, seed=seed, **options)
            except InputError as error:
                wrong = re.split("Did you mean|Known:", str(error))[0]
                told = next((field for field in changes if re.search(rf"\b{re.escape(field)}\b", wrong)), "")
                keys = ("networks", name, "set", told) if told in entry.set else ("set", family_name(model), told)
                with base.at(*(keys if told else ("networks", name))):
                    raise
            suffix = [] if seed == 0 and content.seeds == [0] else [f"s{seed}"]
            if (same := first.setdefault(config.model_dump_json(), name)) != name:
                with base.at("networks", name):
                    raise InputError(f"network {name!r} is not accepted: it is the same as {same!r}.")
            yield Training(name, "-".join([titled(base, data), name, *suffix]), config, content.recipe, changes)


def titled(study: Study, data: str) -> str:
    """`paper`, on other data than its own `paper-cifar10`: how its runs' names begin."""
    return study.name if data == study.content.data else f"{study.name}-{slug(data.rsplit('/')[-1])}"


def asked(study: Study, choice: Choice, data: str, side: int) -> Iterator[Asked]:
    for number, entry in enumerate(study.content.measure):
        limit = min((n for n in (entry.limit, choice.limit) if n is not None), default=None)
        for text in entry.what:
            with study.at("measure", number, "what", word=text):
                options = options_of(text)
            for name, value in entry.set.items():
                with study.at("measure", number, "set", name):
                    options = with_field(options, name, value)
                    if name == "surrogate":
                        no_network(value, None)
            with study.at("measure", number, "what", word=text):
                kind = next(name for name, known in KINDS.items() if known.options is type(options))
                found = Asked(kind, options, entry, limit, data, side)
                assert found.wanted  # raises what has no meaning
            yield found


def with_field(options: Any, name: str, value: Any) -> Any:
    """A kind's options with another value. Raises InputError for an unknown field and a value of another type."""
    known = {field.name for field in fields(options)}
    if name not in known:
        raise unknown(f"option of {type(options).__name__}", name, known)
    try:
        return TypeAdapter(type(options)).validate_python({**asdict(options), name: value})
    except ValidationError as error:
        first = error.errors()[0]
        raise InputError(f"{first['loc'][0]} {first['input']!r} is not accepted: {first['msg'].lower()}.") from None


def columns(study: Study, key: str, entry: TableEntry, side: int) -> list[Column]:
    found = []
    for text in entry.columns:
        with study.at("tables", key, "columns", word=text):
            found.append(column(text, side))
    return found


def column(text: str, side: int) -> Column:
    """`drop rotate:90` of images of `side` pixels -> what it shows. Raises InputError for a text that names no figure."""
    if text in SIZES or text in HITS:
        return Column(text, text)
    first, _, rest = text.partition(" ")
    figure, measurement = (first, rest) if first in FIGURES else ("top1", text)
    try:
        options = options_of(measurement)
    except InputError as error:
        raise InputError(f"{error} A column may also be {', '.join(HITS + SIZES)}.") from None
    kind = next(name for name, known in KINDS.items() if known.options is type(options))
    every = [w for w in Asked(kind, options, Measure(what=[measurement]), None, "", side).wanted if w.kind == kind]
    if len(every) != 1:
        raise InputError(f"column {text!r} is not accepted: it has {len(every)} conditions, and a column one.")
    if figure == "success" and kind != "attack":
        raise InputError(f"column {text!r} is not accepted: only an attack has a success.")
    return Column(text, figure, kind, every[0].about, every[0].setting)


def check_columns(expansion: Expansion) -> None:
    """Raises InputError for a table that shows what is not measured."""
    study, first = expansion.study, {training.network: training for training in reversed(expansion.trainings)}
    for table in expansion.tables:
        for text, shown in zip(table.entry.columns, table.columns, strict=True):
            with study.at("tables", table.key, "columns", word=text):
                for network in table.networks if shown.figure not in SIZES else ():
                    found = expansion.column(first[network], shown)
                    if shown.figure == "drop":
                        expansion.upright(first[network], found)


def canonical(setting: Mapping[str, Any]) -> str:
    """A setting as a record's, which went through JSON."""
    return json.dumps(setting, sort_keys=True)


def no_network(name: str, weights: Path | None) -> EvaluatedModel:
    raise InputError(f"surrogate {name!r} is not accepted in a study: `sanbench attack --surrogate` makes transfers.")
