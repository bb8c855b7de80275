"""The tables of a study as a page."""

from collections.abc import Sequence

from sanbench.report.rendering import Block, Cell, Heading, Items, Table, Text, markdown
from sanbench.studies.status import Standing
from sanbench.studies.tables import ABOUT, Shown, conditions


def page(standing: Standing, tables: Sequence[Shown]) -> str:
    """Markdown: the study, its tables, and under each the commands that fill its dashes."""
    study = standing.expansion.study
    blocks: list[Block] = [
        Heading(study.content.title, 1),
        Text(f"Data: {standing.expansion.data}. Written by `sanbench study run {study.word}` from records/."),
        Text(f"{ABOUT} Bold: it is more than noise. {conditions(standing.records)}"),
    ]
    for table in tables:
        rows = [
            {heading: Cell(cell.text, bold=cell.differs) for heading, cell in zip(unique(table.headings), row, strict=True)}
            for row in table.rows
        ]
        blocks += [Heading(f"{table.key}: {table.title}", 2), Table(rows)]
        blocks += [Items(table.notes)] if table.notes else []
    return markdown(blocks)


def unique(headings: Sequence[str]) -> list[str]:
    """With spaces behind those that stand there before, so that each is a column of its own."""
    return [heading + " " * headings[:number].count(heading) for number, heading in enumerate(headings)]
