"""What surrounds attention on the CPU: puts normalise.cpp, pool.cpp and linear.cpp under the operators of `sanbench.ops.fused`.

Each operator and each backward has a function that says whether the compiled kernels serve a call and one that prepares
the call: the structure's sizes, the tensors by the names of its addresses, and what is returned. `under` joins the two.
"""

import ctypes
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from sanbench.ops.cpu.kernels import COMPILED, build, served_by
from sanbench.ops.cpu.structures import MOST_PARTS, Batch, Linear, Normalise, Pool
from sanbench.ops.fused import SIDE, linear_shape, pool_shape
from sanbench.ops.operator import BODIES, LIBRARY, memory_format

MOST_INPUTS = 4  # of a linear before pooling; as in pool.cpp
# Sizes, tensors by the names of their addresses, and what is returned
Prepared = tuple[dict[str, Any], Mapping[str, Tensor | None], Tensor | list[Tensor]]


PREPARE: dict[str, tuple[type[ctypes.Structure], Callable[..., Prepared]]] = {}  # of each operator and backward


def compiled(build_name: str, operator: str, *values: Any) -> Any:
    """The result of the compiled kernel, for values that it serves."""
    structure, prepare = PREPARE[operator]
    sizes, tensors, returned = prepare(*values)  # `tensors` holds what the addresses point to
    addresses = {at: x.data_ptr() for at, x in tensors.items() if x is not None}
    call = structure(**sizes, **addresses)
    call.threads = torch.get_num_threads()
    getattr(build(build_name), operator)(ctypes.byref(call))
    return returned


def under(
    operator: str, structure: type[ctypes.Structure], serves: Callable[..., bool], prepare: Callable[..., Prepared]
) -> None:
    """Register for CPUs: the compiled kernel for a call that `serves` accepts, else the specification's body."""
    PREPARE[operator] = structure, prepare

    def run(*values: Any) -> Any:
        name = served_by(operator, serves(*values))
        return compiled(name, operator, *values) if name in COMPILED else BODIES[operator](*values)

    LIBRARY.impl(operator, run, "CPU")


def is_float32(*tensors: Tensor) -> bool:
    return all(x.dtype == torch.float32 and x.device.type == "cpu" for x in tensors)


def is_dense(*maps: Tensor) -> bool:
    """Whether these are maps with pixels, each a matrix pixels x channels without gaps: channels last."""
    layout = torch.channels_last
    return all(x.dim() == 4 and x.numel() > 0 and x.stride(1) == 1 and x.is_contiguous(memory_format=layout) for x in maps)


def per_channel(channels: int, *vectors: Tensor) -> bool:
    return all(x.shape == (channels,) and x.is_contiguous() for x in vectors)


def like(x: Tensor) -> Tensor:
    return torch.empty_like(x, memory_format=memory_format(x))


# Batch normalisation


def serves_relu(x: Tensor, scale: Tensor, shift: Tensor) -> bool:
    return is_dense(x) and is_float32(x, scale, shift) and per_channel(x.shape[1], scale, shift)


def serves_relu_backward(grad: Tensor, x: Tensor, scale: Tensor, shift: Tensor, shared: bool) -> bool:
    return serves_relu(x, scale, shift) and is_float32(grad) and grad.shape == x.shape


def serves_moments(x: Tensor) -> bool:
    return is_dense(x) and is_float32(x)


def serves_moments_backward(grad: Tensor, x: Tensor, moments: Tensor, shared: bool) -> bool:
    return serves_moments(x) and is_float32(grad, moments) and grad.shape == moments.shape == (len(x), 2, x.shape[1])


def of_normalise(x: Tensor) -> dict[str, int]:
    images, channels, height, width = x.shape
    return {"images": images, "pixels": images * height * width, "channels": channels}


def relu(x: Tensor, scale: Tensor, shift: Tensor) -> Prepared:
    out = like(x)
    return of_normalise(x), {"x": x, "scale": scale, "shift": shift, "out": out}, out


def relu_backward(grad: Tensor, x: Tensor, scale: Tensor, shift: Tensor, shared: bool) -> Prepared:
    grads = {"grad_x": like(x)} | ({"grad_scale": like(scale), "grad_shift": like(shift)} if shared else {})
    grad = grad.contiguous(memory_format=memory_format(x))
    return of_normalise(x), {"x": x, "scale": scale, "shift": shift, "grad": grad, **grads}, list(grads.values())


