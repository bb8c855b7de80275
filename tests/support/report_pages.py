"""A report as a test reads it: the text of all its Markdown, and the tables in it."""

import re
from pathlib import Path


def pages(root: Path) -> str:
    """report.md, then the page of each subject."""
    return "\n".join(path.read_text() for path in [Path(root) / "report.md", *sorted((Path(root) / "report").glob("*.md"))])


def page(root: Path, subject: str) -> str:
    return (Path(root) / "report" / f"{subject}.md").read_text()


def tables(text: str) -> list[list[list[str]]]:
    """Cells by table and row, its heading first."""
    found = re.findall(r"(?:^\|.*\n?)+", text, re.M)
    rows = [[[c.strip() for c in re.split(r"(?<!\\)\|", line.strip()[1:-1])] for line in table.splitlines()] for table in found]
    return [[table[0], *table[2:]] for table in rows]


def table(text: str, title: str) -> list[dict[str, str]]:
    """The rows, by heading, of the first table below a line that is `title:` or a heading that begins with it."""
    (start, *_) = [m.end() for m in re.finditer(rf"^(?:{re.escape(title)}:|#+ {re.escape(title)}.*)$", text, re.M)]
    head, *rows = tables(text[start:])[0]
    return [dict(zip(head, row, strict=True)) for row in rows]
