"""Plan: the size, steps and memory of a training, before it begins."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from sanbench.data import Images
from sanbench.models import build_model
from sanbench.runs.config import TrainConfig
from sanbench.training.loop import steps_per_epoch

STATE = {"sgd": 1, "adamw": 2}  # tensors that the optimiser keeps for each parameter


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
    """The plan of `config`. Nothing is computed: the network runs on torch's meta device, in float32."""
    recipe, spec = config.recipe, config.model
    part = math.ceil(min(recipe.batch_size, len(images)) / (processes * config.accumulate))
    side = images.read([0]).shape[-1]
    with torch.device("meta"):
        model = build_model(spec.name, len(images.classes), **spec.variation)
        kept: dict[int, int] = {}

        def keep(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            kept[storage._cdata] = storage.nbytes()
            held.append(tensor)
            return tensor

        held: list[Tensor] = []
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            logits = model(torch.empty(part, 3, side, side))
    weights = {parameter.untyped_storage()._cdata for parameter in model.parameters()}
    activations = sum(size for storage, size in kept.items() if storage not in weights)
    del logits
    parameters = sum(parameter.numel() for parameter in model.parameters())
    copies = 2 + STATE[recipe.optimizer] + (1 if recipe.ema else 0)
    steps = steps_per_epoch(len(images), recipe)
    return Plan(parameters, len(images), steps, steps * recipe.epochs, part, 4 * parameters * copies + activations)
