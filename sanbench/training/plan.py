"""Plan: the size, steps and memory of a training, before it begins. No torch."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sanbench.device import total_memory
from sanbench.errors import InputError
from sanbench.models import kept_bytes, size
from sanbench.runs.config import Recipe, TrainConfig

if TYPE_CHECKING:
    import torch

    from sanbench.data import Images

STATE = {"sgd": 1, "adamw": 2}  # tensors that the optimiser keeps for each parameter


SMALL = 1 / 2000  # of the memory: a batch of images below it is not looked at, its step takes some hundred times as much


@dataclass(frozen=True)
class Plan:
    """`memory` is estimated in bytes of one process: weights, gradients, optimiser, and what autograd keeps."""

    parameters: int
    images: int
    steps: int  # an epoch
    all_steps: int
    part: int  # images that a process computes at a time
    memory: int


def plan(config: TrainConfig, images: Images, processes: int = 1) -> Plan:
    """The plan of `config` on `images`, see `plan_for`."""
    return plan_for(config, images.side, len(images.classes), len(images), processes)


def plan_for(config: TrainConfig, side: int, classes: int, images: int, processes: int = 1) -> Plan:
    """The plan of `config` on so many images. Nothing is computed."""
    recipe, spec = config.recipe, config.model
    part = math.ceil(min(recipe.batch_size, images) / (processes * config.accumulate))
    parameters, _ = size(spec.name, side, classes, **spec.variation)
    activations = kept_bytes(spec.name, side, classes, part, **spec.variation)
    copies = 2 + STATE[recipe.optimizer] + (1 if recipe.ema else 0)
    steps = steps_per_epoch(images, recipe)
    return Plan(parameters, images, steps, steps * recipe.epochs, part, 4 * parameters * copies + activations)


def steps_per_epoch(images: int, recipe: Recipe) -> int:
    return max(1, images // recipe.batch_size)  # the order is random, so that other images are left out in the next epoch


def check_memory(config: TrainConfig, images: Images, processes: int, device: torch.device) -> None:
    """Raises InputError for a batch of which one step, in the precision that needs least, takes more than the machine has."""
    available = total_memory(device)
    side = images.side
    part = min(config.recipe.batch_size, len(images)) / (processes * config.accumulate)
    if part * 3 * side**2 * 4 < SMALL * available:
        return
    needed = plan(config, images, processes).memory // 2
    if needed > available:
        raise InputError(
            f"batch_size {config.recipe.batch_size} is not accepted: a step of {part:,.0f} images at once takes at least "
            f"{needed / 2**30:,.0f} GiB, and {device.type} has {available / 2**30:,.0f}. Make it smaller, or raise accumulate."
        )
