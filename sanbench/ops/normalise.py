"""relu(scale * x + shift) as one operator: batch normalisation with known moments and its ReLU in one pass over memory.

It keeps x alone for the backward, and returns gradients of scale and shift only where they are asked for.
"""

from typing import Any

import torch
from torch import Tensor

from sanbench.ops.operator import BODIES, memory_format


def _affine(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    return torch.addcmul(shift[:, None, None], x, scale[:, None, None])


def _body(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    return _affine(x, scale, shift).relu_().contiguous(memory_format=memory_format(x))


def _backward_body(grad: Tensor, x: Tensor, scale: Tensor, shift: Tensor, shared: bool) -> list[Tensor]:
    grad = torch.where(_affine(x, scale, shift) > 0, grad, 0)
    to_x = (grad * scale[:, None, None]).contiguous(memory_format=memory_format(x))
    return [to_x, (grad * x).sum((0, 2, 3)), grad.sum((0, 2, 3))] if shared else [to_x]


_forward = torch.library.custom_op(
    "sanbench::normalised_relu", _body, mutates_args=(), schema="(Tensor x, Tensor scale, Tensor shift) -> Tensor"
)
_backward = torch.library.custom_op(
    "sanbench::normalised_relu_backward",
    _backward_body,
    mutates_args=(),
    schema="(Tensor grad, Tensor x, Tensor scale, Tensor shift, bool shared) -> Tensor[]",
)
BODIES["normalised_relu"], BODIES["normalised_relu_backward"] = _body, _backward_body


@_forward.register_fake
def _(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    return torch.empty_like(x, memory_format=memory_format(x))


@_backward.register_fake
def _(grad: Tensor, x: Tensor, scale: Tensor, shift: Tensor, shared: bool) -> list[Tensor]:
    to_x = torch.empty_like(x, memory_format=memory_format(x))
    return [to_x, torch.empty_like(scale), torch.empty_like(shift)] if shared else [to_x]


def _setup(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _autograd(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    shared = any(ctx.needs_input_grad[1:])
    grads = _backward(grad, *ctx.saved_tensors, shared)
    return tuple(grads) if shared else (*grads, None, None)


_forward.register_autograd(_autograd, setup_context=_setup)


def normalised_relu(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """relu(scale * x + shift): x N x C x H x W, scale and shift C -> N x C x H x W, laid out as x."""
    out: Tensor = torch.ops.sanbench.normalised_relu(x, scale, shift)
    return out
