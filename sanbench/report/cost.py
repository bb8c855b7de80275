"""What networks cost on the machines they were timed on: a table, and the picture of its sweeps."""

from collections.abc import Sequence
from typing import Any

from sanbench.report.charts import Panel, Range, Series
from sanbench.report.rendering import Block, Heading, Picture, Table, Text
from sanbench.store.schema import Benchmark

SWEEPS = {"footprint": "footprint", "image_size": "image side in pixels"}  # fields of a setting, and what an axis calls them


def section(benchmarks: Sequence[Benchmark]) -> list[Block]:
    """The picture of sweeps, and a row a comparison of `sanbench bench model`.

    Ratios, because the two sides were timed in turn and the points one after the other.
    """
    timed = [benchmark for benchmark in benchmarks if benchmark.kind == "model"]
    if not timed:
        return []
    machines = "; ".join(dict.fromkeys(f"{benchmark.device}, {benchmark.created[:10]}" for benchmark in timed))
    panels = [
        Panel(f"against {label}", label, lines, percent=False)
        for field, label in SWEEPS.items()
        if (lines := curves(timed, field))
    ]
    picture = [Picture(panels, "Time of a step divided by the ResNet's: median and range.")] if panels else []
    text = f"Medians of n steps in turn, by `sanbench bench model`. {machines}."
    return [Heading("Cost", 3), Text(text), *picture, Table([row(benchmark) for benchmark in timed], "Time and memory")]


def curves(benchmarks: Sequence[Benchmark], varied: str) -> list[Series]:
    found = sweeps(benchmarks, varied)
    return [Series(name, {value: Range(*ratio) for value, ratio in points.items()}) for name, points in found.items()]


def row(benchmark: Benchmark) -> dict[str, str]:
    setting = benchmark.setting
    kept, of = (benchmark.bytes[side][0] for side in ("san", "resnet"))
    median, low, high = benchmark.ratio or (float("nan"),) * 3
    return {
        "network": named(setting["san"]),
        "beside": named(setting["resnet"]),
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


def named(side: dict[str, Any]) -> str:
    return f"{side['model']} x{side['width']:g}" if "width" in side else str(side["model"])


def sweeps(benchmarks: Sequence[Benchmark], varied: str) -> dict[str, dict[int, Sequence[float]]]:
    """Median, least and largest ratio by value, of pairs that were timed at several values of `varied` with all else alike."""
    found: dict[str, dict[int, Sequence[float]]] = {}
    for benchmark in benchmarks:
        if benchmark.kind != "model" or benchmark.ratio is None:
            continue
        setting = benchmark.setting
        other = next(name for name in SWEEPS if name != varied)
        name = (
            f"{named(setting['san'])} / {named(setting['resnet'])}, "
            f"{setting['mode']}, batch {setting['batch_size']}, {SWEEPS[other]} {setting[other]}, "
            f"{setting['dtype']}, {'compiled' if setting['compiled'] else 'eager'}, {setting['kernel']}, {benchmark.device}"
        )
        found.setdefault(name, {})[setting[varied]] = benchmark.ratio
    return {name: points for name, points in found.items() if len(points) > 1}