def moments(x: Tensor) -> Prepared:
    out = torch.empty(len(x), 2, x.shape[1])
    return of_normalise(x), {"x": x, "out": out}, out


def moments_backward(grad: Tensor, x: Tensor, moments: Tensor, shared: bool, added: Tensor | None = None) -> Prepared:
    """`added`, laid out as x, is added to the gradient in place."""
    grad_x = like(x) if added is None else added
    tensors = {"x": x, "grad_moments": grad.contiguous(), "moments": moments.contiguous(), "grad": added, "grad_x": grad_x}
    return of_normalise(x), tensors, [grad_x]


def batch(
    moments: Tensor | None, weight: Tensor, bias: Tensor, mean: Tensor, variance: Tensor, rest: dict[str, float]
) -> Prepared:
    """Scale and shift by the moments of a batch, which move the running `mean` and `variance`, or without by those."""
    scale, shift = like(weight), like(weight)
    tensors = {"moments": moments, "weight": weight, "bias": bias, "running_mean": mean, "running_variance": variance}
    sizes = {"images": 0 if moments is None else len(moments), "channels": len(weight), **rest}
    return sizes, {**tensors, "scale": scale, "shift": shift}, [scale, shift]


def batch_backward(
    grad_scale: Tensor, grad_shift: Tensor, moments: Tensor, weight: Tensor, bias: Tensor, rest: dict[str, float]
) -> Prepared:
    """The gradients of the moments, the weight and the bias."""
    grads = {"grad_moments": like(moments), "grad_weight": like(weight), "grad_bias": like(bias)}
    tensors = {"moments": moments, "weight": weight, "bias": bias, "grad_scale": grad_scale, "grad_shift": grad_shift, **grads}
    return {"images": len(moments), "channels": len(weight), **rest}, tensors, list(grads.values())


PREPARE |= {"batch_normalisation": (Batch, batch), "batch_normalisation_backward": (Batch, batch_backward)}
under("normalised_relu", Normalise, serves_relu, relu)
under("normalised_relu_backward", Normalise, serves_relu_backward, relu_backward)
under("channel_moments", Normalise, serves_moments, moments)
under("channel_moments_backward", Normalise, serves_moments_backward, moments_backward)


# Pooling; gradients of the weight and of what goes with it are left to the specification


def serves_pool(x: Tensor, scale: Tensor, shift: Tensor, weight: Tensor | None) -> bool:
    channels, inputs = (x.shape[1], x.shape[1]) if weight is None else weight.shape
    return (
        is_dense(x)
        and min(x.shape[2:]) >= SIDE
        and inputs == x.shape[1]
        and (weight is None or (inputs <= MOST_INPUTS and is_float32(weight) and weight.is_contiguous()))
        and per_channel(channels, scale, shift)
        and is_float32(x, scale, shift)
    )


def serves_pool_backward(grad: Tensor, x: Tensor, scale: Tensor, shift: Tensor, weight: Tensor | None, shared: bool) -> bool:
    size = pool_shape(x=x.shape, scale=scale.shape)
    agrees = serves_pool(x, scale, shift, weight) and grad.shape == size and grad.dtype == x.dtype
    return agrees and not (shared and weight is not None)


def of_pool(x: Tensor, scale: Tensor) -> dict[str, int]:
    images, inputs, height, width = x.shape
    return {"images": images, "height": height, "width": width, "inputs": inputs, "channels": len(scale)}


def pool(x: Tensor, scale: Tensor, shift: Tensor, weight: Tensor | None) -> Prepared:
    out = torch.empty(pool_shape(x=x.shape, scale=scale.shape), memory_format=torch.channels_last)
    return of_pool(x, scale), {"x": x, "weight": weight, "scale": scale, "shift": shift, "out": out}, out


def pool_backward(grad: Tensor, x: Tensor, scale: Tensor, shift: Tensor, weight: Tensor | None, shared: bool) -> Prepared:
    fresh = torch.zeros_like if any(side % SIDE for side in x.shape[2:]) else torch.empty_like
    grads = {"grad_x": fresh(x, memory_format=torch.channels_last)}
    grads |= {"grad_scale": like(scale), "grad_shift": like(shift)} if shared else {}
    grad = grad.contiguous(memory_format=torch.channels_last)
    tensors = {"x": x, "weight": weight, "scale": scale, "shift": shift, "grad": grad, **grads}
    return of_pool(x, scale), tensors, list(grads.values())


