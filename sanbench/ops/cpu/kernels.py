"""Fused attention on the CPU: finds the compiled kernels, says what they serve, and puts them under the operators.

`SANBENCH_KERNELS` forces one of KERNELS: avx512, avx2 and portable are builds of the same C++ (`pairwise.cpp`,
`patchwise.cpp`), tiled is the specification a tile at a time (what runs where nothing is compiled), and plain the
specification on the whole batch. Without it the first that this machine has runs.
"""

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sanbench.errors import SanbenchError, unknown
from sanbench.ops.checks import MAPS
from sanbench.ops.cpu.structures import Attention, StridedMap, check_layouts
from sanbench.ops.dispatch import OPERATORS, UNFUSED, Backend, floating, takes
from sanbench.ops.operator import memory_format

COMPILED = {"avx512": ("AVX512",), "avx2": ("AVX512", "AVX2"), "portable": ()}  # what torch may call a CPU that runs them
KERNELS = (*COMPILED, *UNFUSED)
FOLDER = Path(__file__).parent  # of the builds

_forced: str | None = os.environ.get("SANBENCH_KERNELS") or None


@cache
def build(name: str) -> Any:
    """The compiled kernels for an instruction set (a ctypes.CDLL), or why there are none (a string).

    Raises SanbenchError if they were compiled from other structures than those that Python fills.
    """
    files = sorted(FOLDER.glob(f"kernels_{name}.*"))
    if not files:
        return "it was not compiled when sanbench was installed"
    if COMPILED[name] and (found := torch.backends.cpu.get_cpu_capability()) not in COMPILED[name]:
        return f"torch tells {found} of this CPU"
    library = ctypes.CDLL(str(files[0]))
    check_layouts(library, files[0].name)
    return library


def available() -> tuple[str, ...]:
    return tuple(name for name in KERNELS if name not in COMPILED or not isinstance(build(name), str))


def kernel() -> str:
    """The kernel that serves what it can; everything else is tiled.

    Raises InputError if SANBENCH_KERNELS names none of KERNELS, SanbenchError if it names one that this machine lacks.
    """
    if _forced is None:
        return available()[0]
    if _forced not in KERNELS:
        raise unknown("SANBENCH_KERNELS", _forced, KERNELS)
    if _forced in COMPILED and isinstance(reason := build(_forced), str):
        others = ", ".join(available())
        raise SanbenchError(f"SANBENCH_KERNELS={_forced} is not available: {reason}. Available: {others}.")
    return _forced


@contextmanager
def use_kernel(name: str) -> Iterator[None]:
    """As SANBENCH_KERNELS=name, for a while."""
    global _forced
    before, _forced = _forced, name
    try:
        kernel()
        yield
    finally:
        _forced = before


def served_by(operator: str, served: bool) -> str:
    """The kernel for a call of `operator` that the compiled kernels serve or do not; notes it for `last_kernel`."""
    name = kernel()
    _backend.ran[operator] = name if served or name not in COMPILED else "tiled"
    return _backend.ran[operator]


def serves(operator: str, **arguments: Any) -> bool:
    """Whether the compiled kernels take this call, of arguments that `check` accepts: what all kernels take, in float32."""
    tensors = floating(arguments)
    return takes(operator, **arguments) and all(x.dtype == torch.float32 and x.device.type == "cpu" for x in tensors)


def prepare(query: Tensor, key: Tensor, gamma: list[Tensor], footprint: int, **optional: Any) -> Attention:
    """The call's inputs. It holds addresses only: `gamma` must be contiguous and everything must outlive it."""
    call = Attention(footprint=footprint, threads=torch.get_num_threads(), narrow=query.shape[1])
    call.hidden = len(gamma[2]) if gamma else 0
    call.images, call.height, call.width = len(query), *query.shape[-2:]
    call.query, call.key = StridedMap.of(query), StridedMap.of(key)
    call.gamma[: len(gamma)] = [g.data_ptr() for g in gamma]
    if (position := optional.get("position")) is not None:
        call.extra = position.shape[1]
        call.at_i, call.at_j = (StridedMap.of(at.expand(len(query), -1, -1, -1)) for at in position)
    if (value := optional.get("value")) is not None:
        call.value, call.channels = StridedMap.of(value), value.shape[1]
        call.groups = len(gamma[5]) // (1 if "position" in optional else footprint**2)
    return call


def run_forward(name: str, operator: str, arguments: dict[str, Any]) -> Tensor:
    call, value = prepare(**arguments), arguments.get("value")
    if value is None:
        channels = call.hidden or relation_channels(operator, call)
        out = torch.empty(call.images, 2, channels)
        call.out_moments = out.data_ptr()
    else:
        out = torch.empty(value.shape, memory_format=memory_format(value))
        call.out = StridedMap.of(out)
    getattr(build(name), entry(operator, call))(ctypes.byref(call))
    return out


def relation_channels(operator: str, call: Attention) -> int:
    return call.narrow + call.extra if operator.startswith("pairwise") else call.narrow * (1 + call.footprint**2)


def entry(operator: str, call: Attention) -> str:
    """The kernels' name of it: statistics without gamma are moments of the relation itself."""
    return operator if call.hidden else operator.replace("statistics", "moments")


def run_backward(
    name: str,
    operator: str,
    grad: Tensor,
    arguments: dict[str, Any],
    weights: bool,
    out: Tensor | None = None,
    zeros: dict[str, Tensor] | None = None,
) -> dict[str, list[Tensor]]:
    """Gradients by argument; those of gamma and position only where `weights`.

    `out` is what the forward returned, which statistics compute again without it; `zeros` are written by the gradients of maps.
    """
    call, library = prepare(**arguments), build(name)
    given = {m: arguments[m] for m in MAPS if m in arguments}
    zeros = zeros or {m: torch.zeros_like(x, memory_format=memory_format(x)) for m, x in given.items()}
    grads = {m: [zeros[m]] for m in given}
    for m, (to,) in grads.items():
        setattr(call, f"grad_{m}", StridedMap.of(to))
    if "value" in arguments:
        call.out = StridedMap.of(grad)
    else:
        if out is None and call.hidden:
            out = run_forward(name, operator, arguments)
        grad = grad.contiguous()
        call.moments, call.grad_moments = None if out is None else out.data_ptr(), grad.data_ptr()
    if weights:
        call.weights = 1
        grads["gamma"] = [torch.zeros_like(g) for g in arguments["gamma"]]
        call.grad_gamma[: len(grads["gamma"])] = [g.data_ptr() for g in grads["gamma"]]
        if call.extra:
            groups = library.pairwise_groups(ctypes.byref(call)) if call.hidden else 1
            parts = torch.zeros(2, groups, *arguments["position"].shape[1:])  # added up in a fixed order
            call.grad_at_i, call.grad_at_j = parts[0].data_ptr(), parts[1].data_ptr()
    getattr(library, f"{entry(operator, call)}_backward")(ctypes.byref(call))
    if weights and call.extra:
        position = arguments["position"]
        grads["position"] = [parts.sum(1).contiguous(memory_format=memory_format(position))]
    return grads


_backend = Backend("cpu", kernel, serves, run_forward, run_backward)
last_kernel = _backend.last_kernel
for _operator in OPERATORS:
    _backend.register(_operator)
