"""A report as blocks, and the formats it is written in. Names in it may come from a stranger: each format escapes them."""

import html
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sanbench.printable import one_line


class Bold(str):
    """A cell that stands out: a difference whose interval excludes 0."""


@dataclass(frozen=True)
class Heading:
    text: str
    level: int


@dataclass(frozen=True)
class Text:
    text: str


@dataclass(frozen=True)
class Table:
    """Rows by column; a column that a row has not stays empty."""

    rows: Sequence[Mapping[str, str]]

    @property
    def columns(self) -> list[str]:
        return list(dict.fromkeys(name for row in self.rows for name in row))

    def cells(self) -> list[list[str]]:
        return [[row.get(name, "—") for name in self.columns] for row in self.rows]


@dataclass(frozen=True)
class Picture:
    file: str
    caption: str


Block = Heading | Text | Table | Picture


def markdown(blocks: Sequence[Block]) -> str:
    return "\n\n".join(map(markdown_block, blocks)) + "\n"


def markdown_block(block: Block) -> str:
    match block:
        case Heading(text, level):
            return "#" * level + " " + plain(text)
        case Text(text):
            return plain(text)
        case Picture(file, caption):
            return f"![{plain(caption)}]({file})"
    body = [[f"**{cell(c)}**" if isinstance(c, Bold) else cell(c) for c in row] for row in block.cells()]
    lines = [list(map(cell, block.columns)), ["---"] * len(block.columns), *body]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def plain(text: str) -> str:
    """Markdown of one line without tags of HTML, links and pictures, which renderers would take from any text."""
    return re.sub(r"<(?=[a-zA-Z/!?])", "&lt;", one_line(text)).replace("](", "]\\(").replace("][", "]\\[")


def cell(text: str) -> str:
    return plain(text).replace("|", "\\|")


def page(blocks: Sequence[Block]) -> str:
    """One HTML file; its pictures lie beside it."""
    style = "body{font:15px sans-serif;margin:2em}table{border-collapse:collapse}td,th{padding:.2em .7em;text-align:right}"
    style += "tr{border-bottom:1px solid #ddd}td:first-child,th:first-child{text-align:left}img{max-width:100%}"
    head = f'<!doctype html>\n<html lang="en"><meta charset="utf-8"><title>sanbench</title><style>{style}</style>'
    return "\n".join([head, *map(html_block, blocks), "</html>"]) + "\n"


def html_block(block: Block) -> str:
    match block:
        case Heading(text, level):
            return f"<h{level}>{html.escape(text)}</h{level}>"
        case Text(text):
            return f"<p>{html.escape(text)}</p>"
        case Picture(file, caption):
            return f'<img src="{html.escape(file)}" alt="{html.escape(caption)}">'
    head = "".join(f"<th>{html.escape(name)}</th>" for name in block.columns)
    lines = [
        "".join(f"<td>{f'<b>{html.escape(c)}</b>' if isinstance(c, Bold) else html.escape(c)}</td>" for c in row)
        for row in block.cells()
    ]
    return "\n".join(["<table>", f"<tr>{head}</tr>", *(f"<tr>{line}</tr>" for line in lines), "</table>"])


TEX = {
    **{c: f"\\{c}" for c in "&%$#_{}"},
    **{"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "−": "$-$", "—": "---"},
    **{"ε": r"$\varepsilon$", "∞": r"$\infty$", "°": r"$^\circ$", "×": r"$\times$", "≤": r"$\leq$", "†": r"\dag{}"},
    **{"‡": r"\ddag{}", "₂": "$_2$", "–": "--", "§": r"\S{}", "¶": r"\P{}", "<": r"\textless{}"},
}


LEVELS = ("section", "subsection", "subsubsection", "paragraph")


def latex(blocks: Sequence[Block]) -> str:
    """A fragment for \\input: needs booktabs and graphicx."""
    return "\n\n".join(map(latex_block, blocks)) + "\n"


def latex_block(block: Block) -> str:
    match block:
        case Heading(text, level):
            return f"\\{LEVELS[level - 1]}*{{{escaped(text)}}}"
        case Text(text):
            return escaped(text)
        case Picture(file, _):
            return f"\\includegraphics[width=\\linewidth]{{{file}}}"
    lines = [[escaped(name) for name in block.columns]]
    lines += [[f"\\textbf{{{escaped(c)}}}" if isinstance(c, Bold) else escaped(c) for c in row] for row in block.cells()]
    head, *body = [" & ".join(line) + r" \\" for line in lines]
    columns = "l" + "r" * (len(block.columns) - 1)
    begin = f"\\begin{{tabular}}{{{columns}}}"
    return "\n".join([begin, r"\toprule", head, r"\midrule", *body, r"\bottomrule", r"\end{tabular}"])


def escaped(text: str) -> str:
    return "".join(TEX.get(character, character) for character in one_line(text))


def csv_text(value: Any) -> Any:
    """A text that a spreadsheet would take for a formula, with an apostrophe before it; everything else as it is."""
    return f"'{value}" if isinstance(value, str) and value.lstrip().startswith(("=", "+", "-", "@")) else value


DOCUMENTS: dict[str, Callable[[Sequence[Block]], str]] = {"md": markdown, "html": page, "tex": latex}
