"""What networks cost on the machines they were timed on."""

from collections.abc import Sequence

from sanbench.report.pictures import SWEEPS, sweeps
from sanbench.report.rendering import Block, Heading, Picture, Table, Text
from sanbench.store.files import Benchmark

COST_PICTURE = "cost.png"


def cost_section(benchmarks: Sequence[Benchmark]) -> list[Block]:
    """A row a comparison of `sanbench bench model`, and the picture of its sweeps."""
    timed = [benchmark for benchmark in benchmarks if benchmark.experiment == "model"]
    if not timed:
        return []
    machines = "; ".join(dict.fromkeys(f"{benchmark.device}, {benchmark.created[:10]}" for benchmark in timed))
    blocks: list[Block] = [
        Heading("Cost", 2),
        Text(f"Medians of n steps in turn, by `sanbench bench model`. {machines}."),
        Table([row(benchmark) for benchmark in timed]),
    ]
    if any(sweeps(timed, varied) for varied in SWEEPS):
        blocks.append(Picture(COST_PICTURE, "Time against footprint and image size"))
    return blocks


def row(benchmark: Benchmark) -> dict[str, str]:
    setting, seconds, (kept, of) = (
        benchmark.setting,
        benchmark.seconds,
        (benchmark.bytes[side][0] for side in ("san", "resnet")),
    )
    median, low, high = benchmark.ratio or (float("nan"),) * 3
    return {
        "network": setting["san"]["model"],
        "beside": setting["resnet"]["model"],
        "mode": setting["mode"],
        "dtype": f"{setting['dtype']}{', compiled' if setting['compiled'] else ''}",
        "batch": str(setting["batch_size"]),
        "image": str(setting["image_size"]),
        "footprint": str(setting["footprint"]),
        "ms": " / ".join(f"{1000 * seconds[side]:.0f}" for side in ("san", "resnet")),
        "ratio [range]": f"{median:.2f} [{low:.2f}, {high:.2f}]",
        "kept, MB": f"{kept / 1e6:.0f} / {of / 1e6:.0f}",
        "n": str(setting["n"]),
    }
