"""Attacks: formulas, budgets, randomness, what leaves when, what gives a mask away; on a small network of real images."""

from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from sanbench.data import load_dataset
from sanbench.errors import InputError, SanbenchError
from sanbench.evaluation import masking
from sanbench.evaluation.attacking import Attack, Source, bind
from sanbench.evaluation.attacks import ATTACKS, member_config, parse_attacks
from sanbench.evaluation.budgets import budget_text, check_budget, distance, in_eight_bits, parse_budget
from sanbench.evaluation.draws import image_seed, per_image_draws
from sanbench.evaluation.guard import Aim, AllFallen, Guard
from sanbench.evaluation.loop import evaluating, score

FEW = 12  # steps of attacks that take 100 or 5,000


@pytest.fixture(scope="module")
def network():
    """Ten classes, a quarter of a second of training: right on most images, and nowhere near robust."""
    train = load_dataset("fashion10k", "train")
    images, labels = train.images[:2000, :1].float() / 255, train.labels[:2000]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layers = [nn.Conv2d(3, 8, 5, stride=2), nn.ReLU(), nn.Conv2d(8, 16, 3, stride=2), nn.ReLU(), nn.Flatten()]
        model = nn.Sequential(*layers, nn.Linear(576, 10))
        optimizer = torch.optim.Adam(model.parameters(), 2e-3)
        for step in range(120):
            rows = torch.arange(step * 64, step * 64 + 64) % 2000
            optimizer.zero_grad()
            F.cross_entropy(model(images[rows].expand(-1, 3, -1, -1)), labels[rows]).backward()
            optimizer.step()
    return model.eval()


@pytest.fixture(scope="module")
def batch():
    test = load_dataset("fashion10k", "test")
    chosen = list(range(0, 2000, 80))
    return test.read(chosen).float() / 255, test.labels[chosen], torch.tensor(chosen)


def config(name, budget="4/255", **changes):
    (_, made), *_ = parse_attacks(name, budget)
    made = replace(made, steps=min(made.steps, FEW))
    return replace(made, **changes)


@pytest.fixture
def quick(monkeypatch):
    """Members of the ensemble with few steps."""
    for name, entry in ATTACKS.items():
        monkeypatch.setitem(ATTACKS, name, replace(entry, steps=min(entry.steps, FEW)))


def run(name, model, batch, settings, **options):
    attack = Attack(name, model, settings, **options)
    with evaluating(model):
        perturbed = attack(*batch)
        return attack, perturbed, score(model, perturbed, batch[2], batch[1])


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


@pytest.mark.parametrize("name", ATTACKS)
def test_rows_do_not_depend_on_the_batch(name, network, batch, quick):
    """Draws are bit-equal, so rows are equal but for float rounding."""
    settings = config(name, "3/255" if name != "pgd-l2" else "1/2")
    few = tuple(x[:12] for x in batch)
    found = [run(name, network, few, settings, batch_size=size)[2] for size in (1, 7, 64)]
    for rows in found[1:]:
        assert (rows["prediction"] != found[0]["prediction"]).sum() <= 0
        assert (rows["prediction_8bit"] != found[0]["prediction_8bit"]).sum() <= 1


def draws(kind, size, indices, seed=3, restart=0):
    parts = []
    for chunk in indices.split(size):
        with per_image_draws(seed, chunk, "pgd", restart):
            shape = (len(chunk), 3, 4, 4)
            made = {
                "uniform_": lambda s: torch.empty(s).uniform_(-1, 1),
                "normal_": lambda s: torch.empty(s).normal_(),
                "rand": lambda s: torch.rand(s),
                "randn": lambda s: torch.randn(*s),
                "rand twice": lambda s: torch.rand(s) + torch.rand(list(s)),
            }[kind](shape)
            parts.append(made)
    return torch.cat(parts)


@pytest.mark.parametrize("kind", ["uniform_", "normal_", "rand", "randn", "rand twice"])
def test_random_numbers_belong_to_seed_image_and_restart(kind):
    indices = torch.arange(100, 180)
    before = torch.get_rng_state()
    alone, seven, many = (draws(kind, size, indices) for size in (1, 7, 64))
    assert torch.equal(alone, seven) and torch.equal(alone, many)
    assert len(alone.flatten(1).unique(dim=0)) == len(indices)
    assert torch.equal(draws(kind, 64, indices.flip(0)).flip(0), alone)
    assert not torch.equal(draws(kind, 64, indices, seed=4), alone)
    assert not torch.equal(draws(kind, 64, indices, restart=1), alone)
    assert torch.equal(torch.get_rng_state(), before)


def test_shared_draws_do_not_depend_on_the_images_and_unknown_ones_fail():
    found = []
    for indices in (torch.arange(3), torch.arange(50, 57)):
        with per_image_draws(1, indices, "square"):
            found.append((torch.rand([1]), torch.rand([3, 1, 1])))
    assert torch.equal(found[0][0], found[1][0]) and torch.equal(found[0][1], found[1][1])
    with per_image_draws(1, torch.arange(3), "square"), pytest.raises(NotImplementedError):
        torch.randint(0, 4, (3,))


