"""The worst case over rotations and shifts, and how far an image can be turned before it falls: part of the rotations."""

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from math import ceil

import numpy as np
from numpy.typing import NDArray

from sanbench.evaluation.kinds import Setting, condition, declared_spatial, order_spatial, short_spatial
from sanbench.evaluation.robust import Findings
from sanbench.evaluation.statistics import Proportion, wilson
from sanbench.report.cells import Shown, cell, main_selection, matrix, number_of_images, series, shown, told_n
from sanbench.report.charts import Panel, Series
from sanbench.report.rendering import Block, Table, Text
from sanbench.store.schema import Record

QUANTILES = (0.1, 0.25, 0.5, 0.75, 0.9)
MARKS = 36  # of a curve, at most
ABOUT = (
    "Worst case: right upright and at each rotation with shift that was tried; an image that fell was not tried further. In "
    "parentheses: the difference to the same network on the same images upright, in points."
)
SMALLEST = (
    "The smallest rotation, either way, at which a network is wrong, of the images that it has right upright: a tenth of them "
    "falls at no more than the first angle, half at no more than the median. ∞: at none that was tried."
)


def panels(records: Sequence[Record], findings: Findings, named: dict[Shown, str]) -> list[Panel]:
    """Dots of all that was searched; of rotations from small to large a curve over the angle up to which there is no wrong."""
    found = []
    for own in by_words(records, declared_spatial).values():
        drawn = main_selection(own)
        dots = series(drawn, lambda record: short_spatial(record.setting), findings.top1, named)
        found.append(Panel(f"worst case, {brief(drawn)}", "top-1", dots))
    for own in by_words(smallest(records), partial(condition, "spatial")).values():
        drawn = main_selection(own)
        curves = [Series(named[shown(record)], curve(record, findings)) for record in drawn]
        found.append(Panel(f"right up to an angle, {brief(drawn)}", "degrees either way", curves))
    return found


def brief(records: Sequence[Record]) -> str:
    """`bilinear, black, n 2,000`: what fits above a panel."""
    setting = records[0].setting
    return f"{setting['interpolation']}, {setting['fill']}, {told_n(records)}"


def tables(records: Sequence[Record], findings: Findings, named: dict[Shown, str]) -> list[Block]:
    if not records:
        return []

    def value(record: Record) -> str:
        top1, before = findings.top1(record), wilson(record.counts["right_before"], record.counts["images"])
        return f"{cell(top1)} ({100 * (top1.value - before.value):+.1f})"

    found: list[Block] = [Text(ABOUT)]
    for frame, own in by_words(records, declared_spatial).items():
        found.append(Table(matrix(own, lambda r: {"searched": short_spatial(r.setting)}, value, named), f"Worst case, {frame}"))
    if turned := smallest(records):
        lines = [{"network": named[shown(record)]} | quantiles(record, findings) for record in turned]
        found += [Text(SMALLEST), Table(lines, "Smallest rotation that changes the prediction")]
    return found


def by_words(records: Iterable[Record], words: Callable[[Setting], str]) -> dict[str, list[Record]]:
    """Records by what `words` says of their setting, in the order of a table."""
    found: dict[str, list[Record]] = {}
    for record in sorted(records, key=lambda record: order_spatial(record.setting)):
        found.setdefault(words(record.setting), []).append(record)
    return found


def smallest(records: Iterable[Record]) -> list[Record]:
    return [record for record in records if record.setting["method"] == "smallest"]


def angles(record: Record, findings: Findings) -> NDArray[np.float64]:
    """Degrees at which each image falls that was right upright; infinite where none of the angles felled it."""
    rows = findings.rows(record)
    right = rows[rows["clean_prediction"] == rows["label"]]
    return np.where(right["success"], right["rotation"].abs(), np.inf)


def curve(record: Record, findings: Findings) -> dict[float, Proportion]:
    """By degrees, which of all images are right upright and at every angle up to them."""
    fell, step, degrees = angles(record, findings), record.setting["step"], record.setting["degrees"]
    steps = int(degrees / step * (1 + 1e-12))
    tried = [step * number for number in range(0, steps + 1, ceil(steps / MARKS))]
    return {each: wilson(int((fell > each * (1 + 1e-9)).sum()), record.counts["images"]) for each in tried}


def quantiles(record: Record, findings: Findings) -> dict[str, str]:
    fell = angles(record, findings)
    found = np.quantile(fell, QUANTILES, method="inverted_cdf") if len(fell) else [np.nan] * len(QUANTILES)
    named = {"median" if share == 0.5 else f"{share:.0%}": angle for share, angle in zip(QUANTILES, found, strict=True)}
    told = {name: "—" if np.isnan(angle) else f"{angle:g}°".replace("inf°", "∞") for name, angle in named.items()}
    stand = cell(wilson(int(np.isinf(fell).sum()), len(fell)))
    return told | {"at none": stand, "searched": condition("spatial", record.setting), "n": number_of_images(record.data)}
