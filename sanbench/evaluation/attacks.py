"""Adversarial attacks (experiment 10 of the paper) in [0, 1] pixels, made by torchattacks.

PAPER: white-box targeted PGD in the L-infinity ball. Budget, step size, steps and target choice were not published;
what is used here stands in every record.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
import torch
import torchattacks
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from sanbench.errors import InputError, SanbenchError, unknown
from sanbench.evaluation.loop import Perturbed

TOLERANCE = 1e-6  # of the budget, the box: float32 steps overshoot by some 1e-8
STREAMS = {"start": 0, "target": 1}  # independent random numbers of one image


@dataclass(frozen=True)
class AttackConfig:
    """L-infinity budget and step size in pixels of [0, 1], exact; seed of starting points and targets."""

    eps: Fraction
    step_size: Fraction
    steps: int = 10
    seed: int = 0

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise InputError(f"steps {self.steps} is not accepted: it must be at least 1.")


def image_seed(seed: int, image: int, stream: str, restart: int = 0) -> int:
    """A seed for one image's draws: the same in every batch, worker and process."""
    state = np.random.SeedSequence((seed, image, restart, STREAMS[stream])).generate_state(2, np.uint32)
    return int(state[0]) << 31 | int(state[1]) >> 1


class PGD:
    """x <- clip(x + step_size * sign(grad)), from a uniform random start in the ball (Madry et al. 2018).

    Untargeted: ascends the cross-entropy of the label. Targeted: descends that of a class other than the label, drawn
    uniformly for each image. Only images that the network has right are attacked: the others are not robust already.
    """

    experiment = "attack"

    def __init__(self, name: str, targeted: bool, model: nn.Module, config: AttackConfig) -> None:
        self.model, self.config, self.name, self.targeted = model, config, name, targeted
        self.attack = torchattacks.PGD(model, float(config.eps), float(config.step_size), config.steps, random_start=True)

    @property
    def setting(self) -> dict[str, Any]:
        return {
            "attack": self.name,
            "norm": "linf",
            "eps": budget_text(self.config.eps),
            "step_size": budget_text(self.config.step_size),
            "steps": self.config.steps,
            "restarts": 1,
            "start": "uniform in the ball",
            "target": "uniform over other classes" if self.targeted else "none",
            "attacked": "images right before",
            "seed": self.config.seed,
        }

    def __call__(self, images: Tensor, labels: Tensor, indices: Tensor) -> Perturbed:
        with torch.no_grad():
            logits = self.model(images)
        clean_prediction = logits.argmax(1)
        right = clean_prediction == labels
        targets = self.targets(labels, indices, logits.shape[1]) if self.targeted else None
        adversarial = images.clone()
        if right.any():
            if targets is not None:
                self.attack.set_mode_targeted_by_function(lambda _, __: targets[right], quiet=True)
            with torch.enable_grad(), starting_points(self.config.seed, indices[right.cpu()]):
                adversarial[right] = self.attack(images[right], labels[right])
        distance = check_budget(images, adversarial, float(self.config.eps), self.name)
        columns = {"clean_prediction": clean_prediction, "linf": distance, "steps": right * self.config.steps}
        return Perturbed(adversarial, columns | ({} if targets is None else {"target": targets}))

    def targets(self, labels: Tensor, indices: Tensor, classes: int) -> Tensor:
        """A class other than the label for each image: N."""
        if classes < 2:
            raise InputError("A targeted attack needs at least two classes.")
        draws = [np.random.default_rng(image_seed(self.config.seed, int(i), "target")).integers(1, classes) for i in indices]
        return (labels + torch.tensor(draws, device=labels.device)) % classes


ATTACKS: dict[str, Callable[[nn.Module, AttackConfig], PGD]] = {
    "pgd": lambda model, config: PGD("pgd", False, model, config),
    "pgd-targeted": lambda model, config: PGD("pgd-targeted", True, model, config),
}


@contextmanager
def starting_points(seed: int, indices: Tensor) -> Iterator[None]:
    """Inside, `Tensor.uniform_` on a batch draws each image's numbers from (seed, image), whatever the batch.

    torchattacks draws from the global generator, so its starting points would depend on batch size and order.
    """

    class PerImage(TorchFunctionMode):
        def __torch_function__(
            self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
        ) -> Any:
            if func is not torch.Tensor.uniform_:
                return func(*args, **(kwargs or {}))
            batch, *bounds = args
            for row, image in zip(batch, indices.tolist(), strict=True):
                generator = torch.Generator().manual_seed(image_seed(seed, image, "start"))
                row.copy_(torch.empty(row.shape, dtype=row.dtype).uniform_(*bounds, generator=generator))
            return batch

    with PerImage():
        yield


def check_budget(images: Tensor, adversarial: Tensor, eps: float, name: str) -> Tensor:
    """L-infinity distance of each image, in float64. Raises SanbenchError if the ball or the box was left, or at NaN."""
    distance = (adversarial.double() - images.double()).abs().flatten(1).amax(1)
    worst = distance.max().item()
    if not worst <= eps + TOLERANCE:  # catches NaN too
        raise SanbenchError(f"{name} left its budget: distance {worst:.9f} for eps {eps:.9f}. Nothing was recorded.")
    low, high = adversarial.min().item(), adversarial.max().item()
    if not (low >= -TOLERANCE and high <= 1 + TOLERANCE):
        raise SanbenchError(f"{name} left the pixel box [0, 1]: values from {low:.9f} to {high:.9f}. Nothing was recorded.")
    return distance


def parse_budget(option: str, text: str) -> Fraction:
    """`8/255` or `0.03` -> an exact number of pixels in [0, 1]. Raises InputError that names the value."""
    try:
        value = Fraction(text.strip())
    except (ValueError, ZeroDivisionError):
        value = Fraction(-1)
    if 0 <= value <= 1:
        return value
    hint = f" Did you mean {text.strip()}/255?" if 1 < value <= 255 else ""
    raise InputError(
        f"{option} {text.strip()!r} is not accepted: pixels lie in [0, 1], so accepted are fractions such as 8/255 "
        f"and decimals from 0 to 1.{hint}"
    )


def budget_text(value: Fraction) -> str:
    """8/255 for 8/255, which a Fraction would print as it is, and 3/255 for 3/255, which it would print as 1/85."""
    return f"{value * 255}/255" if (value * 255).denominator == 1 else str(value)


def parse_attacks(names: str, eps: str, steps: int, step_size: str | None, seed: int) -> list[tuple[str, AttackConfig]]:
    """Every attack of `pgd,pgd-targeted` with every budget of `2/255,8/255`; the step size defaults to a quarter of eps."""
    attacks = list(dict.fromkeys(name.strip() for name in names.split(",")))
    for name in attacks:
        if name not in ATTACKS:
            raise unknown("attack", name, ATTACKS)
    budgets = sorted({parse_budget("eps", word) for word in eps.split(",")})
    size = None if step_size is None else parse_budget("step-size", step_size)
    configs = [AttackConfig(budget, budget / 4 if size is None else size, steps, seed) for budget in budgets]
    return [(name, config) for name in attacks for config in configs]


def bind(model: nn.Module, attacks: Sequence[tuple[str, AttackConfig]]) -> list[PGD]:
    """The attacks as perturbations of images for `model`."""
    return [ATTACKS[name](model, config) for name, config in attacks]
