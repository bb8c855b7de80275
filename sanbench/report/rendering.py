"""A report as blocks, and Markdown of them. Names in it may come from a stranger: each format escapes them."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from sanbench.printable import one_line
from sanbench.report.charts import Panel


class Cell(str):
    """A text of a table, and how it stands out.

    bold      a difference that is no chance
    interval  value, low and high in [0, 1], which a document may draw as a bar
    link      from the report's folder to a page about it, where the format has one
    """

    bold: bool
    interval: tuple[float, float, float] | None
    link: str

    def __new__(
        cls, text: str, bold: bool = False, interval: tuple[float, float, float] | None = None, link: str = ""
    ) -> "Cell":
        made = super().__new__(cls, text)
        made.bold, made.interval, made.link = bold, interval, link
        return made


@dataclass(frozen=True)
class Heading:
    text: str
    level: int


@dataclass(frozen=True)
class Text:
    text: str


@dataclass(frozen=True)
class Items:
    texts: Sequence[str]


@dataclass(frozen=True)
class Table:
    """Rows by column; a column that a row has not stays empty. `title` says what they are where the table is folded."""

    rows: Sequence[Mapping[str, str]]
    title: str = ""

    @property
    def columns(self) -> list[str]:
        return list(dict.fromkeys(name for row in self.rows for name in row))

    def cells(self) -> list[list[Cell]]:
        columns = self.columns
        found = [[row.get(name, "—") for name in columns] for row in self.rows]
        return [[c if isinstance(c, Cell) else Cell(c) for c in row] for row in found]


@dataclass(frozen=True)
class Picture:
    """Panels side by side, whose series are the networks; `file` is where a format keeps them that cannot hold them."""

    panels: Sequence[Panel]
    caption: str
    file: str = ""


Block = Heading | Text | Items | Table | Picture


class Section(NamedTuple):
    """What a subject, such as rotations, says of one data set; its first block is the subject's heading."""

    subject: str
    data: str
    blocks: Sequence[Block]


@dataclass(frozen=True)
class Report:
    """The answer by data set, then the subjects; by file what makes the pages of images and of examples."""

    title: str
    about: str
    answers: Mapping[str, Sequence[Block]]
    sections: Sequence[Section]
    images: Mapping[str, Callable[[], dict[str, Any]]]
    examples: Mapping[str, Callable[[], dict[str, Any]]]

    @property
    def subjects(self) -> dict[str, str]:
        """Headings by subject."""
        found: dict[str, str] = {}
        for section in self.sections:
            heading = section.blocks[0]
            found.setdefault(section.subject, heading.text if isinstance(heading, Heading) else section.subject)
        return found

    def of(self, subject: str) -> list[Section]:
        return [section for section in self.sections if section.subject == subject]


def flat(report: Report) -> list[Block]:
    """All in one row: the answers, then each subject's sections below its name and that of the data."""
    blocks: list[Block] = [Heading(report.title, 1), Text(report.about)]
    for data, answer in report.answers.items():
        blocks += [Heading(data, 2), *answer]
    for subject, title in report.subjects.items():
        blocks += subject_blocks(report, subject, title)
    return blocks


def subject_blocks(report: Report, subject: str, title: str) -> list[Block]:
    blocks: list[Block] = [Heading(title, 1)]
    for section in report.of(subject):
        blocks += [*([Heading(section.data, 2)] if section.data else []), *section.blocks[1:]]
    return blocks


def markdown_files(report: Report) -> dict[str, str]:
    """report.md with the answer and the pictures, and report/SUBJECT.md with the tables."""
    front: list[Block] = [Heading(report.title, 1), Text(report.about)]
    for data, answer in report.answers.items():
        front += [Heading(data, 2), *answer]
    text = markdown(front)
    for subject, title in report.subjects.items():
        text += f"\n## {plain(title)}\n\nTables: [report/{subject}.md](report/{subject}.md)\n"
        for section in report.of(subject):
            if pictures := [block for block in section.blocks if isinstance(block, Picture)]:
                text += "\n" + markdown([Text(section.data), *pictures] if section.data else pictures)
    files = {"report.md": text}
    for subject, title in report.subjects.items():
        files[f"report/{subject}.md"] = markdown(subject_blocks(report, subject, title), "..")
    return files


def markdown(blocks: Sequence[Block], root: str = "") -> str:
    """`root` is the way to the report's folder."""
    return "\n\n".join(markdown_block(block, root) for block in blocks) + "\n"


def markdown_block(block: Block, root: str) -> str:
    match block:
        case Heading(text, level):
            return "#" * level + " " + plain(text)
        case Text(text):
            return plain(text)
        case Items(texts):
            return "\n".join(f"- {plain(text)}" for text in texts)
        case Picture(_, caption, file):
            return f"![{plain(caption)}]({root}{'/' if root else ''}{file})"
    body = [[f"**{cell(c)}**" if c.bold else cell(c) for c in row] for row in block.cells()]
    lines = [list(map(cell, block.columns)), ["---"] * len(block.columns), *body]
    title = [f"{plain(block.title)}:\n"] if block.title else []
    return "\n".join([*title, *("| " + " | ".join(line) + " |" for line in lines)])


def plain(text: str) -> str:
    """Markdown of one line without tags of HTML, links and pictures, which renderers would take from any text."""
    return re.sub(r"<(?=[a-zA-Z/!?])", "&lt;", one_line(text)).replace("](", "]\\(").replace("][", "]\\[")


def cell(text: str) -> str:
    return plain(text).replace("|", "\\|")


def csv_text(value: Any) -> Any:
    """A text that a spreadsheet would take for a formula, with an apostrophe before it; everything else as it is."""
    return f"'{value}" if isinstance(value, str) and value.lstrip().startswith(("=", "+", "-", "@")) else value
