"""A report as a fragment of LaTeX: tables that fit the text of an `article`, cut into several where they have to be."""

from collections.abc import Sequence
from math import ceil

from sanbench.printable import one_line
from sanbench.report.rendering import Block, Cell, Heading, Items, Picture, Report, Table, Text, flat

TEX = {
    **{c: f"\\{c}" for c in "&%$#{}"},
    "_": r"\_\allowbreak{}",
    **{"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "−": "$-$", "—": "---"},
    **{"ε": r"$\varepsilon$", "∞": r"$\infty$", "°": r"$^\circ$", "×": r"$\times$", "≤": r"$\leq$", "†": r"\dag{}"},
    **{"‡": r"\ddag{}", "₂": "$_2$", "–": "--", "§": r"\S{}", "¶": r"\P{}", "<": r"\textless{}", ">": r"\textgreater{}"},
    **{"|": r"\textbar{}", "…": r"\ldots{}", "'": "'", '"': "''", "`": "`", "[": "{[}", "]": "{]}", "/": r"/\allowbreak{}"},
}
LEVELS = ("section", "subsection", "subsubsection", "paragraph")
HEAD = r"""% Written by `sanbench report`: a fragment for \input, not a document. It needs
% \usepackage[T1]{fontenc} \usepackage{booktabs} \usepackage{array} and the text width of a one-column article, 345 pt.
% Pictures are in the other formats of the report."""
TEXT_WIDTH, CHARACTER, GAP = 340, 4.6, 8  # points: of the text, of a character of \footnotesize, and between columns
WIDEST, LINES = 104, 40  # points of a column that breaks its lines beyond; lines of a table, which fit a page


def latex(report: Report) -> str:
    return latex_text(flat(report))


def latex_text(blocks: Sequence[Block]) -> str:
    return "\n\n".join([HEAD, *filter(None, map(latex_block, blocks))]) + "\n"


def latex_block(block: Block) -> str:
    match block:
        case Heading(text, level):
            return f"\\{LEVELS[level - 1]}*{{{escaped(text)}}}"
        case Text(text):
            return f"{{\\sloppy {escaped(text)}\\par}}"
        case Items(texts):
            return "\n".join([r"\begin{itemize}\sloppy", *(f"\\item {escaped(text)}" for text in texts), r"\end{itemize}"])
        case Picture():
            return ""
        case Table(_, title):
            name = [f"\\noindent {escaped(title)}:"] if title else []
            return "\n\n".join([*name, *tables(block)])


def tables(table: Table) -> list[str]:
    """The first column stands in each; the others in as many tables as it takes."""
    columns, cells = list(map(Cell, table.columns)), table.cells()
    widths = [min(WIDEST, CHARACTER * max(length(c) for c in each)) for each in zip(columns, *cells, strict=True)]
    parts: list[list[int]] = [[0]]
    for place in range(1, len(columns)):
        if len(parts[-1]) > 1 and sum(widths[n] + GAP for n in [*parts[-1], place]) > TEXT_WIDTH:
            parts.append([0])
        parts[-1].append(place)
    return [tabular(columns, rows, part, widths) for part in parts for rows in fitting(cells, part)]


def fitting(cells: Sequence[Sequence[Cell]], part: Sequence[int]) -> list[list[Sequence[Cell]]]:
    """The rows in groups that fit a page; a cell that breaks takes several of its lines."""
    groups: list[list[Sequence[Cell]]] = [[]]
    lines = 0
    for row in cells:
        own = max(ceil(CHARACTER * length(row[place]) / WIDEST) for place in part)
        if lines + own > LINES and groups[-1]:
            groups.append([])
            lines = 0
        groups[-1].append(row)
        lines += own
    return groups


def length(text: Cell) -> int:
    """Characters of a line; bold ones are wider."""
    return len(one_line(text)) + (2 if text.bold else 0)


def tabular(columns: Sequence[Cell], rows: Sequence[Sequence[Cell]], part: Sequence[int], widths: Sequence[float]) -> str:
    def column(place: int) -> str:
        if widths[place] < WIDEST:
            return "r" if place else "l"
        return f">{{\\raggedright\\arraybackslash}}p{{{WIDEST}pt}}"

    def line(texts: Sequence[Cell]) -> str:
        shown = [f"\\textbf{{{escaped(c)}}}" if c.bold else escaped(c) for c in texts]
        return " & ".join(shown[place] for place in part) + r" \\"

    lines = [line(columns), r"\midrule", *map(line, rows)]
    begin = f"\\begin{{tabular}}{{@{{}}{''.join(map(column, part))}@{{}}}}"
    body = "\n".join([begin, r"\toprule", *lines, r"\bottomrule", r"\end{tabular}"])
    return f"{{\\noindent\\footnotesize\\setlength{{\\tabcolsep}}{{{GAP // 2}pt}}\n{body}\\par}}\\medskip"


def escaped(text: str) -> str:
    """Characters that LaTeX has no glyph for become their numbers."""
    return "".join(TEX.get(c) or (c if ord(c) < 0x180 else f"(U+{ord(c):04X})") for c in one_line(text))
