"""Each SAN against its ResNet on the same images."""

from collections.abc import Sequence
from typing import NamedTuple

from sanbench.evaluation.kinds import condition, kind_of
from sanbench.evaluation.robust import Findings
from sanbench.evaluation.statistics import Difference, holm
from sanbench.models import baseline_of
from sanbench.report.cells import Shown, names, number_of_images, selection, shown
from sanbench.report.rendering import Block, Cell, Heading, Table, Text
from sanbench.store.schema import Record, slug

LEVEL = 0.05
ABOUT = (
    "Top-1 of the SAN minus that of its ResNet on the same images, in points, with Newcombe's 95% interval for pairs. The "
    "ResNet is the one that the paper compares the SAN with, at the same width; of several that of the same seed. "
    "Right alone: images that only the SAN / only the ResNet has right. p: exact McNemar test, and after Holm's correction for "
    "the tests of one table. Bold: the interval excludes 0 and the corrected p is below 0.05. Under attack an image is right "
    "that stands within this and every smaller budget, as in the tables of attacks."
)


class Comparison(NamedTuple):
    """A SAN and its ResNet measured alike; `adjusted` is p after Holm's correction for all tests of the kind."""

    san: Record
    resnet: Record
    difference: Difference
    adjusted: float

    @property
    def clear(self) -> bool:
        return self.difference.excludes_zero and self.adjusted < LEVEL

    @property
    def page(self) -> str:
        """The page that lists the images which only one of the two has right."""
        return f"report/images/{slug(self.san.network.stem, self.resnet.network.stem, self.san.kind, self.san.id[:8])}.html"


def pairs(group: Sequence[Record]) -> list[tuple[Record, Record]]:
    """(SAN, its ResNet) measured alike: kind, setting and images; of several ResNets one that read and was seeded alike."""
    alike: dict[tuple[object, ...], list[Record]] = {}
    for record in group:
        alike.setdefault((record.network.name, str(record.network.variation), *measured(record)), []).append(record)
    found = []
    for record in group:
        baseline = baseline_of(record.network)
        others = alike.get((baseline.name, str(baseline.variation), *measured(record)), []) if baseline else []
        if others:
            seed = record.training.get("seed")
            found.append((record, min(others, key=lambda r: (r.data != record.data, r.training.get("seed") != seed))))
    return found


def measured(record: Record) -> tuple[object, ...]:
    """What two records share whose rows can be compared image by image."""
    data = record.data
    return record.kind, str(sorted(record.setting.items())), data.name, data.split, data.fingerprint, selection(record)


def comparisons(group: Sequence[Record], findings: Findings) -> list[Comparison]:
    """All paired tests on one data set, by kind."""
    found: list[Comparison] = []
    compared = pairs(group)
    for kind in dict.fromkeys(record.kind for record in group):
        own = [pair for pair in compared if pair[0].kind == kind]
        differences = [findings.difference(*pair) for pair in own]
        adjusted = holm([difference.p for difference in differences])
        found += [Comparison(*pair, d, p) for pair, d, p in zip(own, differences, adjusted, strict=True)]
    return found


def section(group: Sequence[Record], findings: Findings) -> list[Block]:
    """A table for each kind of measurement, corrected for its own tests."""
    found, named = comparisons(group, findings), names(group)
    kinds = dict.fromkeys(test.san.kind for test in found)
    tables = [Table([line(test, named) for test in found if test.san.kind == kind], kind_of(kind).title) for kind in kinds]
    return [Heading("Self-attention against ResNet, paired", 3), Text(ABOUT), *tables] if tables else []


def line(test: Comparison, named: dict[Shown, str]) -> dict[str, str]:
    d = test.difference
    return {
        "condition": condition(test.san.kind, test.san.setting),
        "network": named[shown(test.san)],
        "against": named[shown(test.resnet)],
        "n": number_of_images(test.san.data),
        "difference": Cell(points(d), bold=test.clear),
        "right alone": Cell(f"{d.only_first} / {d.only_second}", link=test.page if d.only_first + d.only_second else ""),
        "p": f"{d.p:.2g}",
        "p, Holm": f"{test.adjusted:.2g}",
    }


def points(difference: Difference) -> str:
    """`+17.5 [+15.6, +19.4]`."""
    return f"{100 * difference.value:+.1f} [{100 * difference.low:+.1f}, {100 * difference.high:+.1f}]"
