"""Accuracy on corrupted images."""

import math
from collections.abc import Sequence
from typing import Any

from sanbench.evaluation.kinds import listed
from sanbench.evaluation.robust import Findings
from sanbench.evaluation.statistics import Proportion, wilson
from sanbench.models import MODELS, baseline_of
from sanbench.report.cells import Images, Shown, cell, main_selection, matrix, names, selection, series, shown, told_n
from sanbench.report.charts import Panel
from sanbench.report.rendering import Block, Heading, Picture, Table, Text
from sanbench.store.schema import ModelSpec, Record

ORIGINAL = "as in the original benchmark"
ABOUT = (
    "Top-1 over all severities of a corruption; the interval takes them as separate images. mCE: mean over corruptions of the "
    "error summed over severities, divided by that of the ResNet that the paper compares with, in percent."
)


def section(group: Sequence[Record], findings: Findings) -> list[Block]:
    """Top-1 by corruption, and the mean corruption error. Definitions and sources of one name are rows of their own."""
    corrupted = [record for record in group if record.kind == "corruption"]
    if not corrupted:
        return []
    named, called = names(group), definitions(corrupted)
    sums = {records[0].key: records for records in over_severities(corrupted, called)}
    firsts = [records[0] for records in sums.values()]

    def condition(record: Record) -> dict[str, str]:
        return {"corruption": called[record.key], "severity": severities(sums[record.key])}

    def value(record: Record) -> Proportion:
        return pooled(sums[record.key], findings)

    panel = Panel(
        f"over severities, {told_n(main_selection(corrupted))}",
        "top-1",
        series(main_selection(firsts), lambda record: called[record.key], value, named),
    )
    rows = mean_errors(corrupted, called, findings, named) + matrix(
        firsts, condition, lambda record: cell(value(record)), named
    )
    blocks: list[Block] = [
        Heading("Corrupted images", 3),
        Text(ABOUT),
        Picture([panel], "Top-1 on corrupted images."),
        Table(rows, "Top-1 by corruption"),
    ]
    differing = {called[r.key]: r.setting["definition"] for r in corrupted if r.setting.get("definition", ORIGINAL) != ORIGINAL}
    notes = " ".join(f"{name}: {text}" for name, text in sorted(differing.items()))
    return [*blocks, Text(f"Defined otherwise than in the original benchmark. {notes}")] if differing else blocks


def definitions(records: Sequence[Record]) -> dict[str, str]:
    """By a record's key what its corruption is called; where one name has several definitions, sources or seeds, with those.

    Severities of one definition that were measured at several strengths are told apart by them, so that they never mix.
    """
    shared = {r.key: {n: v for n, v in r.setting.items() if n not in ("severity", "strength")} for r in records}
    strengths: dict[tuple[str, int], set[str]] = {}
    for record in records:
        strengths.setdefault((str(shared[record.key]), record.setting["severity"]), set()).add(
            str(record.setting.get("strength"))
        )
    unclear = {whole for (whole, _), found in strengths.items() if len(found) > 1}
    for record in records:
        if str(shared[record.key]) in unclear:
            shared[record.key] |= {"strength": record.setting.get("strength")}
    called = {}
    for key, own in shared.items():
        alike = [other for other in shared.values() if other["corruption"] == own["corruption"]]
        differing = {name: own[name] for name in own if any(other.get(name) != own[name] for other in alike)}
        called[key] = own["corruption"] + (f" ({listed(differing, ', ')})" if differing else "")
    return called


def over_severities(records: Sequence[Record], called: dict[str, str]) -> list[list[Record]]:
    """The severities of each network, selection of images and definition."""
    found: dict[tuple[Shown, Images, str], list[Record]] = {}
    for record in records:
        found.setdefault((shown(record), selection(record), called[record.key]), []).append(record)
    return [sorted(own, key=lambda record: record.setting["severity"]) for own in found.values()]


def severities(records: Sequence[Record]) -> str:
    """`1 to 5`, or `1, 3`."""
    numbers = [record.setting["severity"] for record in records]
    unbroken = len(numbers) > 2 and numbers == list(range(numbers[0], numbers[0] + len(numbers)))
    return f"{numbers[0]} to {numbers[-1]}" if unbroken else ", ".join(map(str, numbers))


def pooled(records: Sequence[Record], findings: Findings) -> Proportion:
    return wilson(sum(findings.correct(r) for r in records), sum(r.counts["images"] for r in records))


def mean_errors(
    corrupted: Sequence[Record], called: dict[str, str], findings: Findings, named: dict[Shown, str]
) -> list[dict[str, str]]:
    """The mean corruption error of each network on the same images as its ResNet, a row a selection of images."""
    errors: dict[tuple[Shown, Images], dict[Any, float]] = {}
    first: dict[tuple[Shown, Images], Record] = {}
    for record in corrupted:
        key = shown(record), selection(record)
        first.setdefault(key, record)
        errors.setdefault(key, {})[called[record.key], record.setting["severity"]] = 1 - findings.top1(record).value

    def value(record: Record) -> str:
        reference = baseline_of(record.network) or (record.network if record.network.name in MODELS else None)
        alike = (
            errors[key]
            for key, other in first.items()
            if is_network(other, reference) and selection(other) == selection(record)
        )
        baseline = next(alike, None)
        return mean_corruption_error(errors[shown(record), selection(record)], baseline) if baseline else "—"

    return matrix(first.values(), lambda _: {"corruption": "mCE", "severity": ""}, value, named)


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
