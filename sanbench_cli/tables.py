"""Tables on the terminal, in which no word is broken and no name is cut, however narrow it is."""

import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions
from rich.table import Column
from rich.table import Table as RichTable

from sanbench.evaluation.kinds import kind_of, listed

if TYPE_CHECKING:
    from sanbench.evaluation.robust import Findings
    from sanbench.evaluation.statistics import Proportion
    from sanbench.store.schema import Network, Record

FRAME = 3  # characters of a column beside its text, and one more of the table
WHOLE = 24  # cells of at most so many characters stay on one line


class Table:
    """Rows under headings, as wide as the terminal allows; columns that do not fit stand below, the first one repeated."""

    def __init__(self, *headings: str, title: str | None = None) -> None:
        self.headings, self.title = headings, title
        self.rows: list[list[str]] = []
        self.sections: set[int] = set()  # numbers of rows after which there is a line

    def add_row(self, *cells: str) -> None:
        self.rows.append([*cells, *[""] * (len(self.headings) - len(cells))])

    def add_section(self) -> None:
        self.sections.add(len(self.rows) - 1)

    def least(self, column: int) -> int:
        """Characters that a column needs so that no word is broken and figures stay together."""
        cells = [row[column] for row in self.rows]
        pieces = [cell for cell in cells if len(cell) <= WHOLE] + [word for cell in cells for word in cell.split()]
        return max(map(len, [*pieces, *self.headings[column].split()]), default=0)

    def natural(self, column: int) -> int:
        lines = [line for text in (self.headings[column], *(row[column] for row in self.rows)) for line in text.split("\n")]
        return max(map(len, lines), default=0)

    def fits(self, width: int) -> bool:
        return sum(self.least(column) + FRAME for column in range(len(self.headings))) < width

    def groups(self, width: int) -> Iterator[list[int]]:
        """The columns of each table: the first, and as many others as there is room for."""
        group, used = [0], self.least(0) + FRAME + 1
        for column in range(1, len(self.headings)):
            if used + self.least(column) + FRAME > width and len(group) > 1:
                yield group
                group, used = [0], self.least(0) + FRAME + 1
            group.append(column)
            used += self.least(column) + FRAME
        yield group

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[RichTable]:
        for number, group in enumerate(self.groups(options.max_width)):
            widths = self.widths(group, options.max_width)
            columns = [Column(self.headings[n], width=width, overflow="fold") for n, width in zip(group, widths, strict=True)]
            table = RichTable(
                *columns, title=self.title and self.title + ", continued" * (number > 0), show_header=any(self.headings)
            )
            for cells, ends in self.runs(group, widths):
                table.add_row(*cells, end_section=ends)
            yield table

    def runs(self, group: Sequence[int], widths: Sequence[int]) -> Iterator[tuple[list[str], bool]]:
        """The cells of each column, and whether a line is drawn below. Rows of which each cell is one line become one row of
        several lines: rich takes twice as long for a row each."""
        gathered: list[list[str]] = []
        for number, row in enumerate(self.rows):
            cells, ends = [row[column] for column in group], number in self.sections
            alone = not all(cell.isprintable() and cell_len(cell) <= width for cell, width in zip(cells, widths, strict=True))
            if alone and gathered:
                yield ["\n".join(column) for column in zip(*gathered, strict=True)], False
                gathered = []
            gathered.append(cells)
            if alone or ends or number == len(self.rows) - 1:
                yield ["\n".join(column) for column in zip(*gathered, strict=True)], ends
                gathered = []

    def widths(self, group: Sequence[int], room: int) -> list[int]:
        """From what each column would like to have, the widest give way until all fit."""
        widths, least = [self.natural(column) for column in group], [self.least(column) for column in group]
        over = sum(widths) + FRAME * len(group) + 1 - room
        for _ in range(max(0, over)):
            widest = max(range(len(group)), key=lambda n: (widths[n] > least[n], widths[n]))
            widths[widest] -= widths[widest] > 1
        return widths


def short_name(network: "Network") -> str:
    """`san10_pairwise x0.375`: a width as a factor, other fields as they are."""
    name, *fields = network.label.split(" ")
    return " ".join([name, *(f"x{field.removeprefix('width=')}" if field.startswith("width=") else field for field in fields)])


