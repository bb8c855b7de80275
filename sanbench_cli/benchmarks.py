"""What the commands of `sanbench bench` share: their options, records written as they come, and words about them."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sanbench_cli.console import console, progress
from sanbench_cli.options import (
    BATCH,
    ROUNDS,
)

if TYPE_CHECKING:
    from sanbench.progress import Report
    from sanbench.store.schema import Benchmark

Count = Annotated[int, typer.Option("-n", help="Counted rounds: each runs every side once.", **ROUNDS)]
BatchSize = Annotated[int, typer.Option(help="Images at once.", **BATCH)]
RATIO = "ratio [range]"


def record_each(results: Path, measure: "Callable[[Report], Iterable[Benchmark]]") -> "list[Benchmark]":
    """Write each benchmark as soon as it is there; all of them."""
    from sanbench.store.files import Store

    store, found = Store(results), []
    store.check_writable()
    with progress() as bar:
        for benchmark in measure(bar):
            store.write_benchmark(benchmark)
            found.append(benchmark)
    return found


def ratio(benchmark: "Benchmark", digits: int = 2) -> str:
    """`1.92 [1.85, 2.01]`, or 1 for what all else is compared with."""
    if benchmark.ratio is None:
        return "1"
    median, least, most = (f"{value:.{digits}f}" for value in benchmark.ratio)
    return f"{median} [{least}, {most}]"


def conditions(benchmarks: "list[Benchmark]") -> str:
    """`n 9, kernels avx512, cpu, 2 threads, AMD EPYC`."""
    setting = benchmarks[0].setting
    kernel = f"kernels {setting['kernel']}, " if "kernel" in setting else ""
    return f"n {setting['n']}, {kernel}{benchmarks[0].device}"


def note(text: str) -> None:
    console.print(text, soft_wrap=True)
