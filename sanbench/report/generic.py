"""Kinds of measurement without a section of their own, such as another version's: top-1 by condition."""

from collections.abc import Sequence

from sanbench.evaluation.kinds import KINDS, condition, kind_of
from sanbench.evaluation.robust import Findings
from sanbench.report.cells import Footnotes, by_row, identity
from sanbench.report.rendering import Block, Heading, Table
from sanbench.store.schema import Record


def section(group: Sequence[Record], findings: Findings) -> list[Block]:
    blocks: list[Block] = []
    others = [record for record in group if record.kind not in KINDS or KINDS[record.kind].section == "generic"]
    for kind in dict.fromkeys(record.kind for record in others):
        chosen = sorted((r for r in others if r.kind == kind), key=lambda record: kind_of(kind).order(record.setting))
        notes = Footnotes(chosen, findings)
        lines = [
            {"network": records[0].network.label}
            | {condition(kind, record.setting): notes.cell(record) for record in records}
            | identity(records[0])
            for records in by_row(chosen)
        ]
        blocks += [Heading(kind_of(kind).title, 3), Table(lines), *notes.blocks()]
    return blocks
