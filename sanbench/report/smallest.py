"""The smallest perturbation of each image: its median, and robust accuracy as a curve over every ε."""

import math
from collections.abc import Sequence

from sanbench.evaluation.kinds import NORMS, budget, declared_attack, kind_of
from sanbench.evaluation.robust import Findings
from sanbench.evaluation.statistics import Median
from sanbench.report.cells import cell, main_selection, matrix, names, number_of_images, shown, told_n
from sanbench.report.charts import Panel, Series
from sanbench.report.rendering import Block, Heading, Picture, Table, Text
from sanbench.store.schema import Record

ABOUT = (
    "The smallest ε of an image is the distance of the nearest example that the attack found; a nearer one may exist. It is 0 "
    "for an image that was wrong before. Robust accuracy at ε: images without an example within ε, of all images; under "
    "pgd-targeted an example is one that is given its target. Medians have a 95% interval of order statistics."
)
POINTS, ROWS = 32, 8  # of a curve, and of its table, beside ε = 0
SCALES = {"linf": (255, "/255"), "l2": (1, "")}


def section(group: Sequence[Record], findings: Findings) -> list[Block]:
    """The picture of curves and, for each attack, a table of medians and one of the curve."""
    records = [record for record in group if record.kind == "smallest"]
    if not records:
        return []
    named = names(group)
    panels, tables = [], list[Block]()
    for key in dict.fromkeys(map(protocol, records)):
        own = [record for record in records if protocol(record) == key]
        norm, drawn = own[0].setting["norm"], main_selection(own)
        most, (scale, unit) = furthest(own, findings), SCALES[norm]
        beyond = "none" if "tries" in own[0].setting else f"> {scale * most:.3g}"
        at = [most * n / POINTS for n in range(POINTS + 1)]
        title = kind_of("smallest").short(own[0].setting)
        curves = [
            Series(named[shown(record)], {scale * eps: findings.withstanding(record, eps) for eps in at}) for record in drawn
        ]
        panels.append(Panel(f"{title}, {told_n(drawn)}", f"{NORMS[norm]} ε in {f'1{unit}' if unit else 'pixels'}", curves))
        medians = [
            {"network": named[shown(record)]}
            | {
                name: told(found, scale, unit, beyond)
                for name, found in zip(("median ε", "of those right before"), findings.smallest(record), strict=True)
            }
            | {"no example": cell(findings.top1(record)), "n": number_of_images(record.data)}
            for record in own
        ]
        rows = [
            line
            for eps in (most * n / ROWS for n in range(ROWS + 1))
            for line in matrix(
                own,
                lambda _, eps=eps, scale=scale, unit=unit: {"ε": f"{scale * eps:.3g}{unit}"},  # type: ignore[misc]
                lambda record, eps=eps: cell(findings.withstanding(record, eps)),  # type: ignore[misc]
                named,
            )
        ]
        tables += [Text(f"{title}. Protocol: {declared_attack(own[0].setting)}.")]
        tables += [Table(medians, f"{title}: smallest ε"), Table(rows, f"{title}: robust accuracy")]
    return [Heading("Smallest perturbations", 3), Text(ABOUT), Picture(panels, "Robust accuracy at every ε."), *tables]


def protocol(record: Record) -> str:
    """What is shown in one panel."""
    return f"{kind_of('smallest').short(record.setting)} {declared_attack(record.setting)}"


def furthest(records: Sequence[Record], findings: Findings) -> float:
    """Up to where curves are drawn, in pixels: the bracket, or of a search without one the furthest example."""
    if "tries" not in records[0].setting:
        return float(budget(records[0].setting))
    found = [findings.distances(record) for record in records]
    return max((float(away) for each in found for away in each if math.isfinite(away)), default=1.0) or 1.0


def told(found: Median, scale: int, unit: str, beyond: str) -> str:
    """`1.24 [1.1, 1.4]/255`; `beyond` where no example was found."""
    if math.isnan(found.value):
        return "—"
    value, low, high = (beyond if each == math.inf else f"{scale * max(each, 0):.3g}" for each in found[:3])
    return f"{value} [{low}, {high}]{unit}"
