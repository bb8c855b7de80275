"""What more workers bring to a study's measurements, and what claiming costs beside a part: `sanbench bench workers`."""

import os
import subprocess
import sys
import time
from itertools import count
from math import ceil
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from sanbench.bench.machine import kernel
from sanbench.bench.timing import check_rounds, time_in_turn
from sanbench.errors import InputError, SanbenchError
from sanbench.evaluation.evaluate import PART
from sanbench.progress import Report, silent
from sanbench.store.files import Store
from sanbench.store.schema import Benchmark
from sanbench.studies.expand import Expansion
from sanbench.studies.status import look

LIMITS = {"speedup": 1.8, "claiming": 0.01}  # at least of two workers over one; at most of a part's time
CLAIMS = 200  # that are taken and released


def time_workers(
    expansion: Expansion, words: list[str], runs: Path, n: int, device: torch.device, progress: Report = silent
) -> Benchmark:
    """One worker, two, and two apart, of one thread each, on all measurements of a study into empty folders, n rounds in turn.

    words  what `sanbench study work` is given for this study
    seconds are whole processes', their start among them. figures: `start`, seconds of a worker that finds nothing to do;
    `speedup` of two over one, and the same `without start`; `apart`, that of two which share nothing and do all of it each,
    which is what the machine allows; `claiming`, seconds to take and release a part, and `part`, those of its work. Raises
    InputError where a network is not trained or n is below 1.
    """
    check_rounds(n)
    with TemporaryDirectory() as folder:
        root = Path(folder)
        standing = look(expansion, Store(root / "results"), runs)
        untrained = [training.name for training in expansion.trainings if not standing.is_trained(training)]
        if untrained:
            raise InputError(f"Not trained yet: {', '.join(untrained)}. `sanbench study run {expansion.study.word}` does it.")
        command = [sys.executable, "-m", "sanbench_cli", "study", "work", *words, "--device", device.type]
        command += ["--runs", str(runs.absolute()), "--results"]
        empty = (root / f"results-{number}" for number in count())

        def work(*folders: Path) -> None:
            environment = {**os.environ, "OMP_NUM_THREADS": "1"}
            pipes = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE}
            commands = [[*command, str(folder)] for folder in folders]
            several = [subprocess.Popen(whole, env=environment, **pipes) for whole in commands]  # type: ignore[call-overload]
            for process in several:
                if (told := process.communicate()[1]) and process.returncode:
                    raise SanbenchError(f"A worker ended with {process.returncode}: {told.decode()[-200:]}")

        sides = {
            "one": lambda: work(next(empty)),
            "two": lambda: work(*[next(empty)] * 2),
            "two apart": lambda: work(next(empty), next(empty)),
        }
        timing = time_in_turn(sides, n, device, progress, "study", warm_up=0)
        whole = Store(root / "results-0")
        started = time.perf_counter()
        work(whole.root)
        start = time.perf_counter() - started
        figures = {"start": start, **claiming(whole)}
    one, two, apart = timing.medians().values()
    figures |= {"speedup": one / two, "speedup without start": (one - start) / (two - start), "apart": 2 * one / apart}
    setting = {"study": expansion.study.name, "choice": expansion.choice.words, "networks": len(expansion.trainings)}
    setting |= {"measurements": sum(map(len, expansion.wanted.values())), "kernel": kernel(device)}
    return timing.benchmark("workers", setting, device, figures=figures)


def claiming(store: Store) -> dict[str, float]:
    """Seconds to take and release a claim, and to measure a part, on average over all parts of a store."""
    records = store.records()
    parts = sum(ceil(record.data.images / PART) for record in records)
    with store.claims() as claims:
        started = time.perf_counter()
        for number in range(CLAIMS):
            claims.release(claims.take([f"claimed-{number}"]))
        claimed = (time.perf_counter() - started) / CLAIMS
    return {"claiming": claimed, "part": sum(record.seconds for record in records) / parts}
