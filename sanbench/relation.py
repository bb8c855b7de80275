"""RELATIONS: the delta functions that compare a pixel with its footprint (section 3 of the paper).

Each takes phi(x_i) as `query` and psi(x_j) as `key`, R channels each, already on the footprint (N x R x K x P),
and returns D channels. A pairwise relation keeps the footprint (N x D x K x P): each pair (i, j) is seen alone.
A patchwise relation turns the footprint into channels (N x D x 1 x P): all pairs are seen at once.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from operator import add, mul, sub
from typing import TYPE_CHECKING

from sanbench.late import Late

if TYPE_CHECKING:
    import torch
    from torch import Tensor
else:
    torch = Late("torch")


@dataclass(frozen=True)
class Relation:
    """`delta(query, key)`; `channels(R, K)` is its width D and `macs(R, K)` its multiply-accumulates an output pixel.

    as_subtraction  (query, key) -> maps whose subtraction this relation is, to the bit: kernels are written for that alone
    """

    delta: Callable[[Tensor, Tensor], Tensor]
    channels: Callable[[int, int], int]
    macs: Callable[[int, int], int] = lambda r, k: 0
    expands_query: bool = False  # the relation reads phi on the whole footprint, not only at i
    as_subtraction: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]] | None = None


def concatenate_pair(query: Tensor, key: Tensor) -> Tensor:
    return torch.cat([query.expand_as(key), key], 1)


def side_by_side(query: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
    """(query, 0) and (0, -key), of which each channel has one that is not 0."""
    return torch.cat([query, torch.zeros_like(key)], 1), torch.cat([torch.zeros_like(query), -key], 1)


def dot_product(query: Tensor, key: Tensor) -> Tensor:
    return (query * key).sum(1, keepdim=True)


def star_product(query: Tensor, key: Tensor) -> Tensor:
    return (query * key).sum(1).unsqueeze(2)


def clique_product(query: Tensor, key: Tensor) -> Tensor:
    return torch.einsum("nrjp,nrkp->njkp", query, key).flatten(1, 2).unsqueeze(2)


def concatenate_patch(query: Tensor, key: Tensor) -> Tensor:
    """phi(x_i) first, then psi channel-major: all K positions of channel 0, then of channel 1, ..."""
    return torch.cat([query, key.flatten(1, 2).unsqueeze(2)], 1)


RELATIONS: dict[str, dict[str, Relation]] = {
    "pairwise": {
        "summation": Relation(add, lambda r, k: r, as_subtraction=lambda query, key: (query, -key)),
        "subtraction": Relation(sub, lambda r, k: r),
        "concatenation": Relation(concatenate_pair, lambda r, k: 2 * r, as_subtraction=side_by_side),
        "hadamard": Relation(mul, lambda r, k: r),
        "dot": Relation(dot_product, lambda r, k: 1, lambda r, k: r * k),
    },
    "patchwise": {
        "star": Relation(star_product, lambda r, k: k, lambda r, k: r * k),
        "clique": Relation(clique_product, lambda r, k: k * k, lambda r, k: r * k * k, expands_query=True),
        "concatenation": Relation(concatenate_patch, lambda r, k: (k + 1) * r),
    },
}
