"""Noise: Gaussian, shot and impulse."""

from functools import lru_cache
from math import ceil, log2, sqrt

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import gammaln, xlogy
from torch import Tensor


def gaussian_noise(image: Tensor, spread: float, draw: torch.Generator) -> Tensor:
    return image + spread * torch.randn(image.shape, generator=draw)


def shot_noise(image: Tensor, photons: int, draw: torch.Generator) -> Tensor:
    """Poisson counts whose mean is `photons` for white, of an image in 8 bits."""
    return photon_counts((image * 255).round().to(torch.int32), photons, draw) / photons


def photon_counts(levels: Tensor, photons: int, draw: torch.Generator) -> Tensor:
    """Poisson counts of mean photons x level / 255, by the alias method: one uniform number and two look-ups a count."""
    chances, aliases = alias_tables(photons)
    columns = chances.shape[1]
    place = columns * torch.rand(levels.shape, generator=draw).numpy()
    column = place.astype(np.int32)
    at = levels.numpy() * columns + column
    return torch.from_numpy(np.where(place - column < chances.take(at), column, aliases.take(at)))


@lru_cache(maxsize=8)
def alias_tables(photons: int) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
    """Walker's tables of the Poisson distribution of each of 256 levels: 256 x columns.

    Each column is one of as many equally likely draws: it gives its own number with a chance, else its alias (Robin Hood: the
    poorest column is filled by the richest, until all are full).
    """
    columns = 1 << ceil(log2(photons + 7 * sqrt(photons) + 8))  # beyond them are less than 1e-9 of the counts
    counts, means = np.arange(columns), photons * np.arange(256)[:, None] / 255
    wealth = np.exp(xlogy(counts, means) - gammaln(counts + 1) - means)
    wealth *= columns / wealth.sum(1, keepdims=True)
    chances, aliases = np.ones((256, columns), np.float32), np.tile(counts, (256, 1))
    rows = np.arange(256)
    for _ in counts:
        poorest, richest = wealth.argmin(1), wealth.argmax(1)
        own = wealth[rows, poorest]
        poor = own < 1
        at = rows[poor], poorest[poor]
        chances[at], aliases[at] = own[poor], richest[poor]
        wealth[rows[poor], richest[poor]] -= 1 - own[poor]
        wealth[at] = 1
    steps = 2**24 / columns  # of a place in a column: torch.rand has 24 bits
    return (chances * steps).round() / np.float32(steps), aliases.astype(np.int32)


def impulse_noise(image: Tensor, share: float, draw: torch.Generator) -> Tensor:
    """A `share` of all values is black or white, half of it each."""
    hit = torch.rand(image.shape, generator=draw)
    return image.masked_fill(hit < share, 0).masked_fill_(hit < share / 2, 1)
