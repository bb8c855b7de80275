"""Attacks from elsewhere: wrappers as people write them, what is counted and recorded, and sentences for wrong ones."""

import hashlib
import importlib
import random
import sys

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

import sanbench
from sanbench.errors import InputError, SanbenchError
from sanbench.evaluation import evaluate as evaluation
from sanbench.evaluation.attacks.budget import distance
from sanbench.evaluation.attacks.elsewhere import AT_ONCE, Counted, Elsewhere, own_generators
from sanbench.evaluation.kinds import AttackOptions
from sanbench.evaluation.loop import evaluating
from sanbench.store.files import Store
from tests.support.commands import sanbench as command
from tests.support.quick_measurements import config, run
from tests.support.report_pages import page, table

MODULE = '''
import random

import numpy as np
import torch
import torch.nn.functional as F


def pgd(model, images, labels, eps, steps=4):
    """Random starts from three generators, and five forward and four backward passes."""
    numbers = torch.rand_like(images) + random.random() + torch.from_numpy(np.random.rand(*images.shape)).float()
    x = (images + eps * (numbers / 1.5 - 1)).clamp(0, 1)
    for _ in range(steps):
        x.requires_grad_()
        F.cross_entropy(model(x), labels).backward()
        x = (x.detach() + eps / 2 * x.grad.sign()).clamp(images - eps, images + eps).clamp(0, 1)
    model(x)
    return x


def sneaky(model, images, labels, eps):
    model.train()
    labels.zero_()
    images.clamp_(0.1)
    return images.sub_(0.1).clamp_(0, 1) * 0 + 0.5


def by_torchattacks(model, images, labels, eps):
    import torchattacks

    return torchattacks.PGD(model, eps, eps / 4, 10)(images, labels)


def by_foolbox(model, images, labels, eps):
    import foolbox

    attack = foolbox.attacks.LinfPGD(abs_stepsize=eps / 4, steps=10)
    return attack(foolbox.PyTorchModel(model, bounds=(0, 1)), images, labels, epsilons=eps)[1]


def l2(model, images, labels, eps):
    x = images.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(F.cross_entropy(model(x), labels), x)
    return (images + 0.99 * eps * F.normalize(gradient.flatten(1)).reshape(images.shape)).clamp(0, 1)


def outside_ball(model, images, labels, eps):
    return (images + 1.5 * eps).clamp(0, 1)


def outside_box(model, images, labels, eps):
    return images + eps


def not_finite(model, images, labels, eps):
    return images * float("nan")


def one_image(model, images, labels, eps):
    return images[0]


def a_list(model, images, labels, eps):
    return [images]


def in_levels(model, images, labels, eps):
    return (images * 255).byte()


def raises(model, images, labels, eps):
    raise ValueError("no gradient today.\\nreally")


NUMBER = 3
'''


@pytest.fixture(scope="module")
def theirs(tmp_path_factory):
    """A module of their own, as `theirs:function`."""
    folder = tmp_path_factory.mktemp("elsewhere")
    (folder / "their_attacks.py").write_text(MODULE)
    sys.path.insert(0, str(folder))
    yield importlib.import_module("their_attacks")
    sys.path.remove(str(folder))
    sys.modules.pop("their_attacks")


def measured(network, name, eps="2/255", limit=50, **options):
    chosen = {key: options.pop(key) for key in ("norm",) if key in options}
    wanted = AttackOptions(attack=f"their_attacks:{name}", eps=eps, **chosen)
    return sanbench.evaluate(network, "fashion10k", wanted, limit=limit, **options)


@pytest.mark.parametrize(("name", "package"), [("by_torchattacks", "torchattacks"), ("by_foolbox", "foolbox")])
def test_a_wrapped_attack_fells_about_what_ours_fells(name, package, network, many, theirs):
    pytest.importorskip(package, reason=f"{package} is not installed (pip install sanbench[test])")
    images, labels, indices = many
    ours = run("pgd", network, many, config("pgd", "2/255"))[2]
    with evaluating(network):
        perturbed = Elsewhere(f"their_attacks:{name}", network, config("pgd", "2/255"))(images, labels, indices)
        stand = int((network(perturbed.images).argmax(1) == labels).sum())
    standing = int((ours["prediction"] == ours["label"]).sum())
    assert 20 < standing < 180 and abs(stand - standing) <= 4  # it returns its last step, ours keeps the first that falls
    right = perturbed.columns["clean_prediction"] == labels
    assert torch.equal(perturbed.images[~right], images[~right])
    torch.testing.assert_close(perturbed.columns["linf"], distance(images, perturbed.images, "linf"))
    assert perturbed.columns["backward_passes"][right].eq(10).all() and not perturbed.columns["backward_passes"][~right].any()


