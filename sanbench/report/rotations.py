"""Accuracy on rotated images."""

from collections.abc import Sequence

from sanbench.report.cells import Rows, View, by_subject, cell, identity, subject, top1, turned, view, view_name
from sanbench.report.rendering import Block, Heading, Table, Text
from sanbench.store.files import Record

WIDEST = 8  # angles in columns


def rotation_section(group: Sequence[Record], rows: Rows) -> list[Block]:
    """A table for each view; angles are in rows where there are more than eight."""
    blocks: list[Block] = []
    rotated = [record for record in group if record.experiment == "rotation"]
    for declared in dict.fromkeys(map(view, rotated)):
        chosen = [record for record in rotated if view(record) == declared]
        controls = [record for record in group if record.experiment == "accuracy"] if not framed(declared) else chosen
        upright = {subject(r): top1(r) for r in controls if r.setting.get("angle", 0) == 0}
        angles = sorted(
            {r.setting["angle"] for r in chosen if r.setting["angle"] != 0}, key=lambda angle: (isinstance(angle, str), angle)
        )
        lines = []
        for key, own in by_subject(chosen).items():
            line = {"network": key[0], "upright": cell(upright.get(key))}
            for angle in angles:
                value = next((top1(record) for record in own if record.setting["angle"] == angle), None)
                drop = f" ({100 * (value.value - upright[key].value):+.1f})" if value and key in upright else ""
                line[turned(angle)] = cell(value) + drop
            lines.append(line | identity(own[0]))
        if len(angles) > WIDEST:
            lines = transposed(lines)
        text = "Top-1 on images turned clockwise, flip is upside down, mirror left to right; in parentheses the difference "
        text += "to upright in points." + (f" Declared: {view_name(declared)}." if declared else "")
        title = "Rotated images, zero-shot" + (f": {view_name(declared)}" if declared else "")
        blocks += [Heading(title, 3), Text(text), Table(lines)]
    return blocks


def transposed(lines: Sequence[dict[str, str]]) -> list[dict[str, str]]:
    """Columns become rows; a network whose name stands there already is told apart by its weights."""
    heads = [f"{line['network']}, n {line['n']}, {line['weights']}" for line in lines]
    names = list(dict.fromkeys(name for line in lines for name in line if name not in ("network", "n", "weights")))
    return [{"turned": n} | {head: line.get(n, "—") for head, line in zip(heads, lines, strict=True)} for n in names]


def framed(declared: View) -> bool:
    """Whether crop or mask change upright images too, which then need a control of their own."""
    return any(name in ("crop", "mask") and value != "none" for name, value in declared)
