"""Pictures, drawn from records only."""

from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from sanbench.evaluation.statistics import wilson
from sanbench.records import Record

# Okabe and Ito's colours, told apart by colour-blind readers too.
COLOURS = ("#000000", "#E69F00", "#56B4E9", "#009E73", "#D55E00", "#CC79A7", "#0072B2", "#F0E442")


def draw_robustness(records: Sequence[Record], path: Path) -> None:
    """Top-1 by rotation and by the budget of each attack, with 95% Wilson intervals, one colour a network."""
    attacks = sorted({record.setting["attack"] for record in records if record.experiment == "attack"})
    rotated = any(record.experiment == "rotation" for record in records)
    panels = (["rotation"] if rotated else []) + attacks
    figure = Figure(figsize=(1.2 + 3.6 * len(panels), 3.6), layout="constrained")
    axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    records = largest(records)
    subjects = list(dict.fromkeys((record.model, record.weights) for record in records))
    for axis, panel in zip(axes, panels, strict=True):
        for number, key in enumerate(subjects):
            own = [record for record in records if (record.model, record.weights) == key]
            points = rotations(own) if panel == "rotation" else budgets(own, panel)
            draw(axis, points, number, len(subjects), key[0], lines=panel != "rotation")
        axis.set_title("turned clockwise" if panel == "rotation" else panel)
        axis.set_xlabel("degrees" if panel == "rotation" else "L∞ budget in 1/255")
        axis.set_ylim(0, 1)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].set_ylabel("top-1 (95% Wilson interval)")
    axes[0].yaxis.set_major_formatter(lambda value, _: f"{100 * value:.0f}%")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=len(subjects), frameon=False)
    FigureCanvasAgg(figure).print_figure(path, dpi=150, metadata={"Software": None})


def largest(records: Sequence[Record]) -> list[Record]:
    """Of measurements that differ only in how many images they saw, the one on most."""
    kept: dict[tuple[str, str, str, str], Record] = {}
    for record in sorted(records, key=lambda record: record.data["images"]):
        kept[record.model, record.weights, record.experiment, str(record.setting)] = record
    return [record for record in records if record in kept.values()]


def rotations(records: Sequence[Record]) -> dict[str, tuple[int, int]]:
    """Correct and total by angle, upright first."""
    turned = [record for record in records if record.experiment in ("accuracy", "rotation")]
    angles = {record.setting.get("angle", 0): record.counts for record in turned}
    ordered = sorted(angles, key=lambda angle: (isinstance(angle, str), angle))
    return {str(angle): (angles[angle]["correct"], angles[angle]["images"]) for angle in ordered}


def budgets(records: Sequence[Record], attack: str) -> dict[float, tuple[int, int]]:
    """Correct and total by budget in 1/255; at 0 the same images unattacked."""
    found: dict[float, tuple[int, int]] = {}
    for record in records:
        if record.experiment == "attack" and record.setting["attack"] == attack:
            top, _, bottom = record.setting["eps"].partition("/")
            found[0.0] = (record.counts["right_before"], record.counts["images"])
            found[255 * float(top) / float(bottom or 1)] = (record.counts["correct"], record.counts["images"])
    return dict(sorted(found.items()))


def draw(
    axis: Axes, points: dict[str, tuple[int, int]] | dict[float, tuple[int, int]], number: int, of: int, label: str, lines: bool
) -> None:
    """Values with intervals: lines over a number, side by side over a name."""
    values = [wilson(*counts) for counts in points.values()]
    heights = [value.value for value in values]
    errors = [[value.value - value.low for value in values], [value.high - value.value for value in values]]
    colour = COLOURS[number % len(COLOURS)]
    if lines:
        axis.errorbar(list(map(float, points)), heights, errors, color=colour, label=label, marker="o", ms=3, lw=1.2, capsize=2)
        return
    width = 0.8 / of
    places = [place + (number - (of - 1) / 2) * width for place in range(len(points))]
    axis.bar(places, heights, width * 0.9, yerr=errors, color=colour, label=label, error_kw={"lw": 0.8, "ecolor": "#777777"})
    axis.set_xticks(range(len(points)), list(map(str, points)))
