"""Accuracy upright: of all images, and by class."""

from collections.abc import Sequence

import pandas as pd

from sanbench.evaluation.robust import Findings
from sanbench.evaluation.statistics import wilson
from sanbench.models import MODELS
from sanbench.report.cells import Footnotes, Shown, cell, identity, names, number_of_images, shown
from sanbench.report.rendering import Block, Heading, Table, Text
from sanbench.store.schema import Record

CLASSES_SHOWN = 20  # of more classes the best and the worst are named
ENDS_SHOWN = 5


def section(group: Sequence[Record], findings: Findings) -> list[Block]:
    published = group[0].data.name == "imagenet"
    upright = [record for record in group if record.kind == "accuracy"]
    named, notes = names(group), Footnotes(upright, findings)
    lines = []
    for record in upright:
        line = {
            "network": named[shown(record)],
            "top-1": notes.cell(record),
            "top-5": cell(wilson(record.counts["correct_top5"], record.counts["images"])),
            **identity(record),
        }
        paper = MODELS[record.network.name].published if published and record.network.label in MODELS else None
        if published:
            line["published top-1 / top-5"] = f"{paper.top1} / {paper.top5}" if paper else ""
        lines.append(line)
    if not lines:
        return []
    return [Heading("Accuracy, upright", 3), Table(lines, "Accuracy"), *notes.blocks(), *by_class(upright, findings, named)]


def by_class(upright: Sequence[Record], findings: Findings, named: dict[Shown, str]) -> list[Block]:
    """A row a class and a column a network; of many classes the best and the worst of each network."""
    classes: dict[tuple[int, str], dict[str, str]] = {}
    extremes = []
    for record in upright:
        if not record.classes:
            continue
        rows, name = findings.rows(record), f"{named[shown(record)]}, n {number_of_images(record.data)}"
        right = rows["prediction"].eq(rows["label"]).groupby(rows["label"]).agg(["sum", "count"])
        if len(record.classes) > CLASSES_SHOWN:
            n = number_of_images(record.data)
            extremes.append({"network": named[shown(record)], "n": n, **best_and_worst(right, record.classes)})
            continue
        for label, of in enumerate(record.classes):
            hits, total = map(int, right.loc[label]) if label in right.index else (0, 0)
            figure = f"{100 * wilson(hits, total).value:.1f} ({total})" if total else "—"
            classes.setdefault((label, of), {"class": of})[name] = figure
    text = Text("Top-1 on upright images by class; in parentheses the number of images.")
    tables = [Table(found, "Accuracy by class") for found in (list(classes.values()), extremes) if found]
    return [text, *tables] if tables else []


def best_and_worst(right: pd.DataFrame, classes: Sequence[str]) -> dict[str, str]:
    """`tench 0: 98.0 (50); ...` for the ends of the list; of equal classes the worst are those of lower index."""
    order = (right["sum"] / right["count"]).sort_values(kind="stable").index

    def text(label: int) -> str:
        hits, total = map(int, right.loc[label])
        return f"{classes[label]} {label}: {100 * wilson(hits, total).value:.1f} ({total})"

    ends = {f"worst {ENDS_SHOWN}": order[:ENDS_SHOWN], f"best {ENDS_SHOWN}": order[::-1][:ENDS_SHOWN]}
    return {title: "; ".join(map(text, labels)) for title, labels in ends.items()}
