"""What a table says of a record: its row and its column, its figures, and its flags."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from sanbench.evaluation.robust import Findings
from sanbench.evaluation.sanity_checks import FLAGS
from sanbench.evaluation.statistics import Proportion
from sanbench.report.charts import Series, Value
from sanbench.report.rendering import Block, Text
from sanbench.store.schema import ImageSet, Network, Record

Shown = tuple[str, str, str]  # what a table has a column for: a network, and how it was shown the images
Images = tuple[int, int | None]  # which of the images of a data set


def shown(record: Record) -> Shown:
    return record.network.model_dump_json(), record.data.decoder, record.data.preprocessing


def selection(record: Record) -> Images:
    return record.data.images, record.data.subset_seed


def names(records: Iterable[Record]) -> dict[Shown, str]:
    """The label of each network; where several have one, with what tells them apart: run, seed, weights, reading."""
    first: dict[Shown, Record] = {}
    for record in records:
        first.setdefault(shown(record), record)
    found = {key: record.network.label for key, record in first.items()}
    telling: list[Callable[[Record], str]] = [
        lambda record: record.run,
        lambda record: f"seed {record.training.get('seed', '—')}",
        lambda record: short(record.network),
        lambda record: record.data.decoder,
        lambda record: record.data.preprocessing,
    ]
    for tell in telling:
        alike = {name: {tell(first[key]) for key in found if found[key] == name} for name in set(found.values())}
        found = {key: f"{name}, {tell(first[key])}" if len(alike[name]) > 1 else name for key, name in found.items()}
    return found


def matrix(
    records: Iterable[Record],
    condition: Callable[[Record], Mapping[str, str]],
    value: Callable[[Record], str],
    named: dict[Shown, str],
) -> list[dict[str, str]]:
    """A row a condition and selection of images, a column a network. What a condition does not tell apart has a row each."""
    rows: dict[tuple[object, ...], dict[str, str]] = {}
    heads: dict[tuple[object, ...], dict[str, str]] = {}
    key: tuple[object, ...]
    for record in records:
        head = dict(condition(record))
        key, name = (*head.items(), selection(record)), named[shown(record)]
        while name in rows.get(key, {}):
            key = (*key, "again")
        heads[key] = head | {"n": number_of_images(record.data)}
        rows.setdefault(key, {})[name] = value(record)
    used = [name for name in named.values() if any(name in cells for cells in rows.values())]
    return [heads[key] | {name: cells.get(name, "—") for name in used} for key, cells in rows.items()]


def main_selection(records: Iterable[Record]) -> list[Record]:
    """Of each network the records on the selection of images that has most of them; of several such the largest."""
    kept: list[Record] = []
    by_network: dict[Shown, dict[Images, list[Record]]] = {}
    for record in records:
        by_network.setdefault(shown(record), {}).setdefault(selection(record), []).append(record)
    for selections in by_network.values():
        most = max(selections.values(), key=lambda own: (len(own), own[0].data.images))
        kept += most
    return kept


def told_n(records: Sequence[Record]) -> str:
    """`n 200`, or `n 100 to 200` where networks saw different numbers of images."""
    numbers = sorted({record.data.images for record in records})
    return f"n {' to '.join(f'{number:,}' for number in dict.fromkeys((numbers[0], numbers[-1])))}"


def series(
    records: Iterable[Record], at: Callable[[Record], Any], value: Callable[[Record], Value], named: dict[Shown, str]
) -> list[Series]:
    """A picture's figures: by network, in the order of `named`, by what `at` says of a record."""
    points: dict[str, dict[Any, Value]] = {name: {} for name in named.values()}
    for record in records:
        points[named[shown(record)]][at(record)] = value(record)
    return [Series(name, own) for name, own in points.items() if own]


def identity(record: Record) -> dict[str, str]:
    return {"n": number_of_images(record.data), "seed": str(record.training.get("seed", "—")), "weights": short(record.network)}


def number_of_images(data: ImageSet) -> str:
    """`500 of 50,000, drawn by seed 3, list 1a2b3c4d`: what a list's images are is told by the beginning of its hash."""
    drawn = f", drawn by seed {data.subset_seed}" if data.subset_seed else ""
    number = f"{data.images:,}" if data.images == data.of else f"{data.images:,} of {data.of:,}{drawn}"
    return f"{number}, list {data.listed[:8]}" if data.listed else number


def short(network: Network) -> str:
    """The beginning of the weights' hash."""
    return network.weights[:8]


def cell(value: Proportion | None) -> str:
    """`84.3 [82.6, 85.8]`, in percent."""
    if value is None or math.isnan(value.value):
        return "—"
    return f"{100 * value.value:.1f} [{100 * value.low:.1f}, {100 * value.high:.1f}]"


class Footnotes:
    """A mark for each flag that any of the records has, and what the marks mean."""

    def __init__(self, records: Sequence[Record], findings: Findings) -> None:
        self.findings = findings
        found = dict.fromkeys(flag for record in records for flag in findings.flags(record))
        self.marks = {flag: f"†{number}" for number, flag in enumerate(found, start=1)}

    def cell(self, record: Record) -> str:
        """Top-1, or robust accuracy, with the marks of the record's flags."""
        marks = [self.marks[flag] for flag in self.findings.flags(record)]
        return " ".join([cell(self.findings.top1(record)), *marks])

    def blocks(self) -> list[Block]:
        return [Text(f"{mark} {FLAGS[flag]}") for flag, mark in self.marks.items()]
