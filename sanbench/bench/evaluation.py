"""What evaluation costs beside the network's own passes: `sanbench bench evaluate`."""

import statistics
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from sanbench.data import Batch, Images
from sanbench.evaluation.attacks.attack import Attack
from sanbench.evaluation.attacks.table import parse_attacks
from sanbench.evaluation.loop import Perturbation, evaluating, measure
from sanbench.evaluation.rotations import parse_angles
from sanbench.models import Classifier

LIMIT = 1.1  # of the time of the network's own passes


class Cost(NamedTuple):
    """Medians of `runs` interleaved pairs; `ratio` is the median of the pairs' ratios."""

    what: str
    seconds: float
    own_seconds: float
    ratio: float
    images: int
    runs: int


def benchmark(model: Classifier, images: Images, device: torch.device, count: int, batch_size: int, runs: int) -> list[Cost]:
    """A sweep of quarter turns and a PGD attack through the evaluation loop, against the same passes on ready tensors."""
    batch = images.__getitems__(list(range(min(count, len(images)))))
    ready = batch.images.to(device).float() / 255
    rotations = parse_angles("0,90,180,270")
    ((_, config),) = parse_attacks("pgd", "4/255")
    attack = Attack("pgd", model, config, batch_size)

    def sweep_passes() -> None:
        passes(model, ready, [(len(chunk), False) for chunk in ready.split(batch_size)] * len(rotations))

    def attack_passes() -> None:
        passes(model, ready, attack.sizes)

    costs = [
        compare("rotations 0, 90, 180, 270", lambda: through(model, batch, rotations, device, batch_size), sweep_passes, runs),
        compare("pgd, 10 steps", lambda: attacked(model, batch, attack, device, batch_size), attack_passes, runs),
    ]
    return [Cost(*cost, len(ready), runs) for cost in costs]


def compare(what: str, whole: Callable[[], None], own: Callable[[], None], runs: int) -> tuple[str, float, float, float]:
    seconds: tuple[list[float], list[float]] = ([], [])
    for run in range(runs + 1):  # the first warms up
        for which, action in enumerate((whole, own)):
            started = time.perf_counter()
            action()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            if run:
                seconds[which].append(time.perf_counter() - started)
    ratio = statistics.median(a / b for a, b in zip(*seconds, strict=True))
    return what, statistics.median(seconds[0]), statistics.median(seconds[1]), ratio


def through(
    model: Classifier, batch: Batch, perturbations: Sequence[Perturbation], device: torch.device, batch_size: int
) -> None:
    for _ in measure(model, [(batch, perturbations)], device, batch_size):
        pass


def attacked(model: Classifier, batch: Batch, attack: Attack, device: torch.device, batch_size: int) -> None:
    attack.sizes.clear()
    through(model, batch, [attack], device, batch_size)
    attack.sizes += [(len(chunk), False) for chunk in batch.labels.split(batch_size)]  # the loop's own scoring


def passes(model: Classifier, ready: Tensor, sizes: Sequence[tuple[int, bool]]) -> None:
    """Forward, and back to the pixels where the second is set, for so many images each."""
    with evaluating(model):
        for count, back in sizes:
            with torch.set_grad_enabled(back):
                x = ready[:count].clone().requires_grad_(back)
                logits = model(x)
                if back:
                    torch.autograd.grad(F.cross_entropy(logits, logits.argmax(1)), x)
