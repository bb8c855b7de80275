"""The evaluation loop, rotations, attacks, statistics and records."""

from fractions import Fraction

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from scipy.stats import norm

from sanbench.data import Source, TensorImages, load_dataset
from sanbench.errors import InputError, SanbenchError
from sanbench.evaluation import experiments
from sanbench.evaluation.attacks import (
    ATTACKS,
    PGD,
    AttackConfig,
    bind,
    budget_text,
    check_budget,
    parse_attacks,
    parse_budget,
    starting_points,
)
from sanbench.evaluation.experiments import Protocol, evaluate
from sanbench.evaluation.loop import Identity, Perturbed, evaluating, measure, score
from sanbench.evaluation.rotations import Flip, Rotation, parse_angles
from sanbench.evaluation.statistics import wilson
from sanbench.records import Measurement, Store

CPU = torch.device("cpu")
EIGHT = AttackConfig(Fraction(8, 255), Fraction(2, 255), steps=5)


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


def test_angles_are_read_once_each():
    parsed = parse_angles("0,90,flip,450,-90")
    assert [p.setting for p in parsed] == [{}, {"angle": 90}, {"angle": "flip"}, {"angle": 270}]
    for wrong in ("45x", "30", "", "90;180", "nan"):
        with pytest.raises(InputError, match="clockwise multiples of 90"):
            parse_angles(wrong)


@pytest.mark.parametrize(("text", "value"), [("8/255", Fraction(8, 255)), ("0.03", Fraction(3, 100)), ("0", 0), ("1", 1)])
def test_budgets_are_exact(text, value):
    assert parse_budget("eps", text) == value


@pytest.mark.parametrize("text", ["8/0", "300", "-1/255", "eight", "", "8/255/2", "nan", "inf", "1.01"])
def test_impossible_budgets_are_named(text):
    with pytest.raises(InputError, match=f"eps {text.strip()!r} is not accepted"):
        parse_budget("eps", text)


def test_budgets_in_whole_pixel_values_suggest_the_fraction():
    with pytest.raises(InputError, match="Did you mean 8/255"):
        parse_budget("eps", "8")


def test_attack_lists():
    parsed = parse_attacks("pgd,pgd-targeted", "8/255,2/255,0.5", 7, None, 3)
    assert [(name, budget_text(c.eps), c.steps, c.seed) for name, c in parsed[:3]] == [
        ("pgd", "2/255", 7, 3),
        ("pgd", "8/255", 7, 3),
        ("pgd", "1/2", 7, 3),
    ]
    assert parsed[1][1].step_size == Fraction(2, 255)
    assert parse_attacks("pgd", "8/255", 1, "1/255", 0)[0][1].step_size == Fraction(1, 255)
    assert budget_text(Fraction(3, 255)) == "3/255"
    with pytest.raises(InputError, match="Did you mean 'pgd'"):
        parse_attacks("pgdd", "8/255", 1, None, 0)
    with pytest.raises(InputError, match="steps 0"):
        parse_attacks("pgd", "8/255", 0, None, 0)


def independent_pgd(model, image, label, index, config, target=None):
    """One image, written from the formula; starting point and target from the same documented seeds."""
    from sanbench.evaluation.attacks import image_seed

    eps, step = np.float32(float(config.eps)), float(config.step_size)
    generator = torch.Generator().manual_seed(image_seed(config.seed, index, "start"))
    start = torch.empty_like(image).uniform_(-float(config.eps), float(config.eps), generator=generator)
    x = (image + start).clamp(0, 1)
    for _ in range(config.steps):
        x = x.detach().requires_grad_()
        sought = label if target is None else target
        loss = F.cross_entropy(model(x[None]), torch.tensor([sought]))
        (gradient,) = torch.autograd.grad(loss if target is None else -loss, x)
        x = torch.min(torch.max(x + step * gradient.sign(), image - eps), image + eps).clamp(0, 1)
    return x.detach()


@pytest.mark.parametrize("name", ATTACKS)
def test_attacks_follow_their_formula(name, subject, images, pixels):
    """Each pixel after one step, and after five the same predictions, against the loop above."""
    with evaluating(subject.model):
        for steps in (1, 5):
            config = AttackConfig(EIGHT.eps, EIGHT.step_size, steps)
            perturbed = ATTACKS[name](subject.model, config)(pixels, images.labels, torch.arange(len(images)))
            right = perturbed.columns["clean_prediction"] == images.labels
            assert right.any()
            for i in right.nonzero().flatten().tolist():
                target = int(perturbed.columns["target"][i]) if "target" in perturbed.columns else None
                expected = independent_pgd(subject.model, pixels[i], int(images.labels[i]), i, config, target)
                same = torch.isclose(perturbed.images[i], expected, atol=1e-6)
                assert same.float().mean() > (0.995 if steps == 1 else 0.97)  # a gradient near 0 may change its sign
                both = subject.model(torch.stack([perturbed.images[i], expected])).argmax(1)
                assert both[0] == both[1]


