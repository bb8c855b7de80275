"""Pooling's pass over memory on the CPU: puts pool.cpp under the operators of `sanbench.ops.pool`."""

import ctypes

import torch
from torch import Tensor

from sanbench.ops.cpu.kernels import COMPILED, build, served_by
from sanbench.ops.operator import BODIES, memory_format
from sanbench.ops.pool import SIDE

MOST_INPUTS = 4  # of the linear; mirrors pool.cpp
SIZES = ("images", "height", "width", "inputs", "channels")
ADDRESSES = ("x", "weight", "scale", "shift", "grad", "out", "grad_x", "grad_scale", "grad_shift")


class Pool(ctypes.Structure):
    """Arguments of pool.cpp, which mirrors it."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in SIZES),
        ("threads", ctypes.c_int),
        *((name, ctypes.c_void_p) for name in ADDRESSES),
    )


def run(name: str, operator: str, x: Tensor, channels: int, **tensors: Tensor | None) -> None:
    """Call the build's `operator` on dense tensors by the names of ADDRESSES."""
    addresses = {at: tensor.data_ptr() for at, tensor in tensors.items() if tensor is not None}
    images, inputs, height, width = x.shape
    call = Pool(images, height, width, inputs, channels, torch.get_num_threads(), x.data_ptr(), **addresses)
    getattr(build(name), operator)(ctypes.byref(call))


def serves(x: Tensor, weight: Tensor | None, scale: Tensor, shift: Tensor) -> bool:
    """Float32, x a dense channels-last map of 2 x 2 pixels at least; with a weight few inputs."""
    is_map = x.dim() == 4 and x.numel() > 0 and min(x.shape[2:]) >= SIDE
    given = (scale, shift) if weight is None else (weight, scale, shift)
    channels, inputs = (x.shape[1], x.shape[1]) if weight is None else weight.shape
    return (
        is_map
        and memory_format(x) == torch.channels_last
        and x.is_contiguous(memory_format=torch.channels_last)
        and inputs == x.shape[1]
        and (weight is None or inputs <= MOST_INPUTS)
        and scale.shape == shift.shape == (channels,)
        and all(t.dtype == torch.float32 and t.device.type == "cpu" and t.is_contiguous() for t in given)
        and x.dtype == torch.float32
    )


def normalised_pool(x: Tensor, weight: Tensor | None, scale: Tensor, shift: Tensor) -> Tensor:
    name = served_by("normalised_pool", serves(x, weight, scale, shift))
    if name not in COMPILED:
        plain: Tensor = BODIES["normalised_pool"](x, weight, scale, shift)
        return plain
    size = (len(x), len(scale), x.shape[2] // SIDE, x.shape[3] // SIDE)
    out = torch.empty(size, memory_format=torch.channels_last)
    run(name, "normalised_pool", x, len(scale), weight=weight, scale=scale, shift=shift, out=out)
    return out


def normalised_pool_backward(
    grad: Tensor, x: Tensor, weight: Tensor | None, scale: Tensor, shift: Tensor, needs: list[bool]
) -> list[Tensor]:
    size = (len(x), len(scale), x.shape[2] // SIDE, x.shape[3] // SIDE)
    shared = any(needs[1:])
    served = serves(x, weight, scale, shift) and grad.shape == size and grad.dtype == x.dtype
    name = served_by("normalised_pool_backward", served and not (shared and weight is not None))
    if name not in COMPILED:
        plain: list[Tensor] = BODIES["normalised_pool_backward"](grad, x, weight, scale, shift, needs)
        return plain
    fresh = torch.zeros_like if any(side % SIDE for side in x.shape[2:]) else torch.empty_like
    grads: dict[str, Tensor] = {"grad_x": fresh(x, memory_format=torch.channels_last)}
    if shared:
        grads |= {"grad_scale": torch.empty_like(scale), "grad_shift": torch.empty_like(shift)}
    grad = grad.contiguous(memory_format=torch.channels_last)
    run(name, "normalised_pool_backward", x, len(scale), weight=weight, scale=scale, shift=shift, grad=grad, **grads)
    return [g for g, need in zip(grads.values(), (needs[0], *needs[2:]), strict=False) if need]


torch.library.register_kernel("sanbench::normalised_pool", "cpu", normalised_pool)
torch.library.register_kernel("sanbench::normalised_pool_backward", "cpu", normalised_pool_backward)
