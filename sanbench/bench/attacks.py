"""What each attack costs on photographs: seconds, passes and memory, each in a process of its own. `sanbench bench attacks`."""

import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple

import torch

from sanbench.bench.machine import kernel
from sanbench.bench.networks import peak_of_this_process
from sanbench.bench.protocol import own_predictions, read_sample
from sanbench.bench.timing import Timing
from sanbench.device import keep_memory
from sanbench.evaluation.attacks.attack import Attack
from sanbench.evaluation.attacks.table import parse_attacks
from sanbench.evaluation.loop import measure
from sanbench.progress import Progress, Report, silent
from sanbench.runs.evaluated import fresh_or_evaluated, image_side
from sanbench.store.schema import Benchmark


class Outcome(NamedTuple):
    """Of all images together; `peak` in bytes, of the process on a CPU, of torch's allocations on a GPU."""

    seconds: float
    peak: int
    fell: int
    forward_passes: int
    backward_passes: int


def time_attacks(
    network: str,
    runs: Path,
    names: Sequence[str],
    eps: str,
    images: int,
    batch_size: int,
    device: torch.device,
    progress: Report = silent,
) -> Iterator[Benchmark]:
    """Each attack in its default setting on photographs, with the network's own predictions as labels, by name.

    `network` is a run, a checkpoint or a model with fresh weights. Raises InputError for an unknown network, attack or budget.
    """
    evaluated = fresh_or_evaluated(network, runs)
    parse_attacks(",".join(names), eps)
    for done, name in enumerate(names, start=1):
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
            found = pool.submit(run_attack, network, runs, name, eps, images, batch_size, str(device)).result()
        setting = {"network": evaluated.network.label, "attack": name, "eps": eps, "images": images, "batch_size": batch_size}
        setting |= {"image_size": image_side(evaluated), "kernel": kernel(device)}
        figures = {field: float(value) for field, value in found._asdict().items() if field != "seconds"}
        yield Timing({"attack": [found.seconds]}).benchmark("attacks", setting, device, figures=figures)
        progress(Progress("bench attacks", done, len(names)))


def run_attack(network: str, runs: Path, name: str, eps: str, images: int, batch_size: int, device_name: str) -> Outcome:
    keep_memory()
    device, evaluated = torch.device(device_name), fresh_or_evaluated(network, runs)
    evaluated.model.to(device)
    batch, _ = read_sample(image_side(evaluated), images)
    batch = batch._replace(labels=own_predictions(evaluated.model, batch, device))
    attack = Attack(name, evaluated.model, parse_attacks(name, eps)[0][1], batch_size)
    started = time.perf_counter()
    ((scored,),) = measure(evaluated.model, [(batch, [attack])], device, batch_size)
    seconds = time.perf_counter() - started
    passes = [int(scored.rows[field].sum()) for field in ("forward_passes", "backward_passes")]
    return Outcome(seconds, peak_of_this_process(device), int(scored.rows["success"].sum()), *passes)
