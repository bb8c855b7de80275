"""What a table says of a record: its row, its figures, and its flags."""

import math
from collections.abc import Sequence

from sanbench.evaluation.robust import Findings
from sanbench.evaluation.sanity_checks import FLAGS
from sanbench.evaluation.statistics import Proportion
from sanbench.report.rendering import Block, Text
from sanbench.store.schema import ImageSet, Network, Record


def row_of(record: Record) -> tuple[str, str]:
    """What a table has a row for: a network on one selection of images."""
    return record.network.model_dump_json(), record.data.model_dump_json()


def by_row(records: Sequence[Record]) -> list[list[Record]]:
    """The records of each row, rows in the order of their first record."""
    rows: dict[tuple[str, str], list[Record]] = {}
    for record in records:
        rows.setdefault(row_of(record), []).append(record)
    return list(rows.values())


def identity(record: Record) -> dict[str, str]:
    return {"n": number_of_images(record.data), "seed": str(record.training.get("seed", "—")), "weights": short(record.network)}


def number_of_images(data: ImageSet) -> str:
    """`500 of 50,000, list 1a2b3c4d`: what a list's images are is told by the beginning of its hash."""
    number = f"{data.images:,}" if data.images == data.of else f"{data.images:,} of {data.of:,}"
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
