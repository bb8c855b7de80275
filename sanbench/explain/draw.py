"""The picture of `explain`'s rows."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from sanbench.explain.panels import Panel, Row
from sanbench.printable import one_line

SIDE = 1.6  # of a panel, in inches
POSITIVE, SIGNED = "viridis", "RdBu_r"  # by lightness, and diverging: white is 0, red positive
OPACITY = 0.75  # of values over the image
MARK = "#D55E00"


def draw(rows: Sequence[Row], path: Path, title: str = "") -> None:
    """Write a PNG with a row of panels for each of `rows`, and a column for each title that one of them has.

    Signed values are drawn in a diverging colour map with white at 0, others from 0 in one that grows lighter. A network's
    views share the scale of a column; its ends stand below each panel.
    """
    titles = list(dict.fromkeys(name for row in rows for name in row.panels))
    shape = len(rows), 1 + len(titles)
    figure = Figure(figsize=(0.6 + SIDE * shape[1], 0.5 + 1.22 * SIDE * shape[0]), layout="constrained")
    axes = figure.subplots(*shape, squeeze=False)
    for number, row in enumerate(rows):
        first = axes[number, 0]
        show_image(first, row)
        first.set_ylabel(f"{plain(row.network)}\n{plain(row.view)}", fontsize=8)
        first.set_xlabel(plain(row.told), fontsize=7)
        for axis, name in zip(axes[number, 1:], titles, strict=True):
            if name not in row.panels:
                axis.remove()
                continue
            group = [other.panels[name] for other in rows if other.network == row.network]
            show_panel(axis, row, row.panels[name], limits(group))
    for column, name in enumerate(["image", *titles]):
        top = next(number for number, row in enumerate(rows) if column == 0 or name in row.panels)
        axes[top, column].set_title(name, fontsize=8)
    if title:
        figure.suptitle(plain(title), fontsize=9)
    FigureCanvasAgg(figure).print_figure(path, dpi=110, format="png", metadata={"Software": None})


def limits(panels: Sequence[Panel]) -> tuple[float, float]:
    """The ends of the colours: from 0, or of signed values alike on both sides of it."""
    values = np.concatenate([panel.values[np.isfinite(panel.values)] for panel in panels] or [np.zeros(1, np.float32)])
    most = float(np.abs(values).max(initial=0)) or 1.0
    return (-most if any(panel.signed for panel in panels) else 0.0), most


def show_image(axis: Axes, row: Row) -> None:
    axis.imshow(row.image.clip(0, 1), interpolation="nearest")
    axis.set_xticks([])
    axis.set_yticks([])


def show_panel(axis: Axes, row: Row, panel: Panel, ends: tuple[float, float]) -> None:
    colours: dict[str, Any] = {
        "vmin": ends[0],
        "vmax": ends[1],
        "cmap": SIGNED if panel.signed else POSITIVE,
        "interpolation": "nearest",
    }
    if panel.over_image:
        height, width = row.image.shape[:2]
        grey = row.image.mean(2)
        axis.imshow(grey, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
        axis.imshow(panel.values, extent=(-0.5, width - 0.5, height - 0.5, -0.5), alpha=OPACITY, **colours)
    else:
        axis.imshow(panel.values, **colours)
    if panel.marked is not None:
        top, left, side = panel.marked
        axis.add_patch(Rectangle((left - 0.5, top - 0.5), side, side, fill=False, edgecolor=MARK, linewidth=1.2))
    axis.set_xticks([])
    axis.set_yticks([])
    axis.set_xlabel(f"{ends[0]:.2g} … {ends[1]:.2g}", fontsize=7)


def plain(text: str) -> str:
    """A name as matplotlib shows it, which takes dollars for formulas."""
    return one_line(text).replace("$", r"\$")
