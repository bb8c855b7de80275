"""What surrounds attention, in one pass over memory each: linear, normalise, pool.

Batch normalisation is two operators, the moments of a batch and relu(scale * x + shift); the second is also part of a
linear and of pooling. Each is defined by three functions: the specification in plain PyTorch, the gradient, and the
public function that calls the operator.
"""

import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from sanbench.ops.operator import Operator, Shape, flatten, memory_format, unflatten

SIDE = 2  # of a pooling window, in pixels


@dataclass(frozen=True)
class Fused(Operator):
    """An operator on a map x, its first argument; what follows is shared by all pixels.

    `gradient(grad, x, ..., shared)` returns the gradient of x and, where `shared`, after it those of the entries of the
    arguments that follow. The backward keeps the arguments and, where `gradient` takes it behind them, the output.
    """

    gradient: Callable[..., list[Tensor]] = field(kw_only=True)

    @cached_property
    def keeps_output(self) -> bool:
        return len(inspect.signature(self.gradient).parameters) > 2 + len(self.parameters)  # beside grad and shared

    @property
    def backward_schema(self) -> str:
        return torch.library.infer_schema(self.gradient, mutates_args=())

    def body(self, *values: Any) -> Tensor:
        out = self.specification(*values)
        return out.contiguous(memory_format=self.layout(values)) if out.dim() == 4 else out

    def save(self, ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs, output) if self.keeps_output else ctx.save_for_backward(*inputs)

    def differentiate(self, ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        needs = ctx.needs_input_grad
        grads = self.backward_operator(grad, *ctx.saved_tensors, any(needs[1:]))
        return (*grads, *[None] * (len(needs) - len(grads)))

    def backward(self, grad: Tensor, *kept_and_shared: Any) -> list[Tensor]:
        return self.gradient(grad, *kept_and_shared)

    def backward_fake(self, grad: Tensor, *kept_and_shared: Any) -> list[Tensor]:
        """Each gradient is laid out as the entry that it belongs to."""
        *kept, shared = kept_and_shared
        leaves = [leaf for leaf in flatten(kept)[0] if leaf is not None]
        return [torch.empty_like(leaf, memory_format=memory_format(leaf)) for leaf in (leaves if shared else leaves[:1])]


@dataclass(frozen=True)
class FusedLinear(Fused):
    """Its arguments may be lists of parts. The last, `residual`, is added to the output: its gradient is the output's, and
    the backward does not keep it."""

    def save(self, ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(*flatten(inputs[:-1])[0])

    def differentiate(self, ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        *others, of_residual = ctx.needs_input_grad
        needs, lengths = flatten(others)
        kept = unflatten(ctx.saved_tensors, lengths)
        grads = self.backward_operator(grad, *kept, any(needs[1:])) if any(needs) else []
        found = unflatten([*grads, *[None] * (len(needs) - len(grads))], lengths)
        return (*found, grad if of_residual else None)


# Batch normalisation: moments, and relu(scale * x + shift)


def affine(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    return torch.addcmul(shift[:, None, None], x, scale[:, None, None]).to(x.dtype)


def relu_specification(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    return affine(x, scale, shift).relu()


@dataclass(frozen=True)
class FusedRelu(Fused):
    """Works in place, which an export may not: one map less in memory. A map of one pixel, whose strides may be those of
    either layout, leaves with those of its own, because the linear behind it sums in the order that they suggest."""

    def body(self, *values: Any) -> Tensor:
        return affine(*values).relu_().to(values[0].dtype, memory_format=self.layout(values))


def relu_gradient(grad: Tensor, x: Tensor, scale: Tensor, shift: Tensor, shared: bool) -> list[Tensor]:
    wide = torch.where(affine(x, scale, shift) > 0, grad, 0).to(scale.dtype)
    to_x = (wide * scale[:, None, None]).to(x.dtype, memory_format=memory_format(x))
    return [to_x, (wide * x).sum((0, 2, 3)), wide.sum((0, 2, 3))] if shared else [to_x]


def normalised_relu(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """relu(scale * x + shift): x N x C x H x W, scale and shift C -> N x C x H x W, with x's layout and dtype.

    The backward keeps x, scale and shift, and finds gradients of scale and shift only where one of them is asked for.
    """
    out: Tensor = torch.ops.sanbench.normalised_relu(x, scale, shift)
    return out


def moments_specification(x: Tensor) -> Tensor:
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    mean = wide.mean((2, 3))
    return torch.stack([mean, (wide - mean[:, :, None, None]).square().mean((2, 3))], 1)


def moments_gradient(grad: Tensor, x: Tensor, moments: Tensor, shared: bool) -> list[Tensor]:
    of_mean, of_variance = (grad / x[0, 0].numel())[..., None, None].unbind(1)
    to_x = of_mean + 2 * of_variance * (x - moments[:, 0, :, None, None])
    return [to_x.to(x.dtype, memory_format=memory_format(x))]


def channel_moments(x: Tensor) -> Tensor:
    """Mean and (biased) variance of each channel of each image: N x C x H x W -> N x 2 x C, in float32 at least.

    The backward keeps x and the moments. Whoever holds a batch merges the moments of its images.
    """
    out: Tensor = torch.ops.sanbench.channel_moments(x)
    return out


# Pooling


def pool_specification(x: Tensor, scale: Tensor, shift: Tensor, weight: Tensor | None) -> Tensor:
    if weight is not None:
        x = F.conv2d(x, weight[:, :, None, None])
    return F.max_pool2d(relu_specification(x, scale, shift), SIDE)


def pool_gradient(grad: Tensor, x: Tensor, scale: Tensor, shift: Tensor, weight: Tensor | None, shared: bool) -> list[Tensor]:
    inputs = [x, scale, shift] if weight is None else [x, scale, shift, weight]
    grads = torch.func.vjp(lambda *entries: pool_specification(*entries[:3], *entries[3:] or [None]), *inputs)[1](grad)
    asked = zip(inputs, grads, strict=True) if shared else [(x, grads[0])]
    return [to_entry.contiguous(memory_format=memory_format(entry)) for entry, to_entry in asked]


def normalised_pool(x: Tensor, scale: Tensor, shift: Tensor, weight: Tensor | None = None) -> Tensor:
    """The largest of each 2 x 2 pixels of relu(scale * x + shift): N x C x H x W -> N x C x H/2 x W/2, laid out as x.

    With `weight`, C x I, of relu(scale * (weight x) + shift): x is N x I x H x W.

    The map before pooling is four times the result and nobody else reads it: it is read once, or with `weight` never
    written. The backward keeps the arguments and finds the largest of each four again; among equals it is the first,
    as in PyTorch.
    """
    out: Tensor = torch.ops.sanbench.normalised_pool(x, scale, shift, weight)
    return out


# The linear, a 1 x 1 convolution


def linear_specification(
    x: Tensor, scale: Tensor, shift: Tensor, weights: list[Tensor], biases: list[Tensor], residual: Tensor | None
) -> Tensor:
    out = F.conv2d(relu_specification(x, scale, shift), torch.cat(weights)[:, :, None, None], torch.cat(biases))
    return out if residual is None else out + residual


def linear_gradient(
    grad: Tensor, x: Tensor, scale: Tensor, shift: Tensor, weights: list[Tensor], biases: list[Tensor], shared: bool
) -> list[Tensor]:
    before = F.conv2d(grad, torch.cat(weights).t()[:, :, None, None])
    grads = relu_gradient(before, x, scale, shift, shared)
    if not shared:
        return grads
    of_weight = torch.einsum("nohw,nihw->oi", grad, relu_specification(x, scale, shift))
    parts = [part for whole in (of_weight, grad.sum((0, 2, 3))) for part in whole.split([len(bias) for bias in biases])]
    return [*grads, *(part.clone() for part in parts)]


def normalised_linear(
    x: Tensor, scale: Tensor, shift: Tensor, weights: list[Tensor], biases: list[Tensor], residual: Tensor | None = None
) -> Tensor:
    """W relu(scale * x + shift) + bias (+ residual), with W and bias one part below the other.

    x N x C x H x W, scale and shift C, weights O_k x C, biases O_k; residual and the result N x (sum of O_k) x H x W,
    the result laid out as x.

    For evaluation: neither what is normalised nor what is summed is written. Training keeps the operators apart, because
    its normalisation needs moments and its weights need the product's input.
    """
    out: Tensor = torch.ops.sanbench.normalised_linear(x, scale, shift, weights, biases, residual)
    return out


# Shapes and multiply-accumulates, as in `sanbench.ops.attention`


def moments_shape(*, x: Shape) -> Shape:
    return x[0], 2, x[1]


def pool_shape(*, x: Shape, scale: Shape, **_: Any) -> Shape:
    return x[0], scale[0], x[2] // SIDE, x[3] // SIDE


def linear_shape(*, x: Shape, weights: list[Shape], **_: Any) -> Shape:
    return x[0], sum(weight[0] for weight in weights), *x[2:]


def pool_macs(*, x: Shape, weight: Shape | None, **_: Any) -> int:
    return 0 if weight is None else x[2] * x[3] * weight[0] * weight[1]


def linear_macs(*, x: Shape, weights: list[Shape], **_: Any) -> int:
    return x[1] * x[2] * x[3] * sum(weight[0] for weight in weights)


for _operator in (
    FusedRelu("normalised_relu", relu_specification, lambda *, x, **_: x, gradient=relu_gradient),
    Fused("channel_moments", moments_specification, moments_shape, least=torch.float32, gradient=moments_gradient),
    Fused("normalised_pool", pool_specification, pool_shape, pool_macs, gradient=pool_gradient),
    FusedLinear("normalised_linear", linear_specification, linear_shape, linear_macs, gradient=linear_gradient),
):
    _operator.define()