def record_tables(records: "Sequence[Record]", findings: "Findings", width: int) -> Iterator[Table]:
    """A table for each set of images: conditions as rows, networks as columns, top-1 in % with intervals where they fit."""
    for title, group in by_images(records).items():
        names = column_names(group)
        for with_interval in (True, False):
            table = Table("top-1 in %", *dict.fromkeys(names.values()), title=title)
            for cells in condition_rows(group, names, findings, with_interval):
                table.add_row(*cells)
            if table.fits(width):
                break
        yield table


def by_images(records: "Sequence[Record]") -> "dict[str, list[Record]]":
    groups: dict[str, list[Record]] = {}
    for record in records:
        data = record.data
        number = f"{data.images:,}" + ("" if data.images == data.of else f" of {data.of:,}")
        groups.setdefault(f"{data.name}, {number} {data.split} images", []).append(record)
    return groups


def column_names(records: "Sequence[Record]") -> dict[tuple[str, str], str]:
    """By network and run: the network's short name, with the run's where there are several of that name."""
    found = {(record.network.label, record.run): short_name(record.network) for record in records}
    shared = [name for name, other in pairwise(sorted(found.values())) if name == other]
    return {key: f"{name} ({key[1]})" if name in shared else name for key, name in found.items()}


def condition_rows(
    records: "Sequence[Record]", names: dict[tuple[str, str], str], findings: "Findings", with_interval: bool
) -> Iterator[list[str]]:
    """The condition, then the cell of each network; below an attack its success."""
    from sanbench.evaluation.statistics import wilson  # here, so that `--help` does not wait for SciPy

    networks = dict.fromkeys(names.values())
    before = {names[r.network.label, r.run]: r.counts for r in records if "right_before" in r.counts}
    if before and not any(record.kind == "accuracy" for record in records):
        upright = {name: wilson(counts["right_before"], counts["images"]) for name, counts in before.items()}
        yield ["upright", *(figure(upright[name], with_interval) if name in upright else "" for name in networks)]
    for condition, alike in by_condition(records).items():
        own = {names[record.network.label, record.run]: record for record in alike}
        yield [condition, *(figure(findings.top1(own[name]), with_interval) if name in own else "" for name in networks)]
        top5 = {name: record.counts for name, record in own.items() if record.kind == "accuracy"}
        if top5:
            hits = {name: wilson(counts["correct_top5"], counts["images"]) for name, counts in top5.items()}
            yield ["  top-5", *(figure(hits[name], with_interval) if name in hits else "" for name in networks)]
        success = {name: found for name, record in own.items() if (found := findings.success(record)) and found.total}
        if success:
            cells = (f"{100 * success[name].value:.1f}" if name in success else "" for name in networks)
            yield ["  attack success", *cells]
        nearest = {name: findings.smallest(record)[0].value for name, record in own.items() if record.kind == "smallest"}
        if nearest:
            scale, unit = (255, ", in 1/255") if alike[0].setting["norm"] == "linf" else (1, "")
            told = {name: f"{scale * eps:.2f}" if eps < math.inf else "beyond" for name, eps in nearest.items()}
            yield [f"  median ε{unit}", *(told.get(name, "") for name in networks)]


def by_condition(records: "Sequence[Record]") -> "dict[str, list[Record]]":
    """Records by short words for what was done to the images, and where those mean several things by what differs."""
    settings: dict[str, dict[str, Mapping[str, Any]]] = {}
    for record in records:
        short = kind_of(record.kind).short(record.setting)
        settings.setdefault(short, {})[repr(sorted(record.setting.items()))] = record.setting
    found: dict[str, list[Record]] = {}
    for record in records:
        kind = kind_of(record.kind)
        short = kind.short(record.setting)
        alike = list(settings[short].values())
        words = differing(short, record.setting, alike)
        if [differing(short, setting, alike) for setting in alike].count(words) > 1:
            words = f"{short}, {kind.declared(record.setting)}"
        found.setdefault(words, []).append(record)
    return found


def differing(short: str, setting: Mapping[str, Any], alike: Sequence[Mapping[str, Any]]) -> str:
    """`45°, crop inscribed`: what of a setting is not the same in all that have it."""
    values = {name: {repr(other[name]) for other in alike if name in other} for name in setting}
    return ", ".join(filter(None, [short, listed({name: setting[name] for name in setting if len(values[name]) > 1}, ", ")]))


def figure(found: "Proportion", with_interval: bool) -> str:
    text = f"{100 * found.value:.1f}"
    return f"{text} [{100 * found.low:.1f}, {100 * found.high:.1f}]" if with_interval else text
