"""Fused attention on CUDA: says whether the Triton kernels can run and what they serve, and puts them under the operators.

`SANBENCH_KERNELS` set to tiled or plain forces the specification here too, as in `sanbench.ops.cpu.kernels`; every other
value leaves the choice to what this machine has.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from sanbench.errors import SanbenchError, unknown
from sanbench.ops.closed_form import moments, moments_backward
from sanbench.ops.dispatch import OPERATORS, UNFUSED, Backend, floating, takes

KERNELS = ("triton", *UNFUSED)
LEAST_CAPABILITY = (8, 0)
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
WIDEST = {  # channels of phi, of gamma's hidden layer, weights and value channels a weight
    "pairwise": {"narrow": 128, "hidden": 128, "groups": 64, "share": 16},
    "patchwise": {"narrow": 128, "hidden": 128, "groups": 256, "share": 16},
}

_forced: str | None = os.environ.get("SANBENCH_KERNELS") or None


@cache
def missing() -> str | None:
    """Why the Triton kernels cannot run here."""
    if find_spec("triton") is None:
        return "Triton is not installed"
    if not torch.cuda.is_available():
        return "torch sees no GPU"
    if (found := torch.cuda.get_device_capability()) < LEAST_CAPABILITY:
        return f"compute capability {'.'.join(map(str, found))} is below {'.'.join(map(str, LEAST_CAPABILITY))}"
    return None


def available() -> tuple[str, ...]:
    return UNFUSED if missing() else KERNELS


def kernel() -> str:
    """The kernel that serves what it can; everything else is tiled."""
    return _forced if _forced in UNFUSED else available()[0]


@contextmanager
def use_kernel(name: str) -> Iterator[None]:
    """Run `name` on CUDA for a while. Raises InputError for none of KERNELS, SanbenchError for one that cannot run here."""
    global _forced
    if name not in KERNELS:
        raise unknown("kernel", name, KERNELS)
    if name == "triton" and (reason := missing()):
        raise SanbenchError(f"Kernel triton is not available: {reason}. Available: {', '.join(available())}.")
    before, _forced = _forced, name
    try:
        yield
    finally:
        _forced = before


def serves(operator: str, **arguments: Any) -> bool:
    """Whether the Triton kernels take this call, of arguments that `check` accepts; the rest goes to the specification.

    They take what the CPU's kernels take, in float32, bfloat16 or float16 and up to WIDEST.
    """
    return all(x.is_cuda for x in floating(arguments)) and fits(operator, **arguments)


def fits(operator: str, **arguments: Any) -> bool:
    """`serves` of tensors on any device."""
    if not takes(operator, **arguments) or any(x.dtype not in DTYPES for x in floating(arguments)):
        return False
    kind, sizes = operator.split("_")[0], widths(operator, **arguments)
    return all(size <= WIDEST[kind][name] for name, size in sizes.items())


def widths(operator: str, query: Tensor, gamma: list[Tensor], footprint: int, **arguments: Any) -> dict[str, int]:
    """The sizes that WIDEST limits, as far as the call has them."""
    found = {"narrow": query.shape[1]}
    if gamma:
        found["hidden"] = len(gamma[2])
    if (value := arguments.get("value")) is not None:
        found["groups"] = len(gamma[5]) // (footprint**2 if operator.startswith("patchwise") else 1)
        found["share"] = value.shape[1] // found["groups"]
    return found


def run_forward(name: str, operator: str, arguments: dict[str, Any]) -> Tensor:
    if not arguments["gamma"]:
        return moments(**arguments)
    out: Tensor = import_module(f"sanbench.ops.gpu.{operator.split('_')[0]}").forward(**arguments)
    return out


def run_backward(name: str, operator: str, grad: Tensor, arguments: dict[str, Any], weights: bool) -> dict[str, list[Tensor]]:
    if not arguments["gamma"]:
        return moments_backward(grad, arguments)
    kernels = import_module(f"sanbench.ops.gpu.{operator.split('_')[0]}")
    grads: dict[str, list[Tensor]] = kernels.backward(grad, weights, **arguments)
    return grads


_backend = Backend("cuda", kernel, serves, run_forward, run_backward)
last_kernel = _backend.last_kernel
for _operator in OPERATORS:
    _backend.register(_operator)
