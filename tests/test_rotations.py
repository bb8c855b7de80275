"""Rotations: which way they turn, angles, frames, and in which order an image is rotated and cropped."""

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as V

from sanbench.data import ReadOptions, load_dataset
from sanbench.data.images import centre
from sanbench.errors import InputError
from sanbench.evaluation import turning
from sanbench.evaluation.loop import Identity, Perturbed, measure
from sanbench.evaluation.rotations import Frame, Rotation, parse_angles, parse_order
from sanbench.models import build_model
from sanbench.runs.evaluated import EvaluatedModel
from sanbench.store.files import Store
from tests.support.quick_measurements import measured

CPU = torch.device("cpu")


def test_rotation_is_clockwise():
    image = torch.tensor([[1.0, 2.0], [3.0, 4.0]]).expand(1, 3, 2, 2)

    def turned(perturbation):
        return perturbation(image, torch.zeros(1), torch.zeros(1)).images[0, 0].tolist()

    assert turned(Rotation(90)) == [[3, 1], [4, 2]]  # the upper left corner goes to the upper right
    assert turned(Rotation(180)) == [[4, 3], [2, 1]]
    assert turned(Rotation(270)) == [[2, 4], [1, 3]]
    assert turned(Rotation("flip")) == [[3, 4], [1, 2]]


def test_a_mirror_reverses_columns_and_quarter_turns_are_exact_in_every_frame():
    image = torch.rand(1, 3, 32, 32)
    assert torch.equal(Rotation("mirror")(image, None, None).images, image.flip(3))
    turned = Rotation(90, Frame("nearest", "white"))(image, None, None).images
    assert torch.equal(turned, Rotation(90)(image, None, None).images)


@pytest.mark.parametrize("angle", [0, 15, 45, 90, 100.5, 315])
def test_frames_show_no_filling_and_the_disc_the_same_corners(angle):
    white = torch.ones(1, 3, 224, 224)
    inscribed = Rotation(angle, Frame(crop="inscribed"))(white, None, None).images
    assert inscribed.shape == white.shape
    assert inscribed.min() > 1 - 1e-5  # black would show
    if angle % 90:
        assert Rotation(angle)(white, None, None).images.min() == 0
    disc = Rotation(angle, Frame(mask="disc"))(white, None, None).images
    at_0 = Rotation(0, Frame(mask="disc"))(white, None, None).images
    assert (disc[..., 0, 0] == 0).all()
    assert ((disc - at_0).abs() > 0.5).float().mean() < 0.003  # pixels on the circle


def test_resampled_rotation_is_clockwise_and_declared():
    image = torch.zeros(1, 3, 33, 33)
    image[..., 0:9, 14:19] = 1  # a bar at 12 o'clock
    turned = Rotation(45)(image, None, None).images[0, 0]
    assert turned[4:12, 22:30].sum() > 10  # to half past one
    assert turned[4:12, 3:11].sum() == 0
    setting = Rotation(45, Frame("nearest", "grey", "inscribed")).setting
    assert {k: setting[k] for k in ("angle", "interpolation", "fill", "crop", "mask")} == {
        "angle": 45,
        "interpolation": "nearest",
        "fill": "grey",
        "crop": "inscribed",
        "mask": "none",
    }
    assert "then rotated" in setting["order"]
    with pytest.raises(InputError, match="Did you mean 'inscribed'"):
        Frame(crop="inscribe")


@pytest.mark.parametrize("interpolation", ["nearest", "bilinear"])
@pytest.mark.parametrize("shape", [(3, 3, 32, 32), (70, 3, 7, 7), (2, 3, 33, 33), (2, 3, 30, 44)], ids=str)
def test_pixels_are_torchvisions_bit_by_bit(shape, interpolation):
    images = torch.rand(shape, generator=torch.Generator().manual_seed(0))
    for angle, fill in [(0.5, 0.0), (45, 0.5), (123.4, 1.0), (300, 0.0), (359, 0.5)]:
        expected = V.rotate(images, -angle, InterpolationMode(interpolation), fill=[fill] * 3)
        assert torch.equal(turning.turned(images, angle, interpolation, fill), expected)
    for side in (1, 4, 5, 7):
        assert torch.equal(centre(images, side), V.center_crop(images, [side, side]))
        assert torch.equal(turning.resized(images, side), V.resize(images, [side, side], antialias=True))


