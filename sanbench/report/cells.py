"""What a table says of a record: its row, its figures, what was done to the images, and its flags."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import pandas as pd

from sanbench.evaluation.sanity_checks import FLAGS
from sanbench.evaluation.statistics import Proportion, wilson
from sanbench.report.rendering import Block, Text
from sanbench.store.files import Record

Rows = Callable[[Record], pd.DataFrame]
View = tuple[tuple[str, Any], ...]


def subject(record: Record) -> tuple[str, str, int, int | None]:
    """What a table has a row for: one network's weights on one selection of images."""
    return record.model, record.weights, record.data["images"], record.data["subset_seed"]


def by_subject(records: Sequence[Record]) -> dict[tuple[str, str, int, int | None], list[Record]]:
    return {key: [r for r in records if subject(r) == key] for key in dict.fromkeys(map(subject, records))}


def identity(record: Record) -> dict[str, str]:
    data = record.data
    n = f"{data['images']:,}" if data["images"] == data["of"] else f"{data['images']:,} of {data['of']:,}"
    return {"n": n, "seed": str(record.training.get("seed", "—")), "weights": record.weights[:8]}


def cell(value: Proportion | None) -> str:
    """`84.3 [82.6, 85.8]`, in percent."""
    if value is None or math.isnan(value.value):
        return "—"
    return f"{100 * value.value:.1f} [{100 * value.low:.1f}, {100 * value.high:.1f}]"


def top1(record: Record) -> Proportion:
    return wilson(record.counts["correct"], record.counts["images"])


def condition(record: Record) -> str:
    """`turned 90°`, `pgd, L∞ ε = 8/255`, `fog 3`: what was done to the images."""
    setting = record.setting
    match record.experiment:
        case "rotation":
            return turned(setting["angle"]) + "".join(f", {word}" for word in (view_name(view(record)),) if word)
        case "attack":
            return f"{setting['attack']}, {norm(setting)} ε = {setting['eps']}"
        case "transfer":
            return f"{setting['attack']} from {setting['source']}, {norm(setting)} ε = {setting['eps']}"
        case "corruption":
            return f"{setting['kind']} {setting['severity']}"
    return "upright"


def turned(angle: int | float | str) -> str:
    return angle if isinstance(angle, str) else f"{angle}°"


def view(record: Record) -> View:
    """What is declared beside the angle."""
    return tuple((name, value) for name, value in record.setting.items() if name != "angle")


def view_name(declared: View) -> str:
    return ", ".join(f"{name} {value}" for name, value in declared if value != "none")


def norm(setting: dict[str, Any]) -> str:
    return {"linf": "L∞", "l2": "L₂"}[setting["norm"]]


def footmarks(records: Sequence[Record]) -> dict[str, str]:
    """A mark for each flag that any of them has."""
    return {name: f"†{n}" for n, name in enumerate(dict.fromkeys(f for r in records for f in r.flags), start=1)}


def marked(record: Record, marks: dict[str, str]) -> str:
    return "".join(f" {marks[name]}" for name in record.flags)


def footnotes(marks: dict[str, str]) -> list[Block]:
    return [Text(f"{mark} {FLAGS[name]}") for name, mark in marks.items()]
