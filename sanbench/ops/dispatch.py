"""Puts the kernels of a device under an operator and its backward, and keeps which of them ran."""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from inspect import signature
from typing import Any

import torch
from torch import Tensor

from sanbench.ops.checks import MAPS, check
from sanbench.ops.operator import BODIES, LIBRARY, SPECIFICATIONS, flatten, tile_size

OPERATORS = ("pairwise_attention", "pairwise_statistics", "patchwise_attention", "patchwise_statistics")
UNFUSED = ("tiled", "plain")  # the specification, a tile at a time or on the whole batch
RELATION = {"pairwise": "subtraction", "patchwise": "concatenation"}  # the released ones: what kernels are written for
LARGEST_FOOTPRINT = 11


@dataclass(frozen=True)
class Backend:
    """The kernels of `device`. What `serves` refuses, or all where `kernel()` is in UNFUSED, goes to the specification.

    forward(kernel, operator, arguments) returns the output; backward(kernel, operator, grad, arguments, weights) the
    gradients by argument, those of gamma and position only where `weights`.
    """

    device: str
    kernel: Callable[[], str]
    serves: Callable[..., bool]
    forward: Callable[[str, str, dict[str, Any]], Tensor]
    backward: Callable[[str, str, Tensor, dict[str, Any], bool], dict[str, list[Tensor]]]
    ran: dict[str, str] = field(default_factory=dict)

    def last_kernel(self, operator: str) -> str | None:
        """Which kernel served the last call of `operator` on this device, such as "pairwise_attention_backward"."""
        return self.ran.get(operator)

    def register(self, operator: str) -> None:
        """Put the kernels under torch.ops.sanbench.<operator> and its backward."""
        parameters = tuple(p for p in signature(SPECIFICATIONS[operator]).parameters if p != "rows")

        def choose(direction: str, values: Sequence[Any], grad: Tensor | None = None) -> tuple[str, dict[str, Any]]:
            arguments = dict(zip(parameters, values, strict=True))
            check(operator, arguments)
            name = self.kernel()
            if name not in UNFUSED and not (self.serves(operator, **arguments) and agrees(grad, arguments)):
                name = "tiled"
            self.ran[operator + direction] = name
            return name, arguments | {"gamma": [g.contiguous() for g in arguments["gamma"]]}

        def forward(*values: Any) -> Tensor:
            name, arguments = choose("", values)
            if name in UNFUSED:
                with tile_size(None) if name == "plain" else nullcontext():
                    out: Tensor = BODIES[operator](*values)
                    return out
            return self.forward(name, operator, arguments)

        def backward(grad: Tensor, *values_and_needs: Any) -> list[Tensor]:
            *values, needs = values_and_needs
            name, arguments = choose("_backward", values, grad)
            if name in UNFUSED:
                with tile_size(None) if name == "plain" else nullcontext():
                    every: list[Tensor] = BODIES[f"{operator}_backward"](grad, *values_and_needs)
                    return every
            structure = [flatten([value])[0] for value in values]
            names = [(p, at) for p, leaves in zip(parameters, structure, strict=True) for at in range(len(leaves))]
            asked = [leaf for leaf, need in zip(names, needs, strict=True) if need]
            grads = self.backward(name, operator, grad, arguments, any(p not in MAPS for p, _ in asked))
            return [grads[p][at] for p, at in asked]

        LIBRARY.impl(operator, forward, self.device.upper())
        LIBRARY.impl(f"{operator}_backward", backward, self.device.upper())


def takes(operator: str, relation: str, footprint: int, stride: int, dilation: int, **arguments: Any) -> bool:
    """What the kernels of every device are written for, among arguments that `check` accepts.

    The released relation of the kind, gamma of two linears (attention), one or none (statistics), and footprints 3 to
    LARGEST_FOOTPRINT with stride and dilation 1.
    """
    kind, task = operator.split("_")
    return (
        relation == RELATION[kind]
        and len(arguments["gamma"]) in ((7,) if task == "attention" else (0, 3))
        and footprint in range(3, LARGEST_FOOTPRINT + 1, 2)
        and stride == dilation == 1
        and all(x.numel() > 0 for x in floating(arguments))
    )


def floating(arguments: dict[str, Any]) -> list[Tensor]:
    """The tensors among an operator's arguments."""
    return [x for x in flatten([*arguments.values()])[0] if isinstance(x, Tensor)]


def agrees(grad: Tensor | None, arguments: dict[str, Any]) -> bool:
    """Whether `grad` has the shape and dtype of what a served call returns."""
    if grad is None:
        return True
    if (value := arguments.get("value")) is not None:
        return grad.shape == value.shape and grad.dtype == value.dtype
    gamma, query = arguments["gamma"], arguments["query"]
    return grad.dtype == torch.float32 and (not gamma or tuple(grad.shape) == (len(query), 2, len(gamma[2])))
