"""The evaluation loop: the way to it, modes, rows, parts, subsets, and what is measured again."""

import traceback

import pandas as pd
import pytest
import torch

from sanbench.data import TensorImages, load_dataset
from sanbench.errors import InputError
from sanbench.evaluation import evaluate as evaluation
from sanbench.evaluation.attacks.options import bind
from sanbench.evaluation.attacks.table import parse_attacks
from sanbench.evaluation.loop import Identity, Perturbed, evaluating, measure, score
from sanbench.evaluation.rotations import Rotation
from sanbench.progress import Progress
from sanbench.store.files import Store
from tests.support.commands import sanbench
from tests.support.quick_measurements import measured

CPU = torch.device("cpu")

TYPED = ["accuracy", "rotate --angles 90", "spatial --draws 2", "attack", "attack --surrogate resnet26", "corrupt --kinds fog"]


@pytest.mark.parametrize("words", TYPED)
def test_from_a_command_to_the_loop_are_three_calls(words, runs, tmp_path, monkeypatch):
    """`sanbench.evaluate`, `evaluate` and `measure`, as docs/architecture.md says."""
    found = []

    def loop(*_):
        found.extend(traceback.extract_stack())
        raise InputError("far enough")

    monkeypatch.setattr(evaluation, "measure", loop)
    outcome = sanbench(*words.split(), "--runs", runs, "--results", tmp_path)
    assert "far enough" in outcome.output
    places = [(frame.filename.rpartition("sanbench")[2], frame.name) for frame in found]
    command = places.index(("_cli/evaluation.py", "run"))
    assert places[command + 1 : -1] == [("/evaluation/api.py", "evaluate"), ("/evaluation/evaluate.py", "evaluate")]


@pytest.mark.slow
def test_two_processes_measure_what_one_does(evaluated, images, tmp_path, monkeypatch):
    monkeypatch.setattr(evaluation, "PART", 5)
    attacks = [*parse_attacks("pgd", "4/255", 3), *parse_attacks("pgd", "1/2550", 40)]
    settings, told = [Identity(), *bind(evaluated.model, attacks)], list[Progress]()
    one = measured(evaluated, images, Store(tmp_path / "one"), settings)
    two = measured(evaluated, images, Store(tmp_path / "two"), settings, told.append, nproc=2)
    for a, b in zip(one, two):
        assert a.key == b.key
        rows = [Store(tmp_path / name).rows(a) for name in ("one", "two")]
        pd.testing.assert_frame_equal(*rows, rtol=1e-3, atol=1e-5)
    assert [now.whole for now in told] == sorted(now.whole for now in told) and told[-1].whole == 1
    within = [now for now in told if "pgd, L∞ ε = 1/2550, pgd, " in now.detail and " images done, " in now.detail]
    assert len(within) > 2 and all(0 < now.figures["robust"] <= 1 for now in within)


NEWER = [(where, "fp32_precision", "tf32") for where in (torch.backends.cuda.matmul, torch.backends.cudnn.conv)]
OLDER = [(where, "allow_tf32", True) for where in (torch.backends.cuda.matmul, torch.backends.cudnn)]


@pytest.mark.parametrize("switches", [OLDER, NEWER], ids=["older", "newer"])
def test_evaluating_is_without_tf32_however_it_was_switched_on(evaluated, switches):
    def found() -> list[str]:
        return [getattr(where, name) for where, name, _ in NEWER]

    before = [(where, name, getattr(where, name)) for where, name, _ in OLDER + NEWER]
    try:
        for switch in switches:
            setattr(*switch)
        assert found() == ["tf32", "tf32"]
        with evaluating(evaluated.model):
            assert "tf32" not in found()
        assert found() == ["tf32", "tf32"]
    finally:
        for switch in before:
            setattr(*switch)


def test_evaluating_restores_modes_and_gradients_even_after_an_error(evaluated):
    model = evaluated.model
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


def test_records_count_what_the_rows_say(evaluated, images, tmp_path):
    store = Store(tmp_path)
    attacks = bind(evaluated.model, parse_attacks("pgd,pgd-targeted", "8/255", 3, None, 0))
    records = measured(evaluated, images, store, [Identity(), Rotation(90), *attacks], batch_size=5)
    assert [record.kind for record in records] == ["accuracy", "rotation", "attack", "attack"]
    for record in records:
        rows = store.rows(record)
        assert rows["index"].tolist() == list(range(len(images)))
        assert rows["label"].tolist() == images.labels.tolist()
        assert record.counts["images"] == len(images)
        assert record.counts["correct"] == (rows["prediction"] == rows["label"]).sum()
        assert record.data.fingerprint == images.fingerprint
        assert record.network.weights == evaluated.weights
        if record.kind == "attack":
            right = rows["clean_prediction"] == rows["label"]
            assert record.counts["right_before"] == right.sum() == records[0].counts["correct"]
            assert record.counts["success"] == rows["success"].sum() == right.sum() - record.counts["correct"]
            assert 0 < record.extremes["linf"] <= 8 / 255 + 1e-6
    assert records[3].counts["hit_target"] <= records[3].counts["success"]
    assert not list(tmp_path.glob("work/parts/*"))  # they are merged
    again = Store(tmp_path).find(records)
    assert [again[record.key] for record in records] == records


