"""Accuracy on rotated images."""

from collections.abc import Sequence

from sanbench.evaluation.kinds import declared_rotation, order_rotation, short_rotation
from sanbench.evaluation.robust import Findings
from sanbench.report.cells import by_row, cell, identity, row_of
from sanbench.report.rendering import Block, Heading, Table, Text
from sanbench.store.schema import Record

WIDEST = 8  # angles in columns


def section(group: Sequence[Record], findings: Findings) -> list[Block]:
    """A table for each way to frame a rotated image; angles are in rows where there are more than eight."""
    blocks: list[Block] = []
    rotated = [record for record in group if record.kind == "rotation"]
    for declared in dict.fromkeys(declared_rotation(record.setting) for record in rotated):
        chosen = [record for record in rotated if declared_rotation(record.setting) == declared]
        controls = chosen if changes_upright(chosen[0]) else [record for record in group if record.kind == "accuracy"]
        upright = {row_of(r): findings.top1(r) for r in controls if r.setting.get("angle", 0) == 0}
        turned = sorted((r for r in chosen if r.setting["angle"] != 0), key=lambda record: order_rotation(record.setting))
        angles = list(dict.fromkeys(short_rotation(record.setting) for record in turned))
        lines = []
        for records in by_row(chosen):
            key = row_of(records[0])
            line = {"network": records[0].network.label, "upright": cell(upright.get(key))}
            found = {short_rotation(record.setting): findings.top1(record) for record in records}
            for angle in angles:
                value = found.get(angle)
                drop = f" ({100 * (value.value - upright[key].value):+.1f})" if value and key in upright else ""
                line[angle] = cell(value) + drop
            lines.append(line | identity(records[0]))
        if len(angles) > WIDEST:
            lines = transposed(lines)
        text = "Top-1 on images turned clockwise, flip is upside down, mirror left to right; in parentheses the difference "
        text += "to upright in points." + (f" Declared: {declared}." if declared else "")
        title = "Rotated images, zero-shot" + (f": {declared}" if declared else "")
        blocks += [Heading(title, 3), Text(text), Table(lines)]
    return blocks


def transposed(lines: Sequence[dict[str, str]]) -> list[dict[str, str]]:
    """Columns become rows; a network whose name stands there already is told apart by its weights."""
    heads = [f"{line['network']}, n {line['n']}, {line['weights']}" for line in lines]
    names = list(dict.fromkeys(name for line in lines for name in line if name not in ("network", "n", "weights")))
    return [{"turned": n} | {head: line.get(n, "—") for head, line in zip(heads, lines, strict=True)} for n in names]


def changes_upright(record: Record) -> bool:
    """Whether crop or mask change upright images too, which then need a control of their own."""
    return any(record.setting.get(name, "none") != "none" for name in ("crop", "mask"))
