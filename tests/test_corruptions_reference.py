"""Corruptions against the original's functions with the same random numbers, and against what they are defined by."""

import numpy as np
import pytest
import torch
from imagecorruptions import corruptions as original
from PIL import Image
from scipy.stats import poisson

from sanbench.evaluation.corruptions import CORRUPTIONS, SEVERITIES, corrupt
from sanbench.evaluation.distortions.filters import motion_kernel, plasma, rescaled, smoothed
from sanbench.evaluation.distortions.noise import photon_counts
from tests.support.original_corruptions import corrupt_as_originally
from tests.support.photographs import PHOTOGRAPHS, photograph_batch

REDEFINED = {"frost"}
OFF = 0.05  # of all values may be a level off: float32 and float64 fall on either side of a whole level
EXACT = [name for name in CORRUPTIONS if name not in REDEFINED]


def photographs(number, side=224):
    return (photograph_batch(side, number) * 255).round().to(torch.uint8)


def compare(name, severity, image, index):
    """(largest difference in levels, share of values that differ)."""
    ours = corrupt(image, name, severity, 3, index).int()
    difference = (ours - corrupt_as_originally(image, name, severity, 3, index)).abs()
    return difference.max().item(), (difference > 0).double().mean().item()


@pytest.mark.parametrize("name", EXACT)
def test_at_224_pixels_they_are_the_originals(name):
    """All of the values within a level of 256, with the original's function and our random numbers."""
    (image,) = photographs(1)
    largest, share = zip(*(compare(name, severity, image, severity) for severity in SEVERITIES))
    assert max(largest) <= 1 and np.mean(share) < OFF


@pytest.mark.slow
@pytest.mark.parametrize("name", EXACT)
def test_on_twenty_photographs_they_are_the_originals(name):
    found = [
        compare(name, severity, image, index)
        for index, image in enumerate(photographs(len(PHOTOGRAPHS)))
        for severity in SEVERITIES
    ]
    largest, share = zip(*found)
    print(f"| `{name}` | {max(largest)} | {np.mean(share):.2%} |")
    assert max(largest) <= 1 and np.mean(share) < OFF


def statistics(images, clean):
    """In levels: mean, mean by channel, spread within an image, mean distance from the clean image."""
    values = np.stack(images).astype(float)
    spread = values.std((2, 3)).mean()
    return np.array([*values.mean((0, 2, 3)), spread, abs(values - np.stack(clean)).mean()])


@pytest.mark.parametrize("severity", SEVERITIES)
def test_frost_is_as_bright_and_as_strong_as_the_originals(severity, monkeypatch):
    """Over 10 photographs with 10 draws each; the original takes the first five of six photographs of frost."""
    random, draws = np.random.default_rng(0), range(10)
    monkeypatch.setattr(np.random, "randint", lambda low, high=None: random.integers(*((5,) if high is None else (low, high))))
    images = photographs(10)
    clean = [image.numpy() for image in images for _ in draws]
    pictures = [Image.fromarray(image.transpose(1, 2, 0)) for image in clean]
    theirs = statistics([np.uint8(original.frost(picture, severity)).transpose(2, 0, 1) for picture in pictures], clean)
    ours = statistics([corrupt(x, "frost", severity, seed, at).numpy() for at, x in enumerate(images) for seed in draws], clean)
    print(severity, theirs.round(1), ours.round(1))
    assert abs(ours - theirs).max() < 8


def test_shot_noise_counts_are_poissons():
    """By Pearson's statistic, at five standard deviations."""
    for photons in CORRUPTIONS["shot-noise"].strengths:
        for level in (0, 1, 100, 255):
            number = 200_000
            counts = photon_counts(torch.full((number,), level), photons, torch.Generator().manual_seed(level))
            seen = np.bincount(counts.numpy(), minlength=200)
            expected = number * poisson.pmf(np.arange(len(seen)), photons * level / 255)
            often = expected > 5
            statistic, freedom = ((seen - expected)[often] ** 2 / expected[often]).sum(), max(1, often.sum() - 1)
            assert statistic < freedom + 5 * np.sqrt(2 * freedom), (photons, level)
            assert seen[~often].sum() < 60


@pytest.mark.parametrize("factor", [1 / 7, 0.5, 1, 2])
def test_kernels_follow_the_size_of_the_image(factor):
    """The middle of a kernel's weights lies `factor` times as far, and they sum to 1."""
    kernel = motion_kernel(10, 3, 20)
    made = rescaled(kernel, factor)
    middle, other = (
        [(each * np.arange(len(each))).sum() - len(each) // 2 for each in (k.sum(0), k.sum(1))] for k in (kernel, made)
    )
    assert np.allclose(other, np.multiply(middle, factor)) and made.sum() == pytest.approx(1)
    assert (made >= 0).all() and np.array_equal(rescaled(kernel, 1), kernel)


def test_a_wide_gaussian_leaves_the_mean():
    field = torch.rand((1, 32, 40), generator=torch.Generator().manual_seed(0))
    assert torch.allclose(smoothed(field, 200.0), field.mean().expand(1, 32, 40), atol=1e-3)


def test_plasma_is_rougher_where_it_decays_less():
    smooth, rough = (plasma(64, decay, torch.Generator().manual_seed(0)) for decay in (3, 1.2))
    assert {smooth.min(), rough.min()} == {0} and {smooth.max(), rough.max()} == {1}
    assert abs(np.diff(rough)).mean() > 2 * abs(np.diff(smooth)).mean()
