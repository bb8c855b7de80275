"""Accuracy on rotated images."""

from collections.abc import Iterable, Sequence
from typing import Any

from sanbench.evaluation.kinds import declared_rotation, order_rotation, short_rotation
from sanbench.evaluation.robust import Findings
from sanbench.report import spatial
from sanbench.report.cells import Shown, cell, main_selection, matrix, names, selection, series, shown, told_n
from sanbench.report.charts import Panel
from sanbench.report.rendering import Block, Heading, Picture, Table, Text
from sanbench.store.schema import Record

EXACT = "exact quarter turns and mirrors"  # nothing is resampled, so that nothing is declared


def section(group: Sequence[Record], findings: Findings) -> list[Block]:
    """A picture and a table for each way to frame a rotated image, then those of the worst case over rotations and shifts."""
    frames, searched = by_frame(group), [record for record in group if record.kind == "spatial"]
    if not frames and not searched:
        return []
    named = names(group)
    text = (
        "Top-1 on images turned clockwise by networks that were trained on upright ones; flip is upside down, mirror left to "
    )
    text += "right. In parentheses: the difference to the same network on upright images, in points."
    panels = [panel(frame, records, group, findings, named) for frame, records in frames.items()]
    picture = Picture([*panels, *spatial.panels(searched, findings, named)], "Top-1 on turned images.")
    tables = [table(frame, [*controls(records, group), *records], findings, named) for frame, records in frames.items()]
    return [Heading("Rotated images, zero-shot", 3), Text(text), picture, *tables, *spatial.tables(searched, findings, named)]


def by_frame(records: Iterable[Record]) -> dict[str, list[Record]]:
    """Rotations by what all angles of a sweep share."""
    frames: dict[str, list[Record]] = {}
    for record in sorted((r for r in records if r.kind == "rotation"), key=lambda record: order_rotation(record.setting)):
        frames.setdefault(declared_rotation(record.setting) or EXACT, []).append(record)
    return dict(sorted(frames.items(), key=lambda pair: pair[0] != EXACT))


def changes_upright(record: Record) -> bool:
    """Whether crop or mask change upright images too, which then need a control of their own: the angle 0."""
    return any(record.setting.get(name, "none") != "none" for name in ("crop", "mask"))


def controls(turned: Sequence[Record], group: Sequence[Record]) -> list[Record]:
    """The same networks on the same images, upright; none where the sweep holds its own."""
    if changes_upright(turned[0]):
        return []
    wanted = {(shown(record), selection(record)) for record in turned if record.setting["angle"] != 0}
    return [record for record in group if record.kind == "accuracy" and (shown(record), selection(record)) in wanted]


def angle(record: Record) -> str:
    return short_rotation(record.setting) if record.setting.get("angle", 0) else "upright"


def table(frame: str, records: Sequence[Record], findings: Findings, named: dict[Shown, str]) -> Table:
    upright = {(shown(r), selection(r)): findings.top1(r) for r in records if angle(r) == "upright"}

    def value(record: Record) -> str:
        top1, before = findings.top1(record), upright.get((shown(record), selection(record)))
        drop = f" ({100 * (top1.value - before.value):+.1f})" if before and angle(record) != "upright" else ""
        return cell(top1) + drop

    return Table(matrix(records, lambda record: {"turned": angle(record)}, value, named), frame)


def panel(frame: str, records: Sequence[Record], group: Sequence[Record], findings: Findings, named: dict[Shown, str]) -> Panel:
    if frame == EXACT:
        drawn = main_selection([*controls(records, group), *records])
        return Panel(f"{frame}, {told_n(drawn)}", "top-1", series(drawn, angle, findings.top1, named))
    drawn = sweep(records, group)
    framed = [str(records[0].setting[name]) for name in ("interpolation", "fill", "crop", "mask") if name in records[0].setting]
    title = ", ".join(word for word in framed if word != "none")
    return Panel(f"{title}, {told_n(drawn)}", "degrees", series(drawn, degrees, findings.top1, named))


def sweep(records: Sequence[Record], group: Sequence[Record]) -> list[Record]:
    """The angles in degrees of a frame; exact quarter turns and upright images belong to each that shows whole images."""
    found = [record for record in records if not isinstance(record.setting["angle"], str)]
    if not changes_upright(records[0]):
        exact = [r for r in by_frame(group).get(EXACT, []) if not isinstance(r.setting["angle"], str) and r.setting["angle"]]
        there = {shown(record) for record in records}
        found += [record for record in [*exact, *controls(records, group)] if shown(record) in there]
    return main_selection(found)


def degrees(record: Record) -> Any:
    return float(record.setting.get("angle", 0))
