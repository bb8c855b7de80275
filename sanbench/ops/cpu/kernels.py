"""Fused attention on the CPU: finds the compiled kernels, says what they serve, and puts them under the operators.

`SANBENCH_KERNELS` forces one of KERNELS: avx512, avx2 and portable are builds of the same C++ (`pairwise.cpp`,
`patchwise.cpp`), tiled is the specification a tile at a time (what runs where nothing is compiled), and plain the
specification on the whole batch. Without it the first that this machine has runs.
"""

import ctypes
import inspect
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten

from sanbench.errors import SanbenchError, unknown
from sanbench.ops.checks import check
from sanbench.ops.cpu.closed_form import moments
from sanbench.ops.operator import BODIES, SPECIFICATIONS, memory_format, tile_size

COMPILED = {"avx512": ("avx512f", "avx512dq", "avx512bw", "avx512vl"), "avx2": ("avx2", "fma"), "portable": ()}
KERNELS = (*COMPILED, "tiled", "plain")
RELATION = {"pairwise": "subtraction", "patchwise": "concatenation"}
LARGEST_FOOTPRINT = 11

_forced: str | None = os.environ.get("SANBENCH_KERNELS") or None
_ran: dict[str, str] = {}


@cache
def build(name: str) -> Any:
    """The compiled kernels for an instruction set (a ctypes.CDLL), or why there are none (a string)."""
    files = sorted(Path(__file__).parent.glob(f"kernels_{name}.*"))
    if not files:
        return "it was not compiled when sanbench was installed"
    missing = [feature for feature in COMPILED[name] if feature not in cpu_features()]
    return f"this CPU lacks {', '.join(missing)}" if missing else ctypes.CDLL(str(files[0]))


@cache
def cpu_features() -> frozenset[str]:
    """Instruction sets of this machine, as far as the builds ask for them."""
    library = next(iter(sorted(Path(__file__).parent.glob("kernels_portable.*"))), None)
    if library is None:
        return frozenset()
    has = ctypes.CDLL(str(library)).cpu_has
    return frozenset(f for needed in COMPILED.values() for f in needed if has(f.encode()))


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


def last_kernel(operator: str) -> str | None:
    """Which kernel served the last call of `operator` on the CPU, such as "pairwise_attention_backward"."""
    return _ran.get(operator)


