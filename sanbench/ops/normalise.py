"""Batch normalisation and its ReLU in two operators, one pass over memory each: the moments, and relu(scale * x + shift).

Both keep x and what is as small as scale for the backward; gradients of scale and shift come only where they are asked for.
"""

from typing import Any

import torch
from torch import Tensor

from sanbench.ops.operator import BODIES, memory_format


def _affine(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    return torch.addcmul(shift[:, None, None], x, scale[:, None, None]).to(x.dtype)


def plain(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """The operator as PyTorch's operators."""
    return _affine(x, scale, shift).relu()


def _body(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    return _affine(x, scale, shift).relu_().to(x.dtype, memory_format=memory_format(x))


def _backward_body(grad: Tensor, x: Tensor, scale: Tensor, shift: Tensor, shared: bool) -> list[Tensor]:
    wide = torch.where(_affine(x, scale, shift) > 0, grad, 0).to(scale.dtype)
    to_x = (wide * scale[:, None, None]).to(x.dtype, memory_format=memory_format(x))
    return [to_x, (wide * x).sum((0, 2, 3)), wide.sum((0, 2, 3))] if shared else [to_x]


def _moments_body(x: Tensor) -> Tensor:
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    mean = wide.mean((2, 3))
    return torch.stack([mean, (wide - mean[:, :, None, None]).square().mean((2, 3))], 1)


def _moments_backward_body(grad: Tensor, x: Tensor, moments: Tensor) -> Tensor:
    of_mean, of_variance = (grad / x[0, 0].numel())[..., None, None].unbind(1)
    to_x = of_mean + 2 * of_variance * (x - moments[:, 0, :, None, None])
    return to_x.to(x.dtype, memory_format=memory_format(x))


_forward = torch.library.custom_op(
    "sanbench::normalised_relu", _body, mutates_args=(), schema="(Tensor x, Tensor scale, Tensor shift) -> Tensor"
)
_backward = torch.library.custom_op(
    "sanbench::normalised_relu_backward",
    _backward_body,
    mutates_args=(),
    schema="(Tensor grad, Tensor x, Tensor scale, Tensor shift, bool shared) -> Tensor[]",
)
_moments = torch.library.custom_op("sanbench::channel_moments", _moments_body, mutates_args=(), schema="(Tensor x) -> Tensor")
_moments_backward = torch.library.custom_op(
    "sanbench::channel_moments_backward",
    _moments_backward_body,
    mutates_args=(),
    schema="(Tensor grad, Tensor x, Tensor moments) -> Tensor",
)
BODIES["normalised_relu"], BODIES["normalised_relu_backward"] = _body, _backward_body
BODIES["channel_moments"], BODIES["channel_moments_backward"] = _moments_body, _moments_backward_body


@_forward.register_fake
def _(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    return torch.empty_like(x, memory_format=memory_format(x))


@_backward.register_fake
def _(grad: Tensor, x: Tensor, scale: Tensor, shift: Tensor, shared: bool) -> list[Tensor]:
    to_x = torch.empty_like(x, memory_format=memory_format(x))
    return [to_x, torch.empty_like(scale), torch.empty_like(shift)] if shared else [to_x]


@_moments.register_fake
def _(x: Tensor) -> Tensor:
    return x.new_empty(len(x), 2, x.shape[1], dtype=torch.promote_types(x.dtype, torch.float32))


@_moments_backward.register_fake
def _(grad: Tensor, x: Tensor, moments: Tensor) -> Tensor:
    return torch.empty_like(x, memory_format=memory_format(x))


def _setup(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _autograd(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    shared = any(ctx.needs_input_grad[1:])
    grads = _backward(grad, *ctx.saved_tensors, shared)
    return tuple(grads) if shared else (*grads, None, None)


def _setup_moments(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
    ctx.save_for_backward(*inputs, output)


def _autograd_moments(ctx: Any, grad: Tensor) -> Tensor:
    to_x: Tensor = _moments_backward(grad, *ctx.saved_tensors)
    return to_x


_forward.register_autograd(_autograd, setup_context=_setup)
_moments.register_autograd(_autograd_moments, setup_context=_setup_moments)


def normalised_relu(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """relu(scale * x + shift): x N x C x H x W, scale and shift C -> N x C x H x W, laid out as x."""
    out: Tensor = torch.ops.sanbench.normalised_relu(x, scale, shift)
    return out


def channel_moments(x: Tensor) -> Tensor:
    """Mean and (biased) variance of each channel of each image, in float32 at least: N x C x H x W -> N x 2 x C."""
    out: Tensor = torch.ops.sanbench.channel_moments(x)
    return out
