"""Whole attention layers, one operator each: pairwise, patchwise and scalar (section 3 of the paper).

gamma, the mapping from a relation to attention weights, is a list of tensors: for each of its linears a scale, a shift
(batch normalisation as an affine map, each D) and a weight (D' x D), applied as W relu(scale * x + shift);
after the last weight comes its bias. Training and evaluation differ only in where scale and shift come from, so
the statistics of a batch are operators of their own: `*_statistics` takes the linears so far (no bias) and
returns the mean and the variance of what they produce, one pair an image, to be merged by whoever holds the batch.

Maps may be bfloat16 or float16, as autocast makes them, with gamma and position in the same dtype or in float32: relation,
statistics, gamma and softmax are then computed in float32, statistics are float32, and an attention is in value's dtype.
"""

from collections.abc import Sequence
from functools import partial
from math import prod
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from sanbench.ops.aggregation import aggregate, aggregation
from sanbench.ops.checks import REDUCED
from sanbench.ops.footprint import Footprint, RowRange
from sanbench.ops.operator import Shape, Tiled
from sanbench.relation import RELATIONS


def widened(x: Tensor) -> Tensor:
    """What arithmetic is done in: float32 for a narrower dtype."""
    return x.float() if x.dtype in REDUCED else x


def pairwise_delta(query: Tensor, key: Tensor, position: Tensor | None, relation: str, window: Footprint) -> Tensor:
    """[delta(phi(x_i), psi(x_j)), p_i - p_j] for every pair: N x D x K x P."""
    query, key = widened(query), widened(key)
    delta = RELATIONS["pairwise"][relation].delta(window.centre(query), window.expand(key))
    if position is None:
        return delta
    position = widened(position)
    offset = window.centre(position[0]) - window.expand(position[1])
    return torch.cat([delta, offset.expand(query.shape[0], -1, -1, -1)], 1)


def patchwise_delta(query: Tensor, key: Tensor, relation: str, window: Footprint) -> Tensor:
    """delta(x_R(i)) for every pixel: N x D x 1 x P."""
    entry = RELATIONS["patchwise"][relation]
    query, key = widened(query), widened(key)
    at_query = window.expand(query) if entry.expands_query else window.centre(query)
    return entry.delta(at_query, window.expand(key))


def mapping(delta: Tensor, gamma: list[Tensor]) -> Tensor:
    """W_n relu(s_n * ... W_1 relu(s_1 * delta + t_1) ... + t_n) + bias; gamma = [s_1, t_1, W_1, ..., bias]."""
    gamma = [widened(x) for x in gamma]
    for scale, shift, weight in zip(gamma[0::3], gamma[1::3], gamma[2::3], strict=False):
        hidden = torch.addcmul(shift[:, None, None], delta, scale[:, None, None]).relu()
        delta = F.conv2d(hidden, weight[:, :, None, None])
    return delta + gamma[-1][:, None, None] if len(gamma) % 3 else delta


def moments(x: Tensor) -> Tensor:
    """Mean and (biased) variance of each channel of each image: N x D x ... -> N x 2 x D."""
    mean = x.flatten(2).mean(2)
    variance = (x.flatten(2) - mean[:, :, None]).square().mean(2)  # var_mean is several times slower on a CPU
    return torch.stack([mean, variance], 1)


def pooled(parts: Sequence[Tensor], rows: Sequence[int]) -> Tensor:
    """Moments of a map (N x 2 x D) from those of its tiles of rows."""
    share = torch.tensor(rows, dtype=parts[0].dtype, device=parts[0].device)[:, None, None] / sum(rows)
    means, variances = torch.stack(list(parts), 2).unbind(1)  # N x tiles x D
    means, variances = means.transpose(0, 1), variances.transpose(0, 1)  # tiles x N x D
    mean = (share * means).sum(0)
    return torch.stack([mean, (share * (variances + (means - mean).square())).sum(0)], 1)


def pairwise_weights(
    query: Tensor, key: Tensor, position: Tensor | None, gamma: list[Tensor], relation: str, window: Footprint
) -> Tensor:
    """softmax_j(gamma([delta(phi(x_i), psi(x_j)), p_i - p_j])): N x G x K x P, positive, and 1 in sum over the footprint."""
    return mapping(pairwise_delta(query, key, position, relation, window), gamma).softmax(2)


def patchwise_weights(query: Tensor, key: Tensor, gamma: list[Tensor], relation: str, window: Footprint) -> Tensor:
    """gamma(delta(x_R(i)))_j: N x G x K x P, of either sign, as there is no softmax."""
    weights = mapping(patchwise_delta(query, key, relation, window), gamma)  # N x G K x 1 x P
    return weights.squeeze(2).unflatten(1, (-1, window.size**2))


def scalar_weights(query: Tensor, key: Tensor, heads: int, window: Footprint) -> Tensor:
    """softmax_j(phi(x_i)^T psi(x_j) / sqrt(R / heads)): N x heads x K x P, positive, and 1 in sum over the footprint."""
    query, key = widened(query), widened(key)
    products = (window.centre(query) * window.expand(key)).unflatten(1, (-1, heads))  # N x R/heads x heads x K x P
    scores = products.sum(1) / (query.shape[1] / heads) ** 0.5
    return scores.softmax(2)


