"""Batch normalisation, ReLU and 2 x 2 max-pooling in one pass over memory; in the stem with the linear before them as well.

The map before pooling is four times the result, and nobody else reads it: it is read once (or, in the stem, never written).
The backward finds the largest of each four again; among equals it is the first, as in PyTorch.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from sanbench.ops import normalise
from sanbench.ops.operator import BODIES, memory_format, without_autocast

SIDE = 2  # of a pooling window


def plain(x: Tensor, weight: Tensor | None, scale: Tensor, shift: Tensor) -> Tensor:
    """The operator as PyTorch's operators."""
    if weight is not None:
        x = F.conv2d(x, weight[:, :, None, None])
    return F.max_pool2d(normalise.plain(x, scale, shift), SIDE)


@without_autocast
def _body(x: Tensor, weight: Tensor | None, scale: Tensor, shift: Tensor) -> Tensor:
    return plain(x, weight, scale, shift).contiguous(memory_format=memory_format(x))


@without_autocast
def _backward_body(
    grad: Tensor, x: Tensor, weight: Tensor | None, scale: Tensor, shift: Tensor, needs: list[bool]
) -> list[Tensor]:
    inputs = (x, weight, scale, shift)
    grads = iter(torch.func.vjp(lambda *present: plain(*_among(inputs, present)), *_present(inputs))[1](grad))
    found = [None if value is None else next(grads) for value in inputs]
    return [
        g.contiguous(memory_format=memory_format(g if v is None else v))
        for g, v, need in zip(found, inputs, needs, strict=True)
        if need and g is not None
    ]


def _present(values: tuple[Tensor | None, ...]) -> list[Tensor]:
    return [value for value in values if value is not None]


def _among(values: tuple[Tensor | None, ...], present: tuple[Tensor, ...]) -> list[Any]:
    rest = iter(present)
    return [None if value is None else next(rest) for value in values]


_forward = torch.library.custom_op(
    "sanbench::normalised_pool",
    _body,
    mutates_args=(),
    schema="(Tensor x, Tensor? weight, Tensor scale, Tensor shift) -> Tensor",
)
_backward = torch.library.custom_op(
    "sanbench::normalised_pool_backward",
    _backward_body,
    mutates_args=(),
    schema="(Tensor grad, Tensor x, Tensor? weight, Tensor scale, Tensor shift, bool[] needs) -> Tensor[]",
)
BODIES["normalised_pool"], BODIES["normalised_pool_backward"] = _body, _backward_body


@_forward.register_fake
def _(x: Tensor, weight: Tensor | None, scale: Tensor, shift: Tensor) -> Tensor:
    size = (x.shape[0], len(scale), x.shape[2] // SIDE, x.shape[3] // SIDE)
    return torch.empty(size, dtype=x.dtype, device=x.device, memory_format=memory_format(x))


@_backward.register_fake
def _(grad: Tensor, x: Tensor, weight: Tensor | None, scale: Tensor, shift: Tensor, needs: list[bool]) -> list[Tensor]:
    inputs = (x, weight, scale, shift)
    return [
        torch.empty_like(value, memory_format=memory_format(value))
        for value, need in zip(inputs, needs, strict=True)
        if need and value is not None
    ]


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _autograd(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    needs = list(ctx.needs_input_grad)
    grads = iter(_backward(grad, *ctx.saved_tensors, needs))
    return tuple(next(grads) if need else None for need in needs)


_forward.register_autograd(_autograd, setup_context=_setup)


@register_flop_formula(torch.ops.sanbench.normalised_pool)
def _(x: Any, weight: Any, *_: Any, out_shape: Any = None, **__: Any) -> int:
    return 0 if weight is None else int(2 * x[0] * x[2] * x[3] * weight[0] * weight[1])


def normalised_pool(x: Tensor, scale: Tensor, shift: Tensor, weight: Tensor | None = None) -> Tensor:
    """The largest of each 2 x 2 pixels of relu(scale * x + shift): N x C x H x W -> N x C x H/2 x W/2, laid out as x.

    With `weight`, C x I, of its product with x instead: x is N x I x H x W.
    """
    out: Tensor = torch.ops.sanbench.normalised_pool(x, weight, scale, shift)
    return out
