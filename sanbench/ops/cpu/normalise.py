"""Batch normalisation's passes over memory on the CPU: puts normalise.cpp under the operators of `sanbench.ops.normalise`."""

import ctypes
from typing import Any

import torch
from torch import Tensor

from sanbench.ops.cpu.kernels import COMPILED, build, served_by
from sanbench.ops.operator import BODIES, memory_format

ADDRESSES = ("x", "scale", "shift", "grad", "moments", "grad_moments", "out", "grad_x", "grad_scale", "grad_shift")


class Normalise(ctypes.Structure):
    """Arguments of normalise.cpp, which mirrors it."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in ("images", "outer", "channels", "inner")),
        ("threads", ctypes.c_int),
        *((name, ctypes.c_void_p) for name in ADDRESSES),
    )


def run(name: str, operator: str, x: Tensor, **tensors: Tensor) -> None:
    """Call the build's `operator` on a dense map and on dense tensors by the names of ADDRESSES."""
    images, channels, height, width = x.shape
    is_last = memory_format(x) == torch.channels_last
    outer, inner = (images * height * width, 1) if is_last else (images, height * width)
    addresses = {at: tensor.data_ptr() for at, tensor in tensors.items()}
    call = Normalise(images, outer, channels, inner, torch.get_num_threads(), x.data_ptr(), **addresses)
    getattr(build(name), operator)(ctypes.byref(call))


def serves(x: Tensor, *others: Tensor) -> bool:
    """Float32, x a dense map and the others dense."""
    is_map = x.dim() == 4 and x.numel() > 0 and x.is_contiguous(memory_format=memory_format(x))
    return is_map and all(t.dtype == torch.float32 and t.device.type == "cpu" for t in (x, *others))


def per_channel(x: Tensor, *others: Tensor) -> bool:
    return all(t.shape == (x.shape[1],) and t.is_contiguous() for t in others)


def like(x: Tensor) -> Tensor:
    return torch.empty_like(x, memory_format=memory_format(x))


def normalised_relu(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    name = served_by("normalised_relu", serves(x, scale, shift) and per_channel(x, scale, shift))
    if name not in COMPILED:
        plain: Tensor = BODIES["normalised_relu"](x, scale, shift)
        return plain
    out = like(x)
    run(name, "normalised_relu", x, scale=scale, shift=shift, out=out)
    return out


def normalised_relu_backward(grad: Tensor, x: Tensor, scale: Tensor, shift: Tensor, shared: bool) -> list[Tensor]:
    served = serves(x, scale, shift, grad) and per_channel(x, scale, shift) and grad.shape == x.shape
    name = served_by("normalised_relu_backward", served)
    if name not in COMPILED:
        plain: list[Tensor] = BODIES["normalised_relu_backward"](grad, x, scale, shift, shared)
        return plain
    grads = {"grad_x": like(x)} | ({"grad_scale": like(scale), "grad_shift": like(shift)} if shared else {})
    grad = grad.contiguous(memory_format=memory_format(x))
    run(name, "normalised_relu_backward", x, scale=scale, shift=shift, grad=grad, **grads)
    return list(grads.values())


def channel_moments(x: Tensor) -> Tensor:
    name = served_by("channel_moments", serves(x))
    if name not in COMPILED:
        plain: Tensor = BODIES["channel_moments"](x)
        return plain
    out = torch.empty(len(x), 2, x.shape[1])
    run(name, "channel_moments", x, out=out)
    return out


def channel_moments_backward(grad: Tensor, x: Tensor, moments: Tensor) -> Tensor:
    served = serves(x, grad, moments) and grad.shape == moments.shape == (len(x), 2, x.shape[1])
    name = served_by("channel_moments_backward", served)
    if name not in COMPILED:
        plain: Tensor = BODIES["channel_moments_backward"](grad, x, moments)
        return plain
    out = like(x)
    run(name, "channel_moments_backward", x, grad_moments=grad.contiguous(), moments=moments.contiguous(), grad_x=out)
    return out


OPERATORS: dict[str, Any] = {
    "normalised_relu": normalised_relu,
    "normalised_relu_backward": normalised_relu_backward,
    "channel_moments": channel_moments,
    "channel_moments_backward": channel_moments_backward,
}
for _name, _operator in OPERATORS.items():
    torch.library.register_kernel(f"sanbench::{_name}", "cpu", _operator)
