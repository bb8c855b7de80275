"""Each SAN against its ResNet on the same images, and accuracy by class."""

from collections.abc import Sequence

from sanbench.evaluation.statistics import holm, paired_difference, wilson
from sanbench.models import MODELS
from sanbench.records import Record
from sanbench.report.rendering import Block, Bold, Heading, Table, Text
from sanbench.report.sections import Rows, condition

CLASSES_SHOWN = 20  # a table with more columns is for a CSV reader
LEVEL = 0.05


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
            found.append((record, min(alike, key=lambda other: other.training["seed"] != record.training["seed"])))
    return found


def comparison_section(group: Sequence[Record], rows: Rows) -> list[Block]:
    compared = pairs(group)
    if not compared:
        return []
    differences = []
    for record, baseline in compared:
        both = rows(record).merge(rows(baseline), on=["index", "label"], validate="one_to_one", suffixes=("", "_baseline"))
        own, other = (both[name].eq(both["label"]).to_numpy() for name in ("prediction", "prediction_baseline"))
        differences.append(paired_difference(own, other))
    lines = []
    for (record, baseline), d, adjusted in zip(compared, differences, holm([d.p for d in differences]), strict=True):
        text = f"{100 * d.value:+.1f} [{100 * d.low:+.1f}, {100 * d.high:+.1f}]"
        lines.append(
            {
                "network": record.model,
                "against": baseline.model,
                "condition": condition(record),
                "n": f"{record.data['images']:,}",
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
    return [Heading("Self-attention against ResNet, paired", 3), Text(about), Table(lines)]


def per_class_section(group: Sequence[Record], rows: Rows) -> list[Block]:
    lines = []
    for record in group:
        if record.experiment != "accuracy" or not 0 < len(record.classes) <= CLASSES_SHOWN:
            continue
        frame = rows(record)
        right = frame["prediction"].eq(frame["label"]).groupby(frame["label"]).agg(["sum", "count"])
        line = {"network": record.model, "weights": record.weights[:8]}
        for label, name in enumerate(record.classes):
            hits, total = map(int, right.loc[label]) if label in right.index else (0, 0)
            line[name] = f"{100 * wilson(hits, total).value:.1f} ({total})" if total else "—"
        lines.append(line)
    text = Text("Top-1 on upright images by class; in parentheses the number of images.")
    return [Heading("Accuracy by class", 3), text, Table(lines)] if lines else []
