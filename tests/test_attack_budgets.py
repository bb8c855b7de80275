"""Budgets: how they are written, and that no attack leaves them."""

from dataclasses import replace
from fractions import Fraction

import pytest
import torch

from sanbench.errors import InputError, SanbenchError
from sanbench.evaluation.attacks.budget import budget_text, check_budget, distance, in_eight_bits, parse_budget
from sanbench.evaluation.attacks.table import ATTACKS, parse_attacks
from tests.support.quick_measurements import config, run


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
    assert parse_attacks("square", "8/255")[0][1].steps == 5000
    assert parse_attacks("apgd", "2.5", norm="l2")[0][1].eps == Fraction(5, 2)
    assert budget_text(Fraction(3, 255)) == "3/255"


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"names": "pgdd"}, "Did you mean 'pgd'"),
        ({"names": "pgd", "steps": 0}, "steps 0"),
        ({"names": "pgd", "restarts": 0}, "restarts 0"),
        ({"names": "pgd", "norm": "l2"}, "accepted is linf"),
        ({"names": "standard", "steps": 5}, "steps 5 is not accepted"),
        ({"names": "pgd", "targets": 3}, "targets 3"),
        ({"names": "pgd-targeted", "target": "likely"}, "Did you mean 'least-likely'"),
    ],
)
def test_what_no_attack_takes_is_named(arguments, named):
    with pytest.raises(InputError, match=named):
        parse_attacks(eps="8/255", **arguments)


@pytest.mark.parametrize(
    ("change", "named"), [(0.05, "left its budget"), (float("nan"), "left its budget"), (-0.02, "left the pixel box")]
)
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_a_violated_budget_fails_by_name(change, named, norm):
    images = torch.zeros(2, 3, 4, 4) + 0.01
    broken = images.clone()
    broken[1, 0, 0, 0] += change
    with pytest.raises(SanbenchError, match=f"pgd {named}"):
        check_budget(images, broken, 0.03, "pgd", norm)


def test_an_attack_that_leaves_its_budget_fails_the_run(network, batch, monkeypatch):
    def too_far(queried, turn):
        with torch.no_grad():
            queried((queried.images + 0.2).clamp(0, 1))
        return (queried.images + 0.2).clamp(0, 1)

    monkeypatch.setitem(ATTACKS, "pgd", replace(ATTACKS["pgd"], run=too_far))
    with pytest.raises(SanbenchError, match="pgd left its budget"):
        run("pgd", network, batch, config("pgd"))


def test_eight_bits_stay_in_the_ball():
    images = torch.randint(0, 256, (5, 3, 6, 6)) / 255
    generator = torch.Generator().manual_seed(0)
    noise = torch.rand(images.shape, generator=generator) * 2 - 1
    near = (images + noise * 2.5 / 255).clamp(0, 1)
    for norm, eps in (("linf", 2.5 / 255), ("l2", float(distance(images, near, "l2").max()))):
        found = in_eight_bits(images, near, eps, norm)
        assert distance(images, found, norm).max() <= eps + 1e-6
        assert (found * 255 - (found * 255).round()).abs().max() < 1e-4
    assert distance(images, in_eight_bits(images, near, 2.5 / 255, "linf"), "linf").max() > 1.9 / 255


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_a_distance_is_that_of_the_image_alone_for_any_number_of_threads(norm):
    generator = torch.Generator().manual_seed(0)
    images, others = (torch.rand(24, 3, 224, 224, generator=generator) for _ in range(2))
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        together = distance(images, others, norm)
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            assert torch.equal(torch.cat([distance(*pair, norm) for pair in zip(images.split(1), others.split(1))]), together)
    finally:
        torch.set_num_threads(before)
    assert distance(images[:0], others[:0], norm).shape == (0,)