def test_rows_do_not_depend_on_the_batch(evaluated, images, tmp_path):
    frames = []
    for size in (1, 7, 64):
        store = Store(tmp_path / str(size))
        attacks = bind(evaluated.model, parse_attacks("pgd", "4/255", 3, None, 0))
        (record,) = measured(evaluated, images, store, attacks, batch_size=size)
        frames.append(store.rows(record))
    for frame in frames[1:]:
        pd.testing.assert_frame_equal(frame, frames[0], rtol=1e-3, atol=1e-5)


def test_what_is_measured_is_not_measured_again_unless_forced(evaluated, images, tmp_path, monkeypatch):
    calls = []
    original = evaluation.measure

    def watched(*arguments):
        outcomes = list(original(*arguments))
        calls.append([list(outcome) for outcome in outcomes])  # which are emptied as they are kept
        return iter(outcomes)

    monkeypatch.setattr(evaluation, "measure", watched)
    store = Store(tmp_path)
    first = measured(evaluated, images, store, [Identity(), Rotation(90)])
    assert len(calls[-1]) == 2  # an outcome a condition
    assert measured(evaluated, images, store, [Identity(), Rotation(90)]) == first
    assert len(calls) == 1
    measured(evaluated, images, store, [Identity(), Rotation(180)])
    assert [len(outcome) for outcome in calls[-1]] == [1]  # only the new angle
    measured(evaluated, images, store, [Identity()], limit=5)
    assert sum(len(outcome[0].rows["index"]) for outcome in calls[-1]) == 5
    forced = measured(evaluated, images, store, [Identity()], force=True)
    assert len(calls) == 4 and len(calls[-1]) == 1
    assert forced[0].counts == first[0].counts
    assert forced[0].created > first[0].created


def test_an_interrupted_measurement_goes_on_at_the_next_part(evaluated, images, tmp_path, monkeypatch):
    monkeypatch.setattr(evaluation, "PART", 5)
    whole = measured(evaluated, images, Store(tmp_path / "whole"), [Identity(), Rotation(90)], batch_size=2)
    store = Store(tmp_path / "parts")
    seen = []

    class Stops(Rotation):
        def __call__(self, images, labels, indices):
            seen.extend(indices.tolist())
            if len(seen) > 11:
                raise KeyboardInterrupt
            return super().__call__(images, labels, indices)

    with pytest.raises(KeyboardInterrupt):
        measured(evaluated, images, store, [Identity(), Stops(90)], batch_size=2)
    assert store.records() == []
    again = []

    class Counts(Rotation):
        def __call__(self, images, labels, indices):
            again.extend(indices.tolist())
            return super().__call__(images, labels, indices)

    resumed = measured(evaluated, images, store, [Identity(), Counts(90)], batch_size=2)
    assert again == list(range(10, len(images)))  # two parts of five were kept
    assert [record.counts for record in resumed] == [record.counts for record in whole]
    pd.testing.assert_frame_equal(store.rows(resumed[1]), Store(tmp_path / "whole").rows(whole[1]))


def test_a_subset_is_seeded_and_recorded(evaluated, images, tmp_path):
    store = Store(tmp_path)
    (record,) = measured(evaluated, images, store, [Identity()], limit=7, seed=2)
    assert (record.data.images, record.data.of, record.data.subset_seed) == (7, len(images), 2)
    (other,) = measured(evaluated, images, store, [Identity()], limit=7, seed=3)
    assert other.key != record.key
    assert store.rows(other)["index"].tolist() != store.rows(record)["index"].tolist()


def test_other_classes_than_the_networks_are_refused(evaluated, tmp_path):
    with pytest.raises(InputError, match="fashion10k has 10 classes, but san10 tells 3 apart"):
        measured(evaluated, load_dataset("fashion10k", "test"), Store(tmp_path), [Identity()])
    assert list(tmp_path.iterdir()) == []


def test_the_loop_counts_every_image_once_and_in_float32(evaluated):
    images = TensorImages(
        "made", "test", torch.randint(0, 256, (9, 3, 32, 32), dtype=torch.uint8), torch.zeros(9).long(), ["a"], 0
    )
    seen = []

    class Looks(Identity):
        def __call__(self, images, labels, indices):
            seen.append((images.dtype, images.min() >= 0, images.max() <= 1))
            return super().__call__(images, labels, indices)

    stream = [(images.__getitems__(chunk), [Looks()]) for chunk in ([0, 1, 2, 3], [4, 5, 6, 7], [8])]
    rows = pd.concat([pd.DataFrame(scored.rows) for (scored,) in measure(evaluated.model, stream, CPU)])
    assert sorted(rows["index"]) == list(range(9))
    assert all(dtype is torch.float32 and low and high for dtype, low, high in seen)
