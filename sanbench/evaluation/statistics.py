"""Statistics of proportions."""

from typing import NamedTuple

from scipy.stats import binomtest


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
    interval = binomtest(hits, total).proportion_ci(0.95, method="wilson")
    return Proportion(hits, total, hits / total, float(interval.low), float(interval.high))
