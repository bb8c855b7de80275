"""1 x 1 convolutions on the CPU: puts linear.cpp under the operators of `sanbench.ops.linear`."""

import ctypes

import torch
from torch import Tensor

from sanbench.ops.cpu.kernels import COMPILED, build, served_by
from sanbench.ops.operator import BODIES, memory_format

MOST_PARTS = 3  # of the weight; mirrors linear.cpp
SIZES = ("pixels", "inputs", "outputs", "parts")
ADDRESSES = ("x", "scale", "shift", "residual", "grad", "out")


class Linear(ctypes.Structure):
    """Arguments of linear.cpp, which mirrors it."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in SIZES),
        ("threads", ctypes.c_int),
        *((name, ctypes.c_void_p) for name in ADDRESSES),
        ("size", ctypes.c_int64 * MOST_PARTS),
        *((name, ctypes.c_void_p * MOST_PARTS) for name in ("weight", "bias")),
    )


def run(name: str, operator: str, x: Tensor, weights: list[Tensor], biases: list[Tensor], **tensors: Tensor | None) -> None:
    """Call the build's `operator` on dense tensors by the names of ADDRESSES."""
    addresses = {at: tensor.data_ptr() for at, tensor in tensors.items() if tensor is not None}
    images, inputs, height, width = x.shape
    outputs, threads = sum(len(weight) for weight in weights), torch.get_num_threads()
    call = Linear(images * height * width, inputs, outputs, len(weights), threads, x.data_ptr(), **addresses)
    call.size[: len(weights)] = [len(weight) for weight in weights]
    call.weight[: len(weights)] = [weight.data_ptr() for weight in weights]
    call.bias[: len(biases)] = [bias.data_ptr() for bias in biases]
    getattr(build(name), operator)(ctypes.byref(call))


def serves(maps: list[Tensor], scale: Tensor, shift: Tensor, weights: list[Tensor], biases: list[Tensor]) -> bool:
    """Float32, dense channels-last maps (x first) and dense weights of few parts."""
    channels = maps[0].shape[1]
    given = [scale, shift, *weights, *biases]
    return (
        1 <= len(weights) <= MOST_PARTS
        and all(x.dim() == 4 and x.numel() > 0 and x.is_contiguous(memory_format=memory_format(x)) for x in maps)
        and all(memory_format(x) == torch.channels_last or x.shape[2:] == (1, 1) for x in maps)
        and scale.shape == shift.shape == (channels,)
        and all(weight.shape == (len(weight), channels) for weight in weights)
        and [len(bias) for bias in biases] == [len(weight) for weight in weights][: len(biases)]
        and all(t.is_contiguous() for t in given)
        and all(t.dtype == torch.float32 and t.device.type == "cpu" for t in (*maps, *given))
    )


def normalised_linear(
    x: Tensor, scale: Tensor, shift: Tensor, weights: list[Tensor], biases: list[Tensor], residual: Tensor | None
) -> Tensor:
    size = (len(x), sum(len(weight) for weight in weights), *x.shape[2:])
    served = serves([x] if residual is None else [x, residual], scale, shift, weights, biases)
    served = served and len(biases) == len(weights) and (residual is None or residual.shape == size)
    name = served_by("normalised_linear", served)
    if name not in COMPILED:
        plain: Tensor = BODIES["normalised_linear"](x, scale, shift, weights, biases, residual)
        return plain
    out = torch.empty(size, memory_format=memory_format(x))
    run(name, "normalised_linear", x, weights, biases, scale=scale, shift=shift, residual=residual, out=out)
    return out


def normalised_linear_backward(
    grad: Tensor, x: Tensor, scale: Tensor, shift: Tensor, weights: list[Tensor], shared: bool
) -> list[Tensor]:
    size = (len(x), sum(len(weight) for weight in weights), *x.shape[2:])
    served = serves([x], scale, shift, weights, []) and grad.shape == size and grad.dtype == x.dtype and not shared
    name = served_by("normalised_linear_backward", served)
    if name not in COMPILED:
        plain: list[Tensor] = BODIES["normalised_linear_backward"](grad, x, scale, shift, weights, shared)
        return plain
    out = torch.empty_like(x, memory_format=memory_format(x))
    grad = grad.contiguous(memory_format=memory_format(x))
    run(name, "normalised_linear_backward", x, weights, [], scale=scale, shift=shift, grad=grad, out=out)
    return [out]


torch.library.register_kernel("sanbench::normalised_linear", "cpu", normalised_linear)
torch.library.register_kernel("sanbench::normalised_linear_backward", "cpu", normalised_linear_backward)
