"""Corruptions: the same for an image however it is batched, and as severe as they say."""

import pytest
import torch

from sanbench.errors import InputError
from sanbench.evaluation.corruptions import CORRUPTIONS, Corrupted, parse_corruptions


@pytest.fixture
def pixels(images):
    return images.read(range(len(images))).float() / 255


@pytest.mark.parametrize("kind", CORRUPTIONS)
def test_corruptions_are_seeded_per_image_and_grow_with_severity(kind, pixels, images):
    indices = torch.arange(len(images))
    labels = images.labels
    found = [Corrupted(kind, severity)(pixels, labels, indices).images for severity in (1, 5)]
    for corrupted in found:
        assert corrupted.shape == pixels.shape
        assert corrupted.min() >= 0 and corrupted.max() <= 1
        assert torch.allclose(corrupted * 255, (corrupted * 255).round(), atol=1e-3)
        assert not torch.equal(corrupted, pixels)
    mild, severe = ((corrupted - pixels).square().mean() for corrupted in found)
    if kind != "elastic":  # its severities trade size for fineness
        assert severe > mild
    before = torch.get_rng_state()
    alone = torch.cat([Corrupted(kind, 5)(pixels[i : i + 1], labels[i : i + 1], indices[i : i + 1]).images for i in indices])
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
