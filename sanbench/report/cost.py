"""What networks cost on the machines they were timed on: a table, and the picture of its sweeps."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from sanbench.report.pictures import COLOURS
from sanbench.report.rendering import Block, Heading, Picture, Table, Text
from sanbench.store.schema import Benchmark

SWEEPS = {"footprint": "footprint", "image_size": "image side in pixels"}  # fields of a setting, and what an axis calls them


def cost_section(benchmarks: Sequence[Benchmark]) -> list[Block]:
    """A row a comparison of `sanbench bench model`, and the picture of its sweeps."""
    timed = [benchmark for benchmark in benchmarks if benchmark.kind == "model"]
    if not timed:
        return []
    machines = "; ".join(dict.fromkeys(f"{benchmark.device}, {benchmark.created[:10]}" for benchmark in timed))
    blocks: list[Block] = [
        Heading("Cost", 2),
        Text(f"Medians of n steps in turn, by `sanbench bench model`. {machines}."),
        Table([row(benchmark) for benchmark in timed]),
    ]
    return [*blocks, *(Picture(file, "Time against footprint and image size") for file in cost_pictures(timed))]


def cost_pictures(benchmarks: Sequence[Benchmark]) -> dict[str, Callable[[Path], None]]:
    """By file name, what draws into a path."""
    if not any(sweeps(benchmarks, varied) for varied in SWEEPS):
        return {}
    return {"cost.png": partial(draw_cost, benchmarks)}


def row(benchmark: Benchmark) -> dict[str, str]:
    setting = benchmark.setting
    kept, of = (benchmark.bytes[side][0] for side in ("san", "resnet"))
    median, low, high = benchmark.ratio or (float("nan"),) * 3
    return {
        "network": setting["san"]["model"],
        "beside": setting["resnet"]["model"],
        "mode": setting["mode"],
        "dtype": f"{setting['dtype']}{', compiled' if setting['compiled'] else ''}",
        "batch": str(setting["batch_size"]),
        "image": str(setting["image_size"]),
        "footprint": str(setting["footprint"]),
        "ms": " / ".join(f"{1000 * benchmark.seconds[side]:.0f}" for side in ("san", "resnet")),
        "ratio [range]": f"{median:.2f} [{low:.2f}, {high:.2f}]",
        "kept, MB": f"{kept / 1e6:.0f} / {of / 1e6:.0f}",
        "n": str(setting["n"]),
    }


def sweeps(benchmarks: Sequence[Benchmark], varied: str) -> dict[str, dict[int, Sequence[float]]]:
    """Median, least and largest ratio by value, of pairs that were timed at several values of `varied` with all else alike."""
    found: dict[str, dict[int, Sequence[float]]] = {}
    for benchmark in benchmarks:
        if benchmark.kind != "model" or benchmark.ratio is None:
            continue
        setting = benchmark.setting
        other = next(name for name in SWEEPS if name != varied)
        name = (
            f"{setting['san']['model']} / {setting['resnet']['model']}\n"
            f"{setting['mode']}, batch {setting['batch_size']}, {SWEEPS[other]} {setting[other]}\n"
            f"{setting['dtype']}, {'compiled' if setting['compiled'] else 'eager'}, {setting['kernel']}, {benchmark.device}"
        )
        found.setdefault(name, {})[setting[varied]] = benchmark.ratio
    return {name: points for name, points in found.items() if len(points) > 1}


def draw_cost(benchmarks: Sequence[Benchmark], path: Path) -> None:
    """Time of a step over its ResNet's, against footprint and against image size: a line in its range for each network and
    setting. Ratios, because the two sides were timed in turn and the points one after the other."""
    panels = {label: lines for varied, label in SWEEPS.items() if (lines := sweeps(benchmarks, varied))}
    figure = Figure(figsize=(4.2 * len(panels), 3.8), layout="constrained")
    axes = figure.subplots(1, len(panels), squeeze=False, sharey=True)[0]
    for axis, (label, lines) in zip(axes, panels.items(), strict=True):
        for number, (name, points) in enumerate(lines.items()):
            colour = COLOURS[number % len(COLOURS)]
            values = sorted(points)
            median, low, high = ([points[value][at] for value in values] for at in range(3))
            axis.plot(values, median, color=colour, label=name, marker="o", ms=3, lw=1.2)
            axis.fill_between(values, low, high, color=colour, alpha=0.2, lw=0)
        axis.set_xlabel(label)
        axis.set_xticks(sorted({value for points in lines.values() for value in points}))
        axis.set_ylim(0)
        axis.spines[["top", "right"]].set_visible(False)
        axis.legend(frameon=False, fontsize="small", loc="lower right")
    axes[0].set_ylabel("time of a step / the ResNet's (median, range)")
    FigureCanvasAgg(figure).print_figure(path, dpi=150, metadata={"Software": None})
