"""Each SAN against its ResNet on the same images."""

from collections.abc import Sequence

from sanbench.evaluation.kinds import condition, kind_of
from sanbench.evaluation.robust import Findings
from sanbench.evaluation.statistics import holm
from sanbench.models import baseline_of
from sanbench.report.cells import number_of_images
from sanbench.report.rendering import Block, Bold, Heading, Table, Text
from sanbench.store.schema import Record

LEVEL = 0.05


def pairs(group: Sequence[Record]) -> list[tuple[Record, Record]]:
    """(SAN, its ResNet) measured alike: same kind, setting and images; of several ResNets that of the same seed.

    The ResNet is the one that the paper compares the SAN with, at the same width.
    """
    found = []
    for record in group:
        baseline = baseline_of(record.network)
        alike = [
            other
            for other in group
            if baseline is not None
            and (other.network.name, other.network.variation) == (baseline.name, baseline.variation)
            and (other.kind, other.setting, other.data) == (record.kind, record.setting, record.data)
        ]
        if alike:
            found.append((record, min(alike, key=lambda other: other.training.get("seed") != record.training.get("seed"))))
    return found


def comparison_section(group: Sequence[Record], findings: Findings) -> list[Block]:
    """A table for each kind of measurement, corrected for its own tests."""
    blocks: list[Block] = []
    compared = pairs(group)
    for kind in dict.fromkeys(record.kind for record in group):
        own = [pair for pair in compared if pair[0].kind == kind]
        if own:
            blocks += comparison(kind, own, findings)
    return [Heading("Self-attention against ResNet, paired", 3), *blocks] if blocks else []


def comparison(kind: str, compared: Sequence[tuple[Record, Record]], findings: Findings) -> list[Block]:
    differences = [findings.difference(record, baseline) for record, baseline in compared]
    lines = []
    for (record, baseline), d, adjusted in zip(compared, differences, holm([d.p for d in differences]), strict=True):
        text = f"{100 * d.value:+.1f} [{100 * d.low:+.1f}, {100 * d.high:+.1f}]"
        lines.append(
            {
                "network": record.network.label,
                "against": baseline.network.label,
                "condition": condition(kind, record.setting),
                "n": number_of_images(record.data),
                "difference": Bold(text) if d.excludes_zero and adjusted < LEVEL else text,
                "right alone": f"{d.only_first} / {d.only_second}",
                "p": f"{d.p:.2g}",
                "p, Holm": f"{adjusted:.2g}",
            }
        )
    about = (
        "Top-1 of the SAN minus that of its ResNet on the same images, in points, with Newcombe's 95% interval for pairs. "
        "Right alone: images that only the SAN / only the ResNet has right. p: exact McNemar test, and after Holm's "
        f"correction for the {len(lines)} tests of this table. Bold: the interval excludes 0 and the corrected p is below 0.05."
    )
    if kind_of(kind).nested(compared[0][0].setting):
        about += " Under attack: right within this and every smaller budget of the table, as in the tables of attacks."
    return [Heading(kind_of(kind).title, 4), Text(about), Table(lines)]
