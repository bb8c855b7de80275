"""Kinds of measurement without a section of their own, such as another version's: top-1 by condition."""

from collections.abc import Sequence

from sanbench.evaluation.kinds import KINDS, condition, kind_of
from sanbench.evaluation.robust import Findings
from sanbench.report.cells import Footnotes, matrix, names
from sanbench.report.rendering import Block, Heading, Table
from sanbench.store.schema import Record


def section(group: Sequence[Record], findings: Findings) -> list[Block]:
    blocks: list[Block] = []
    named = names(group)
    others = [record for record in group if record.kind not in KINDS or KINDS[record.kind].section == "generic"]
    for kind in dict.fromkeys(record.kind for record in others):
        chosen = sorted((r for r in others if r.kind == kind), key=lambda record: kind_of(kind).order(record.setting))
        notes = Footnotes(chosen, findings)
        rows = matrix(chosen, lambda record: {"condition": condition(record.kind, record.setting)}, notes.cell, named)
        blocks += [Heading(kind_of(kind).title, 4), Table(rows), *notes.blocks()]
    return [Heading("Other measurements", 3), *blocks] if blocks else []
