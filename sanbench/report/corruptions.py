"""Accuracy on corrupted images."""

from collections.abc import Sequence

from sanbench.evaluation.corruption_error import (
    Errors,
    alexnet,
    by_definition,
    comparable_with_alexnet,
    errors_of,
    mean_corruption_error,
    relative_mean_corruption_error,
)
from sanbench.evaluation.robust import Findings
from sanbench.evaluation.statistics import wilson
from sanbench.models import MODELS, baseline_of
from sanbench.report.cells import by_row, cell, identity, row_of
from sanbench.report.rendering import Block, Heading, Table, Text
from sanbench.store.schema import ModelSpec, Record

ORIGINAL = "as in the original benchmark"
DIFFERING = "Defined otherwise than in the original benchmark. "


def section(group: Sequence[Record], findings: Findings) -> list[Block]:
    """Top-1 by corruption over all severities, and mean corruption errors; a table for each definition of the corruptions."""
    corrupted = [record for record in group if record.kind == "corruption"]
    upright = {row_of(record): record for record in group if record.kind == "accuracy"}
    blocks: list[Block] = [Heading("Corrupted images", 3)] if corrupted else []
    for defined_alike in by_definition(corrupted):
        blocks += table(defined_alike, upright, findings)
    return blocks


def table(corrupted: Sequence[Record], upright: dict[tuple[str, str], Record], findings: Findings) -> list[Block]:
    rows = by_row(corrupted)
    errors = [errors_of(records, upright.get(row_of(records[0])), findings) for records in rows]
    names = list(dict.fromkeys(record.setting["corruption"] for record in corrupted))
    references = [against(records[0], rows, errors) for records in rows]
    titles = dict.fromkeys(title for found in references for title in found)
    lines = []
    for records, own, found in zip(rows, errors, references, strict=True):
        line = {"network": records[0].network.label}
        for title in titles:
            baseline = found.get(title)
            line[f"mCE ({title})"] = percent(baseline and mean_corruption_error(own, baseline))
            line[f"relative mCE ({title})"] = percent(baseline and relative_mean_corruption_error(own, baseline))
        for name in names:
            counts = [record.counts for record in records if record.setting["corruption"] == name]
            line[name] = cell(wilson(sum(c["correct"] for c in counts), sum(c["images"] for c in counts)))
        lines.append(line | identity(records[0]))
    severities = sorted({record.setting["severity"] for record in corrupted})
    text = f"Top-1 over severities {', '.join(map(str, severities))}; the interval takes them as separate images."
    if titles:
        text += (
            " mCE: mean over kinds of the error summed over severities, divided by that of the network in parentheses, in "
            "percent; relative mCE: the same of how much larger the errors are than those of upright images."
        )
    notes = sorted({r.setting["corruption"]: r.setting["definition"] for r in corrupted}.items())
    differing = [f"{name}: {definition}" for name, definition in notes if definition != ORIGINAL]
    told = [Text(DIFFERING + " ".join(differing))] if differing else []
    return [Text(text), Table(lines), *told]


def against(record: Record, rows: Sequence[Sequence[Record]], errors: Sequence[Errors]) -> dict[str, Errors | None]:
    """The baselines of a row by title: AlexNet where its images are as ImageNet-C's, and its ResNet of the same table.

    None stands for a ResNet that was not measured on the same images.
    """
    found: dict[str, Errors | None] = {"AlexNet": alexnet()} if comparable_with_alexnet(record) else {}
    reference = baseline_of(record.network) or (record.network if record.network.name in MODELS else None)
    if reference is not None:
        alike = (e for r, e in zip(rows, errors, strict=True) if is_network(r[0], reference) and r[0].data == record.data)
        found[f"against {reference.name}"] = next(alike, None)
    return found


def is_network(record: Record, spec: ModelSpec) -> bool:
    return (record.network.name, record.network.variation) == (spec.name, spec.variation)


def percent(ratio: float | None) -> str:
    return "—" if ratio is None else f"{100 * ratio:.1f}"
