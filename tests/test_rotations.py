"""Angles, frames, and in which order an image is rotated and cropped."""

import pytest
import torch
from PIL import Image

from sanbench.data import Source, load_dataset
from sanbench.errors import InputError
from sanbench.evaluation.loop import Identity, measure
from sanbench.evaluation.rotations import Frame, Rotation, parse_angles, parse_order

CPU = torch.device("cpu")


@pytest.fixture
def white(tmp_path):
    """White images in a folder, larger than the network's input."""
    for split in ("train", "val"):
        place = tmp_path / split / "thing"
        place.mkdir(parents=True)
        Image.new("RGB", (120, 90), "white").save(place / "0.png")
    return load_dataset(f"folder:{tmp_path}", "test", Source(image_size=56))


def shown(images, *perturbations):
    """What the network sees of the first image."""
    seen = []

    class Looks(torch.nn.Module):
        def forward(self, x):
            seen.append(x[0])
            return x.flatten(1)[:, :6]

    images.border = max(getattr(perturbation, "border", 0) for perturbation in perturbations)
    list(measure(Looks(), [(images.__getitems__([0]), perturbations)], CPU))
    return seen


def test_rotating_the_larger_image_first_leaves_less_filling(white):
    first = parse_order("rotate-first", Frame(), white.name, white.widest)
    assert first.border == white.widest == 4  # of (64 - 56) / 2
    after, before = shown(white, Rotation(45, first), Rotation(45))
    assert after.shape == before.shape == (3, 56, 56)
    filled = [float((image[0] == 0).float().mean()) for image in (after, before)]
    assert 0.05 < filled[0] < 0.10 < 0.15 < filled[1] < 0.20  # 7.5% and 17.6% are those of 224 from 256
    inscribed = shown(white, Rotation(45, Frame(crop="inscribed", border=4)))[0]
    assert inscribed.shape == (3, 56, 56) and inscribed.min() > 0.99
    assert Rotation(45, first).setting["order"] == "rotated with 4 pixels more on each side, then cropped to the input"
    assert Rotation(45).setting["order"] == "cropped to the input, then rotated"


def test_upright_and_quarter_turns_are_the_same_in_either_order(folder):
    images = load_dataset(f"folder:{folder}", "test", Source(image_size=28))
    first = Frame(border=images.widest)
    assert images.widest == 2
    upright, turned, exact, disc, same = shown(
        images, Identity(), Rotation(90, first), Rotation(90), Rotation(0, Frame(mask="disc", border=2)), Rotation(0, first)
    )
    assert torch.equal(turned, exact) and torch.equal(upright, same)
    assert torch.equal(disc, Rotation(0, Frame(mask="disc"))(upright[None], None, None).images[0])
    images.border = 0
    assert torch.equal(images.read([0])[0] / 255, upright)


def test_what_has_no_border_says_so():
    with pytest.raises(InputError, match="no larger than the network's input"):
        parse_order("rotate-first", Frame(), "fashion10k", 0)
    with pytest.raises(InputError, match="Did you mean 'rotate-first'"):
        parse_order("rotate", Frame(), "x", 3)
    assert parse_order("crop-first", Frame(), "fashion10k", 0) == Frame()
    assert len(parse_angles("0:360:15", Frame(border=3))) == 24
