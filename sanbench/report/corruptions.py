"""Accuracy on corrupted images."""

import math
from collections.abc import Sequence
from typing import Any

from sanbench.evaluation.robust import Findings
from sanbench.evaluation.statistics import wilson
from sanbench.models import MODELS, baseline_of
from sanbench.report.cells import by_row, cell, identity
from sanbench.report.rendering import Block, Heading, Table, Text
from sanbench.store.schema import ModelSpec, Record

ORIGINAL = "as in the original benchmark"


def section(group: Sequence[Record], findings: Findings) -> list[Block]:
    """Top-1 by corruption over all severities, and the mean corruption error against the ResNet of the same table."""
    corrupted = [record for record in group if record.kind == "corruption"]
    if not corrupted:
        return []
    rows = by_row(corrupted)
    errors = [{condition(record): 1 - findings.top1(record).value for record in records} for records in rows]
    names = list(dict.fromkeys(record.setting["corruption"] for record in corrupted))
    lines = []
    for records, own in zip(rows, errors, strict=True):
        first = records[0]
        reference = baseline_of(first.network) or (first.network if first.network.name in MODELS else None)
        alike = (e for r, e in zip(rows, errors, strict=True) if is_network(r[0], reference) and r[0].data == first.data)
        baseline = next(alike, None)
        line = {"network": first.network.label, "mCE": mean_corruption_error(own, baseline) if baseline else "—"}
        for name in names:
            counts = [record.counts for record in records if record.setting["corruption"] == name]
            line[name] = cell(wilson(sum(c["correct"] for c in counts), sum(c["images"] for c in counts)))
        lines.append(line | identity(first))
    severities = sorted({record.setting["severity"] for record in corrupted})
    text = (
        f"Top-1 over severities {', '.join(map(str, severities))}; the interval takes them as separate images. "
        "mCE: mean over kinds of the error summed over severities, divided by that of the ResNet of this table, in percent."
    )
    notes = sorted({r.setting["corruption"]: r.setting["definition"] for r in corrupted}.items())
    differing = [f"{name}: {definition}" for name, definition in notes if definition != ORIGINAL]
    blocks: list[Block] = [Heading("Corrupted images", 3), Text(text), Table(lines)]
    return [*blocks, Text("Defined otherwise than in the original benchmark. " + " ".join(differing))] if differing else blocks


def condition(record: Record) -> tuple[str, int]:
    return record.setting["corruption"], record.setting["severity"]


def is_network(record: Record, spec: ModelSpec | None) -> bool:
    return spec is not None and (record.network.name, record.network.variation) == (spec.name, spec.variation)


def mean_corruption_error(own: dict[Any, float], baseline: dict[Any, float]) -> str:
    """100 times the mean over kinds of sum of errors / sum of the baseline's; only where both were measured alike."""
    if set(own) != set(baseline):
        return "—"
    ratios = []
    for name in {name for name, _ in own}:
        ours, theirs = (sum(error for (n, _), error in errors.items() if n == name) for errors in (own, baseline))
        ratios.append(ours / theirs if theirs else math.nan)
    return f"{100 * sum(ratios) / len(ratios):.1f}"
