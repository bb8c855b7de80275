"""`sanbench.evaluate` and `sanbench.attack`: any network and images, the commands' figures, and what is refused by name."""

import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

import sanbench
from sanbench.data import load_dataset
from sanbench.errors import InputError
from sanbench.evaluation.kinds import KINDS, AccuracyOptions, RotationOptions
from sanbench.evaluation.statistics import paired_difference, wilson
from sanbench.store.files import Store
from tests.support.commands import sanbench as command

PAGE = (Path(__file__).parents[1] / "docs/python.md").read_text()


@pytest.fixture(scope="module")
def pair():
    images = load_dataset("fashion10k", "test")
    return images.images[:40].float() / 255, images.labels[:40]


@pytest.fixture
def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 5, stride=3), nn.ReLU(), nn.Flatten(), nn.Linear(400, 10))


def test_the_lines_that_the_page_counts_are_those_it_shows():
    counted = dict(zip(("torchattacks", "foolbox"), ("twelve", "nine"), strict=True))
    numbers = {"nine": 9, "twelve": 12}
    for package, word in counted.items():
        (block,) = [block for block in re.findall(r"^```python\n(.*?)^```", PAGE, re.M | re.S) if f"import {package}" in block]
        assert len([line for line in block.splitlines() if line.strip()]) == numbers[word]
        assert re.search(rf"{package}[^`]*: {word}\.", PAGE)


def test_figures_are_those_of_the_rows(pair, model):
    images, labels = pair
    found = sanbench.evaluate(model, pair, "accuracy", "rotate:90", "pgd:8/255")
    hits = int((model(images).argmax(1) == labels).sum())
    turned = int((model(torch.rot90(images, -1, (2, 3))).argmax(1) == labels).sum())
    assert found.table.loc["upright", ["correct", "n"]].tolist() == [hits, 40]
    assert found.table.loc["90°", "correct"] == turned
    assert found.table.loc["upright", "low"] == wilson(hits, 40).low
    rows = found.rows
    assert len(rows) == 120
    upright = rows[rows["condition"] == "upright"]
    assert upright["prediction"].tolist() == model(images).argmax(1).tolist()


class Lazy(Dataset):
    """Pairs without `targets`, as anybody writes them."""

    def __init__(self, images, labels):
        self.images, self.labels_ = images, labels

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        return self.images[index], int(self.labels_[index])


@pytest.mark.parametrize("form", ["tensors", "dataset", "lazy", "loader", "images", "name"])
def test_every_form_of_data_gives_the_same(form, pair, model):
    images, labels = pair
    given = {
        "tensors": pair,
        "dataset": TensorDataset(images, labels),
        "lazy": Lazy(images, labels),
        "loader": DataLoader(Lazy(images, labels), batch_size=7, shuffle=True),
        "images": load_dataset("fashion10k", "test"),
        "name": "fashion10k",
    }[form]
    found = sanbench.evaluate(model, given, "accuracy", "corrupt:fog:3").rows
    reference = sanbench.evaluate(model, pair, "accuracy", "corrupt:fog:3").rows
    first = found[found["index"] < 40].reset_index(drop=True)
    pd.testing.assert_frame_equal(first, reference, rtol=1e-4)


def test_a_network_that_wants_normalised_images(pair, model):
    mean, std = (0.2, 0.3, 0.4), (0.5, 0.6, 0.7)
    found = sanbench.evaluate(model, pair, mean=mean, std=std).rows
    shaped = [torch.tensor(values)[:, None, None] for values in (mean, std)]
    assert found["prediction"].tolist() == model((pair[0] - shaped[0]) / shaped[1]).argmax(1).tolist()


def test_nothing_is_written_unless_a_store_is_named_and_then_it_is_what_commands_make(tmp_path, monkeypatch, runs, folder):
    monkeypatch.chdir(tmp_path)
    data = f"folder:{folder}"
    sanbench.evaluate("san10", None, "rotate:90", runs=runs)
    assert not list(tmp_path.iterdir())
    found = sanbench.evaluate("san10", None, "rotate:90", "pgd:4/255", runs=runs, store=tmp_path / "mine")
    assert command("rotate", "san10", "--angles", "90", "--runs", runs, "--results", tmp_path / "theirs").exit_code == 0
    assert command("attack", "san10", "--attack", "pgd", "--eps", "4/255", "--runs", runs, "--results", "theirs").exit_code == 0
    mine, theirs = Store(tmp_path / "mine"), Store(tmp_path / "theirs")
    assert {record.key for record in mine.records()} == {record.key for record in theirs.records()} == set(found.frames)
    for record in theirs.records():
        pd.testing.assert_frame_equal(mine.rows(record), theirs.rows(record), rtol=1e-4)
    assert all(record.data.name == data for record in found.records)


def test_what_a_store_holds_is_not_measured_again(tmp_path, pair, model):
    first = sanbench.evaluate(model, pair, store=tmp_path)
    again = sanbench.evaluate(model, pair, store=tmp_path)
    assert [record.created for record in first.records] == [record.created for record in again.records]
    images = pair[0].clone()
    images[0, 0, 0, 0] = 1 - images[0, 0, 0, 0]  # other pixels are other images
    other = sanbench.evaluate(model, (images, pair[1]), store=tmp_path)
    assert other.records[0].key != first.records[0].key