@pytest.mark.parametrize("name", ATTACKS)
def test_attacks_leave_the_global_generator_alone(name, network, batch, quick):
    before = torch.get_rng_state()
    run(name, network, tuple(x[:6] for x in batch), config(name))
    assert torch.equal(torch.get_rng_state(), before)


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


def test_restarts_are_a_worst_case_and_counted(network, batch):
    one = run("pgd", network, batch, config("pgd", "1/255", steps=3))[2]
    many = run("pgd", network, batch, config("pgd", "1/255", steps=3, restarts=4))[2]
    assert (many["success"] >= one["success"]).all()
    standing = one["label"] == many["prediction"]
    assert (many["backward_passes"][standing] == 4 * 3).all()


def test_more_steps_and_larger_budgets_are_stronger(network, batch):
    robust = {
        steps: (run("pgd", network, batch, config("pgd", "2/255", steps=steps))[2]["success"]).sum() for steps in (10, 50)
    }
    assert robust[50] >= robust[10]


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
    guard = Guard(network, images, labels, logits, Aim("linf", 1.0), batch_size=4)
    assert torch.equal(guard(images), logits) and guard.sizes == []
    queries = images.clone()
    queries[3] = 1 - queries[3]
    assert guard(queries)[3].argmax() != labels[3]
    assert guard.fallen.nonzero().flatten().tolist() == [3]
    assert torch.equal(guard.adversarial[3], queries[3])
    x = queries.clone().requires_grad_()
    guard(x).sum().backward()
    assert x.grad[3].abs().max() == 0 and x.grad[4].abs().max() > 0
    assert guard.spent["forward_passes"].tolist().count(1) == 1
    with pytest.raises(SanbenchError, match="queried 2 images"):
        guard(queries[:2])
    guard.alive = guard.alive[:0]
    with pytest.raises(AllFallen):
        guard(queries)


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
    def too_far(guard, turn):
        with torch.no_grad():
            guard((guard.images + 0.2).clamp(0, 1))
        return (guard.images + 0.2).clamp(0, 1)

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
    flags = masking.own_flags(rows, attack.setting)
    assert (flag in flags) if flag else flags == []


def test_transfer_examples_are_made_on_the_source_and_scored_on_the_other(network, batch):
    class Other(Quantised):
        def forward(self, x):
            return self.network(x.flip(3))

    source = Source(network, "small", "w")
    attack, perturbed, rows = run("pgd", Other(network), batch, config("pgd", "8/255"), source=source)
    own = run("pgd", network, batch, config("pgd", "8/255"))[2]
    assert attack.experiment == "transfer" and attack.setting["source"] == "small"
    made_wrong = (network(perturbed.images).argmax(1) != batch[1]).numpy()
    assert made_wrong.sum() >= own["success"].sum() + (own["clean_prediction"] != own["label"]).sum() - 1
    other_clean = Other(network)(batch[0]).argmax(1)
    assert rows["clean_prediction"].tolist() == other_clean.tolist()
    with pytest.raises(InputError, match="accepted are fgsm"):
        bind(network, parse_attacks("square", "8/255"), source=source)


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


def stored(name, correct, **changes):
    """The record of an attack on 100 images."""
    from tests.test_report import attacked

    base = attacked("san10_pairwise", "8/255", correct)
    return base.model_copy(update={"setting": {**base.setting, "attack": name, "members": [], **changes}})


def test_flags_by_comparison_whatever_the_order():
    pgd, square = stored("pgd", 40), stored("square", 20)
    assert masking.all_flags(pgd, [square]) == ["black-box-stronger"]
    assert masking.all_flags(square, [pgd]) == []
    assert masking.all_flags(stored("pgd", 15), [square]) == []
    assert masking.all_flags(stored("fgsm", 40), [square]) == []  # one step is weak on any network
    assert masking.all_flags(pgd, [stored("pgd", 40, eps="2/255", step_size="0.5/255")]) == ["flat-in-eps"]
    assert masking.all_flags(pgd, [stored("pgd", 60, eps="2/255", step_size="0.5/255")]) == []
    assert masking.all_flags(pgd, [stored("pgd", 20, steps=100)]) == ["steps-matter"]
    assert masking.all_flags(pgd, [stored("pgd", 35, steps=100)]) == []


def test_accuracy_never_rises_with_eps(network, batch):
    standing = [
        (rows["prediction"] == rows["label"]).sum()
        for rows in (run("pgd", network, batch, config("pgd", f"{eps}/255"))[2] for eps in (0, 1, 2, 4, 8, 16, 32))
    ]
    assert standing == sorted(standing, reverse=True)
    assert standing[0] > standing[-1]
