"""1 x 1 convolutions with the normalisation and ReLU before them and the residual sum after them, as one matrix product.

For evaluation: what is normalised, and what is summed, is never written. Training keeps the operators apart, because its
normalisation needs moments and its weights need the product's input.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from sanbench.ops import normalise
from sanbench.ops.operator import BODIES, memory_format, without_autocast


def plain(
    x: Tensor, scale: Tensor, shift: Tensor, weights: list[Tensor], biases: list[Tensor], residual: Tensor | None
) -> Tensor:
    """The operator as PyTorch's operators."""
    out = F.conv2d(normalise.plain(x, scale, shift), torch.cat(weights)[:, :, None, None], torch.cat(biases))
    return out if residual is None else out + residual


@without_autocast
def _body(x: Tensor, *others: Any) -> Tensor:
    return plain(x, *others).contiguous(memory_format=memory_format(x))


@without_autocast
def _backward_body(grad: Tensor, x: Tensor, scale: Tensor, shift: Tensor, weights: list[Tensor], shared: bool) -> list[Tensor]:
    before = F.conv2d(grad, torch.cat(weights).t()[:, :, None, None])
    grads: list[Tensor] = BODIES["normalised_relu_backward"](before, x, scale, shift, shared)
    if not shared:
        return grads
    of_weight = torch.einsum("nohw,nihw->oi", grad, normalise.plain(x, scale, shift))
    parts = [g for whole in (of_weight, grad.sum((0, 2, 3))) for g in whole.split([len(weight) for weight in weights])]
    return [*grads, *(g.clone() for g in parts)]


_forward = torch.library.custom_op(
    "sanbench::normalised_linear",
    _body,
    mutates_args=(),
    schema="(Tensor x, Tensor scale, Tensor shift, Tensor[] weights, Tensor[] biases, Tensor? residual) -> Tensor",
)
_backward = torch.library.custom_op(
    "sanbench::normalised_linear_backward",
    _backward_body,
    mutates_args=(),
    schema="(Tensor grad, Tensor x, Tensor scale, Tensor shift, Tensor[] weights, bool shared) -> Tensor[]",
)
BODIES["normalised_linear"], BODIES["normalised_linear_backward"] = _body, _backward_body


@_forward.register_fake
def _(x: Tensor, scale: Tensor, shift: Tensor, weights: list[Tensor], *_: Any) -> Tensor:
    size = (x.shape[0], sum(len(weight) for weight in weights), *x.shape[2:])
    return torch.empty(size, dtype=x.dtype, device=x.device, memory_format=memory_format(x))


@_backward.register_fake
def _(grad: Tensor, x: Tensor, scale: Tensor, shift: Tensor, weights: list[Tensor], shared: bool) -> list[Tensor]:
    to_x = torch.empty_like(x, memory_format=memory_format(x))
    of_weights = [torch.empty_like(weight, memory_format=torch.contiguous_format) for weight in weights]
    every = [to_x, *map(torch.empty_like, (scale, shift)), *of_weights, *(scale.new_empty(len(weight)) for weight in weights)]
    return every if shared else every[:1]


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, scale, shift, weights, _, _ = inputs
    ctx.save_for_backward(x, scale, shift, *weights)


def _autograd(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    x, scale, shift, *weights = ctx.saved_tensors
    of_x, *others, of_residual = ctx.needs_input_grad
    shared = any(need if isinstance(need, bool) else any(need) for need in others)
    none: list[Any] = [None] * len(weights)
    to_x, *rest = _backward(grad, x, scale, shift, weights, shared) if shared or of_x else none[:1]
    rest = rest or [None, None, *none, *none]
    parts = rest[2 : 2 + len(weights)], rest[2 + len(weights) :]
    return to_x, *rest[:2], *parts, grad if of_residual else None


_forward.register_autograd(_autograd, setup_context=_setup)


@register_flop_formula(torch.ops.sanbench.normalised_linear)
def _(x: Any, scale: Any, shift: Any, weights: Any, *_: Any, out_shape: Any = None, **__: Any) -> int:
    return int(2 * x[0] * x[1] * x[2] * x[3] * sum(weight[0] for weight in weights))


def normalised_linear(
    x: Tensor, scale: Tensor, shift: Tensor, weights: list[Tensor], biases: list[Tensor], residual: Tensor | None = None
) -> Tensor:
    """W relu(scale * x + shift) + bias (+ residual), W and bias one part below the other, laid out as x.

    x N x C x H x W, scale and shift C, weights O_k x C, biases O_k; residual and the result N x (sum of O_k) x H x W.
    """
    out: Tensor = torch.ops.sanbench.normalised_linear(x, scale, shift, weights, biases, residual)
    return out
