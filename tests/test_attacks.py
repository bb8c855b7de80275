"""Attacks: formulas, balls, targets, the ensemble, transfer; on a small network of real images."""

from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from sanbench.data import load_dataset
from sanbench.errors import InputError
from sanbench.evaluation.attacks.attack import Attack, Surrogate
from sanbench.evaluation.attacks.budget import distance
from sanbench.evaluation.attacks.options import bind
from sanbench.evaluation.attacks.table import ATTACKS, member_config, parse_attacks
from sanbench.evaluation.loop import evaluating
from sanbench.evaluation.rng import image_seed
from tests.support.quick_measurements import config, run


def independent_pgd(model, image, label, index, settings, name, target=None):
    """One image, written from the formula; starting point from the same documented seed."""
    eps, step = np.float32(float(settings.eps)), float(settings.step_size)
    generator = torch.Generator().manual_seed(image_seed(settings.seed, index, f"{name} 2"))
    x = (image + torch.empty_like(image).uniform_(-float(eps), float(eps), generator=generator)).clamp(0, 1)
    done = label if target is None else target
    for _ in range(settings.steps):
        x = x.detach().requires_grad_()
        logits = model(x[None])
        if (logits.argmax() == done) == (target is not None):
            break
        loss = F.cross_entropy(logits, torch.tensor([done]))
        (gradient,) = torch.autograd.grad(loss if target is None else -loss, x)
        x = torch.min(torch.max(x + step * gradient.sign(), image - eps), image + eps).clamp(0, 1)
    return x.detach()


@pytest.mark.parametrize("name", ["pgd", "pgd-targeted"])
@pytest.mark.parametrize("steps", [1, 5])
def test_pgd_follows_its_formula_and_stops_when_an_image_falls(name, steps, network, batch):
    images, labels, indices = batch
    settings = config(name, "3/255", steps=steps)
    _, perturbed, rows = run(name, network, batch, settings)
    attacked = (rows["clean_prediction"] == rows["label"]).to_numpy().nonzero()[0]
    assert len(attacked) > 10
    for i in attacked:
        target = int(perturbed.columns["target"][i]) if "target" in perturbed.columns else None
        with evaluating(network):
            expected = independent_pgd(network, images[i], int(labels[i]), int(indices[i]), settings, name, target)
            told = network(torch.stack([perturbed.images[i], expected])).argmax(1)
        if target is None or int(told[1]) == target:
            assert told[0] == told[1]
        if target is None:
            assert torch.isclose(perturbed.images[i], expected, atol=1e-6).float().mean() > 0.97


@pytest.mark.parametrize("name", ATTACKS)
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_attacks_stay_in_ball_and_box_and_leave_wrong_images_alone(name, norm, network, batch, quick):
    if norm not in ATTACKS[name].norms:
        pytest.skip("the attack has no such norm")
    images, labels, indices = batch
    labels = labels.clone()
    labels[::3] = (labels[::3] + 1) % 10  # as if the network had them wrong
    eps = Fraction(16, 255) if norm == "linf" else Fraction(2)
    settings = config(name, norm=norm, eps=eps, step_size=eps / 4)
    _, perturbed, rows = run(name, network, (images, labels, indices), settings)
    wrong = torch.tensor((rows["clean_prediction"] != rows["label"]).tolist())
    assert wrong.sum() > 5
    assert torch.equal(perturbed.images[wrong], images[wrong])
    assert (rows["backward_passes"][wrong.numpy()] == 0).all()
    torch.testing.assert_close(torch.tensor(rows[norm].tolist(), dtype=torch.float64), distance(images, perturbed.images, norm))
    assert rows[norm].max() <= float(eps) + 1e-5
    assert perturbed.images.min() >= 0 and perturbed.images.max() <= 1
    if name != "square":  # which needs more than a few queries
        assert rows["success"].sum() > (0 if name == "pgd-targeted" else 3)
    eight = perturbed.rounded.double() * 255
    assert (eight - eight.round()).abs().max() < 1e-4
    assert distance(images, perturbed.rounded, norm).max() <= float(eps) + 1e-5


@pytest.mark.parametrize("name", ATTACKS)
def test_a_budget_of_zero_changes_nothing(name, network, batch, quick):
    settings = config(name, "0")
    _, perturbed, rows = run(name, network, batch, settings)
    assert torch.equal(perturbed.images, batch[0])
    assert (rows["prediction"] == rows["clean_prediction"]).all()


@pytest.mark.parametrize("target", ["random", "least-likely", "next"])
def test_targets_differ_from_the_label_and_follow_their_rule(target, network, batch):
    images, labels, indices = batch
    attack = Attack("pgd-targeted", network, config("pgd-targeted", target=target))
    logits = network(images).detach()
    whole = attack.choose_targets(logits, labels, indices)
    chunks = [attack.choose_targets(logits[c], labels[c], indices[c]) for c in torch.arange(len(labels)).split(7)]
    assert torch.equal(torch.cat(chunks), whole)
    assert (whole != labels).all()
    if target == "next":
        assert torch.equal(whole, (labels + 1) % 10)
    if target == "least-likely":
        right = logits.argmax(1) == labels
        assert torch.equal(whole[right], logits.argmin(1)[right])


