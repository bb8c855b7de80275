"""Each SAN against its ResNet on the same images."""

from collections.abc import Sequence

from sanbench.evaluation.statistics import holm, paired_difference
from sanbench.models import MODELS
from sanbench.report.attacks import still_right
from sanbench.report.cells import Rows, condition, identity
from sanbench.report.rendering import Block, Bold, Heading, Table, Text
from sanbench.store.files import Record

LEVEL = 0.05
TITLES = {
    "accuracy": "Upright",
    "rotation": "Rotated",
    "attack": "Under attack",
    "transfer": "Under transferred attacks",
    "corruption": "Corrupted",
}


def pairs(group: Sequence[Record]) -> list[tuple[Record, Record]]:
    """(SAN, its ResNet) measured alike: same experiment, setting and images; of several ResNets that of the same seed."""
    found = []
    for record in group:
        entry = MODELS.get(record.model.split()[0])
        alike = [
            other
            for other in group
            if entry is not None
            and other.model.split()[0] == entry.baseline
            and (other.experiment, other.setting, other.data) == (record.experiment, record.setting, record.data)
        ]
        if alike:
            found.append((record, min(alike, key=lambda other: other.training.get("seed") != record.training.get("seed"))))
    return found


def comparison_section(group: Sequence[Record], rows: Rows) -> list[Block]:
    """A table for each experiment, corrected for its own tests."""
    blocks: list[Block] = []
    for experiment in dict.fromkeys(record.experiment for record in group):
        compared = [pair for pair in pairs(group) if pair[0].experiment == experiment]
        if compared:
            blocks += comparison(experiment, compared, group, rows)
    return [Heading("Self-attention against ResNet, paired", 3), *blocks] if blocks else []


def comparison(experiment: str, compared: Sequence[tuple[Record, Record]], group: Sequence[Record], rows: Rows) -> list[Block]:
    differences = [paired_difference(*(still_right(each, group, rows) for each in pair)) for pair in compared]
    lines = []
    for (record, baseline), d, adjusted in zip(compared, differences, holm([d.p for d in differences]), strict=True):
        text = f"{100 * d.value:+.1f} [{100 * d.low:+.1f}, {100 * d.high:+.1f}]"
        lines.append(
            {
                "network": record.model,
                "against": baseline.model,
                "condition": condition(record),
                "n": identity(record)["n"],
                "difference": Bold(text) if d.excludes_zero and adjusted < LEVEL else text,
                "right alone": f"{d.only_first} / {d.only_second}",
                "p": f"{d.p:.2g}",
                "p, Holm": f"{adjusted:.2g}",
            }
        )
    budgets = " Under attack: right within this and every smaller budget of the table, as in the tables of attacks."
    about = (
        "Top-1 of the SAN minus that of its ResNet on the same images, in points, with Newcombe's 95% interval for pairs. "
        "Right alone: images that only the SAN / only the ResNet has right. p: exact McNemar test, and after Holm's "
        f"correction for the {len(lines)} tests of this table. Bold: the interval excludes 0 and the corrected p is below 0.05."
    )
    return [Heading(TITLES[experiment], 4), Text(about + (budgets if experiment == "attack" else "")), Table(lines)]