def test_all_that_is_spent_is_counted(network, many, theirs):
    images, labels, indices = many
    seen = []

    class Counts(nn.Module):
        def forward(self, x):
            seen.append(len(x))
            return network(x)

    with evaluating(network):
        whole = Elsewhere("their_attacks:pgd", Counts(), config("pgd", "2/255"))
        columns = whole(images, labels, indices).columns
        forward = len(images) + sum(seen)  # one look is the loop's, that scores them
    assert columns["forward_passes"].sum() == forward
    right = columns["clean_prediction"] == labels
    assert columns["backward_passes"][right].eq(4).all()
    counted = Counted(network, 64)
    x = torch.rand(3, 3, 32, 32, requires_grad=True)
    counted(x).sum().backward()
    with torch.no_grad():
        counted(x[:2])
    assert counted.passes == {"forward_passes": 5, "backward_passes": 3}


def test_uneven_passes_are_spread(network, batch, theirs, monkeypatch):
    monkeypatch.setattr(theirs, "pgd", lambda model, images, labels, eps: model(images[:7]).sum() * 0 + images)
    images, labels, indices = batch
    with evaluating(network):
        columns = Elsewhere("their_attacks:pgd", network, config("pgd", "2/255"))(images, labels, indices).columns
    control = (indices % 4 == 0).long()
    right = columns["clean_prediction"] == labels
    assert 7 < right.sum() < AT_ONCE
    assert (columns["forward_passes"] - control - 3).sum() == 7 and (columns["forward_passes"] - control - 3).max() == 1


@pytest.mark.parametrize(
    "options", [{"batch_size": 1}, {"batch_size": 5}, pytest.param({"batch_size": 7, "nproc": 2}, marks=pytest.mark.slow)]
)
def test_neither_batch_nor_process_changes_a_row(options, network, theirs, monkeypatch):
    one = measured(network, "pgd", "8/255", limit=100)
    monkeypatch.setattr(evaluation, "PART", 64)
    other = measured(network, "pgd", "8/255", limit=100, **options)
    assert 10 < one.rows["success"].sum() < 90
    pd.testing.assert_frame_equal(one.rows, other.rows, check_exact=False, rtol=1e-4)
    assert one.rows[["index", "prediction", "forward_passes"]].equals(other.rows[["index", "prediction", "forward_passes"]])
    again = sanbench.evaluate(network, "fashion10k", AttackOptions("2/255", "their_attacks:pgd"), limit=100, seed=1)
    assert set(again.rows["index"]) != set(one.rows["index"]) and again.records[0].setting["seed"] == 1


def test_generators_are_afterwards_as_they_were():
    torch.manual_seed(3), np.random.seed(3), random.seed(3)  # noqa: NPY002
    expected = torch.rand(2).tolist(), np.random.rand(2).tolist(), random.random()  # noqa: NPY002
    torch.manual_seed(3), np.random.seed(3), random.seed(3)  # noqa: NPY002
    drawn = []
    for seed in (5, 5, 6):
        with own_generators(seed):
            drawn.append((torch.rand(1).item(), np.random.rand(), random.random()))  # noqa: NPY002
    assert drawn[0] == drawn[1] and all(a != b for a, b in zip(drawn[0], drawn[2]))
    assert (torch.rand(2).tolist(), np.random.rand(2).tolist(), random.random()) == expected  # noqa: NPY002


