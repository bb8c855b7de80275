"""The evaluation loop, rotations, attacks, statistics and records."""

from math import comb

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.stats import norm

from sanbench.data import Source, TensorImages, load_dataset
from sanbench.errors import InputError, SanbenchError
from sanbench.evaluation import experiments
from sanbench.evaluation.attacking import bind
from sanbench.evaluation.attacks import parse_attacks
from sanbench.evaluation.corruptions import CORRUPTIONS, Corrupted, parse_corruptions
from sanbench.evaluation.experiments import Protocol, evaluate
from sanbench.evaluation.loop import Identity, Perturbed, evaluating, measure, score
from sanbench.evaluation.rotations import Flip, Frame, Rotation, parse_angles
from sanbench.evaluation.statistics import holm, paired_difference, wilson
from sanbench.records import Measurement, Store

CPU = torch.device("cpu")


@pytest.fixture(scope="session")
def subject(san_run):
    return san_run.subject()


@pytest.fixture(scope="session")
def images(folder):
    return load_dataset(f"folder:{folder}", "test", Source(image_size=32))


@pytest.fixture
def pixels(images):
    return images.read(range(len(images))).float() / 255


def test_rotation_is_clockwise():
    image = torch.tensor([[1.0, 2.0], [3.0, 4.0]]).expand(1, 3, 2, 2)

    def turned(perturbation):
        return perturbation(image, torch.zeros(1), torch.zeros(1)).images[0, 0].tolist()

    assert turned(Rotation(90)) == [[3, 1], [4, 2]]  # the upper left corner goes to the upper right
    assert turned(Rotation(180)) == [[4, 3], [2, 1]]
    assert turned(Rotation(270)) == [[2, 4], [1, 3]]
    assert turned(Flip()) == [[3, 4], [1, 2]]


def test_a_mirror_reverses_columns_and_quarter_turns_are_exact_in_every_frame():
    image = torch.rand(1, 3, 32, 32)
    assert torch.equal(Flip("mirror")(image, None, None).images, image.flip(3))
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


def test_ranges_of_angles():
    assert [p.setting.get("angle", 0) for p in parse_angles("0:360:90")] == [0, 90, 180, 270]
    assert [p.setting.get("angle", 0) for p in parse_angles("0:46:22.5,mirror")] == [0, 22.5, 45, "mirror"]
    assert len(parse_angles("0:360:15")) == 24
    assert isinstance(parse_angles("0")[0], Identity)
    assert parse_angles("0", Frame(crop="inscribed"))[0].setting["crop"] == "inscribed"  # its own control


def test_an_equivariant_network_drops_exactly_nothing(images, tmp_path):
    """Pairwise attention without positions, with odd footprints: quarter turns change no prediction."""
    from sanbench.evaluation.subjects import Subject
    from sanbench.models import build_model

    torch.manual_seed(0)
    model = build_model("san10", 3, width=0.25, position="none").eval()
    equivariant = Subject(model, "w", "r", {}, {}, "s")
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
    assert [(c.kind, c.severity) for c in parse_corruptions("fog,jpeg", "1,3:4", 0)][:3] == [("fog", 1), ("fog", 3), ("fog", 4)]
    with pytest.raises(InputError, match="Did you mean 'fog'"):
        parse_corruptions("fogg", "1", 0)
    for wrong in ("0", "6", "1:9", "x", "5:1"):
        with pytest.raises(InputError, match=f"severity '{wrong}'"):
            parse_corruptions("fog", wrong, 0)


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


def test_newcombes_published_example():
    """Newcombe 1998, table II: 36 both, 12 and 2 alone, 0 neither -> 0.2 with 0.0569 to 0.3404 (method 10)."""
    pairs = [(True, True)] * 36 + [(True, False)] * 12 + [(False, True)] * 2
    found = paired_difference(*map(np.array, zip(*pairs)))
    assert (found.value, found.low, found.high) == pytest.approx((0.2, 0.0569, 0.3404), abs=2e-4)


def test_holm_is_monotone_and_scaled():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.9, 0.8]) == [1, 1]
    assert holm([]) == []


@pytest.mark.slow
def test_two_processes_measure_what_one_does(subject, images, tmp_path, monkeypatch):
    monkeypatch.setattr(experiments, "PART", 5)
    settings = [Identity(), *bind(subject.model, parse_attacks("pgd", "4/255", 3))]
    one = measured(subject, images, Store(tmp_path / "one"), settings)
    two = measured(subject, images, Store(tmp_path / "two"), settings, nproc=2)
    for a, b in zip(one, two):
        assert a.key == b.key
        rows = [Store(tmp_path / name).rows(a) for name in ("one", "two")]
        pd.testing.assert_frame_equal(*rows, rtol=1e-3, atol=1e-5)


