"""The spatial attack: which pixels it makes, which images fall, and that neither batch nor process changes a row."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import scipy.ndimage
import torch
from torch import nn
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as F

import sanbench
from sanbench.data import load_dataset
from sanbench.errors import InputError
from sanbench.evaluation import evaluate as evaluation
from sanbench.evaluation.kinds import SpatialOptions
from sanbench.evaluation.loop import evaluating, score
from sanbench.evaluation.robust import Findings
from sanbench.evaluation.rotations import Rotation
from sanbench.evaluation.spatial import Spatial, SpatialConfig, configs, moved
from sanbench.report.spatial import curve, quantiles
from sanbench.store.files import Store
from tests.support.commands import sanbench as command
from tests.support.report_pages import page, table

POINTS = [(0, 3, -2), (15, 0, 0), (-30, 1.5, 0), (90, 3, 3), (7.25, -2.4, 0.6), (180, 0, 0)]
GRID = SpatialConfig("grid", cells=(3, 3, 5))
RANDOM = SpatialConfig("random")
SMALLEST = SpatialConfig("smallest", degrees=180, step=15)


def searched(config, model, batch, **options):
    images, labels, indices = batch
    with evaluating(model):
        attack = Spatial(model, config, **options)
        perturbed = attack(images, labels, indices)
        return perturbed, pd.DataFrame(score(model, perturbed, indices, labels))


def stands(rows):
    return (rows["prediction"] == rows["label"]).to_numpy()


@pytest.fixture(scope="module")
def photographs():
    """8-bit colours, of an even and of an odd side."""
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(0, 256, (2, 3, side, side), generator=generator) / 255 for side in (28, 33)]


@pytest.mark.parametrize("point", POINTS)
@pytest.mark.parametrize("fill", [0.0, 0.5])
def test_pixels_are_those_of_other_implementations(point, fill, photographs):
    angle, right, down = point
    for images in photographs:
        ours = moved(images, torch.tensor([point, (0, 0, 0)], dtype=torch.float64), "bilinear", fill)
        theirs = F.affine(images[:1], angle, [right, down], 1.0, [0.0, 0.0], InterpolationMode.BILINEAR, [fill] * 3)
        torch.testing.assert_close(ours[:1], theirs, atol=1e-4, rtol=0)
        assert torch.equal(ours[1], images[1])  # each image has its own point
        image = images[0].double().numpy()
        by_scipy = independent(image, angle, right, down, fill)
        inside = independent(np.ones_like(image), angle, right, down, 0.0) > 1 - 1e-9
        assert inside.mean() > 0.4
        np.testing.assert_allclose(ours[0].numpy()[inside], by_scipy[inside], atol=1e-6)


def independent(image, angle, right, down, fill):
    """Turned clockwise and shifted, channel by channel, by scipy: rows before columns."""
    turn, centre = np.deg2rad(angle), (np.array(image.shape[1:]) - 1) / 2
    back = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    offset = centre - back @ (centre + np.array([down, right]))
    return np.stack([scipy.ndimage.affine_transform(x, back, offset, order=1, mode="grid-constant", cval=fill) for x in image])


@pytest.mark.parametrize("interpolation", ["bilinear", "nearest"])
def test_quarter_turns_and_whole_shifts_change_no_pixel(interpolation, photographs):
    for images in photographs:
        for angle in (0, 90, 180, 270, -90):
            turned = moved(images, torch.tensor([(angle, 0, 0)] * 2, dtype=torch.float64), interpolation)
            assert torch.equal(turned, Rotation(angle % 360)(images, None, None).images)
        shifted = moved(images, torch.tensor([(0, 3, -2)] * 2, dtype=torch.float64), interpolation, 1.0)
        assert torch.equal(shifted[..., :-2, 3:], images[..., 2:, :-3])
        assert (shifted[..., -2:, :] == 1).all() and (shifted[..., :3] == 1).all()


def test_the_grid_is_the_worst_of_its_points_measured_alone(network, many):
    perturbed, rows = searched(GRID, network, many)
    images, labels, indices = many
    with evaluating(network):
        alone = {
            tuple(p): network(moved(images, torch.tensor([p] * len(images), dtype=torch.float64))).argmax(1)
            for p in GRID.points.tolist()
        }
        alone[0, 0, 0] = network(images).argmax(1)
        for angle in (-30, -15, 15, 30):  # as `sanbench rotate` measures it
            turned = network(Rotation(angle)(images, labels, indices).images).argmax(1)
            assert (turned == alone[angle, 0, 0]).float().mean() > 0.99
    assert len(alone) == 3 * 3 * 5
    right = torch.stack([prediction == labels for prediction in alone.values()])
    assert stands(rows).tolist() == right.all(0).tolist()
    assert right.sum(1).min() > stands(rows).sum() > 3  # stronger than any point
    points = perturbed.columns["rotation"], perturbed.columns["right"], perturbed.columns["down"]
    for place, (fell, *point) in enumerate(zip(rows["success"], *(values.tolist() for values in points))):
        assert fell == any(point) and (not fell or alone[tuple(point)][place] != labels[place])


def test_an_image_falls_at_its_first_point_and_costs_nothing_more(network, many):
    config = replace(SMALLEST, degrees=45)
    _, rows = searched(config, network, many)
    fell = rows[rows["success"]]
    expected = 2 * (fell["rotation"].abs() / 15) - (fell["rotation"] > 0)  # 15, -15, 30, ...: the first is +15
    assert (fell["forward_passes"] == 2 + expected).all() and len(fell) > 50
    wrong = rows["clean_prediction"] != rows["label"]
    assert (rows["forward_passes"][wrong] == 2).all() and wrong.sum() > 5
    assert (rows["forward_passes"][stands(rows)] == config.count + 2).all() and stands(rows).any()
    seen = []

    class Counts(nn.Module):
        def forward(self, x):
            seen.append(len(x))
            return network(x)

    perturbed, counted = searched(config, Counts(), many, batch_size=64)
    assert sum(seen) == counted["forward_passes"].sum() and max(seen[:-1]) == 64
    assert perturbed.places == 64 * (len(seen) - 1 + 4)  # the last look is the loop's, 200 images in batches of 64


class TurnedFourTimes(nn.Module):
    """The sum over quarter turns: they change nothing."""

    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, x):
        return sum(self.network(torch.rot90(x, turns, (2, 3))) for turns in range(4))


class Anywhere(nn.Module):
    """Circular convolutions and a mean over places: what wraps around changes nothing."""

    def __init__(self):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            layers = [nn.Conv2d(3, 8, 3, padding=1, padding_mode="circular"), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
            self.layers = nn.Sequential(*layers, nn.Linear(8, 10))

    def forward(self, x):
        return self.layers(x)


def test_an_invariant_network_falls_to_nothing(network, batch):
    quarters = SpatialConfig("smallest", degrees=180, step=90)
    shifts = SpatialConfig("grid", pixels=2, cells=(5, 5, 1))
    images, _, indices = batch
    images = images.clone()
    images[:, :, :2], images[:, :, -2:], images[..., :2], images[..., -2:] = 0, 0, 0, 0  # so that shifts wrap black around
    for model, config in ((TurnedFourTimes(network), quarters), (Anywhere(), shifts)):
        with evaluating(model):
            labels = model(images).argmax(1)
        _, rows = searched(config, model, (images, labels, indices))
        assert stands(rows).all() and (rows["forward_passes"] == config.count + 2).all()
        _, plain = searched(config, network, (images, network(images).argmax(1), indices))
        assert not stands(plain).all()


def test_more_draws_are_never_weaker_and_are_each_images_own(network, many):
    found = {draws: searched(replace(RANDOM, draws=draws), network, many)[1] for draws in (1, 5, 20)}
    standing = [stands(rows) for rows in found.values()]
    assert all((more <= fewer).all() for fewer, more in zip(standing, standing[1:]))
    assert standing[0].sum() > standing[1].sum() > standing[2].sum() > 0
    first = found[5]["success"]
    columns = ["rotation", "right", "down"]
    pd.testing.assert_frame_equal(found[5].loc[first, columns], found[20].loc[first, columns])
    assert found[20].loc[found[20]["success"], "rotation"].nunique() == found[20]["success"].sum()
    assert found[20]["rotation"].abs().max() <= 30 and found[20][["right", "down"]].abs().max().max() <= 3
    other = searched(replace(RANDOM, seed=1), network, many)[1]
    assert not other["rotation"].equals(found[5]["rotation"])


@pytest.mark.parametrize(
    "options", [{"batch_size": 1}, {"batch_size": 7}, pytest.param({"batch_size": 5, "nproc": 2}, marks=pytest.mark.slow)]
)
def test_neither_batch_nor_process_changes_a_row(options, network, monkeypatch):
    monkeypatch.setattr(evaluation, "PART", 25)
    search = SpatialOptions(method="random,grid", grid="1x3x5", draws=4)
    rows, other = (sanbench.evaluate(network, "fashion10k", search, limit=60, **own).rows for own in ({}, options))
    assert 20 < rows["success"].sum() < 100
    pd.testing.assert_frame_equal(rows, other, check_exact=False, rtol=1e-4)
    exact = ["index", "prediction", "rotation", "right", "down", "forward_passes", "condition"]
    assert rows[exact].equals(other[exact])


class Kept:
    """What is kept, and an interruption after `points` looks."""

    def __init__(self, points):
        self.points, self.state = points, None

    def load(self):
        return self.state

    def keep(self, state):
        self.state = {name: value.clone() if isinstance(value, torch.Tensor) else value for name, value in state.items()}

    def look(self, seen):
        self.points -= 1
        if self.points < 0:
            raise KeyboardInterrupt


@pytest.mark.parametrize("config", [GRID, RANDOM, SMALLEST], ids=lambda config: config.method)
def test_an_interrupted_search_goes_on_at_its_point(config, network, many, monkeypatch):
    monkeypatch.setattr("sanbench.evaluation.loop.KEEP", -1)
    whole, _ = searched(config, network, many)
    kept = Kept(6)
    images, labels, indices = many
    with evaluating(network), pytest.raises(KeyboardInterrupt):
        Spatial(network, config).with_options(watch=kept.look, keeper=kept)(images, labels, indices)
    assert kept.state["number"] == 6
    standing, seen = int(kept.state["stands"].sum()), []
    with evaluating(network):
        rest = Spatial(network, config).with_options(watch=lambda now: seen.append(now.standing), keeper=kept)
        again = rest(images, labels, indices)
    assert seen[0] == standing and len(seen) <= config.count - 6
    assert torch.equal(again.images, whole.images) and again.places == whole.places
    assert again.earlier > 0 and {name: values.tolist() for name, values in again.columns.items()} == {
        name: values.tolist() for name, values in whole.columns.items()
    }
    others = Spatial(network, config).with_options(watch=kept.look, keeper=kept)
    kept.points = config.count
    with evaluating(network):
        assert others(images[:9], labels[:9], indices[:9]).earlier == 0  # what was kept of other images is not theirs


def test_limits_are_those_of_the_original():
    for side, pixels in ((28, 3), (32, 3), (224, 24)):
        grid, random = configs(SpatialOptions(method="grid, random"), 0, side)
        assert grid.setting["pixels"] == pixels and grid.count == 5 * 5 * 31 - 1
        assert (random.draws, grid.degrees, grid.setting["degrees"]) == (10, 30, 30)
        assert sorted({angle for angle, _, _ in grid.points.tolist()}) == list(range(-30, 31, 2))
    (config,) = configs(SpatialOptions(method="smallest", step=7.5), 0, 32)
    assert config.points[:3, 0].tolist() == [7.5, -7.5, 15] and config.points[-1, 0] == 180
    assert len(config.points) == 47 and not config.points[:, 1:].any()


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"method": "gird"}, "Did you mean 'grid'"),
        ({"degrees": 181}, "degrees 181 is not accepted"),
        ({"degrees": float("nan")}, "degrees nan is not accepted"),
        ({"pixels": 32}, "nothing of an image of 32 pixels would be left"),
        ({"draws": 0}, "draws 0 is not accepted"),
        ({"grid": "5x5"}, "grid '5x5' is not accepted"),
        ({"grid": "5x0x3"}, "grid '5x0x3' is not accepted"),
        ({"degrees": 0, "pixels": 0}, "only the upright image"),
        ({"method": "grid", "grid": "1x1x1"}, "only the upright image"),
        ({"method": "smallest", "degrees": 3, "step": 5}, "only the upright image"),
        ({"fill": "blue"}, "Unknown fill 'blue'"),
        ({"interpolation": "cubic"}, "Unknown interpolation 'cubic'"),
    ],
)
def test_what_is_no_search_is_named(options, named):
    with pytest.raises(InputError, match=named):
        configs(SpatialOptions(**options), 0, 32)


def test_the_command_and_the_report(runs, network, tmp_path):
    places = ["--results", tmp_path / "results"]
    words = ["--method", "random,grid,smallest", "--grid", "1x3x3", "--draws", 3, "--step", 30, "--save-images", 2]
    outcome = command("spatial", *words, "--runs", runs, *places, columns=200)
    assert outcome.exit_code == 0, outcome.output
    assert "worst of the grid 1x3x3, ±30°, ±3 px" in outcome.stdout and "attack success" in outcome.stdout
    store = Store(tmp_path / "results")
    records = [record for record in store.records() if record.kind == "spatial"]
    assert len(records) == 6 and all(len(store.pictures(record)) == 2 for record in records)
    options = SpatialOptions(method="smallest", step=30)
    sanbench.evaluate(network, "fashion10k", options, limit=60, store=store)
    assert command("results", "check", *places).exit_code == 0
    assert command("report", "--format", "md,csv,html,tex", *places).exit_code == 0
    rows = table(page(store.root, "rotations"), "Worst case, interpolation bilinear, fill black")
    assert [row["searched"] for row in rows] == [
        "worst of 3 draws, ±30°, ±3 px",
        "worst of the grid 1x3x3, ±30°, ±3 px",
        "any rotation in steps of 30°, ±180°",
    ]
    title = "Smallest rotation that changes the prediction"
    parts = page(store.root, "rotations").split(f"{title}:")[1:]  # one a data set
    turned = [row for part in parts for row in table(f"{title}:{part}", title)]
    findings = Findings.of(store)
    smallest = [record for record in findings.records if record.setting.get("method") == "smallest"]
    assert len(smallest) == 3 and max(record.counts["success"] for record in smallest) > 20
    for record in smallest:
        found = findings.rows(record)
        by_angle = curve(record, findings)
        assert list(by_angle) == [0, 30, 60, 90, 120, 150, 180]
        assert by_angle[0].hits == record.counts["right_before"] and by_angle[180].hits == record.counts["correct"]
        below = found[found["success"] & (found["rotation"].abs() <= 60)]
        assert by_angle[60].hits == record.counts["right_before"] - len(below)
        (line,) = [row for row in turned if row["network"] == record.network.label]
        assert line["median"] == quantiles(record, findings)["median"]
        angles = sorted(found.loc[found["success"], "rotation"].abs())
        half = (record.counts["right_before"] + 1) // 2
        assert line["median"] == (f"{angles[half - 1]:g}°" if half <= len(angles) else "∞")
    assert "worst of 3 draws" in (store.root / "report" / "comparisons.md").read_text()


def test_the_library_measures_in_a_line(network):
    test = load_dataset("fashion10k", "test")
    pair = test.read(list(range(60))).float() / 255, test.labels[:60]
    found = sanbench.evaluate(network, pair, "spatial:random,smallest")
    assert [record.kind for record in found.records] == ["accuracy", "spatial", "spatial"]
    assert found.table["correct"].iloc[0] == found.table["correct"].max() and (found.table["success"][1:] > 0).all()
