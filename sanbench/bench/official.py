"""`standard` against the official AutoAttack, image by image and in time: `sanbench bench evaluate --attack standard`.

The official implementation is Croce and Hein's, as the package pyautoattack has it (MIT, from the authors' repository
fra31/auto-attack).
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from sanbench.bench.machine import kernel
from sanbench.bench.protocol import own_predictions, read_sample
from sanbench.bench.timing import Timing, check_rounds, time_in_turn
from sanbench.data import Batch, subset
from sanbench.errors import InputError
from sanbench.evaluation.attacks.attack import Attack
from sanbench.evaluation.attacks.budget import budget_text, distance, inside_box
from sanbench.evaluation.attacks.table import NORMS, AttackConfig, parse_attacks
from sanbench.evaluation.kinds import TOLERANCE
from sanbench.evaluation.loop import evaluating, predictions
from sanbench.progress import Report, silent
from sanbench.runs.evaluated import EvaluatedModel, fresh_or_evaluated, image_side, test_images
from sanbench.store.schema import Benchmark


class Agreement(NamedTuple):
    """Of images: right before, standing in each, standing in one alone, and among those how many examples are no examples."""

    right_before: int
    standing: int
    standing_official: int
    only_standing: int
    only_standing_official: int
    invalid: int


def time_against_official(
    network: str,
    runs: Path,
    eps: str,
    norm: str,
    images: int,
    batch_size: int,
    n: int,
    device: torch.device,
    progress: Report = silent,
) -> Iterator[Benchmark]:
    """Both in turn, one thread each and in processor time on a CPU, on images of the network's own test split, drawn by seed 0.

    `network` is a run, a checkpoint, or a model with fresh weights, which is shown photographs with its own predictions as
    labels. Raises InputError for an unknown network, an impossible budget, n below 1, and where pyautoattack is missing.
    """
    check_rounds(n)
    ((_, config),) = parse_attacks("standard", eps, norm=norm)
    official_attack()
    evaluated = fresh_or_evaluated(network, runs)
    model = evaluated.model.to(device)
    batch = sample(evaluated, images, device)
    shown, labels = batch.images.to(device).float() / 255, batch.labels.to(device)
    made: dict[str, Tensor] = {}
    with evaluating(model), one_thread():

        def ours() -> None:
            made["standard"] = Attack("standard", model, config, batch_size)(shown, labels, batch.indices).images

        def official() -> None:
            made["official"] = run_official(model, shown, labels, config, batch_size)

        sides = {"standard": ours, "official": official}
        clock = time.process_time if device.type == "cpu" else time.perf_counter  # minutes pass between the two sides
        timing = time_in_turn(sides, n, device, progress, "bench evaluate", warm_up=0, clock=clock)
        found = agreement(model, shown, labels, made["standard"], made["official"], config)
        yield benchmark(timing, evaluated, config, len(labels), batch_size, found, device)


def benchmark(
    timing: Timing,
    evaluated: EvaluatedModel,
    config: AttackConfig,
    images: int,
    batch_size: int,
    found: Agreement,
    device: torch.device,
) -> Benchmark:
    setting = {"network": evaluated.network.label, "weights": evaluated.weights, "data": evaluated.data["name"]}
    setting |= {"attack": "standard", "norm": config.norm, "eps": budget_text(config.eps), "images": images}
    setting |= {"batch_size": batch_size, "kernel": kernel(device)}
    return timing.benchmark(
        "standard", setting, device, figures={name: float(value) for name, value in found._asdict().items()}
    )


def sample(evaluated: EvaluatedModel, count: int, device: torch.device) -> Batch:
    if evaluated.data["name"] is None:
        batch, _ = read_sample(image_side(evaluated), count)
        return batch._replace(labels=own_predictions(evaluated.model, batch, device))
    split = test_images(evaluated, None, None, "pil")
    return split.__getitems__(subset(split, min(count, len(split)), 0))


def official_attack() -> type:
    try:
        from pyautoattack import AutoAttack
    except ImportError as error:
        raise InputError("The official AutoAttack is missing: pip install pyautoattack.") from error
    found: type = AutoAttack
    return found


def run_official(model: nn.Module, images: Tensor, labels: Tensor, config: AttackConfig, batch_size: int) -> Tensor:
    """Its adversarial images; those that stand are as they were."""
    options = {"norm": NORMS[config.norm], "eps": float(config.eps), "seed": config.seed, "device": images.device}
    with torch.random.fork_rng():
        attack = official_attack()(model, **options)
        made: Tensor = attack.run_standard_evaluation(images, labels, batch_size=batch_size)[0]
    return made


@torch.no_grad()
def agreement(
    model: nn.Module, images: Tensor, labels: Tensor, ours: Tensor, official: Tensor, config: AttackConfig
) -> Agreement:
    """Every example that decides a difference is verified: it is told wrong, lies in the ball in float64, and in the box."""
    right = torch.cat([predictions(model(each[None])) for each in images]) == labels
    stands = [torch.cat([predictions(model(each[None])) for each in made]) == labels for made in (ours, official)]
    invalid = 0
    for fallen, made in zip((~stands[0] & stands[1], stands[0] & ~stands[1]), (ours, official), strict=True):
        near = distance(images, made, config.norm) <= float(config.eps) + TOLERANCE[config.norm]
        invalid += int((fallen & ~(near & inside_box(made))).sum())
    counted = [right, *stands, stands[0] & ~stands[1], stands[1] & ~stands[0]]
    return Agreement._make([*(int(each.sum()) for each in counted), invalid])


@contextmanager
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