def pairwise_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    position: Tensor | None,
    gamma: list[Tensor],
    relation: str,
    footprint: int,
    stride: int,
    dilation: int,
    rows: RowRange | None = None,
) -> Tensor:
    """y_i = sum_{j in R(i)} softmax_j(gamma([delta(phi(x_i), psi(x_j)), p_i - p_j])) * beta(x_j)  (equations 2 and 3).

    query = phi(x) and key = psi(x) are N x R x H x W, value = beta(x) is N x C x H x W; gamma ends in G channels, and value
    channel c uses weight channel c mod G. position is 2 x E x H x W: the encoding as read at i and as read at j
    (their difference enters), or None. Returns N x C x Ho x Wo.
    """
    window = Footprint(footprint, stride, dilation, rows)
    weights = pairwise_weights(query, key, position, gamma, relation, window)
    out = aggregate(weights, window.expand(value)).to(value.dtype)
    return out.unflatten(-1, window.output_size(*value.shape[-2:]))


def pairwise_statistics(
    query: Tensor,
    key: Tensor,
    position: Tensor | None,
    gamma: list[Tensor],
    relation: str,
    footprint: int,
    stride: int,
    dilation: int,
    rows: RowRange | None = None,
) -> Tensor:
    """Mean and variance over footprint and space of what gamma's linears so far make of delta: N x 2 x D."""
    delta = pairwise_delta(query, key, position, relation, Footprint(footprint, stride, dilation, rows))
    return moments(mapping(delta, gamma))


def patchwise_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    gamma: list[Tensor],
    relation: str,
    footprint: int,
    stride: int,
    dilation: int,
    rows: RowRange | None = None,
) -> Tensor:
    """y_i = sum_{j in R(i)} gamma(delta(x_R(i)))_j * beta(x_j), without softmax  (equations 4 and 5).

    As `pairwise_attention`, but gamma ends in G * K channels, weight channel g of neighbour k at g * K + k.
    """
    window = Footprint(footprint, stride, dilation, rows)
    weights = patchwise_weights(query, key, gamma, relation, window)
    out = aggregate(weights, window.expand(value)).to(value.dtype)
    return out.unflatten(-1, window.output_size(*value.shape[-2:]))


def patchwise_statistics(
    query: Tensor,
    key: Tensor,
    gamma: list[Tensor],
    relation: str,
    footprint: int,
    stride: int,
    dilation: int,
    rows: RowRange | None = None,
) -> Tensor:
    """Mean and variance over space of what gamma's linears so far make of delta: N x 2 x D."""
    return moments(mapping(patchwise_delta(query, key, relation, Footprint(footprint, stride, dilation, rows)), gamma))


def scalar_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    heads: int,
    footprint: int,
    stride: int,
    dilation: int,
    rows: RowRange | None = None,
) -> Tensor:
    """y_i = sum_{j in R(i)} softmax_j(phi(x_i)^T psi(x_j) / sqrt(R / heads)) beta(x_j), one weight a head.

    Equation 1 of the paper with the scaled softmax that scalar-attention networks use (Vaswani et al. 2017, Ramachandran
    et al. 2019). Head h compares channels h, h + heads, ... and weights those same value channels. heads divides R and C.
    """
    window = Footprint(footprint, stride, dilation, rows)
    out = aggregate(scalar_weights(query, key, heads, window), window.expand(value)).to(value.dtype)
    return out.unflatten(-1, window.output_size(*value.shape[-2:]))


# Shapes and multiply-accumulates of the operators, from their arguments by name with shapes in place of tensors.


def attention_shape(*, value: Shape, footprint: int, stride: int, dilation: int, **_: Any) -> Shape:
    height, width = Footprint(footprint, stride, dilation).output_size(*value[-2:])
    return *value[:2], height, width


def statistics_shape(kind: str, *, query: Shape, gamma: list[Shape], **named: Any) -> Shape:
    if gamma:
        return query[0], 2, gamma[-1][0]
    extra = named["position"][1] if named.get("position") else 0
    return query[0], 2, RELATIONS[kind][named["relation"]].channels(query[1], named["footprint"] ** 2) + extra


def vector_macs(kind: str, *, query: Shape, gamma: list[Shape], relation: str, footprint: int, **named: Any) -> int:
    """Relation, gamma's linears and, where there is a value, aggregation, for one image."""
    neighbours = footprint**2
    grid = attention_shape(value=query, footprint=footprint, stride=named["stride"], dilation=named["dilation"])[-2:]
    linears = sum(prod(weight) for weight in gamma[2::3]) * (neighbours if kind == "pairwise" else 1)
    per_pixel = RELATIONS[kind][relation].macs(query[1], neighbours) + linears
    return prod(grid) * (per_pixel + (named["value"][1] * neighbours if "value" in named else 0))


def scalar_macs(*, query: Shape, value: Shape, footprint: int, **named: Any) -> int:
    return prod(attention_shape(value=value, footprint=footprint, **named)[-2:]) * footprint**2 * (query[1] + value[1])


def aggregation_macs(*, value: Shape, footprint: int, **named: Any) -> int:
    return prod(attention_shape(value=value, footprint=footprint, **named)[1:]) * footprint**2


pairwise_macs, patchwise_macs = partial(vector_macs, "pairwise"), partial(vector_macs, "patchwise")
for _operator in (
    Tiled("aggregation", aggregation, attention_shape, aggregation_macs),
    Tiled("scalar_attention", scalar_attention, attention_shape, scalar_macs),
    Tiled("pairwise_attention", pairwise_attention, attention_shape, pairwise_macs),
    Tiled(
        "pairwise_statistics", pairwise_statistics, partial(statistics_shape, "pairwise"), pairwise_macs, torch.float32, pooled
    ),
    Tiled("patchwise_attention", patchwise_attention, attention_shape, patchwise_macs),
    Tiled(
        "patchwise_statistics",
        patchwise_statistics,
        partial(statistics_shape, "patchwise"),
        patchwise_macs,
        torch.float32,
        pooled,
    ),
):
    _operator.define()
