"""Pictures of robustness, drawn from records only."""

from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from sanbench.evaluation.kinds import NORMS, budget, declared_attack
from sanbench.evaluation.robust import Findings
from sanbench.evaluation.statistics import Proportion, wilson
from sanbench.printable import one_line
from sanbench.store.schema import Record

# Okabe and Ito's colours, told apart by colour-blind readers too.
COLOURS = ("#000000", "#E69F00", "#56B4E9", "#009E73", "#D55E00", "#CC79A7", "#0072B2", "#F0E442")

WIDEST = 5  # panels in a row

Points = dict[str, Proportion] | dict[float, Proportion]  # of one network, by what the panel varies


class Panel(NamedTuple):
    title: str
    label: str  # of the horizontal axis
    points: Callable[[Sequence[Record], Findings], Points]


def has_picture(records: Sequence[Record]) -> bool:
    return any(record.kind in ("rotation", "attack") for record in records)


def draw_robustness(records: Sequence[Record], findings: Findings, path: Path) -> None:
    """Top-1 by rotation and by the budget of each attack, with 95% Wilson intervals, one colour a network."""
    records = largest(records)
    networks = list({record.network.model_dump_json(): record.network for record in records}.values())
    panels = chosen_panels(records)
    columns = min(len(panels), WIDEST)
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(1.2 + 3.6 * columns, 0.2 + 3.4 * rows), layout="constrained")
    axes = figure.subplots(rows, columns, sharey=True, squeeze=False)
    for empty in axes.flat[len(panels) :]:
        empty.remove()
    for axis, panel in zip(axes.flat, panels, strict=False):
        for number, network in enumerate(networks):
            points = panel.points([record for record in records if record.network == network], findings)
            draw(axis, points, number, len(networks), plain(network.label))
        axis.set_title(plain(panel.title))
        axis.set_xlabel(panel.label)
        axis.set_ylim(0, 1)
        axis.spines[["top", "right"]].set_visible(False)
    for first in axes[:, 0]:
        first.set_ylabel("top-1 (95% Wilson interval)")
        first.yaxis.set_major_formatter(lambda value, _: f"{100 * value:.0f}%")
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=len(networks), frameon=False)
    FigureCanvasAgg(figure).print_figure(path, dpi=150, metadata={"Software": None})


def chosen_panels(records: Sequence[Record]) -> list[Panel]:
    """Bars for few exact rotations, a curve with bands for each way to frame resampled ones and for each attack."""
    panels: list[Panel] = []
    frames = list(dict.fromkeys(frame(record) for record in records if record.kind == "rotation"))
    if "" in frames:
        panels.append(Panel("turned clockwise", "degrees", rotations))
    for name in filter(None, frames):
        declared = ", ".join(word for word in name.split(", ") if word != "none")
        panels.append(Panel(f"turned clockwise\n{declared}", "degrees", partial(curve, framed=name)))
    for attack, norm in sorted({(r.setting["attack"], r.setting["norm"]) for r in records if r.kind == "attack"}):
        panels.append(Panel(attack, f"{NORMS[norm]} budget in 1/255", partial(budgets, attack=attack, norm=norm)))
    return panels


def frame(record: Record) -> str:
    """What a rotation declares, shortly; nothing for exact ones."""
    return ", ".join(str(record.setting[name]) for name in ("interpolation", "fill", "crop", "mask") if name in record.setting)


def curve(records: Sequence[Record], findings: Findings, framed: str) -> dict[float, Proportion]:
    """By angle in degrees; exact quarter turns belong to every frame that shows whole images."""
    whole = framed.endswith("none, none")
    turned = [r for r in records if r.kind == "rotation" and (frame(r) == framed or (whole and not frame(r)))]
    turned += [r for r in records if r.kind == "accuracy" and whole]
    found = {r.setting.get("angle", 0): findings.top1(r) for r in turned}
    return {float(angle): found[angle] for angle in sorted(a for a in found if not isinstance(a, str))}


def largest(records: Sequence[Record]) -> list[Record]:
    """Of measurements that differ only in how many images they saw, the one on most."""
    kept: dict[tuple[str, str, str], Record] = {}
    for record in sorted(records, key=lambda record: record.data.images):
        kept[record.network.model_dump_json(), record.kind, str(record.setting)] = record
    return [record for record in records if record in kept.values()]


def rotations(records: Sequence[Record], findings: Findings) -> dict[str, Proportion]:
    """By angle, upright first."""
    turned = [record for record in records if record.kind in ("accuracy", "rotation") and not frame(record)]
    angles = {record.setting.get("angle", 0): findings.top1(record) for record in turned}
    return {str(angle): angles[angle] for angle in sorted(angles, key=lambda angle: (isinstance(angle, str), angle))}


def budgets(records: Sequence[Record], findings: Findings, attack: str, norm: str) -> dict[float, Proportion]:
    """By budget in 1/255; at 0 the same images unattacked. Of several protocols the one with most budgets."""
    own = [r for r in records if r.kind == "attack" and (r.setting["attack"], r.setting["norm"]) == (attack, norm)]
    protocols = Counter(declared_attack(record.setting) for record in own)
    found: dict[float, Proportion] = {}
    for record in own:
        if declared_attack(record.setting) == max(protocols, key=protocols.__getitem__):
            found[0.0] = wilson(record.counts["right_before"], record.counts["images"])
            found[255 * float(budget(record.setting))] = findings.top1(record)
    return dict(sorted(found.items()))


def plain(text: str) -> str:
    """A name as matplotlib shows it, which takes dollars for formulas."""
    return one_line(text).replace("$", r"\$")


def draw(axis: Axes, points: Points, number: int, of: int, label: str) -> None:
    """Values with intervals: a line in a band over numbers, bars side by side over names."""
    heights, lows, highs = ([getattr(value, name) for value in points.values()] for name in ("value", "low", "high"))
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
