"""Moments of the relation itself, without visiting a pair: what training's first normalisation needs.

How often pixel j is neighbour k of any pixel i, and how often j is a neighbour of i at all, are products of a count
along the rows and one along the columns. Sums over pairs are therefore products with two small matrices.
They run in float64: the position's channels, alike all over the map, cancel badly.

Subtracting a constant first changes no variance, so it has no share in a gradient: the pullbacks leave it out.
"""

from functools import cache
from typing import Any

import torch
from torch import Tensor

from sanbench.ops.footprint import Footprint, reflect
from sanbench.ops.operator import memory_format


@cache
def occurrences(size: int, footprint: int, device: torch.device) -> Tensor:
    """[k, i, j]: 1 where pixel j is neighbour k of pixel i, along one axis of `size` pixels."""
    pixels = torch.arange(size, device=device)
    neighbour = reflect(pixels + torch.arange(footprint, device=device)[:, None] - footprint // 2, size)
    return (neighbour[:, :, None] == pixels).double()


@cache
def pairs(height: int, width: int, footprint: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """How often j is a neighbour of i along the columns and along the rows, and how often each pixel is one: H x W."""
    down, across = (occurrences(size, footprint, device).sum(0) for size in (height, width))  # [i, j]
    return down, across, down.sum(0)[:, None] * across.sum(0)


@cache
def neighbours(height: int, width: int, footprint: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """The share of the pixels at which j is neighbour k, along the columns and along the rows: [k, j]."""
    down, across = (occurrences(size, footprint, device).sum(1) / size for size in (height, width))
    return down, across


def centred(x: Tensor, times: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """x - mean in float64, and the mean over space, pixel j counted `times[j]`: N x C x H x W, N x C x 1 x 1."""
    x = x.double()
    mean = x.mean((2, 3), keepdim=True) if times is None else (x * (times / times.sum())).sum((2, 3), keepdim=True)
    return x - mean, mean


def pairwise_moments(query: Tensor, key: Tensor, window: Footprint) -> Tensor:
    """Mean and variance of phi(x_i) - psi(x_j) over pairs: N x 2 x R."""
    down, across, times = pairs(*query.shape[-2:], window.size, query.device)
    (at_i, mean_i), (at_j, mean_j) = centred(query), centred(key, times)
    both = at_i * (window.size**2 * at_i - 2 * (down @ at_j @ across.T)) + times * at_j.square()
    return torch.stack([(mean_i - mean_j)[..., 0, 0], both.sum((2, 3)) / times.sum()], 1).float()


def pairwise_pullback(grad: Tensor, query: Tensor, key: Tensor, window: Footprint) -> tuple[Tensor, Tensor]:
    """From the gradient of `pairwise_moments` to those of query and key."""
    down, across, times = pairs(*query.shape[-2:], window.size, query.device)
    at_i, at_j = centred(query)[0], centred(key, times)[0]
    count = window.size**2
    to_mean, to_variance = (grad.double() / times.sum())[..., None, None].unbind(1)
    to_i = count * to_mean + 2 * to_variance * (count * at_i - down @ at_j @ across.T)
    to_j = 2 * to_variance * (times * at_j - down.T @ at_i @ across) - times * to_mean
    return to_i.float(), to_j.float()


def patchwise_moments(query: Tensor, key: Tensor, window: Footprint) -> Tensor:
    """Mean and variance of [phi(x_i), psi(x_j) for all j] over pixels i: N x 2 x R (1 + K), psi channel-major."""
    down, across = neighbours(*query.shape[-2:], window.size, query.device)
    (at_i, mean_i), (at_j, centre) = centred(query), centred(key)
    mean, square = (down @ torch.stack([at_j, at_j.square()]) @ across.T).flatten(3)  # N x R x K
    parts = [mean_i.flatten(1), (mean + centre.squeeze(-1)).flatten(1)]
    parts += [at_i.square().mean((2, 3)), (square - mean.square()).flatten(1)]
    return torch.cat(parts, 1).unflatten(1, (2, -1)).float()


def patchwise_pullback(grad: Tensor, query: Tensor, key: Tensor, window: Footprint) -> tuple[Tensor, Tensor]:
    """From the gradient of `patchwise_moments` to those of query and key."""
    down, across = neighbours(*query.shape[-2:], window.size, query.device)
    at_i, at_j, grad = centred(query)[0], centred(key)[0], grad.double()
    channels, pixels = query.shape[1], query.shape[2] * query.shape[3]
    to_mean, to_variance = (grad[:, :, :channels] / pixels)[..., None, None].unbind(1)
    to_i = to_mean + 2 * to_variance * at_i
    by_neighbour = grad[:, :, channels:].unflatten(2, (channels, window.size, window.size))
    to_mean, to_square = by_neighbour.unbind(1)
    to_mean = to_mean - 2 * to_square * (down @ at_j @ across.T)
    once, twice = down.T @ torch.stack([to_mean, to_square]) @ across
    return to_i.float(), (once + 2 * at_j * twice).float()


def moments(*, query: Tensor, key: Tensor, footprint: int, **named: Any) -> Tensor:
    """What the statistics operators return without gamma; in pairwise attention the position's channels come last."""
    window = Footprint(footprint)
    if "position" not in named:
        return patchwise_moments(query, key, window)
    return pairwise_moments(*with_position(query, key, named["position"]), window)


def with_position(query: Tensor, key: Tensor, position: Tensor | None) -> tuple[Tensor, Tensor]:
    """Both with the channels of the position behind their own, which are the same for all images."""
    if position is None:
        return query, key
    at_i, at_j = position.unsqueeze(1).expand(-1, len(query), -1, -1, -1)
    return torch.cat([query, at_i], 1), torch.cat([key, at_j], 1)


def pullback(grad: Tensor, *, query: Tensor, key: Tensor, footprint: int, **named: Any) -> dict[str, Tensor]:
    """From the gradient of `moments` to those of its arguments, by name."""
    window, channels = Footprint(footprint), query.shape[1]
    if "position" not in named:
        return dict(zip(("query", "key"), patchwise_pullback(grad, query, key, window), strict=True))
    to_i, to_j = pairwise_pullback(grad, *with_position(query, key, named["position"]), window)
    grads = {"query": to_i[:, :channels], "key": to_j[:, :channels]}
    if named["position"] is not None:
        grads["position"] = torch.stack([to[:, channels:].sum(0) for to in (to_i, to_j)])
    return grads


def moments_backward(grad: Tensor, arguments: dict[str, Any]) -> dict[str, list[Tensor]]:
    """Gradients of `moments` by argument, each laid out and as wide as that argument."""
    found = ((name, x, arguments[name]) for name, x in pullback(grad, **arguments).items())
    return {name: [x.to(like.dtype, memory_format=memory_format(like))] for name, x, like in found}
