"""Corruptions: the same for an image however it is batched, and as severe as they say."""

import hashlib
import pickle
import subprocess
import sys

import numpy as np
import pytest
import torch

from sanbench.errors import InputError
from sanbench.evaluation.corruptions import CORRUPTIONS, SEVERITIES, Corrupted, corrupt, parse_corruptions
from tests.support.photographs import photograph_batch


@pytest.fixture
def pixels(images):
    return images.read(range(len(images)))


@pytest.mark.parametrize("kind", CORRUPTIONS)
def test_corruptions_are_seeded_per_image_and_grow_with_severity(kind, pixels, images):
    indices = torch.arange(len(images))
    found = [Corrupted(kind, severity).change(pixels, indices) for severity in (1, 5)]
    for corrupted in found:
        assert corrupted.shape == pixels.shape
        assert corrupted.dtype == torch.uint8
        assert not torch.equal(corrupted, pixels)
    mild, severe = ((corrupted.float() - pixels.float()).square().mean() for corrupted in found)
    if kind != "elastic":  # its severities trade size for fineness
        assert severe > mild
    before = torch.get_rng_state()
    alone = torch.cat([Corrupted(kind, 5).change(pixels[i : i + 1], indices[i : i + 1]) for i in indices])
    assert torch.equal(alone, found[1])
    assert torch.equal(torch.get_rng_state(), before)


def test_corruption_lists():
    assert len(parse_corruptions("all", "1:5", 0)) == 75
    assert [(c.name, c.severity) for c in parse_corruptions("fog,jpeg", "1,3:4", 0)][:3] == [("fog", 1), ("fog", 3), ("fog", 4)]
    with pytest.raises(InputError, match="Did you mean 'fog'"):
        parse_corruptions("fogg", "1", 0)
    for wrong in ("0", "6", "1:9", "x", "5:1"):
        with pytest.raises(InputError, match=f"severity '{wrong}'"):
            parse_corruptions("fog", wrong, 0)


def levels(side):
    """A photograph, 3 x side x side uint8."""
    return (photograph_batch(side, 1)[0] * 255).round().to(torch.uint8)


@pytest.mark.parametrize("kind", CORRUPTIONS)
def test_the_bits_do_not_depend_on_threads_or_on_the_process_random_numbers(kind):
    image, threads = levels(224), torch.get_num_threads()
    states = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002  it is what must not be used
    found = []
    try:
        for number in (1, 2, 5):
            torch.set_num_threads(number)
            found.append([corrupt(image, kind, severity, 0, 7) for severity in SEVERITIES])
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(one, other) for others in found[1:] for one, other in zip(found[0], others))
    assert torch.equal(states[0], torch.get_rng_state()) and (states[1] == np.random.get_state()[1]).all()  # noqa: NPY002
    assert torch.equal(image, levels(224))


DIGEST = """
import hashlib, pickle, sys, torch
image, perturbations = pickle.load(sys.stdin.buffer)
made = [each.change(image[None], torch.tensor([5])) for each in perturbations]
print(hashlib.sha256(torch.stack(made).numpy().tobytes()).hexdigest())
"""


def test_another_process_gives_the_same_bits_to_what_was_pickled():
    image, perturbations = levels(64), parse_corruptions("all", "2,5", 3)
    assert max(len(pickle.dumps(each)) for each in perturbations) < 300
    command, given = [sys.executable, "-c", DIGEST], pickle.dumps((image, perturbations))
    theirs = subprocess.run(command, input=given, capture_output=True, check=True).stdout.decode().strip()
    made = torch.stack([corrupt(image, each.name, each.severity, 3, 5) for each in perturbations])[:, None]
    assert hashlib.sha256(made.numpy().tobytes()).hexdigest() == theirs


@pytest.mark.parametrize("shape", [(32, 32), (33, 70), (448, 300)])
@pytest.mark.parametrize("kind", CORRUPTIONS)
def test_any_size_is_corrupted(kind, shape):
    image = torch.nn.functional.interpolate(levels(224)[None], shape)[0]
    for severity in (1, 5):
        made = corrupt(image, kind, severity, 0, 0)
        assert made.dtype == torch.uint8 and made.shape == image.shape
        assert not torch.equal(made, image)


@pytest.mark.parametrize("kind", ["defocus-blur", "motion-blur"])
def test_lengths_follow_the_size(kind):
    """An image twice as large, halved after the corruption, is nearly the same: a third of what the corruption changes."""

    def halved(image):
        return torch.nn.functional.avg_pool2d(image.float(), 2)

    large = levels(448)
    small = halved(large).round().to(torch.uint8)
    for severity in SEVERITIES:
        expected = corrupt(small, kind, severity, 0, 0).float()
        off = (halved(corrupt(large, kind, severity, 0, 0)) - expected).abs().mean() / (expected - small).abs().mean()
        assert off < 1 / 3, (severity, off)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"name": "fogg"}, "Did you mean 'fog'"),
        ({"severity": 6}, "severity 6 is not accepted"),
        ({"image": torch.zeros(3, 32, 32)}, r"float32 \(3, 32, 32\) on cpu is not accepted: accepted is uint8"),
        ({"image": torch.zeros(1, 32, 32, dtype=torch.uint8)}, r"\(1, 32, 32\)"),
    ],
)
def test_what_cannot_be_corrupted_is_named(change, said):
    given = {"image": levels(32), "name": "fog", "severity": 1, "seed": 0, "index": 0}
    with pytest.raises(InputError, match=said):
        corrupt(**(given | change))
