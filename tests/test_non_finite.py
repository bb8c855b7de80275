"""NaN and infinite logits are no prediction: the image is wrong, the record is flagged, nothing but those is refused."""

import pandas as pd
import pytest
import torch
from torch import nn

from sanbench.data import load_dataset
from sanbench.errors import SanbenchError
from sanbench.evaluation.attacks.table import ATTACKS
from sanbench.evaluation.loop import Identity, Perturbed, predictions, score
from sanbench.evaluation.robust import Findings
from sanbench.evaluation.sanity_checks import non_finite
from sanbench.models import Classifier
from sanbench.runs.evaluated import EvaluatedModel
from sanbench.store.files import Store
from sanbench.store.schema import ModelSpec
from tests.support.quick_measurements import config, measured, run


class Broken(nn.Module):
    """`value` in place of one logit of the images whose mean is in the upper `share`."""

    def __init__(self, network, share, value=float("nan"), bright=0.3):
        super().__init__()
        self.network, self.value, self.bright = network, value, bright if share < 1 else -1

    def forward(self, x):
        logits = self.network(x)
        hit = (x.mean((1, 2, 3)) > self.bright)[:, None] & (torch.arange(logits.shape[1]) == 0)
        return torch.where(hit, self.value, logits)


def test_rows_have_no_prediction_where_logits_are_not_finite():
    logits = torch.tensor([[1.0, 2.0], [torch.nan, 5.0], [torch.inf, 0.0], [3.0, -torch.inf]])
    assert predictions(logits).tolist() == [1, -1, -1, -1]
    rows = score(lambda x: x, Perturbed(logits, {}), torch.arange(4), torch.tensor([1, 1, 0, 0]))
    assert rows["finite"].tolist() == [True, False, False, False]
    assert rows["prediction"].tolist() == [1, -1, -1, -1] and rows["top5"].tolist() == [True, False, False, False]


def test_predictions_are_those_of_the_logits_however_small(network, many):
    images, labels, indices = many
    rows = score(network, Perturbed(images, {}), indices, labels)
    tiny = score(lambda x: network(x) * 1e-8, Perturbed(images, {}), indices, labels)
    assert (tiny["prediction"] == rows["prediction"]).all()
    assert (network(images).mul(1e-8).softmax(1).argmax(1).numpy() != rows["prediction"]).sum() > 0  # float32 ties


def evaluated(model):
    spec = ModelSpec(name="resnet26", num_classes=10, mean=(0.0,) * 3, std=(1.0,) * 3)
    return EvaluatedModel(Classifier(spec, model), "w" * 64, "broken", {}, {}, "s")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_such_an_image_is_wrong_and_the_record_says_so(network, value, tmp_path):
    images, store = load_dataset("fashion10k", "test"), Store(tmp_path)
    (record,) = measured(evaluated(Broken(network, 0.5, value)), images, store, [Identity()], limit=100)
    rows = store.rows(record)
    broken = ~rows["finite"]
    assert 10 < broken.sum() < 90
    assert (rows["prediction"][broken] == -1).all() and record.counts["correct"] <= 100 - broken.sum()
    assert record.flags == ["non-finite"] and Findings.of(store).flags(record) == ["non-finite"]


def test_a_network_without_any_finite_logits_is_refused_by_name(network, tmp_path):
    with pytest.raises(SanbenchError, match=r"broken gave no finite logits for any of 20 images \(upright\)"):
        measured(evaluated(Broken(network, 1)), load_dataset("fashion10k", "test"), Store(tmp_path), [Identity()], limit=20)
    assert Store(tmp_path).records() == []


@pytest.mark.parametrize("name", ATTACKS)
def test_attacks_go_on_where_some_logits_are_not_finite(name, network, batch, quick):
    """Images that are NaN before are wrong already; one that becomes NaN inside the ball has fallen."""
    model = Broken(network, 0.5, bright=0.28)
    _, perturbed, rows = run(name, model, batch, config(name, "16/255" if "l2" not in name else "1"))
    assert torch.isfinite(perturbed.images).all()
    before = rows["clean_prediction"] < 0
    assert before.any() and (rows["backward_passes"][before] == 0).all()
    assert ((rows["prediction"] < 0) == ~rows["finite"]).all()
    assert not rows["success"][before].any()
    assert non_finite(rows) == ["non-finite"]
    finite = run(name, network, tuple(x[~torch.tensor(before.to_numpy())] for x in batch), config(name, "16/255"))[2]
    assert len(finite) == (~before).sum()
    assert isinstance(rows, pd.DataFrame)