@pytest.mark.parametrize("name", ATTACKS)
def test_attacks_stay_in_ball_and_box_and_leave_wrong_images_alone(name, subject, images, pixels):
    labels = images.labels.clone()
    labels[::3] = (labels[::3] + 1) % 3  # as if the network had them wrong
    with evaluating(subject.model):
        adversarial, columns = ATTACKS[name](subject.model, EIGHT)(pixels, labels, torch.arange(len(images)))
    wrong = columns["clean_prediction"] != labels
    assert wrong.any()
    assert torch.equal(adversarial[wrong], pixels[wrong])
    assert (columns["steps"][wrong] == 0).all()
    distance = (adversarial.double() - pixels.double()).abs().flatten(1).amax(1)
    torch.testing.assert_close(columns["linf"], distance)
    assert distance.max() <= 8 / 255 + 1e-6
    assert distance[~wrong].min() > 4 / 255
    assert adversarial.min() >= 0
    assert adversarial.max() <= 1


@pytest.mark.parametrize("name", ATTACKS)
def test_a_budget_of_zero_changes_nothing(name, subject, images, pixels):
    nothing = AttackConfig(Fraction(0), Fraction(0), steps=2)
    with evaluating(subject.model):
        adversarial, columns = ATTACKS[name](subject.model, nothing)(pixels, images.labels, torch.arange(len(images)))
    assert torch.equal(adversarial, pixels)
    assert columns["linf"].max() == 0


def test_random_numbers_belong_to_the_image_not_to_the_batch(subject, images, pixels):
    """Starting points and targets are bit-equal for batches of 1, 7 and all; the global generator is not touched."""
    order = torch.arange(len(images))
    before = torch.get_rng_state()
    starts = []
    for size in (1, 7, 64):
        parts = []
        for chunk in order.split(size):
            with starting_points(3, chunk):
                parts.append(torch.empty_like(pixels[chunk]).uniform_(-0.1, 0.1))
        starts.append(torch.cat(parts))
    assert torch.equal(starts[0], starts[1])
    assert torch.equal(starts[1], starts[2])
    assert len(starts[0].flatten(1).unique(dim=0)) == len(images)
    assert starts[0].abs().max() <= 0.1
    with starting_points(4, order):
        assert not torch.equal(torch.empty_like(pixels).uniform_(-0.1, 0.1), starts[0])

    attack = ATTACKS["pgd-targeted"](subject.model, EIGHT)
    whole = attack.targets(images.labels, order, 3)
    assert torch.equal(torch.cat([attack.targets(images.labels[c], c, 3) for c in order.split(5)]), whole)
    assert (whole != images.labels).all()
    assert len((whole - images.labels).remainder(3).unique()) == 2
    assert torch.equal(torch.get_rng_state(), before)


def test_the_attack_draws_its_start_from_the_image(subject, images, pixels, monkeypatch):
    """torchattacks' own draw is the one that is replaced: another seed gives other adversarial images."""
    results = []
    with evaluating(subject.model):
        for seed in (0, 0, 1):
            config = AttackConfig(EIGHT.eps, EIGHT.step_size, 1, seed)
            results.append(ATTACKS["pgd"](subject.model, config)(pixels, images.labels, torch.arange(len(images))).images)
    assert torch.equal(results[0], results[1])
    assert not torch.equal(results[0], results[2])


@pytest.mark.parametrize(
    ("change", "named"), [(0.05, "left its budget"), (float("nan"), "left its budget"), (-0.02, "left the pixel box")]
)
def test_a_violated_budget_fails_by_name(change, named):
    images = torch.zeros(2, 3, 4, 4) + 0.01
    broken = images.clone()
    broken[1, 0, 0, 0] += change
    with pytest.raises(SanbenchError, match=f"pgd {named}"):
        check_budget(images, broken, 0.03, "pgd")


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


def test_attacks_are_perturbations_of_the_table():
    assert all(isinstance(make(torch.nn.Linear(1, 1), EIGHT), PGD) for make in ATTACKS.values())