def test_ranges_of_angles():
    assert [p.setting.get("angle", 0) for p in parse_angles("0:360:90")] == [0, 90, 180, 270]
    assert [p.setting.get("angle", 0) for p in parse_angles("0:46:22.5,mirror")] == [0, 22.5, 45, "mirror"]
    assert len(parse_angles("0:360:15")) == 24
    assert isinstance(parse_angles("0")[0], Identity)
    assert parse_angles("0", Frame(crop="inscribed"))[0].setting["crop"] == "inscribed"  # its own control


def test_angles_are_read_once_each():
    parsed = parse_angles("0,90,flip,450,-90")
    assert [p.setting for p in parsed] == [{}, {"angle": 90}, {"angle": "flip"}, {"angle": 270}]
    for wrong in ("45x", "", "90;180", "nan", "0:90", "0:90:0", "0:90:-5", "inf", "0:inf:1"):
        with pytest.raises(InputError, match="clockwise degrees"):
            parse_angles(wrong)


def test_an_equivariant_network_drops_exactly_nothing(images, tmp_path):
    """Pairwise attention without positions, with odd footprints: quarter turns change no prediction."""
    torch.manual_seed(0)
    model = build_model("san10", 3, width=0.25, position="none").eval()
    equivariant = EvaluatedModel(model, "w", "r", {}, {}, "s")
    records = measured(equivariant, images, Store(tmp_path), [Identity(), *map(Rotation, (90, 180, 270))])
    rows = [Store(tmp_path).rows(record) for record in records]
    for turned in rows[1:]:
        assert turned["prediction"].tolist() == rows[0]["prediction"].tolist()
        np.testing.assert_allclose(turned["confidence"], rows[0]["confidence"], rtol=1e-4)

    class RotatedCrop(Rotation):
        """The bug: another crop when turned."""

        def __call__(self, images, labels, indices):
            turned = super().__call__(images, labels, indices).images
            return Perturbed(turned.roll((3, 1), (2, 3)), {})

    (broken,) = measured(equivariant, images, Store(tmp_path / "broken"), [RotatedCrop(90)])
    wrong = Store(tmp_path / "broken").rows(broken)
    assert not np.allclose(wrong["confidence"], rows[0]["confidence"], rtol=1e-4)


@pytest.fixture
def white(tmp_path):
    """White images in a folder, larger than the network's input."""
    for split in ("train", "val"):
        place = tmp_path / split / "thing"
        place.mkdir(parents=True)
        Image.new("RGB", (120, 90), "white").save(place / "0.png")
    return load_dataset(f"folder:{tmp_path}", "test", ReadOptions(image_size=56))


def shown(images, *perturbations):
    """What the network sees of the first image."""
    seen = []

    class Looks(torch.nn.Module):
        def forward(self, x):
            seen.append(x[0])
            return x.flatten(1)[:, :6]

    images = images.with_options(border=max(getattr(perturbation, "border", 0) for perturbation in perturbations))
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
    images = load_dataset(f"folder:{folder}", "test", ReadOptions(image_size=28))
    first = Frame(border=images.widest)
    assert images.widest == 2
    upright, turned, exact, disc, same = shown(
        images, Identity(), Rotation(90, first), Rotation(90), Rotation(0, Frame(mask="disc", border=2)), Rotation(0, first)
    )
    assert torch.equal(turned, exact) and torch.equal(upright, same)
    assert torch.equal(disc, Rotation(0, Frame(mask="disc"))(upright[None], None, None).images[0])
    assert torch.equal(images.read([0])[0] / 255, upright)  # reading with a border has not changed them


def test_what_has_no_border_says_so():
    with pytest.raises(InputError, match="no larger than the network's input"):
        parse_order("rotate-first", Frame(), "fashion10k", 0)
    with pytest.raises(InputError, match="Did you mean 'rotate-first'"):
        parse_order("rotate", Frame(), "x", 3)
    assert parse_order("crop-first", Frame(), "fashion10k", 0) == Frame()
    assert len(parse_angles("0:360:15", Frame(border=3))) == 24
