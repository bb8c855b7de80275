"""What a network looks at: attention weights against the operators, roll-out against matrices, saliency of a linear network."""

from dataclasses import replace
from math import isqrt

import numpy as np
import pytest
import torch
from torch import nn

from sanbench.data import TensorImages
from sanbench.errors import InputError
from sanbench.explain.attention import attention_layers, find_layer, find_san, rollout, stage_pixel
from sanbench.explain.draw import draw
from sanbench.explain.panels import Asked, explain, rotated, side_by_side
from sanbench.explain.saliency import input_gradient, occlusion
from sanbench.models import Classifier, build_model
from sanbench.ops.aggregation import aggregate
from sanbench.ops.attention import pairwise_weights, patchwise_weights, scalar_weights
from sanbench.ops.footprint import Footprint
from sanbench.relation import RELATIONS
from sanbench.runs.evaluated import EvaluatedModel
from sanbench.store.schema import ModelSpec
from tests.support.commands import sanbench
from tests.support.unsettled_weights import unsettle


def network(seed: int = 0, **fields) -> nn.Module:
    torch.manual_seed(seed)
    attention = fields.pop("attention", "pairwise")
    model = build_model(f"san10_{attention}", num_classes=10, **{"width": 0.25, "footprint": 5} | fields)
    if attention != "patchwise":  # without softmax, logits would grow to 1e24
        unsettle(model)
    return model.eval().requires_grad_(False)


