"""Moments of the relation itself, without visiting a pair: what training's first normalisation needs.

How often pixel j is neighbour k of any pixel i, and how often j is a neighbour of i at all, are products of a count
along the rows and one along the columns. Sums over pairs are therefore products with two small matrices.
They run in float64: the position's channels, alike all over the map, cancel badly.
"""

from typing import Any

import torch
from torch import Tensor

from sanbench.ops.footprint import Footprint, reflect


def occurrences(size: int, footprint: int) -> Tensor:
    """[k, i, j]: 1 where pixel j is neighbour k of pixel i, along one axis of `size` pixels."""
    neighbour = reflect(torch.arange(size) + torch.arange(footprint)[:, None] - footprint // 2, size)
    return torch.nn.functional.one_hot(neighbour, size).double()


def pairwise_moments(query: Tensor, key: Tensor, position: Tensor | None, window: Footprint) -> Tensor:
    """Mean and variance of [phi(x_i) - psi(x_j), p_i - p_j] over pairs: N x 2 x (R + E)."""
    if position is not None:
        at_i, at_j = position.unsqueeze(1)
        moments = pairwise_moments(query, key, None, window)
        return torch.cat([moments, pairwise_moments(at_i, at_j, None, window).expand(len(query), -1, -1)], 2)
    height, width = query.shape[-2:]
    down, across = (occurrences(size, window.size).sum(0) for size in (height, width))  # [i, j]
    times = down.sum(0)[:, None] * across.sum(0)  # how often each j occurs
    pairs = times.sum()
    query, key = query.double(), key.double()
    mean_i, mean_j = query.mean((2, 3)), (key * times).sum((2, 3)) / pairs
    at_i, at_j = query - mean_i[..., None, None], key - mean_j[..., None, None]
    cross = at_i * (down @ at_j @ across.T)
    variance = (window.size**2 * at_i.square() + times * at_j.square() - 2 * cross).sum((2, 3)) / pairs
    return torch.stack([mean_i - mean_j, variance], 1).to(torch.float32)


def patchwise_moments(query: Tensor, key: Tensor, window: Footprint) -> Tensor:
    """Mean and variance of [phi(x_i), psi(x_j) for all j] over pixels i: N x 2 x R (1 + K), psi channel-major."""
    height, width = query.shape[-2:]
    down, across = (occurrences(size, window.size).sum(1) / size for size in (height, width))  # [k, j]
    query, key = query.double(), key.double()
    centre = key.mean((2, 3), keepdim=True)
    off = key - centre
    mean = (down @ off @ across.T).flatten(2)  # N x R x K
    variance = (down @ off.square() @ across.T).flatten(2) - mean.square()
    at_i = torch.stack([query.mean((2, 3)), query.var((2, 3), correction=0)], 1)
    at_j = torch.stack([(mean + centre.squeeze(-1)).flatten(1), variance.flatten(1)], 1)
    return torch.cat([at_i, at_j], 2).to(torch.float32)


def moments(*, query: Tensor, key: Tensor, footprint: int, **named: Any) -> Tensor:
    window = Footprint(footprint)
    if "position" in named:
        return pairwise_moments(query, key, named["position"], window)
    return patchwise_moments(query, key, window)
