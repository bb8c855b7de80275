"""Pictures, drawn from records only."""

from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from sanbench.evaluation.statistics import wilson
from sanbench.store.files import Record

# Okabe and Ito's colours, told apart by colour-blind readers too.
COLOURS = ("#000000", "#E69F00", "#56B4E9", "#009E73", "#D55E00", "#CC79A7", "#0072B2", "#F0E442")

WIDEST = 5  # panels in a row


def draw_robustness(records: Sequence[Record], path: Path) -> None:
    """Top-1 by rotation and by the budget of each attack, with 95% Wilson intervals, one colour a network."""
    records = largest(records)
    subjects = list(dict.fromkeys((record.model, record.weights) for record in records))
    panels = chosen_panels(records)
    columns = min(len(panels), WIDEST)
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(1.2 + 3.6 * columns, 0.2 + 3.4 * rows), layout="constrained")
    axes = figure.subplots(rows, columns, sharey=True, squeeze=False)
    for empty in axes.flat[len(panels) :]:
        empty.remove()
    for axis, (title, label, points) in zip(axes.flat, panels, strict=False):
        for number, key in enumerate(subjects):
            own = [record for record in records if (record.model, record.weights) == key]
            draw(axis, points(own), number, len(subjects), key[0])
        axis.set_title(title)
        axis.set_xlabel(label)
        axis.set_ylim(0, 1)
        axis.spines[["top", "right"]].set_visible(False)
    for first in axes[:, 0]:
        first.set_ylabel("top-1 (95% Wilson interval)")
        first.yaxis.set_major_formatter(lambda value, _: f"{100 * value:.0f}%")
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=len(subjects), frameon=False)
    FigureCanvasAgg(figure).print_figure(path, dpi=150, metadata={"Software": None})


Points = dict[str, tuple[int, int]] | dict[float, tuple[int, int]]


def chosen_panels(records: Sequence[Record]) -> list[tuple[str, str, Callable[[Sequence[Record]], Points]]]:
    """Title, label and points of each panel: bars for few exact rotations, a curve with bands for each resampled view."""
    panels: list[tuple[str, str, Callable[[Sequence[Record]], Points]]] = []
    rotated = [record for record in records if record.experiment == "rotation"]
    views = list(dict.fromkeys(view(record) for record in rotated))
    if "" in views:
        panels.append(("turned clockwise", "degrees", rotations))
    for seen in filter(None, views):
        declared = ", ".join(word for word in seen.split(", ") if word != "none")
        panels.append((f"turned clockwise\n{declared}", "degrees", partial(curve, seen=seen)))
    for attack, norm in sorted({(r.setting["attack"], r.setting["norm"]) for r in records if r.experiment == "attack"}):
        label = "L∞ budget in 1/255" if norm == "linf" else "L₂ budget in 1/255"
        panels.append((attack, label, partial(budgets, attack=attack, norm=norm)))
    return panels


def view(record: Record) -> str:
    """What a rotation declares, shortly; nothing for exact ones."""
    return ", ".join(str(record.setting[name]) for name in ("interpolation", "fill", "crop", "mask") if name in record.setting)


def curve(records: Sequence[Record], seen: str) -> dict[float, tuple[int, int]]:
    """Correct and total by angle in degrees; exact quarter turns belong to every view that shows whole images."""
    whole = seen.endswith("none, none")
    turned = [r for r in records if r.experiment == "rotation" and (view(r) == seen or (whole and not view(r)))]
    turned += [r for r in records if r.experiment == "accuracy" and whole]
    found = {r.setting.get("angle", 0): (r.counts["correct"], r.counts["images"]) for r in turned}
    return {float(angle): found[angle] for angle in sorted(a for a in found if not isinstance(a, str))}


def largest(records: Sequence[Record]) -> list[Record]:
    """Of measurements that differ only in how many images they saw, the one on most."""
    kept: dict[tuple[str, str, str, str], Record] = {}
    for record in sorted(records, key=lambda record: record.data["images"]):
        kept[record.model, record.weights, record.experiment, str(record.setting)] = record
    return [record for record in records if record in kept.values()]


def rotations(records: Sequence[Record]) -> dict[str, tuple[int, int]]:
    """Correct and total by angle, upright first."""
    turned = [record for record in records if record.experiment in ("accuracy", "rotation") and not view(record)]
    angles = {record.setting.get("angle", 0): record.counts for record in turned}
    ordered = sorted(angles, key=lambda angle: (isinstance(angle, str), angle))
    return {str(angle): (angles[angle]["correct"], angles[angle]["images"]) for angle in ordered}


def budgets(records: Sequence[Record], attack: str, norm: str) -> dict[float, tuple[int, int]]:
    """Correct and total by budget in 1/255; at 0 the same images unattacked. Of several protocols the one with most budgets."""
    own = [r for r in records if r.experiment == "attack" and (r.setting["attack"], r.setting["norm"]) == (attack, norm)]
    protocols = Counter(map(protocol, own))
    found: dict[float, tuple[int, int]] = {}
    for record in own:
        if protocol(record) == max(protocols, key=protocols.__getitem__):
            top, _, bottom = record.setting["eps"].partition("/")
            found[0.0] = (record.counts["right_before"], record.counts["images"])
            found[255 * float(top) / float(bottom or 1)] = (record.counts["correct"], record.counts["images"])
    return dict(sorted(found.items()))


def protocol(record: Record) -> str:
    """All of an attack's setting but its budget and the step that follows from it."""
    return str({name: value for name, value in record.setting.items() if name not in ("eps", "step_size")})


def draw(axis: Axes, points: Points, number: int, of: int, label: str) -> None:
    """Values with intervals: a line in a band over numbers, bars side by side over names."""
    values = [wilson(*counts) for counts in points.values()]
    heights, lows, highs = ([getattr(value, name) for value in values] for name in ("value", "low", "high"))
    colour = COLOURS[number % len(COLOURS)]
    if not any(isinstance(point, str) for point in points):
        places = list(map(float, points))
        axis.plot(places, heights, color=colour, label=label, marker="o", ms=3, lw=1.2)
        axis.fill_between(places, lows, highs, color=colour, alpha=0.2, lw=0)
        return
    width = 0.8 / of
    places = [place + (number - (of - 1) / 2) * width for place in range(len(points))]
    errors = [
        [h - low for h, low in zip(heights, lows, strict=True)],
        [high - h for h, high in zip(heights, highs, strict=True)],
    ]
    axis.bar(places, heights, width * 0.9, yerr=errors, color=colour, label=label, error_kw={"lw": 0.8, "ecolor": "#777777"})
    axis.set_xticks(range(len(points)), list(map(str, points)))