def test_it_cannot_change_the_network_its_images_or_its_labels(network, batch, theirs):
    network.train()
    network.eval()
    images, labels, indices = (values.clone() for values in batch)
    with pytest.raises(SanbenchError, match="their_attacks:sneaky left its budget"):
        Elsewhere("their_attacks:sneaky", network, config("pgd", "2/255"))(images, labels, indices)
    assert torch.equal(images, batch[0]) and torch.equal(labels, batch[1]) and not network.training


WRONG = {
    "outside_ball": "their_attacks:outside_ball left its budget: distance 0.0117",
    "outside_box": r"their_attacks:outside_box left the pixel box \[0, 1\]",
    "not_finite": "their_attacks:not_finite left its budget: distance nan",
    "one_image": r"their_attacks:one_image returned torch.float32 \(3, 32, 32\), not images \(\d+, 3, 32, 32\)",
    "a_list": "their_attacks:a_list returned list, not images",
    "in_levels": r"their_attacks:in_levels returned torch.uint8 \(\d+, 3",
    "raises": "their_attacks:raises failed: no gradient today. Nothing",
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_one_fails_by_name_and_leaves_no_record(name, network, theirs, tmp_path):
    with pytest.raises(SanbenchError, match=WRONG[name]) as failed:
        measured(network, name, limit=20, store=tmp_path)
    assert failed.value.exit_code == 1 and Store(tmp_path).records() == []


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"attack": "nosuch_module:pgd"}, "nosuch_module:pgd cannot be imported: No module named 'nosuch_module'; accepted is"),
        ({"attack": "their_attacks:nosuch"}, "their_attacks has no function 'nosuch'"),
        ({"attack": "their_attacks:NUMBER"}, "their_attacks has no function 'NUMBER'"),
        ({"attack": "their_attacks:pgd", "eps": "8"}, "Did you mean 8/255"),
        ({"attack": "their_attacks:pgd", "norm": "l1"}, "Unknown norm 'l1'"),
        ({"attack": "their_attacks:pgd", "steps": 3}, "steps 3 is not accepted for attack 'their_attacks:pgd': it takes eps"),
        ({"attack": "pgd,their_attacks:pgd", "surrogate": "x"}, "surrogate x is not accepted for attack 'their_attacks:pgd'"),
        ({"attack": "pgd,their_attacks:pgd", "save_images": 2}, "save-images 2 is not accepted"),
        ({"attack": "pgdd,their_attacks:pgd"}, "Unknown attack 'pgdd'"),
    ],
)
def test_what_is_typed_wrong_is_named(options, named, network, theirs):
    with pytest.raises(InputError, match=named):
        sanbench.evaluate(network, "fashion10k", AttackOptions(**options), limit=5)


def test_the_command_records_its_name_and_its_source(runs, theirs, tmp_path):
    places = ["--runs", runs, "--results", tmp_path / "results"]
    words = ["attack", "san10", "--attack", "pgd,their_attacks:pgd", "--steps", 3, "--eps", "2/255,8/255", "--limit", 12]
    outcome = command(*words, *places, columns=200)
    assert outcome.exit_code == 0, outcome.output
    assert "their_attacks:pgd, L∞ ε = 8/255" in outcome.stdout
    store = Store(tmp_path / "results")
    records = [record for record in store.records() if record.setting["attack"] == "their_attacks:pgd"]
    digest = hashlib.sha256(MODULE.encode()).hexdigest()
    assert [record.setting["eps"] for record in records] == ["2/255", "8/255"]
    assert all(record.setting["source"] == digest[:16] and record.kind == "attack" for record in records)
    assert command("results", "check", *places[2:]).exit_code == 0
    assert command("report", *places[2:]).exit_code == 0
    assert "their_attacks:pgd" in [row["attack"] for row in table(page(store.root, "attacks"), "Robust accuracy")]
    for attack, code in (("their_attacks:raises", 1), ("their_attacks:outside_ball", 1), ("their_attacks:nosuch", 2)):
        outcome = command("attack", "san10", "--attack", attack, *places)
        assert outcome.exit_code == code and outcome.stderr.startswith(f"Error: {attack} "), outcome.output


def test_another_norm(network, theirs):
    found = measured(network, "l2", "0.5", norm="l2")
    assert 0.4 < found.records[0].extremes["l2"] <= 0.5 and found.records[0].counts["success"] > 3
