"""Accuracy on corrupted images."""

import math
from collections.abc import Sequence
from typing import Any

from sanbench.evaluation.corruptions import ORIGINAL
from sanbench.evaluation.statistics import wilson
from sanbench.models import MODELS
from sanbench.report.cells import Rows, by_subject, cell, identity, top1
from sanbench.report.rendering import Block, Heading, Table, Text
from sanbench.store.files import Record


def corruption_section(group: Sequence[Record], rows: Rows) -> list[Block]:
    """Top-1 by kind over all severities, and the mean corruption error against the ResNet of the same table."""
    corrupted = [record for record in group if record.experiment == "corruption"]
    if not corrupted:
        return []
    errors = {
        key: {(r.setting["kind"], r.setting["severity"]): 1 - top1(r).value for r in own}
        for key, own in by_subject(corrupted).items()
    }
    kinds = list(dict.fromkeys(record.setting["kind"] for record in corrupted))
    lines = []
    for key, own in by_subject(corrupted).items():
        name = key[0].split()[0]
        reference = (MODELS[name].baseline or name) if name in MODELS else None
        baseline = next((k for k in errors if k[0].split()[0] == reference and k[2:] == key[2:]), None)
        line = {"network": key[0], "mCE": mean_corruption_error(errors[key], errors[baseline]) if baseline else "—"}
        for kind in kinds:
            of_kind = [record.counts for record in own if record.setting["kind"] == kind]
            line[kind] = cell(wilson(sum(c["correct"] for c in of_kind), sum(c["images"] for c in of_kind)))
        lines.append(line | identity(own[0]))
    severities = sorted({record.setting["severity"] for record in corrupted})
    text = (
        f"Top-1 over severities {', '.join(map(str, severities))}; the interval takes them as separate images. "
        "mCE: mean over kinds of the error summed over severities, divided by that of the ResNet of this table, in percent."
    )
    notes = sorted({r.setting["kind"]: r.setting["definition"] for r in corrupted}.items())
    differing = [f"{kind}: {definition}" for kind, definition in notes if definition != ORIGINAL]
    blocks: list[Block] = [Heading("Corrupted images", 3), Text(text), Table(lines)]
    return [*blocks, Text("Defined otherwise than in the original benchmark. " + " ".join(differing))] if differing else blocks


def mean_corruption_error(own: dict[Any, float], baseline: dict[Any, float]) -> str:
    """100 times the mean over kinds of sum of errors / sum of the baseline's; only where both were measured alike."""
    if set(own) != set(baseline):
        return "—"
    ratios = []
    for kind in {kind for kind, _ in own}:
        ours, theirs = (sum(error for (k, _), error in errors.items() if k == kind) for errors in (own, baseline))
        ratios.append(ours / theirs if theirs else math.nan)
    return f"{100 * sum(ratios) / len(ratios):.1f}"
