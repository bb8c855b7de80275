"""Intervals and tests against their published formulas."""

from math import comb

import numpy as np
import pytest
from scipy.stats import binomtest, norm

from sanbench.evaluation.statistics import Z, holm, mcnemar, mean_proportion, paired_difference, wilson


@pytest.mark.parametrize("counts", [(8, 2, 10, 30), (0, 7, 0, 3), (5, 5, 40, 0), (0, 0, 20, 0)])
def test_paired_differences(counts):
    b, c, both, neither = counts
    first = np.array([True] * b + [False] * c + [True] * both + [False] * neither)
    second = np.array([False] * b + [True] * c + [True] * both + [False] * neither)
    found = paired_difference(first, second)
    total = b + c
    tail = sum(comb(total, k) for k in range(min(b, c) + 1)) / 2**total
    assert found.p == pytest.approx(min(1, 2 * tail))
    assert found.value == pytest.approx((b - c) / len(first))
    assert -1 <= found.low <= found.value <= found.high <= 1
    assert (found.only_first, found.only_second) == (b, c)
    swapped = paired_difference(second, first)
    assert (swapped.low, swapped.high) == pytest.approx((-found.high, -found.low))
    assert found.excludes_zero == (b == 0 and c == 7)


@pytest.mark.parametrize("counts", [(0, 0), (1, 0), (5, 5), (3, 17), (40, 12), (300, 211), (0, 2000), (9000, 9500)], ids=str)
def test_p_is_scipys(counts):
    expected = binomtest(counts[0], sum(counts), 0.5).pvalue if sum(counts) else 1
    assert mcnemar(*counts) == mcnemar(*reversed(counts)) == pytest.approx(expected, rel=1e-9)
    assert norm.ppf(0.975) == Z


def test_newcombes_published_example():
    """Newcombe 1998, table II: 36 both, 12 and 2 alone, 0 neither -> 0.2 with 0.0569 to 0.3404 (method 10)."""
    pairs = [(True, True)] * 36 + [(True, False)] * 12 + [(False, True)] * 2
    found = paired_difference(*map(np.array, zip(*pairs)))
    assert (found.value, found.low, found.high) == pytest.approx((0.2, 0.0569, 0.3404), abs=2e-4)


def test_holm_is_monotone_and_scaled():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.9, 0.8]) == [1, 1]
    assert holm([]) == []


@pytest.mark.parametrize(("hits", "total"), [(0, 10), (10, 10), (7, 9), (843, 1000)])
def test_wilson_is_the_score_interval(hits, total):
    z, p = norm.ppf(0.975), hits / total
    centre = (p + z * z / (2 * total)) / (1 + z * z / total)
    half = z / (1 + z * z / total) * (p * (1 - p) / total + z * z / (4 * total**2)) ** 0.5
    found = wilson(hits, total)
    assert (found.value, found.low, found.high) == pytest.approx((p, max(0, centre - half), min(1, centre + half)))


@pytest.mark.parametrize(("hits", "total"), [(0, 7), (7, 7), (1, 2000), (1718, 2000), (13, 32)])
def test_score_intervals_are_scipys(hits, total):
    reference = binomtest(hits, total).proportion_ci(0.95, method="wilson")
    assert wilson(hits, total)[2:] == (hits / total, reference.low, reference.high)


def test_the_mean_of_conditions_has_the_interval_of_one():
    """10, 20 and 30 of the same 100 images: 60 of 300, with the interval of 20 of 100, which is that of no 300 images."""
    mean = mean_proportion([wilson(hits, 100) for hits in (10, 20, 30)])
    assert mean[:3] == (60, 300, 0.2)
    assert mean[3:] == wilson(20, 100)[3:] and mean.low < wilson(60, 300).low
