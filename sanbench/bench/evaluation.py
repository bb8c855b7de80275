"""What evaluation costs beside the network's own passes: `sanbench bench evaluate`."""

from collections.abc import Callable, Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sanbench.bench.machine import kernel
from sanbench.bench.timing import Timing, time_in_turn
from sanbench.data import Batch, load_dataset
from sanbench.evaluation.attacks.attack import Attack
from sanbench.evaluation.attacks.table import parse_attacks
from sanbench.evaluation.loop import Perturbation, evaluating, measure
from sanbench.evaluation.rotations import parse_angles
from sanbench.models import build_model
from sanbench.progress import Report, silent
from sanbench.store.schema import Benchmark

LIMIT = 1.1  # of the time of the network's own passes
DATA = "fashion10k"
ANGLES = "0,90,180,270"


def time_evaluation(
    name: str, width: float, count: int, batch_size: int, n: int, device: torch.device, progress: Report = silent
) -> Iterator[Benchmark]:
    """A sweep of quarter turns and a PGD attack on the first `count` images of a set that comes along, fresh weights.

    Raises InputError for an unknown name or a width that is not accepted, and n below 1.
    """
    torch.manual_seed(0)
    network = build_model(name, 10, width=width).to(device)
    images = load_dataset(DATA, "test")
    batch = images.__getitems__(list(range(min(count, len(images)))))
    ((_, config),) = parse_attacks("pgd", "4/255")
    perturbed: dict[str, Sequence[Perturbation]] = {
        f"rotations {ANGLES}": parse_angles(ANGLES),
        f"pgd, {config.steps} steps": [Attack("pgd", network, config, batch_size)],
    }
    for what, perturbations in perturbed.items():
        timing = time_perturbations(network, batch, perturbations, batch_size, n, device, progress, what)
        setting = {"network": {"model": network.spec.name, **network.spec.variation}, "perturbations": what, "data": DATA}
        measured = {"images": len(batch.labels), "batch_size": batch_size, "kernel": kernel(device)}
        yield timing.benchmark("evaluate", {**setting, **measured}, device)


def time_perturbations(
    model: nn.Module,
    batch: Batch,
    perturbations: Sequence[Perturbation],
    batch_size: int,
    n: int,
    device: torch.device,
    progress: Report,
    task: str,
) -> Timing:
    """`evaluation`, the evaluation loop from decoded images to rows, against `passes`, the passes of the network in it, on
    images that are ready."""
    ready = batch.images.to(device).float() / 255
    passes: list[tuple[int, bool]] = []  # images of each pass of the last evaluation, and whether it went back to the pixels

    def evaluation() -> None:
        passes.clear()
        hook = model.register_forward_pre_hook(
            lambda _, inputs: passes.append((len(inputs[0]), torch.is_grad_enabled() and inputs[0].requires_grad))
        )
        try:
            for _ in measure(model, [(batch, perturbations)], device, batch_size):
                pass
        finally:
            hook.remove()

    sides: dict[str, Callable[[], object]] = {"evaluation": evaluation, "passes": lambda: repeat(model, ready, passes)}
    return time_in_turn(sides, n, device, progress, task)


def repeat(model: nn.Module, ready: Tensor, passes: Sequence[tuple[int, bool]]) -> None:
    """The passes forward, and back to the pixels, on the first images of `ready`."""
    with evaluating(model):
        for count, back in passes:
            with torch.set_grad_enabled(back):
                x = ready[:count].clone().requires_grad_(back)
                logits = model(x)
                if back:
                    torch.autograd.grad(F.cross_entropy(logits, logits.argmax(1)), x)
