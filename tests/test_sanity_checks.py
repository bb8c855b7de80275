"""What gives masked gradients away."""

import pytest
import torch
from torch import nn

from sanbench.evaluation import sanity_checks
from sanbench.evaluation.loop import Perturbed, score
from tests.support.made_records import attacked
from tests.support.quick_measurements import config, run


class Quantised(nn.Module):
    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, x):
        return self.network((x * 8).round() / 8)


class Saturated(Quantised):
    def forward(self, x):
        return (200 * self.network(x)).softmax(1)


class Noisy(Quantised):
    def forward(self, x):
        return self.network(x + 0.05 * torch.randn_like(x))


@pytest.mark.parametrize(
    ("mask", "flag"), [(Quantised, "dead-gradients"), (Saturated, "probabilities"), (Noisy, "noisy-logits"), (None, None)]
)
def test_masks_raise_their_flag_and_plain_networks_none(mask, flag, network, batch):
    model = mask(network) if mask else network
    attack, _, rows = run("pgd", model, batch, config("pgd", steps=5))
    flags = sanity_checks.attack_flags(rows, attack.setting)
    assert (flag in flags) if flag else flags == []


def test_a_loss_that_is_flat_behind_the_boundary_masks_nothing(network, many):
    """DLR is 1, and its gradient 0, where an image's own class has become the third."""
    attack, _, rows = run("apgd-dlr", network, many, config("apgd-dlr", "48/255", steps=6))
    assert sanity_checks.attack_flags(rows, attack.setting) == []


def test_classes_in_another_order_look_like_guessing(network, many):
    images, labels, indices = many
    for shift, expected in ((0, []), (1, ["near-chance"])):
        rows = score(network, Perturbed(images, {}), indices, (labels + shift) % 10)
        assert sanity_checks.near_chance(rows, 10) == expected


def stored(name, correct, **changes):
    """The record of an attack on 100 images."""
    base = attacked("san10_pairwise", "8/255", correct)
    return base.model_copy(update={"setting": {**base.setting, "attack": name, "members": [], **changes}})


def flags(record, other):
    return sanity_checks.compared_flags(record, [other], lambda each: each.counts["correct"])


def test_flags_by_comparison_whatever_the_order():
    pgd, square = stored("pgd", 40), stored("square", 20)
    assert flags(pgd, square) == ["black-box-stronger"]
    assert flags(square, pgd) == []
    assert flags(stored("pgd", 15), square) == []
    assert flags(stored("fgsm", 40), square) == []  # one step is weak on any network
    assert flags(pgd, stored("pgd", 40, eps="2/255", step_size="0.5/255")) == ["flat-in-eps"]
    assert flags(pgd, stored("pgd", 60, eps="2/255", step_size="0.5/255")) == []
    assert flags(pgd, stored("pgd", 20, steps=100)) == ["steps-matter"]
    assert flags(pgd, stored("pgd", 35, steps=100)) == []