def test_angles_are_read_once_each():
    parsed = parse_angles("0,90,flip,450,-90")
    assert [p.setting for p in parsed] == [{}, {"angle": 90}, {"angle": "flip"}, {"angle": 270}]
    for wrong in ("45x", "", "90;180", "nan", "0:90", "0:90:0", "0:90:-5", "inf", "0:inf:1"):
        with pytest.raises(InputError, match="clockwise degrees"):
            parse_angles(wrong)


def test_evaluating_restores_modes_and_gradients_even_after_an_error(subject):
    model = subject.model
    model.train()
    model.network.stem.eval()
    frozen = next(model.parameters())
    frozen.requires_grad_(False)
    modes = [module.training for module in model.modules()]
    wanted = [parameter.requires_grad for parameter in model.parameters()]

    def fails():
        with evaluating(model):
            assert not any(module.training for module in model.modules())
            assert not any(parameter.requires_grad for parameter in model.parameters())
            raise KeyError

    with pytest.raises(KeyError):
        fails()
    assert [module.training for module in model.modules()] == modes
    assert [parameter.requires_grad for parameter in model.parameters()] == wanted
    frozen.requires_grad_(True)
    model.eval()


def test_score_rows():
    logits = torch.tensor([[2.0, 1.0, 0.0, -1.0, -2.0, -3.0, -4.0], [0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0]])
    columns = {"clean_prediction": torch.tensor([0, 0])}
    labels = torch.tensor([0, 0])
    rows = score(lambda images: images, Perturbed(logits, columns), torch.tensor([4, 9]), labels)
    assert rows["index"].tolist() == [4, 9]
    assert rows["prediction"].tolist() == [0, 6]
    assert rows["top5"].tolist() == [True, False]
    assert rows["success"].tolist() == [False, True]
    assert rows["confidence"].tolist() == pytest.approx(logits.softmax(1).max(1).values.tolist())


@pytest.mark.parametrize(("hits", "total"), [(0, 10), (10, 10), (7, 9), (843, 1000)])
def test_wilson_is_the_score_interval(hits, total):
    z, p = norm.ppf(0.975), hits / total
    centre = (p + z * z / (2 * total)) / (1 + z * z / total)
    half = z / (1 + z * z / total) * (p * (1 - p) / total + z * z / (4 * total**2)) ** 0.5
    found = wilson(hits, total)
    assert (found.value, found.low, found.high) == pytest.approx((p, max(0, centre - half), min(1, centre + half)))


def measured(subject, images, store, perturbations, **protocol):
    return evaluate(subject, images, perturbations, store, CPU, Protocol(**protocol))


def test_records_count_what_the_rows_say(subject, images, tmp_path):
    store = Store(tmp_path)
    attacks = bind(subject.model, parse_attacks("pgd,pgd-targeted", "8/255", 3, None, 0))
    records = measured(subject, images, store, [Identity(), Rotation(90), *attacks], batch_size=5)
    assert [record.experiment for record in records] == ["accuracy", "rotation", "attack", "attack"]
    for record in records:
        rows = store.rows(record)
        assert rows["index"].tolist() == list(range(len(images)))
        assert rows["label"].tolist() == images.labels.tolist()
        assert record.counts["images"] == len(images)
        assert record.counts["correct"] == (rows["prediction"] == rows["label"]).sum()
        assert record.data["fingerprint"] == images.fingerprint
        assert record.weights == subject.weights
        if record.experiment == "attack":
            right = rows["clean_prediction"] == rows["label"]
            assert record.counts["right_before"] == right.sum() == records[0].counts["correct"]
            assert record.counts["success"] == rows["success"].sum() == right.sum() - record.counts["correct"]
            assert 0 < record.extremes["linf"] <= 8 / 255 + 1e-6
    assert records[3].counts["hit_target"] <= records[3].counts["success"]
    assert not list(tmp_path.glob("rows/*/"))  # the parts are merged
    again = [Store(tmp_path).find(record) for record in records]
    assert again == records


def test_rows_do_not_depend_on_the_batch(subject, images, tmp_path):
    frames = []
    for size in (1, 7, 64):
        store = Store(tmp_path / str(size))
        attacks = bind(subject.model, parse_attacks("pgd", "4/255", 3, None, 0))
        (record,) = measured(subject, images, store, attacks, batch_size=size)
        frames.append(store.rows(record))
    for frame in frames[1:]:
        pd.testing.assert_frame_equal(frame, frames[0], rtol=1e-3, atol=1e-5)


def test_what_is_measured_is_not_measured_again_unless_forced(subject, images, tmp_path, monkeypatch):
    calls = []
    original = experiments.measure
    monkeypatch.setattr(experiments, "measure", lambda *a: calls.append(list(s := list(original(*a)))) or iter(s))
    store = Store(tmp_path)
    first = measured(subject, images, store, [Identity(), Rotation(90)])
    assert len(calls[-1]) == 1
    assert measured(subject, images, store, [Identity(), Rotation(90)]) == first
    assert calls[-1] == []
    measured(subject, images, store, [Identity(), Rotation(180)])
    assert [len(outcome) for outcome in calls[-1]] == [1]  # only the new angle
    measured(subject, images, store, [Identity()], limit=5)
    assert sum(len(outcome[0].frame) for outcome in calls[-1]) == 5
    forced = measured(subject, images, store, [Identity()], force=True)
    assert len(calls[-1]) == 1
    assert forced[0].counts == first[0].counts
    assert forced[0].created > first[0].created


