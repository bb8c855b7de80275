"""Pictures as SVG: curves over numbers, dots over names, each with its interval; a colour, a mark and a dash a network.

The geometry is computed here, the drawing is `templates/chart.svg`, and the colours are classes of `templates/chart.css`,
so that a picture has a light and a dark form. What a panel draws is its `series`: the values of `Findings`, not rounded.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import ceil, floor, log10
from typing import Any, NamedTuple, Protocol

COLOURED = 8  # networks with a colour of their own; of more the others are grey
WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 340, 240, 40, 330, 30, 200  # of a panel and its axes, in pixels
LINE = 16  # pixels of a line of text
MARKS = (  # around (0, 0); the shapes tell networks apart where colours do not
    "M3.5 0A3.5 3.5 0 1 1-3.5 0A3.5 3.5 0 1 1 3.5 0Z",
    "M-3-3H3V3H-3Z",
    "M0-4.2 4 3H-4Z",
    "M0-4.5 4.5 0 0 4.5-4.5 0Z",
    "M0 4.2 4-3H-4Z",
    "M-4-1.3H-1.3V-4H1.3V-1.3H4V1.3H1.3V4H-1.3V1.3H-4Z",
    "M-4 0-2-3.6H2L4 0 2 3.6H-2Z",
    "M-4-2.5H4V2.5H-4Z",
)


class Value(Protocol):
    """A figure with its interval, such as a `Proportion`."""

    @property
    def value(self) -> float: ...
    @property
    def low(self) -> float: ...
    @property
    def high(self) -> float: ...


class Range(NamedTuple):
    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Series:
    """A network's figures by what the panel varies: all numbers, or all names."""

    name: str
    points: Mapping[Any, Value]


@dataclass(frozen=True)
class Panel:
    """One pair of axes; `percent` figures lie in [0, 1], others begin at 0."""

    title: str
    label: str  # of the horizontal axis of curves, and of what the dots show
    series: Sequence[Series]
    percent: bool = True

    @property
    def names(self) -> list[str]:
        """What dots stand beside; none of a curve."""
        return list(dict.fromkeys(at for one in self.series for at in one.points if isinstance(at, str)))

    @property
    def top(self) -> float:
        return (
            1.0 if self.percent else max((point.high for one in self.series for point in one.points.values()), default=1) * 1.05
        )

    def text(self, value: float) -> str:
        return f"{100 * value:.1f}" if self.percent else f"{value:.2f}"

    def told(self, at: Any, name: str, point: Value) -> str:
        """What a mark is: `san10_pairwise, 90°: 27.2 [25.3, 29.2]`."""
        where = at if isinstance(at, str) else f"{at:g} {self.label}"
        return f"{name}, {where}: {self.text(point.value)} [{self.text(point.low)}, {self.text(point.high)}]"


def legend(panels: Iterable[Panel]) -> list[str]:
    """Names of the series in the order of their colours."""
    return list(dict.fromkeys(one.name for panel in panels for one in panel.series))


def drawn(panel: Panel, order: Sequence[str]) -> dict[str, Any]:
    """What the template draws of a panel: axes, and lines, bands, whiskers and marks by network, in pixels."""
    found = dots(panel, order) if panel.names else curves(panel, order)
    return {"title": panel.title, "width": WIDTH, **found}


def look(name: str, order: Sequence[str]) -> dict[str, str]:
    """Class and mark of a network, also of the legend."""
    place = order.index(name)
    return (
        {"name": name, "look": f"c{place}", "mark": MARKS[place]}
        if place < COLOURED
        else {"name": name, "look": "other", "mark": ""}
    )


