"""Two networks, or two folders of results, on the same images: which records fit, and how they differ."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from sanbench.errors import InputError, unknown
from sanbench.evaluation.kinds import condition
from sanbench.evaluation.robust import Findings
from sanbench.evaluation.statistics import Difference, holm, paired_difference
from sanbench.store.schema import Record

LEVEL = 0.05


class Comparison(NamedTuple):
    """The first minus the second, both measured alike; `p_holm` after Holm's correction for all tests of its kind."""

    first: Record
    second: Record
    difference: Difference
    p_holm: float

    @property
    def condition(self) -> str:
        return condition(self.first.kind, self.first.setting)

    @property
    def clear(self) -> bool:
        return self.difference.excludes_zero and self.p_holm < LEVEL


def records_of(findings: Findings, word: str) -> list[Record]:
    """Those of a run, or else of a network, by its label or the beginning of its weights' hash of at least 6 digits.

    Raises InputError for what none of the records has, and for a word that several networks share.
    """
    for names in (
        lambda record: record.run == word,
        lambda record: record.network.label == word,
        lambda record: len(word) >= 6 and record.network.weights.startswith(word),
    ):
        found = [record for record in findings.records if names(record)]
        networks = {record.network.weights: record.run for record in found}
        if len(networks) > 1:
            several = ", ".join(f"{weights[:8]} ({run})" for weights, run in networks.items())
            raise InputError(
                f"{word!r} is not accepted: it names {len(networks)} networks. Name one by its weights: {several}."
            )
        if found:
            return found
    raise unknown("run or network", word, {name for record in findings.records for name in (record.run, record.network.label)})


def alike(record: Record) -> tuple[str, str, str]:
    return record.kind, repr(sorted(record.setting.items())), record.data.model_dump_json()


def compare_networks(findings: Findings, first: str, second: str) -> dict[str, list[Comparison]]:
    """By kind, what both networks were measured on. Raises InputError where that is nothing."""
    theirs = {alike(record): record for record in records_of(findings, second)}
    pairs = [(record, theirs[alike(record)]) for record in records_of(findings, first) if alike(record) in theirs]
    if not pairs:
        raise InputError(f"{first!r} and {second!r} are not comparable: nothing was measured on the same images for both.")
    return tested(pairs, findings.difference)


def compare_stores(one: Findings, two: Findings) -> dict[str, list[Comparison]]:
    """By kind, what was measured of the same network in both: of the same run where there is one, else of the same label.

    Raises InputError where that is nothing.
    """
    by_run = {(other.run, other.network.label, alike(other)): other for other in two.records}
    by_label = {(other.network.label, alike(other)): other for other in two.records}
    pairs = []
    for record in one.records:
        label, key = record.network.label, alike(record)
        if other := by_run.get((record.run, label, key)) or by_label.get((label, key)):
            pairs.append((record, other))
    if not pairs:
        raise InputError("These results are not comparable: no network was measured on the same images in both.")
    return tested(pairs, lambda first, second: paired_difference(one.right(first), two.right(second)))


def tested(
    pairs: Sequence[tuple[Record, Record]], difference: Callable[[Record, Record], Difference]
) -> dict[str, list[Comparison]]:
    """By kind, the tests of all `pairs`, corrected for each other."""
    found: dict[str, list[Comparison]] = {}
    for kind in dict.fromkeys(first.kind for first, _ in pairs):
        own = [pair for pair in pairs if pair[0].kind == kind]
        differences = [difference(*pair) for pair in own]
        corrected = holm([difference.p for difference in differences])
        found[kind] = [Comparison(*pair, d, p) for pair, d, p in zip(own, differences, corrected, strict=True)]
    return found
