"""Statistics of proportions: intervals, and two networks on the same images. Scipy's import takes a second: it is late."""

from __future__ import annotations

from collections.abc import Sequence
from math import sqrt
from typing import TYPE_CHECKING, NamedTuple

from sanbench.late import Late

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from scipy import special, stats
else:
    np, special, stats = Late("numpy"), Late("scipy.special"), Late("scipy.stats")

Z = 1.959963984540054  # of a 95% interval: the normal distribution is below it with probability 0.975


class Proportion(NamedTuple):
    """hits of total, with its 95% Wilson interval, all in [0, 1]."""

    hits: int
    total: int
    value: float
    low: float
    high: float


def wilson(hits: int, total: int) -> Proportion:
    """The proportion hits / total with its 95% score interval (Wilson 1927). NaN where total is 0."""
    if total == 0:
        return Proportion(hits, total, float("nan"), float("nan"), float("nan"))
    return Proportion(hits, total, hits / total, *score_interval(hits / total, total))


def score_interval(value: float, n: int) -> tuple[float, float]:
    """Low and high of the 95% score interval of a proportion of n, which at 0 and 1 ends there.

    (value + z^2 / 2n ± z sqrt(value (1 - value) / n + z^2 / 4n^2)) / (1 + z^2 / n)
    """
    scale = 2 * (n + Z**2)
    centre, spread = (2 * n * value + Z**2) / scale, Z / scale * sqrt(4 * n * value * (1 - value) + Z**2)
    return 0.0 if value == 0 else centre - spread, 1.0 if value == 1 else centre + spread


def mean_proportion(parts: Sequence[Proportion]) -> Proportion:
    """The mean of proportions of the same images, such as top-1 at several angles; `parts` is not empty, their totals are one.

    Hits and totals are summed. The score interval is that of as many images as one part has: what happens to an image under
    several conditions is not independent, so that an interval of all of them together would be too narrow.
    """
    hits, total = sum(part.hits for part in parts), sum(part.total for part in parts)
    return Proportion(hits, total, hits / total, *score_interval(hits / total, parts[0].total))


class Median(NamedTuple):
    """Of n numbers, with a 95% interval; infinite where more than half of them are beyond what was measured."""

    value: float
    low: float
    high: float
    n: int


def median(values: NDArray[np.float64]) -> Median:
    """The lower median, and the order statistics between which the population's lies with at least 95% (sign test).

    Of fewer than 6 numbers no such interval is finite: it is (-inf, inf). NaN where there are none.
    """
    n, ordered = len(values), np.sort(values)
    if n == 0:
        return Median(float("nan"), float("nan"), float("nan"), 0)
    below = int(stats.binom.ppf(0.025, n, 0.5))  # P(fewer than `below` of n) <= 2.5%
    low, high = (ordered[below - 1], ordered[n - below]) if below else (-np.inf, np.inf)
    return Median(float(ordered[(n - 1) // 2]), float(low), float(high), n)


class Difference(NamedTuple):
    """Accuracy of one network minus that of another on the same images, with a 95% interval, in [-1, 1]."""

    value: float
    low: float
    high: float
    only_first: int  # images that the first has right and the second wrong
    only_second: int
    p: float  # exact McNemar, two-sided

    @property
    def excludes_zero(self) -> bool:
        return self.low > 0 or self.high < 0


def paired_difference(first: NDArray[np.bool_], second: NDArray[np.bool_]) -> Difference:
    """(b - c) / n for images that only the first (b) or only the second (c) has right; n > 0 images in the same order.

    p        exact McNemar test: b of b + c against 1/2
    interval Newcombe 1998, method 10: Wilson limits of both proportions, joined by their correlation
    """
    n = len(first)
    both, only_first = int((first & second).sum()), int((first & ~second).sum())
    only_second = int((~first & second).sum())
    neither = n - both - only_first - only_second
    one, two = wilson(both + only_first, n), wilson(both + only_second, n)
    spread = one.hits * (n - one.hits) * two.hits * (n - two.hits)
    covariance = both * neither - only_first * only_second
    corrected = max(covariance - n / 2, 0) if covariance > 0 else covariance
    phi = corrected / sqrt(spread) if spread else 0.0
    value = one.value - two.value
    return Difference(
        value,
        value - joined(one.value - one.low, two.high - two.value, phi),
        value + joined(one.high - one.value, two.value - two.low, phi),
        only_first,
        only_second,
        mcnemar(only_first, only_second),
    )


class SeedDifference(NamedTuple):
    """Accuracy minus that of another, over networks trained with several seeds on the same images; all in [-1, 1]."""

    value: float
    low: float
    high: float
    p: float
    seeds: int

    @property
    def excludes_zero(self) -> bool:
        return self.low > 0 or self.high < 0


def difference_over_seeds(pairs: Sequence[tuple[NDArray[np.bool_], NDArray[np.bool_]]]) -> SeedDifference:
    """The mean difference of pairs, one a seed, with a 95% interval for other seeds and other images.

    d_si = mean + seed_s + image_i + rest_si, both random: Var(mean) = A + B - E with A = var(means of seeds) / S,
    B = var(means of images) / n, E = var(rest) / Sn, at least A and B, and Student's t with Satterthwaite's degrees of
    freedom. Of one seed it is `paired_difference`, which knows of no other seed.
    """
    if len(pairs) == 1:
        one = paired_difference(*pairs[0])
        return SeedDifference(one.value, one.low, one.high, one.p, 1)
    d = np.stack([first.astype(float) - second for first, second in pairs])
    seeds, images = d.shape
    by_seed, by_image, mean = d.mean(1), d.mean(0), float(d.mean())
    a = by_seed.var(ddof=1) / seeds
    b = by_image.var(ddof=1) / images if images > 1 else 0.0
    rest = ((d - by_seed[:, None] - by_image + mean) ** 2).sum() / max(1, (seeds - 1) * (images - 1))
    e = rest / (seeds * images)
    variance = max(a + b - e, a, b)
    if variance == 0:
        return SeedDifference(mean, mean, mean, float(mean == 0), seeds)
    spread = a**2 / (seeds - 1) + b**2 / max(1, images - 1) + e**2 / max(1, (seeds - 1) * (images - 1))
    freedom = max(1.0, variance**2 / spread)
    error = sqrt(variance)
    half = float(special.stdtrit(freedom, 0.975)) * error
    return SeedDifference(mean, mean - half, mean + half, float(2 * special.stdtr(freedom, -abs(mean) / error)), seeds)


def mcnemar(only_first: int, only_second: int) -> float:
    """p of as many heads and tails of a fair coin, or a more uneven outcome: 2 P(X <= min(heads, tails)), at most 1. Exact."""
    n, fewer = only_first + only_second, min(only_first, only_second)
    ways = outcomes = 1  # to have so many, and up to so many, heads
    for heads in range(1, fewer + 1):
        ways = ways * (n - heads + 1) // heads
        outcomes += ways
    return min(1.0, 2 * outcomes / 2**n)


def joined(one: float, two: float, phi: float) -> float:
    return sqrt(max(one * one - 2 * phi * one * two + two * two, 0))


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values adjusted for all tests of a table (Holm 1979), in the given order."""
    adjusted, largest = [0.0] * len(p_values), 0.0
    for rank, place in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[place]))
        adjusted[place] = largest
    return adjusted
