"""What the network is shown: images that stand, in full batches, each with the gradient of its own loss."""

import pytest
import torch
from torch import nn

from sanbench.errors import SanbenchError
from sanbench.evaluation.attacks.queried_model import Aim, AllFallen, QueriedModel
from sanbench.evaluation.attacks.table import ATTACKS
from sanbench.evaluation.loop import predictions
from tests.support.quick_measurements import config, run


def test_the_network_sees_only_images_that_stand_and_full_batches(network, batch):
    seen = []

    class Counts(nn.Module):
        def __init__(self):
            super().__init__()
            self.network = network

        def forward(self, x):
            seen.append(len(x))
            return self.network(x)

    attack, _, rows = run("square", Counts(), batch, config("square", "6/255", steps=40), batch_size=4)
    fallen = rows["success"]
    assert fallen.any()
    assert sum(seen) == rows["forward_passes"].sum() + 0  # the last, scoring pass is counted too
    rest = [size for size, _ in attack.sizes if size < 4]
    assert len(rest) <= 41 + 4  # at most one batch of a query is not full; four looks beside
    standing = (rows["clean_prediction"] == rows["label"]) & ~fallen
    assert rows["forward_passes"][fallen].max() <= (rows["forward_passes"][standing].min() if standing.any() else 10**9)


def test_a_guard_spends_nothing_on_what_has_fallen(network, batch):
    images, labels, _ = batch
    logits = network(images).detach()
    right = logits.argmax(1) == labels
    images, labels, logits = images[right], labels[right], logits[right]
    queried = QueriedModel(network, images, labels, logits, Aim("linf", 1.0), batch_size=4)
    assert torch.equal(queried(images), logits) and queried.sizes == []
    queries = images.clone()
    queries[3] = 1 - queries[3]
    assert queried(queries)[3].argmax() != labels[3]
    assert queried.fallen.nonzero().flatten().tolist() == [3]
    assert torch.equal(queried.adversarial[3], queries[3])
    x = queries.clone().requires_grad_()
    queried.loss = lambda logits, rows: logits.sum(1)
    queried(x).sum().backward()
    assert x.grad[3].abs().max() == 0 and x.grad[4].abs().max() > 0
    assert queried.spent["forward_passes"].tolist().count(1) == 1
    with pytest.raises(SanbenchError, match="queried 2 images"):
        queried(queries[:2])
    queried.alive = queried.alive[:0]
    with pytest.raises(AllFallen):
        queried(queries)


class Whole(QueriedModel):
    """Leaves it to torchattacks to differentiate what it ascends, through one graph of all images that stand."""

    def forward(self, x):
        if not x.requires_grad:
            return super().forward(x)
        alive = self.alive
        if len(alive) == 0:
            raise AllFallen
        with torch._C.DisableTorchFunction():
            logits = self.model(x[alive])
        for name in ("forward_passes", "backward_passes"):
            self.spent[name][alive] += 1
        self.judge(alive, x.detach()[alive], logits.detach())
        return self.last.index_put((alive,), logits)


GRADIENTS = [(name, norm) for name in ATTACKS for norm in ATTACKS[name].norms if name not in ("square", "standard")]


@pytest.mark.parametrize(("name", "norm"), GRADIENTS)
def test_the_loss_that_is_told_is_the_one_that_torchattacks_differentiates(name, norm, network, many, monkeypatch):
    targets = {"targets": 1} if "targets" in ATTACKS[name].shown else {}
    settings = config(name, "3/255" if norm == "linf" else "1/2", norm=norm, **targets)
    _, ours, rows = run(name, network, many, settings)
    monkeypatch.setattr("sanbench.evaluation.attacks.attack.QueriedModel", Whole)
    _, theirs, expected = run(name, network, many, settings)
    assert (rows["prediction"] != expected["prediction"]).sum() <= 1
    assert rows["success"].any()
    same = (ours.images - theirs.images).abs().flatten(1).amax(1) < 1e-4
    assert same.float().mean() > 0.95  # signs of gradients near 0 differ by rounding
    for spent in ("forward_passes", "backward_passes"):
        assert (rows[spent] == expected[spent]).mean() > 0.98


def test_batches_are_full_but_for_the_last_of_a_query(network, many):
    """Images fall, and those that stand move up: of 200, in 8 queries, no more than 8 + 4 batches have free places."""
    attack, perturbed, rows = run("pgd", network, many, config("pgd", "3/255", steps=7), batch_size=16)
    assert sum(size < 16 for size, _ in attack.sizes) <= 8 + 4
    assert perturbed.places == 16 * (len(attack.sizes) + 13)
    assert rows["success"].sum() > 10
    assert 0.9 < rows["forward_passes"].sum() / perturbed.places <= 1


def test_what_is_remembered_of_logits_decides_as_they_do():
    """Own logit and largest other are the same to the last bit, and so is what falls: of ties too, and of what is not finite"""
    torch.manual_seed(0)
    logits, labels = torch.randn(60, 7).round(decimals=1), torch.randint(7, (60,))
    logits[:20].scatter_(1, labels[:20, None], logits[:20].amax(1, keepdim=True))  # the largest, or one of two
    logits[3, 2], logits[4, 1], logits[5, 0] = torch.nan, torch.inf, -torch.inf
    queried = QueriedModel(nn.Identity(), torch.zeros(60, 3, 1, 1), labels, logits, Aim("linf", 1.0), batch_size=60)
    rows = torch.arange(60)
    queried.go_on({False: queried.margins(logits, rows)})
    again, _, _ = queried.recall(queried.images, rows, False)
    assert len(queried.known[False]) == 0
    right = predictions(logits) == labels
    assert 5 < right.sum() < 30
    assert torch.equal(predictions(again) == labels, right)
    assert torch.equal(predictions(again) < 0, predictions(logits) < 0)
    finite = logits.isfinite().all(1)
    for found in (again, logits):
        assert torch.equal(queried.margins(found, rows)[finite], queried.margins(logits, rows)[finite])


def test_no_query_is_remembered_after_those_that_fill_the_room(network, batch):
    images, labels, _ = (x[:4] for x in batch)
    queried = QueriedModel(network, images, labels, network(images).detach(), Aim("linf", 1.0, leaves=False), batch_size=3)
    queried.loss = lambda logits, rows: logits[:, 0]
    an_answer = 4 * 4 * (10 + 1 + images[0].numel())
    queried.room = an_answer + 1
    for step in range(5):
        queried((images * (0.9 - 0.1 * step)).requires_grad_())
        queried(images * (0.9 - 0.1 * step))
    assert [len(answers) for answers in queried.answers.values()] == [1, 1]
    assert sum(values.nbytes for answers in queried.answers.values() for values in answers) == an_answer + 4 * 4 * 3