def picture(side: int = 32, seed: int = 1) -> torch.Tensor:
    return torch.rand(1, 3, side, side, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(
    ("kind", "relation"), [(kind, name) for kind, known in RELATIONS.items() for name in known] + [("scalar", "dot")]
)
@pytest.mark.parametrize(("footprint", "stride", "dilation"), [(3, 1, 1), (5, 2, 1), (3, 2, 2), (7, 1, 1)])
def test_the_operator_aggregates_with_these_weights(kind, relation, footprint, stride, dilation):
    """The operator is linear in value: its gradient by value at one output pixel is the weights, wherever they come from."""
    generator = torch.Generator().manual_seed(0)
    maps = [torch.randn(2, c, 6, 5, generator=generator) for c in (4, 4, 8)]
    window = Footprint(footprint, stride, dilation)
    geometry = (footprint, stride, dilation)
    if kind == "scalar":
        out = torch.ops.sanbench.scalar_attention(*maps, 2, *geometry)
        weights = scalar_weights(*maps[:2], 2, window)
    else:
        width = RELATIONS[kind][relation].channels(4, footprint**2) + 2 * (kind == "pairwise")
        last = 2 * (footprint**2 if kind == "patchwise" else 1)
        gamma = [torch.randn(n, generator=generator) for n in (width, width)]
        gamma += [torch.randn(last, width, generator=generator) / width**0.5, torch.randn(last, generator=generator)]
        position = [torch.randn(2, 2, 6, 5, generator=generator)] if kind == "pairwise" else []
        out = getattr(torch.ops.sanbench, f"{kind}_attention")(*maps, *position, gamma, relation, *geometry)
        make = pairwise_weights if kind == "pairwise" else patchwise_weights
        weights = make(*maps[:2], *position, gamma, relation, window)
    assert weights.shape == (2, 2, footprint**2, out.shape[-2] * out.shape[-1])
    torch.testing.assert_close(aggregate(weights, window.expand(maps[2])).view_as(out), out, atol=1e-5, rtol=1e-5)


LAYERS = [("pairwise", name) for name in RELATIONS["pairwise"]] + [("patchwise", name) for name in RELATIONS["patchwise"]]
LAYERS += [("scalar", None)]


@pytest.mark.parametrize(("attention", "relation"), LAYERS)
def test_the_weights_of_a_pixel_are_those_its_layer_uses(attention, relation):
    """In the middle, on edges and in corners; the gradient by value is found without the specification's aggregation."""
    stages = attention_layers(network(attention=attention, relation=relation), picture())
    for stage, pixel in ((0, (0, 0)), (0, (7, 15)), (1, (3, 4)), (1, (7, 0)), (2, (3, 3)), (3, (1, 0)), (4, (0, 0))):
        layer = find_layer(stages, stage)
        value = layer.value.detach().requires_grad_()
        out = layer.attention.attend(layer.query, layer.key, value)
        weights = layer.at(pixel)
        for channel in (0, 1, out.shape[1] - 1):
            (used,) = torch.autograd.grad(out[0, channel, pixel[0], pixel[1]], value, retain_graph=True)
            shown = layer.on_map(pixel)[channel % len(weights)]
            torch.testing.assert_close(shown.nan_to_num(), used[0, channel], atol=1e-5, rtol=1e-5)
        if attention == "patchwise":
            assert (weights < 0).any()
        else:
            torch.testing.assert_close(weights.sum(1), torch.ones(len(weights)))


def test_the_layers_are_given_what_the_network_gives_them():
    """What each block adds to its input, from its layer's query, key and value."""
    model, image = network(), picture()
    seen = {}
    blocks = [block for stage in find_san(model).stages for block in stage[2]]
    for block in blocks:
        block.register_forward_hook(lambda block, inputs, out: seen.__setitem__(block, out - inputs[0]))
    layers = [layer for stage in attention_layers(model, image) for layer in stage]
    assert len(layers) == len(blocks) == 10
    for block, layer in zip(blocks, layers):
        attended = layer.attention.attend(layer.query, layer.key, layer.value)
        torch.testing.assert_close(block.expand(block.after(attended).relu()), seen[block], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("turns", [1, 2, 3])
def test_without_position_the_weights_turn_with_the_image(turns):
    model, image, pixel = network(position="none"), picture(), (9, 20)
    turned = torch.rot90(image, -turns, (2, 3))
    stages, after = attention_layers(model, image), attention_layers(model, turned)
    there = rotated(pixel, (32, 32), 90 * turns)
    for stage in range(5):
        layer, other = find_layer(stages, stage), find_layer(after, stage)
        upright = layer.on_map(stage_pixel(pixel, stage, layer.size))
        found = other.on_map(stage_pixel(there, stage, other.size))
        torch.testing.assert_close(found, torch.rot90(upright, -turns, (1, 2)), atol=1e-5, rtol=1e-4, equal_nan=True)


def test_with_position_they_do_not():
    model, image, pixel = network(), picture(), (9, 20)
    layer = find_layer(attention_layers(model, image), 1)
    other = find_layer(attention_layers(model, torch.rot90(image, -1, (2, 3))), 1)
    upright, found = layer.on_map((2, 5)), other.on_map(stage_pixel(rotated(pixel, (32, 32), 90), 1, other.size))
    assert not torch.allclose(found, torch.rot90(upright, -1, (1, 2)), atol=1e-3, equal_nan=True)


@pytest.mark.parametrize("size", [(2, 2), (4, 6), (5, 5)])
@pytest.mark.parametrize("angle", [90, 180, 270, 360])
def test_a_pixel_turns_as_its_image_does(size, angle):
    for pixel in np.ndindex(size):
        image = torch.zeros(size)
        image[pixel] = 1
        assert torch.rot90(image, -angle // 90)[rotated(pixel, size, angle)] == 1


def test_a_pixel_that_leaves_the_image_is_named():
    with pytest.raises(InputError, match=r"pixel 0,0 is not accepted with a rotation by 45 degrees"):
        rotated((0, 0), (32, 32), 45)
    assert rotated((16, 16), (33, 33), 45) == (16, 16)


def dense(layer) -> torch.Tensor:
    """(I + W) / 2 of `rollout` as a matrix."""
    height, width = layer.size
    rows = []
    for pixel in np.ndindex(height, width):
        window = Footprint(layer.attention.footprint)
        places = window.expand(torch.arange(height * width).view(1, 1, height, width))[0, 0, :, pixel[0] * width + pixel[1]]
        row = torch.zeros(height * width)
        for place, weight in zip(places.tolist(), layer.at(pixel).abs().sum(0)):
            row[place] += weight
        rows.append(row / row.sum())
    return (torch.eye(height * width) + torch.stack(rows)) / 2


@pytest.mark.parametrize("attention", ["pairwise", "patchwise", "scalar"])
def test_rollout_is_the_product_of_the_matrices(attention):
    stages = attention_layers(network(attention=attention), picture())
    share = torch.ones(1, 1)
    for layers in reversed(stages):
        for layer in reversed(layers):
            share = (share.flatten() @ dense(layer)).view(layer.size)
        share = nn.functional.interpolate(share[None, None], scale_factor=2)[0, 0] / 4
    found = rollout(stages, (32, 32))
    torch.testing.assert_close(found, share, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("side", [32, 45, 64])
def test_rollout_sums_to_one_and_is_not_negative(side):
    stages = attention_layers(network(attention="patchwise"), picture(side))
    found = rollout(stages, (side, side))
    assert found.shape == (side, side) and (found >= 0).all()
    torch.testing.assert_close(found.sum(), torch.tensor(1.0))
    last = side // 32
    start = torch.zeros(last, last)
    start[0, 0] = 1
    torch.testing.assert_close(rollout(stages, (side, side), start).sum(), torch.tensor(1.0))


class Linear(nn.Module):
    """logits_c = <weight_c, image>."""

    def __init__(self, classes: int = 4, side: int = 32) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(classes, 3, side, side, generator=torch.Generator().manual_seed(2)))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return torch.einsum("nchw,kchw->nk", images, self.weight)


def test_the_gradient_of_a_linear_network_is_its_weights():
    model, images = Linear(), torch.cat([picture(seed=1), picture(seed=2)])
    found = input_gradient(model, images, torch.tensor([3, 1]))
    torch.testing.assert_close(found, model.weight[[3, 1]].detach())
    assert not images.requires_grad


@pytest.mark.parametrize(("side", "stride"), [(1, 1), (8, 8), (5, 3)])
def test_occlusion_of_a_linear_network_is_what_was_covered(side, stride):
    model, image, fill = Linear(), picture()[0], torch.tensor([0.1, 0.5, 0.9])
    found = occlusion(model, image, 2, fill, side, stride, batch_size=7)
    lost = (model.weight[2].detach() * (image - fill[:, None, None])).sum(0)
    starts = sorted({*range(0, 33 - side, stride), 32 - side})
    squares = [(top, left) for top in starts for left in starts]
    expected, count = torch.zeros(32, 32), torch.zeros(32, 32)
    for top, left in squares:
        where = (slice(top, top + side), slice(left, left + side))
        expected[where] += lost[where].sum()
        count[where] += 1
    torch.testing.assert_close(found, expected / count, atol=2e-3, rtol=1e-3)


@pytest.mark.parametrize(
    ("side", "stride", "named"), [(0, 1, "side 0"), (33, 1, "side 33"), (4, 5, "stride 5"), (4, 0, "stride 0")]
)
def test_squares_that_do_not_cover_the_image_are_refused(side, stride, named):
    with pytest.raises(InputError, match=named):
        occlusion(Linear(), picture()[0], 0, torch.zeros(3), side, stride)


class Blind(nn.Module):
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return torch.ones(len(images), 10)


def test_a_network_without_a_gradient_is_refused():
    with pytest.raises(InputError, match="no gradient"):
        input_gradient(Blind(), picture(), torch.tensor([0]))


def evaluated_of(model: nn.Module, name: str = "net") -> EvaluatedModel:
    data = {"name": None, "root": "data", "image_size": 32}
    return EvaluatedModel(model, "0" * 64, name, data, {}, "not told")


def images_of(count: int = 3, side: int = 32) -> TensorImages:
    content = (torch.cat([picture(side, seed) for seed in range(count)]) * 255).byte()
    return TensorImages("made", "test", content, torch.arange(count), [str(n) for n in range(10)], 0)


def test_rows_have_a_panel_for_each_thing_and_view(tmp_path):
    san, images = evaluated_of(network(attention="patchwise"), "san"), images_of()
    images.labels = san.model(images.read(range(3)).float() / 255).argmax(1)  # right: an attack leaves others as they are
    asked = Asked((5, 9), stage=1, channels=True, rotate=90, attack="fgsm:8/255")
    rows = explain(san, images, 1, asked)
    assert [row.view for row in rows] == ["upright", "rotated 90°", "fgsm:8/255"]
    titles = ["input gradient", "occlusion", "roll-out", "attention, stage 1", "spread, stage 1", "channels, stage 1"]
    for row in rows:
        assert list(row.panels) == titles
        assert all(panel.values.shape == (32, 32) for name, panel in row.panels.items() if "channels" not in name)
    np.testing.assert_allclose(rows[1].image, np.rot90(rows[0].image, -1))
    assert 0 < np.abs(rows[2].image - rows[0].image).max() <= 8 / 255 + 1e-6
    assert rows[0].panels["attention, stage 1"].marked == (4, 8, 4)  # of 4 x 4 pixels
    assert rows[1].panels["attention, stage 1"].marked == (8, 24, 4)
    assert rows[0].panels["attention, stage 1"].signed and not rows[0].panels["spread, stage 1"].signed
    layer = find_layer(attention_layers(san.model, images.read([1]).float() / 255), 1)
    on_map = layer.on_map((1, 2))
    np.testing.assert_allclose(rows[0].panels["attention, stage 1"].values[::4, ::4], on_map.mean(0), rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(
        rows[0].panels["spread, stage 1"].values[::4, ::4], on_map.var(0, correction=0).sqrt(), rtol=1e-5, atol=1e-7
    )
    draw(
        rows + explain(evaluated_of(build_model("resnet26", num_classes=10, width=0.25).eval()), images, 1), tmp_path / "a.png"
    )
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")


def test_a_view_says_that_an_image_was_not_attacked():
    san, images = evaluated_of(network()), images_of()
    images.labels = (san.model(images.read(range(3)).float() / 255).argmax(1) + 1) % 10
    rows = explain(san, images, 0, Asked(attack="fgsm:8/255"))
    assert [row.view for row in rows] == ["upright", "fgsm:8/255, unchanged"]
    np.testing.assert_array_equal(rows[0].image, rows[1].image)


def test_a_resnet_has_gradient_and_occlusion_alone_and_is_left_as_it_was():
    model = build_model("resnet26", num_classes=10, width=0.25).train()
    (row,) = explain(evaluated_of(model), images_of(), 0)
    assert list(row.panels) == ["input gradient", "occlusion"]
    assert model.training and all(parameter.requires_grad for parameter in model.parameters())


def test_any_network_in_a_classifier_is_explained():
    spec = ModelSpec(name="linear", num_classes=4, mean=(0.1, 0.2, 0.3), std=(0.5, 0.5, 0.5))
    model = Classifier(spec, Linear()).eval()
    (row,) = explain(evaluated_of(model), images_of(), 2)
    image = images_of().read([2]).float() / 255
    weight = model.network.weight[model(image).argmax()].detach() / 0.5
    np.testing.assert_allclose(row.panels["input gradient"].values, weight.abs().amax(0), rtol=1e-5)


def test_weight_channels_stand_side_by_side():
    weights = torch.arange(3 * 9.0).view(3, 9)
    grid = side_by_side(weights)
    assert grid.shape == (7, 7) and np.isnan(grid[3]).all() and np.isnan(grid[4:, 4:]).all()
    np.testing.assert_array_equal(grid[4:, :3].ravel(), weights[2])


@pytest.mark.parametrize(
    ("index", "asked", "named"),
    [
        (3, Asked(), "image 3"),
        (-1, Asked(), "image -1"),
        (0, Asked(pixel=(32, 0)), "pixel 32,0"),
        (0, Asked(stage=5), "stage 5"),
        (0, Asked(stage=2), "stage 2 is not accepted: stages with attention are 0, 1, 3, 4"),
        (0, Asked(attack="nosuch:1/255"), "nosuch"),
        (0, Asked(attack="pgd:1/255,2/255"), "pgd:1/255,2/255"),
        (0, Asked(attack="accuracy"), "accuracy"),
    ],
)
def test_what_cannot_be_shown_is_named(index, asked, named):
    blocks = (1, 1, 0, 1, 1)
    with pytest.raises(InputError, match=named):
        explain(evaluated_of(network(blocks=blocks)), images_of(), index, asked)


def test_an_attack_on_a_network_without_gradients_is_refused():
    spec = ModelSpec(name="blind", num_classes=10)
    blind = replace(evaluated_of(Classifier(spec, Blind()).eval()), findings=("no-gradient",))
    with pytest.raises(InputError, match="no gradient"):
        explain(blind, images_of(), 0, Asked(attack="pgd:8/255"))


def test_training_mode_is_refused():
    model = network()
    (layer,) = attention_layers(model, picture())[4]
    model.train()
    with pytest.raises(InputError, match="training mode"):
        attention_layers(model, picture())
    with pytest.raises(InputError, match="training mode"):
        layer.at((0, 0))


def test_a_pixel_at_224_takes_the_memory_of_a_row():
    """7 x 7 neighbours of 56 pixels, not of 56 x 56."""
    layer = find_layer(attention_layers(network(footprint=7), picture(224)), 1)
    assert layer.size == (56, 56)
    assert layer.weights(30).shape[1:] == (49, 56)
    assert isqrt(layer.at((30, 2)).shape[1]) == 7


def test_the_command_draws_runs_below_each_other(runs, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = ["show", "san10", "resnet26", "--runs", runs, "--images", "0,2", "--rotate", "90", "--pixel", "3,30"]
    outcome = sanbench(*words)
    assert outcome.exit_code == 0, outcome.output
    assert sorted(path.name for path in (tmp_path / "show").iterdir()) == ["image-0.png", "image-2.png"]
    assert "show/image-2.png" in outcome.stdout
    one = sanbench("show", "resnet26", "--runs", runs, "--output", "one.png")
    assert one.exit_code == 0 and (tmp_path / "one.png").is_file(), one.output


@pytest.mark.parametrize(
    ("typed", "named"),
    [
        ("san10 --images 99999", "image 99999"),
        ("san10 --pixel 32,0", "pixel 32,0"),
        ("san10 --attack pgd:8/255,1/255", "pgd:8/255,1/255"),
        ("san10 --images 1,2 --output x.png", "--output x.png"),
        ("resnet26 --stage 1", "--stage 1"),
        ("resnet26 --channels", "--channels"),
    ],
)
def test_the_command_refuses_in_a_sentence(typed, named, runs, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    outcome = sanbench("show", *typed.split(), "--runs", runs)
    assert outcome.exit_code == 2 and named in outcome.stderr and outcome.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []
