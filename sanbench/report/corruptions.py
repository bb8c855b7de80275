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
    "error summed over severities, divided by that of the network in parentheses, in percent; relative mCE: the same of how "
    "much larger the errors are than those of upright images."
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
    rows = mean_errors(group, corrupted, findings, named) + matrix(firsts, condition, lambda record: cell(value(record)), named)
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
    shared = {r.key: {n: v for n, v in r.setting.items() if n not in ("severity", "strength", "files")} for r in records}
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
    group: Sequence[Record], corrupted: Sequence[Record], findings: Findings, named: dict[Shown, str]
) -> list[dict[str, str]]:
    """mCE and relative mCE of each network, in percent: a row for each baseline, definition and selection of images."""
    upright = {(shown(record), selection(record)): record for record in group if record.kind == "accuracy"}
    defined_alike = by_definition(corrupted)
    rows: list[dict[str, str]] = []
    for number, records in enumerate(defined_alike, start=1):
        own: dict[tuple[Shown, Images], list[Record]] = {}
        for record in records:
            own.setdefault((shown(record), selection(record)), []).append(record)
        errors = {key: errors_of(found, upright.get(key), findings) for key, found in own.items()}
        firsts = {key: found[0] for key, found in own.items()}
        baselines = {key: baselines_of(key, firsts, errors) for key in own}
        which = f", definitions {number} of {len(defined_alike)}" if len(defined_alike) > 1 else ""
        for title in dict.fromkeys(title for found in baselines.values() for title in found):
            against = {key: found.get(title) for key, found in baselines.items()}
            for name, ratio in {"mCE": mean_corruption_error, "relative mCE": relative_mean_corruption_error}.items():
                found = {key: ratio(errors[key], baseline) if baseline else None for key, baseline in against.items()}
                rows += ratio_rows(f"{name} ({title}{which})", firsts, found, named)
    return rows


def ratio_rows(
    label: str,
    firsts: "dict[tuple[Shown, Images], Record]",
    ratios: "dict[tuple[Shown, Images], float | None]",
    named: dict[Shown, str],
) -> list[dict[str, str]]:
    """The ratio of each network and selection of images, in percent."""

    def value(record: Record) -> str:
        ratio = ratios[shown(record), selection(record)]
        return "—" if ratio is None else f"{100 * ratio:.1f}"

    return matrix(firsts.values(), lambda _: {"corruption": label, "severity": ""}, value, named)


def baselines_of(
    key: "tuple[Shown, Images]", firsts: "dict[tuple[Shown, Images], Record]", errors: "dict[tuple[Shown, Images], Errors]"
) -> dict[str, Errors | None]:
    """By title: AlexNet where images are as ImageNet-C's, and the network's ResNet, None if it was not measured on the same."""
    record = firsts[key]
    found: dict[str, Errors | None] = {"AlexNet": alexnet()} if comparable_with_alexnet(record) else {}
    reference = baseline_of(record.network) or (record.network if record.network.name in MODELS else None)
    if reference is not None:
        alike = (errors[other] for other, first in firsts.items() if is_network(first, reference) and other[1] == key[1])
        found[f"against {reference.name}"] = next(alike, None)
    return found


def is_network(record: Record, spec: ModelSpec | None) -> bool:
    return spec is not None and (record.network.name, record.network.variation) == (spec.name, spec.variation)