def restarts_are_a_worst_case(network, images):
    """One step from a random point: another point fells other images."""
    one = run("pgd", network, images, config("pgd", "8/255", steps=1))[2]["success"]
    many = run("pgd", network, images, config("pgd", "8/255", steps=1, restarts=4))[2]["success"]
    assert (many >= one).all()
    assert 0 < one.sum() < many.sum()


def more_steps_are_stronger(network, images):
    felled = [run("pgd", network, images, config("pgd", "4/255", steps=steps))[2]["success"].sum() for steps in (1, 2, 10)]
    assert 0 < felled[0] < felled[1] < felled[2]


def larger_budgets_are_stronger(network, images):
    felled = [run("pgd", network, images, config("pgd", eps))[2]["success"].sum() for eps in ("1/255", "2/255", "4/255")]
    assert 0 < felled[0] < felled[1] < felled[2]


STRONGER = [restarts_are_a_worst_case, more_steps_are_stronger, larger_budgets_are_stronger]


@pytest.mark.parametrize("holds", STRONGER)
def test_what_makes_an_attack_stronger_fells_more_images(holds, network, many):
    holds(network, many)


@pytest.mark.parametrize("holds", STRONGER)
def test_an_attack_that_does_nothing_is_noticed(holds, network, many, monkeypatch):
    monkeypatch.setitem(ATTACKS, "pgd", replace(ATTACKS["pgd"], run=lambda queried, turn: queried.images))
    with pytest.raises(AssertionError):
        holds(network, many)


def test_each_step_of_each_restart_is_counted(network, batch):
    rows = run("pgd", network, batch, config("pgd", "1/255", steps=3, restarts=4))[2]
    standing = rows["label"] == rows["prediction"]
    assert standing.sum() > 10
    assert (rows["backward_passes"][standing] == 4 * 3).all()


@pytest.mark.parametrize("eps", ["1/255", "2/255"])
def test_the_standard_ensemble_is_at_most_the_minimum_of_its_parts(eps, network, batch, quick):
    settings = config("standard", eps)
    _, _, rows = run("standard", network, batch, settings)
    fallen = rows["success"].to_numpy()
    together = np.zeros_like(fallen)
    for name in ATTACKS["standard"].members:
        part = run(name, network, batch, member_config(name, settings))[2]["success"].to_numpy()
        assert (fallen >= part).all()
        together |= part
    assert (fallen == together).all()
    assert ((rows["member"] >= 0) == fallen).all()


def test_transfer_examples_are_made_on_the_source_and_scored_on_the_other(network, batch):
    class Other(nn.Module):
        def __init__(self):
            super().__init__()
            self.network = network

        def forward(self, x):
            return self.network(x.flip(3))

    surrogate = Surrogate(network, "small", "w")
    attack, perturbed, rows = run("pgd", Other(), batch, config("pgd", "8/255"), surrogate=surrogate)
    own = run("pgd", network, batch, config("pgd", "8/255"))[2]
    assert attack.kind == "transfer" and attack.setting["surrogate"] == "small"
    made_wrong = (network(perturbed.images).argmax(1) != batch[1]).numpy()
    assert made_wrong.sum() >= own["success"].sum() + (own["clean_prediction"] != own["label"]).sum() - 1
    other_clean = Other()(batch[0]).argmax(1)
    assert rows["clean_prediction"].tolist() == other_clean.tolist()
    with pytest.raises(InputError, match="Accepted are fgsm"):
        bind(network, parse_attacks("square", "8/255"), surrogate=surrogate)


def test_foolbox_finds_as_many_survivors(network):
    """An independent implementation of PGD, from the same starting points, on 500 images."""
    foolbox = pytest.importorskip("foolbox", reason="foolbox is not installed (pip install sanbench[test])")
    test = load_dataset("fashion10k", "test")
    chosen = list(range(0, 2000, 4))
    images, labels, indices = test.read(chosen).float() / 255, test.labels[chosen], torch.tensor(chosen)
    settings = config("pgd", "2/255", steps=10)
    _, _, rows = run("pgd", network, (images, labels, indices), settings)
    starts = []
    for image, index in zip(images, indices.tolist()):
        generator = torch.Generator().manual_seed(image_seed(0, index, "pgd 2"))
        eps = float(settings.eps)
        starts.append((image + torch.empty_like(image).uniform_(-eps, eps, generator=generator)).clamp(0, 1))
    theirs = foolbox.attacks.LinfPGD(abs_stepsize=float(settings.step_size), steps=10, random_start=True)
    theirs.get_random_start = lambda x0, epsilon: type(x0)(torch.stack(starts))
    with evaluating(network):
        wrapped = foolbox.PyTorchModel(network, bounds=(0, 1), device="cpu")
        _, _, success = theirs(wrapped, images, labels, epsilons=float(settings.eps))
    ours = int((rows["prediction"] == rows["label"]).sum())
    assert 50 < ours < 450
    assert abs(ours - int((~success).sum())) <= 5


def test_accuracy_never_rises_with_eps(network, batch):
    standing = [
        (rows["prediction"] == rows["label"]).sum()
        for rows in (run("pgd", network, batch, config("pgd", f"{eps}/255"))[2] for eps in (0, 1, 2, 4, 8, 16, 32))
    ]
    assert standing == sorted(standing, reverse=True)
    assert standing[0] > standing[-1]
