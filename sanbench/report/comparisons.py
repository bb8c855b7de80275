"""Each SAN against its ResNet on the same images."""

from collections.abc import Sequence

from sanbench.evaluation.comparing import Comparison, tested
from sanbench.evaluation.kinds import kind_of
from sanbench.evaluation.robust import Findings
from sanbench.evaluation.statistics import Difference
from sanbench.models import baseline_of
from sanbench.report.cells import Shown, names, number_of_images, selection, shown
from sanbench.report.rendering import Block, Cell, Heading, Table, Text
from sanbench.store.schema import Record, slug

ABOUT = (
    "Top-1 of the SAN minus that of its ResNet on the same images, in points, with Newcombe's 95% interval for pairs. The "
    "ResNet is the one that the paper compares the SAN with, at the same width; of several that of the same seed. Of several "
    "selections of images the largest is tested. "
    "Right alone: images that only the SAN / only the ResNet has right. p: exact McNemar test, and after Holm's correction for "
    "the tests of one table. Bold: the interval excludes 0 and the corrected p is below 0.05. Under attack an image is right "
    "that stands within this and every smaller budget, as in the tables of attacks."
)


def page(test: Comparison) -> str:
    """The page that lists the images which only one of the two has right."""
    return f"report/images/{slug(test.first.network.stem, test.second.network.stem, test.first.kind, test.first.id[:8])}.html"


def pairs(group: Sequence[Record]) -> list[tuple[Record, Record]]:
    """(SAN, its ResNet) measured alike: kind, setting and images, of which the largest selection is taken.

    Of several ResNets it is one that read and was seeded alike.
    """
    alike: dict[tuple[object, ...], list[Record]] = {}
    for record in group:
        alike.setdefault((record.network.name, str(record.network.variation), *measured(record)), []).append(record)
    found: dict[tuple[object, ...], tuple[Record, Record]] = {}
    for record in group:
        baseline = baseline_of(record.network)
        others = alike.get((baseline.name, str(baseline.variation), *measured(record)), []) if baseline else []
        if not others:
            continue
        seed = record.training.get("seed")
        other = min(others, key=lambda r: (r.data != record.data, r.training.get("seed") != seed))
        key = (shown(record), shown(other), record.kind, str(sorted(record.setting.items())))
        if key not in found or found[key][0].data.images < record.data.images:
            found[key] = record, other
    return list(found.values())


def measured(record: Record) -> tuple[object, ...]:
    """What two records share whose rows can be compared image by image."""
    data = record.data
    return record.kind, str(sorted(record.setting.items())), data.name, data.split, data.fingerprint, selection(record)


def comparisons(group: Sequence[Record], findings: Findings) -> list[Comparison]:
    """All paired tests on one data set, by kind."""
    return [test for own in tested(pairs(group), findings.difference).values() for test in own]


def section(group: Sequence[Record], findings: Findings) -> list[Block]:
    """A table for each kind of measurement, corrected for its own tests."""
    found, named = comparisons(group, findings), names(group)
    kinds = dict.fromkeys(test.first.kind for test in found)
    tables = [Table([line(test, named) for test in found if test.first.kind == kind], kind_of(kind).title) for kind in kinds]
    return [Heading("Self-attention against ResNet, paired", 3), Text(ABOUT), *tables] if tables else []


def line(test: Comparison, named: dict[Shown, str]) -> dict[str, str]:
    d = test.difference
    return {
        "condition": test.condition,
        "network": named[shown(test.first)],
        "against": named[shown(test.second)],
        "n": number_of_images(test.first.data),
        "difference": Cell(points(d), bold=test.clear),
        "right alone": Cell(f"{d.only_first} / {d.only_second}", link=page(test) if d.only_first + d.only_second else ""),
        "p": f"{d.p:.2g}",
        "p, Holm": f"{test.p_holm:.2g}",
    }


def points(difference: Difference) -> str:
    """`+17.5 [+15.6, +19.4]`."""
    return f"{100 * difference.value:+.1f} [{100 * difference.low:+.1f}, {100 * difference.high:+.1f}]"