def test_an_interrupted_measurement_goes_on_at_the_next_part(subject, images, tmp_path, monkeypatch):
    monkeypatch.setattr(experiments, "PART", 5)
    whole = measured(subject, images, Store(tmp_path / "whole"), [Identity(), Rotation(90)], batch_size=2)
    store = Store(tmp_path / "parts")
    seen = []

    class Stops(Rotation):
        def __call__(self, images, labels, indices):
            seen.extend(indices.tolist())
            if len(seen) > 11:
                raise KeyboardInterrupt
            return super().__call__(images, labels, indices)

    with pytest.raises(KeyboardInterrupt):
        measured(subject, images, store, [Identity(), Stops(90)], batch_size=2)
    assert store.records() == []
    again = []

    class Counts(Rotation):
        def __call__(self, images, labels, indices):
            again.extend(indices.tolist())
            return super().__call__(images, labels, indices)

    resumed = measured(subject, images, store, [Identity(), Counts(90)], batch_size=2)
    assert again == list(range(10, len(images)))  # two parts of five were kept
    assert [record.counts for record in resumed] == [record.counts for record in whole]
    pd.testing.assert_frame_equal(store.rows(resumed[1]), Store(tmp_path / "whole").rows(whole[1]))


def test_a_subset_is_seeded_and_recorded(subject, images, tmp_path):
    store = Store(tmp_path)
    (record,) = measured(subject, images, store, [Identity()], limit=7, seed=2)
    assert (record.data["images"], record.data["of"], record.data["subset_seed"]) == (7, len(images), 2)
    (other,) = measured(subject, images, store, [Identity()], limit=7, seed=3)
    assert other.key != record.key
    assert store.rows(other)["index"].tolist() != store.rows(record)["index"].tolist()


def test_other_classes_than_the_networks_are_refused(subject, tmp_path):
    with pytest.raises(InputError, match="fashion10k has 10 classes, but san10 tells 3 apart"):
        measured(subject, load_dataset("fashion10k", "test"), Store(tmp_path), [Identity()])
    assert list(tmp_path.iterdir()) == []


def test_every_parameter_decides_the_key():
    base = {
        "model": "m",
        "weights": "w",
        "data": {"name": "d", "images": 3},
        "experiment": "attack",
        "setting": {"eps": "8/255"},
    }
    changes = [{"model": "n"}, {"weights": "v"}, {"data": {"name": "d", "images": 4}}, {"setting": {"eps": "4/255"}}]
    keys = {Measurement(**{**base, **change}).key for change in [{}, *changes, {"experiment": "rotation"}]}
    assert len(keys) == 6


def test_results_are_written_whole_or_not_at_all(tmp_path, subject, images, monkeypatch):
    store = Store(tmp_path)
    measured(subject, images, store, [Identity()])
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    blocked = Store(tmp_path / "records" / next((tmp_path / "records").iterdir()).name / "results")
    with pytest.raises(SanbenchError, match=r"Cannot write .*--results"):
        measured(subject, images, blocked, [Rotation(90)])
    monkeypatch.setattr("pyarrow.parquet.write_table", lambda table, path: path.write_bytes(b"half") and 1 / 0)
    with pytest.raises(ZeroDivisionError):
        measured(subject, images, store, [Rotation(90)])
    after = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert after == before


def test_a_stray_record_is_named(tmp_path):
    (tmp_path / "records").mkdir()
    (tmp_path / "records" / "odd.json").write_text("{}")
    with pytest.raises(SanbenchError, match=r"odd\.json is not a record"):
        Store(tmp_path).records()


def test_the_loop_counts_every_image_once_and_in_float32(subject):
    images = TensorImages(
        "made", "test", torch.randint(0, 256, (9, 3, 32, 32), dtype=torch.uint8), torch.zeros(9).long(), ["a"], 0
    )
    seen = []

    class Looks(Identity):
        def __call__(self, images, labels, indices):
            seen.append((images.dtype, images.min() >= 0, images.max() <= 1))
            return super().__call__(images, labels, indices)

    stream = [(images.__getitems__(chunk), [Looks()]) for chunk in ([0, 1, 2, 3], [4, 5, 6, 7], [8])]
    rows = pd.concat([rows.frame for (rows,) in measure(subject.model, stream, CPU)])
    assert sorted(rows["index"]) == list(range(9))
    assert all(dtype is torch.float32 and low and high for dtype, low, high in seen)