def test_two_networks_are_compared_image_by_image(pair, model):
    torch.manual_seed(1)
    other = nn.Sequential(nn.Flatten(), nn.Linear(3072, 10))
    one, two = (sanbench.evaluate(each, pair, "accuracy", "rotate:90") for each in (model, other))
    table = one.compare(two)
    right = [np.array([(each(pair[0]).argmax(1) == pair[1]).numpy()])[0] for each in (model, other)]
    wanted = paired_difference(*right)
    assert table.loc["upright", ["difference", "low", "high", "p"]].tolist() == [
        wanted.value,
        wanted.low,
        wanted.high,
        wanted.p,
    ]
    assert (table["p_holm"] >= table["p"]).all()
    with pytest.raises(InputError, match="not comparable"):
        one.compare(sanbench.evaluate(other, (pair[0][:20], pair[1][:20]), "accuracy"))


def test_a_module_is_left_as_it_was(pair, model):
    model.train()
    model[0].weight.requires_grad_(False)
    sanbench.evaluate(model, pair, "accuracy", "pgd:8/255")
    sanbench.attack(model, *pair, "pgd:8/255")
    assert model.training and model[3].weight.requires_grad and not model[0].weight.requires_grad
    assert model[3].weight.grad is None


def test_attack_gives_the_images_that_evaluate_scores(pair, model):
    images, labels = pair
    adversarial = sanbench.attack(model, images, labels, "pgd:8/255")
    assert (adversarial - images).abs().max() <= 8 / 255 + 1e-6
    assert adversarial.min() >= 0 and adversarial.max() <= 1
    found = sanbench.evaluate(model, pair, "pgd:8/255").rows
    assert found["prediction"].tolist() == model(adversarial).argmax(1).tolist()


def test_every_kind_has_a_text():
    for kind in KINDS.values():
        if kind.options is not None:
            assert set(kind.text) <= set(kind.options.__dataclass_fields__)


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (
            lambda m, x, y: sanbench.evaluate(m, ((255 * x).to(torch.uint8), y)),
            "image 0 of tensors is not accepted: it has pixels of uint8",
        ),
        (lambda m, x, y: sanbench.evaluate(m, (2 * x - 1, y)), "pixels from -1 to 1; accepted are floats from 0 to 1"),
        (lambda m, x, y: sanbench.evaluate(m, (x[:, :1], y)), "image 0 of tensors is not accepted: it is 1 x 32 x 32"),
        (lambda m, x, y: sanbench.evaluate(m, (x, y + 5)), "labels from 5 to 14 are not accepted: the network tells 10"),
        (lambda m, x, y: sanbench.evaluate(m, (x, y[:3])), "both have to be tensors of equal length"),
        (lambda m, x, y: sanbench.evaluate(m, [x]), "data of 1 parts is not accepted"),
        (lambda m, x, y: sanbench.evaluate(m, 3), "data int is not accepted"),
        (lambda m, x, y: sanbench.evaluate(m, None), "data is missing: name a data set, or give images and labels"),
        (lambda m, x, y: sanbench.evaluate(m, "nosuch"), "Unknown data set 'nosuch'"),
        (lambda m, x, y: sanbench.evaluate(3, (x, y)), "model int is not accepted"),
        (lambda m, x, y: sanbench.evaluate("nosuch", (x, y)), "Unknown run or checkpoint file 'nosuch'"),
        (lambda m, x, y: sanbench.evaluate(m, (x, y), "rotat:90"), "Unknown measurement 'rotat'. Did you mean 'rotate'?"),
        (lambda m, x, y: sanbench.evaluate(m, (x, y), "accuracy:3"), "accuracy takes nothing after a colon"),
        (lambda m, x, y: sanbench.evaluate(m, (x, y), "pgd:9"), "eps '9' is not accepted"),
        (lambda m, x, y: sanbench.evaluate(m, (x, y), "rotate:x"), "angle 'x' is not accepted"),
        (
            lambda m, x, y: sanbench.evaluate(m, (x, y), 3),
            "measurement int is not accepted: accepted are texts, and Acc",
        ),
        (lambda m, x, y: sanbench.evaluate(m, (x, y), limit=0), "limit 0 is not accepted"),
        (lambda m, x, y: sanbench.evaluate(m, (x, y), mean=(1, 2)), "mean (1, 2) is not accepted: write three numbers"),
        (lambda m, x, y: sanbench.evaluate(m, (x, y), device="tpu"), "device 'tpu' is not accepted"),
        (lambda m, x, y: sanbench.evaluate(nn.Identity(), (x, y)), "it gives 1 x 3 x 32 x 32, not logits N x classes"),
        (lambda m, x, y: sanbench.attack(m, x, y, "rotate:90"), "attack 'rotate:90' is not accepted: accepted are fgsm"),
        (lambda m, x, y: sanbench.attack(m, x, y, "pgd:2/255,4/255"), "name one attack and one budget"),
    ],
)
def test_what_is_passed_wrong_is_refused_by_name(call, sentence, pair, model):
    with pytest.raises(InputError, match=re.escape(sentence)):
        call(model, *pair)


def test_options_are_measurements_too(pair, model):
    found = sanbench.evaluate(model, pair, AccuracyOptions(), RotationOptions(angles="30", mask="disc"))
    assert len(found.records) == 3  # upright, the masked upright as a control, and 30°