def serves(operator: str, relation: str, footprint: int, stride: int, dilation: int, **arguments: Any) -> bool:
    """Whether the compiled kernels take this call; whatever they do not take goes to the specification.

    They take float32, the released relation of the kind, gamma of two linears (attention), one or none (statistics),
    and footprints 3 to 11 with stride and dilation 1. Shapes that do not agree are left to the specification's errors.
    """
    kind, task = operator.split("_")
    maps = [arguments[name] for name in MAPS if name in arguments]
    gamma, position = arguments["gamma"], arguments.get("position")
    tensors = [*maps, *gamma, *([] if position is None else [position])]
    if not (
        all(x.dtype == torch.float32 and x.device.type == "cpu" and x.numel() > 0 for x in tensors)
        and all(x.dim() == 4 and x.shape[-2:] == maps[0].shape[-2:] and len(x) == len(maps[0]) for x in maps)
        and maps[0].shape == maps[1].shape
        and (position is None or (position.dim() == 4 and position.shape[::2] == (2, maps[0].shape[2])))
        and (position is None or position.shape[3] == maps[0].shape[3])
        and relation == RELATION[kind]
        and len(gamma) in ((7,) if task == "attention" else (0, 3))
        and footprint in range(3, LARGEST_FOOTPRINT + 1, 2)
        and stride == dilation == 1
    ):
        return False
    if not gamma:
        return True
    neighbours, narrow = footprint**2, maps[0].shape[1]
    extra = 0 if position is None else position.shape[1]
    delta = narrow * (neighbours + 1) if kind == "patchwise" else narrow + extra
    hidden, last = len(gamma[2]), len(gamma[-1])
    shapes = [(delta,), (delta,), (hidden, delta), (hidden,), (hidden,), (last, hidden), (last,)]
    per_group = neighbours if kind == "patchwise" else 1
    divides = task != "attention" or (last % per_group == 0 and maps[2].shape[1] % (last // per_group) == 0)
    return divides and all(tuple(x.shape) == shape for x, shape in zip(gamma, shapes, strict=False))


class View(ctypes.Structure):
    """A map N x C x H x W in memory; mirrors tile.h."""

    _fields_ = (("data", ctypes.c_void_p), ("strides", ctypes.c_int64 * 4))

    @classmethod
    def of(cls, x: Tensor) -> "View":
        return cls(x.data_ptr(), (ctypes.c_int64 * 4)(*x.stride()))


SIZES = ("images", "height", "width", "footprint", "narrow", "extra", "hidden", "groups", "channels")
INTEGERS = (*SIZES, "threads", "weights")
VIEWS = ("query", "key", "at_i", "at_j", "value", "out", "grad_query", "grad_key", "grad_value")
ADDRESSES = ("grad_at_i", "grad_at_j", "moments", "grad_moments", "out_moments")
MAPS = ("query", "key", "value")


class Call(ctypes.Structure):
    """Arguments of every kernel; mirrors tile.h."""

    _fields_ = (
        *((name, ctypes.c_int) for name in INTEGERS),
        *((name, View) for name in VIEWS),
        *((name, ctypes.c_void_p * 7) for name in ("gamma", "grad_gamma")),
        *((name, ctypes.c_void_p) for name in ADDRESSES),
    )


def prepare(query: Tensor, key: Tensor, gamma: list[Tensor], footprint: int, **optional: Any) -> Call:
    """The call's inputs. It holds addresses only: `gamma` must be contiguous and everything must outlive it."""
    call = Call(footprint=footprint, threads=torch.get_num_threads(), narrow=query.shape[1], hidden=len(gamma[2]))
    call.images, call.height, call.width = len(query), *query.shape[-2:]
    call.query, call.key = View.of(query), View.of(key)
    call.gamma[: len(gamma)] = [g.data_ptr() for g in gamma]
    if (position := optional.get("position")) is not None:
        call.extra = position.shape[1]
        call.at_i, call.at_j = (View.of(at.expand(len(query), -1, -1, -1)) for at in position)
    if (value := optional.get("value")) is not None:
        call.value, call.channels = View.of(value), value.shape[1]
        call.groups = len(gamma[5]) // (1 if "position" in optional else footprint**2)
    return call


def register(operator: str) -> None:
    """Put the kernels under torch.ops.sanbench.<operator> and its backward."""
    parameters = tuple(p for p in inspect.signature(SPECIFICATIONS[operator]).parameters if p != "rows")

    def choose(direction: str, values: Sequence[Any]) -> tuple[str, dict[str, Any]]:
        arguments = dict(zip(parameters, values, strict=True))
        check(operator, arguments)
        name = kernel()
        if name in COMPILED and not serves(operator, **arguments):
            name = "tiled"
        _ran[operator + direction] = name
        return name, arguments | {"gamma": [g.contiguous() for g in arguments["gamma"]]}

    def forward(*values: Any) -> Tensor:
        name, arguments = choose("", values)
        if name not in COMPILED:
            with tile_size(None) if name == "plain" else nullcontext():
                out: Tensor = BODIES[operator](*values)
                return out
        return run_forward(name, operator, arguments)

    def backward(grad: Tensor, *values_and_needs: Any) -> list[Tensor]:
        *values, needs = values_and_needs
        name, arguments = choose("_backward", values)
        if name not in COMPILED or grad.dtype != torch.float32 or not agrees(grad, arguments):
            with tile_size(None) if name == "plain" else nullcontext():
                every: list[Tensor] = BODIES[f"{operator}_backward"](grad, *values_and_needs)
                return every
        structure = [tree_flatten(value)[0] for value in values]
        names = [(p, at) for p, leaves in zip(parameters, structure, strict=True) for at in range(len(leaves))]
        asked = [leaf for leaf, need in zip(names, needs, strict=True) if need]
        grads = run_backward(name, operator, grad, arguments, weights=any(p not in MAPS for p, _ in asked))
        return [grads[p][at] for p, at in asked]

    torch.library.register_kernel(f"sanbench::{operator}", "cpu", forward)
    torch.library.register_kernel(f"sanbench::{operator}_backward", "cpu", backward)


def agrees(grad: Tensor, arguments: dict[str, Any]) -> bool:
    """Whether `grad` has the shape of what a served call returns."""
    if "value" in arguments:
        return bool(grad.shape == arguments["value"].shape)
    gamma = arguments["gamma"]
    return not gamma or tuple(grad.shape) == (len(arguments["query"]), 2, len(gamma[2]))


def run_forward(name: str, operator: str, arguments: dict[str, Any]) -> Tensor:
    if not arguments["gamma"]:
        return moments(**arguments)
    call, value = prepare(**arguments), arguments.get("value")
    if value is None:
        out = torch.empty(call.images, 2, call.hidden)
        call.out_moments = out.data_ptr()
    else:
        out = torch.empty(value.shape, memory_format=memory_format(value))
        call.out = View.of(out)
    getattr(build(name), operator)(ctypes.byref(call))
    return out


def run_backward(name: str, operator: str, grad: Tensor, arguments: dict[str, Any], weights: bool) -> dict[str, list[Tensor]]:
    """Gradients by argument; those of gamma and position only where `weights`."""
    if not arguments["gamma"]:
        inputs = {name: x for name, x in arguments.items() if isinstance(x, Tensor)}
        pullback = torch.func.vjp(lambda chosen: moments(**arguments | chosen), inputs)[1]
        return {m: [x.contiguous(memory_format=memory_format(inputs[m]))] for m, x in pullback(grad)[0].items()}
    call, library = prepare(**arguments), build(name)
    maps = [m for m in MAPS if m in arguments]
    grads: dict[str, list[Tensor]] = {
        m: [torch.zeros_like(arguments[m], memory_format=memory_format(arguments[m]))] for m in maps
    }
    for m in maps:
        setattr(call, f"grad_{m}", View.of(grads[m][0]))
    if "value" in arguments:
        call.out = View.of(grad)
    else:
        forward, grad = run_forward(name, operator, arguments), grad.contiguous()
        call.moments, call.grad_moments = forward.data_ptr(), grad.data_ptr()
    if weights:
        call.weights = 1
        grads["gamma"] = [torch.zeros_like(g) for g in arguments["gamma"]]
        call.grad_gamma[: len(grads["gamma"])] = [g.data_ptr() for g in grads["gamma"]]
        if call.extra:
            groups = library.pairwise_groups(ctypes.byref(call))
            parts = torch.zeros(2, groups, *arguments["position"].shape[1:])  # added up in a fixed order
            call.grad_at_i, call.grad_at_j = parts[0].data_ptr(), parts[1].data_ptr()
    getattr(library, f"{operator}_backward")(ctypes.byref(call))
    if weights and call.extra:
        position = arguments["position"]
        grads["position"] = [parts.sum(1).contiguous(memory_format=memory_format(position))]
    return grads


class Normalise(ctypes.Structure):
    """Arguments of normalise.cpp."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in ("outer", "channels", "inner")),
        ("threads", ctypes.c_int),
        *((name, ctypes.c_void_p) for name in ("x", "scale", "shift", "grad")),
        *((name, ctypes.c_void_p) for name in ("out", "grad_x", "grad_scale", "grad_shift")),
    )

    @classmethod
    def of(cls, x: Tensor, scale: Tensor, shift: Tensor) -> "Normalise":
        images, channels, height, width = x.shape
        is_last = memory_format(x) == torch.channels_last
        outer, inner = (images * height * width, 1) if is_last else (images, height * width)
        threads = torch.get_num_threads()
        return cls(outer, channels, inner, threads, x.data_ptr(), scale.data_ptr(), shift.data_ptr())


def _normalise_kernel(direction: str, x: Tensor, *others: Tensor) -> str:
    name = kernel()
    served = x.dtype == torch.float32 and x.dim() == 4 and x.numel() > 0
    served = served and all(t.dtype == x.dtype and t.shape == (x.shape[1],) and t.is_contiguous() for t in others)
    if name in COMPILED and not (served and x.is_contiguous(memory_format=memory_format(x))):
        name = "tiled"
    _ran["normalised_relu" + direction] = name
    return name


def _normalised_relu(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    name = _normalise_kernel("", x, scale, shift)
    if name not in COMPILED:
        plain: Tensor = BODIES["normalised_relu"](x, scale, shift)
        return plain
    call, out = Normalise.of(x, scale, shift), torch.empty_like(x, memory_format=memory_format(x))
    call.out = out.data_ptr()
    build(name).normalised_relu(ctypes.byref(call))
    return out


def _normalised_relu_backward(grad: Tensor, x: Tensor, scale: Tensor, shift: Tensor, shared: bool) -> list[Tensor]:
    name = _normalise_kernel("_backward", x, scale, shift)
    if name not in COMPILED or grad.dtype != torch.float32 or grad.shape != x.shape:
        plain: list[Tensor] = BODIES["normalised_relu_backward"](grad, x, scale, shift, shared)
        return plain
    call, grad = Normalise.of(x, scale, shift), grad.contiguous(memory_format=memory_format(x))
    grads = [torch.empty_like(x, memory_format=memory_format(x))]
    grads += [torch.empty_like(scale), torch.empty_like(shift)] if shared else []
    call.grad, call.grad_x = grad.data_ptr(), grads[0].data_ptr()
    if shared:
        call.grad_scale, call.grad_shift = grads[1].data_ptr(), grads[2].data_ptr()
    build(name).normalised_relu_backward(ctypes.byref(call))
    return grads


torch.library.register_kernel("sanbench::normalised_relu", "cpu", _normalised_relu)
torch.library.register_kernel("sanbench::normalised_relu_backward", "cpu", _normalised_relu_backward)
for _operator in ("pairwise_attention", "pairwise_statistics", "patchwise_attention", "patchwise_statistics"):
    register(_operator)