def curves(panel: Panel, order: Sequence[str]) -> dict[str, Any]:
    places = sorted({float(at) for one in panel.series for at in one.points})
    least, most = (places[0], places[-1]) if len(places) > 1 else (places[0] - 1, places[0] + 1)

    def x(at: float) -> float:
        return round(LEFT + 4 + (RIGHT - LEFT - 8) * (at - least) / (most - least), 1)

    def y(value: float) -> float:
        return round(BOTTOM - (BOTTOM - TOP) * value / panel.top, 1)

    lines = []
    for one in sorted(panel.series, key=lambda one: -order.index(one.name)):  # the first lies on top
        points = sorted((float(at), point) for at, point in one.points.items())
        there = [(x(at), point.low, point.high) for at, point in points]
        band = [(at, y(high)) for at, _, high in there] + [(at, y(low)) for at, low, _ in reversed(there)]
        lines.append(
            look(one.name, order)
            | {
                "line": path((x(at), y(point.value)) for at, point in points),
                "band": path(band),
                "points": [(x(at), y(point.value), panel.told(at, one.name, point)) for at, point in points],
            }
        )
    columns = places if len(places) <= 6 and not crowded(places) else ticks(least, most)
    rows = [n / 4 for n in range(5)] if panel.percent else ticks(0, panel.top)
    return {
        "height": HEIGHT,
        "label": panel.label,
        "columns": [(x(at), f"{at:g}") for at in columns],
        "rows": [(y(value), f"{100 * value:.0f}%" if panel.percent else f"{value:g}") for value in rows],
        "lines": lines,
    }


def dots(panel: Panel, order: Sequence[str]) -> dict[str, Any]:
    """A line of text for each name, and below it a line for each network."""
    shown = [name for name in order if any(one.name == name for one in panel.series)]
    step = 9 if len(shown) <= COLOURED else 1.5
    row = LINE + step * len(shown) + 4

    def x(value: float) -> float:
        return round(12 + (RIGHT - 12) * value / panel.top, 1)

    lines = []
    for one in panel.series:
        marks = []
        for at, point in one.points.items():
            y = round(TOP + row * panel.names.index(at) + LINE + step * (shown.index(one.name) + 0.3), 1)
            marks.append((x(point.value), y, x(point.low), x(point.high), panel.told(at, one.name, point)))
        lines.append(look(one.name, order) | {"dots": marks})
    bottom = round(TOP + row * len(panel.names), 1)
    values = [n / 4 for n in range(5)] if panel.percent else ticks(0, panel.top)
    return {
        "height": bottom + 40,
        "bottom": bottom,
        "label": panel.label,
        "names": [(round(TOP + row * n + LINE - 5, 1), clipped(name), name) for n, name in enumerate(panel.names)],
        "columns": [(x(value), f"{100 * value:.0f}%" if panel.percent else f"{value:g}") for value in values],
        "lines": lines,
    }


def clipped(text: str, characters: int = 52) -> str:
    return text if len(text) <= characters else text[: characters - 1] + "…"


def crowded(places: Sequence[float]) -> bool:
    """Whether labels of neighbours would overlap."""
    return any(later - one < (places[-1] - places[0]) / 12 for one, later in pairwise(places))


def ticks(least: float, most: float) -> list[float]:
    """At most six round numbers from `least` to `most`: quarters of a turn for degrees, else steps of 1, 2 or 5."""
    if most - least >= 300:
        step = 90.0
    else:
        size = 10 ** floor(log10((most - least) / 5))
        step = next(size * factor for factor in (1, 2, 5, 10) if size * factor >= (most - least) / 5)
    return [step * n for n in range(ceil(least / step), floor(most / step + 1e-9) + 1)]


def path(points: Iterable[tuple[float, float]]) -> str:
    return " ".join(f"{x:g},{y:g}" for x, y in points)


def sheet(panels: Sequence[Panel]) -> dict[str, Any]:
    """What the template of a file draws: panels in rows of at most three, and the legend below them."""
    order = legend(panels)
    placed, top = [], 0.0
    for start in range(0, len(panels), 3):
        row = [drawn(panel, order) for panel in panels[start : start + 3]]
        placed += [each | {"x": n * (WIDTH + 8), "y": top} for n, each in enumerate(row)]
        top += max(each["height"] for each in row) + 8
    keys = [look(name, order) | {"y": top + 14 + LINE * n} for n, name in enumerate(order[:COLOURED])]
    others = len(order) - COLOURED
    if others > 0:
        keys.append({"name": f"{others} others", "look": "other", "mark": "", "y": top + 14 + LINE * COLOURED})
    columns = min(3, len(panels))
    return {"panels": placed, "legend": keys, "width": columns * (WIDTH + 8), "height": top + 10 + LINE * len(keys)}