under("normalised_pool", Pool, serves_pool, pool)
under("normalised_pool_backward", Pool, serves_pool_backward, pool_backward)


# The linear, of few parts; gradients of weights are the specification's, but in a block in one step


def serves_product(maps: list[Tensor], scale: Tensor, shift: Tensor, weights: list[Tensor], biases: list[Tensor]) -> bool:
    """Whether these are dense channels-last maps (x first) and dense vectors and weights, all in float32."""
    channels, given = maps[0].shape[1], [*weights, *biases]
    return (
        1 <= len(weights) <= MOST_PARTS
        and is_dense(*maps)
        and per_channel(channels, scale, shift)
        and all(weight.shape == (len(weight), channels) for weight in weights)
        and [len(bias) for bias in biases] == [len(weight) for weight in weights][: len(biases)]
        and all(x.is_contiguous() for x in given)
        and is_float32(*maps, scale, shift, *given)
    )


def output_size(x: Tensor, weights: list[Tensor]) -> tuple[int, ...]:
    return tuple(linear_shape(x=x.shape, weights=[weight.shape for weight in weights]))


def serves_linear(
    x: Tensor, scale: Tensor, shift: Tensor, weights: list[Tensor], biases: list[Tensor], residual: Tensor | None
) -> bool:
    served = serves_product([x] if residual is None else [x, residual], scale, shift, weights, biases)
    return served and len(biases) == len(weights) and (residual is None or residual.shape == output_size(x, weights))


def serves_linear_backward(
    grad: Tensor, x: Tensor, scale: Tensor, shift: Tensor, weights: list[Tensor], biases: list[Tensor], shared: bool
) -> bool:
    agrees = grad.shape == output_size(x, weights) and grad.dtype == x.dtype
    return agrees and not shared and serves_product([x], scale, shift, weights, [])


def of_linear(x: Tensor, weights: list[Tensor], biases: list[Tensor]) -> dict[str, Any]:
    """A dense channels-last map as pixels x inputs, and the parts of the weight, which the caller holds."""
    size = tuple(len(weight) for weight in weights)
    pixels = x.shape[0] * x.shape[2] * x.shape[3]
    weight, bias = (tuple(part.data_ptr() for part in parts) for parts in (weights, biases))
    sizes = {"pixels": pixels, "inputs": x.shape[1], "outputs": sum(size), "parts": len(size), "size": size}
    return {**sizes, "weight": weight, "bias": bias}


def linear(
    x: Tensor, scale: Tensor, shift: Tensor, weights: list[Tensor], biases: list[Tensor], residual: Tensor | None
) -> Prepared:
    out = torch.empty(output_size(x, weights), memory_format=memory_format(x))
    tensors = {"x": x, "scale": scale, "shift": shift, "residual": residual, "out": out}
    return of_linear(x, weights, biases), tensors, out


def linear_backward(
    grad: Tensor,
    x: Tensor,
    scale: Tensor | None,
    shift: Tensor | None,
    weights: list[Tensor],
    biases: list[Tensor],
    shared: bool,
) -> Prepared:
    """Without scale and shift the product alone."""
    out = like(x)
    grad = grad.contiguous(memory_format=memory_format(x))
    return of_linear(x, weights, []), {"x": x, "scale": scale, "shift": shift, "grad": grad, "out": out}, [out]


def linear_weights(grad: Tensor, x: Tensor, scale: Tensor, shift: Tensor) -> Prepared:
    """The gradient of all weights, outputs x inputs; both maps dense and channels last."""
    out = torch.empty(grad.shape[1], x.shape[1])
    sizes = of_linear(x, [], []) | {"outputs": grad.shape[1]}
    return sizes, {"x": x, "scale": scale, "shift": shift, "grad": grad, "out": out}, out


under("normalised_linear", Linear, serves_linear, linear)
under("normalised_linear_backward", Linear, serves_linear_backward, linear_backward)
PREPARE["normalised_linear_weights"] = Linear, linear_weights
