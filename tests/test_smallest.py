"""The smallest perturbation of each image: a closed case, an independent attack, foolbox 2's search, and how it is reported."""

import math
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import sanbench as library
from sanbench.data import load_dataset
from sanbench.evaluation import evaluate as evaluation
from sanbench.evaluation.attacks import attack as attacks
from sanbench.evaluation.attacks import options
from sanbench.evaluation.attacks.options import bind
from sanbench.evaluation.attacks.smallest import Smallest
from sanbench.evaluation.attacks.table import ATTACKS, FOOLBOX_2, Search
from sanbench.evaluation.evaluate import evaluate
from sanbench.evaluation.kinds import AttackOptions, Request
from sanbench.evaluation.loop import evaluating, score
from sanbench.evaluation.parts import EvaluationOptions
from sanbench.evaluation.statistics import median
from sanbench.models import Classifier
from sanbench.report import write_report
from sanbench.runs.evaluated import EvaluatedModel
from sanbench.store.files import Store
from sanbench.store.schema import ModelSpec
from sanbench_cli.console import console, print_records
from tests.support.commands import sanbench
from tests.support.quick_measurements import Drops, config
from tests.support.report_pages import page, table


def find(name, model, batch, settings, **options):
    """What was found of each image, and the smallest ε: 0 where it was wrong before, infinite without an example."""
    step = Smallest(name, model, settings, **options)
    with evaluating(model):
        perturbed = step(*batch)
        rows = pd.DataFrame(score(model, perturbed, batch[2], batch[1]))
    reached = rows["prediction"] == rows["target"] if "target" in rows else rows["prediction"] != rows["label"]
    smallest = np.where(rows["clean_prediction"] != rows["label"], 0, rows[settings.norm].where(reached, math.inf))
    return perturbed, rows, smallest


@pytest.fixture(scope="module")
def linear():
    """Two classes, and images so far from black and white that the box is not met."""
    draw = torch.Generator().manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(48, 2))
    with torch.no_grad():
        model[1].weight.copy_(torch.randn(2, 48, generator=draw))
        model[1].bias.zero_()
    images = 0.45 + 0.1 * torch.rand(40, 3, 4, 4, generator=draw)
    with torch.no_grad():
        labels = model(images).argmax(1)
    return model, (images, labels, torch.arange(40))


CLOSED = [
    ("pgd", "linf", 10, 0.0),
    ("pgd-targeted", "linf", 10, 0.0),
    ("pgd-l2", "l2", 60, 0.0),
    ("fab", "linf", 10, 0.06),  # it goes 5% beyond the boundary
    ("fab", "l2", 10, 0.06),
]


@pytest.mark.parametrize(("name", "norm", "steps", "beyond"), CLOSED)
def test_of_a_linear_network_it_is_the_closed_form_within_the_tolerance(name, norm, steps, beyond, linear):
    """margin / |w|_1 in L-infinity, margin / |w|_2 in L2: never below it, and not found where it lies beyond the bracket."""
    model, batch = linear
    weight = model[1].weight[0] - model[1].weight[1]
    margin = model(batch[0]).diff(dim=1).abs()[:, 0].double()
    closed = (margin / weight.double().norm(1 if norm == "linf" else 2)).detach().numpy()
    bracket = Fraction(float(np.quantile(closed, 0.8))).limit_denominator(10**6)
    search = Search(bisections=9)
    settings = config(name, norm=norm, eps=bracket, step_size=bracket / 4, steps=steps, search=search)
    perturbed, _, smallest = find(name, model, batch, settings)
    inside = closed < float(bracket)
    assert 25 < inside.sum() < 40
    tolerance = float(bracket) / 2**search.bisections
    assert (smallest[inside] >= closed[inside] - 1e-6).all()
    assert (smallest[inside] <= closed[inside] * (1 + beyond) + tolerance + 1e-6).mean() > (0.99 if not beyond else 0.9)
    assert np.isinf(smallest[~inside]).all()
    assert torch.equal(perturbed.images[torch.tensor(~inside)], batch[0][torch.tensor(~inside)])


def test_an_image_costs_what_its_own_search_costs(linear):
    """One attack at the bracket and one a bisection; of what stands at the bracket no more. Restarts are for what stands."""
    model, batch = linear
    settings = config("pgd", "1/20", steps=3, search=Search(bisections=5))
    _, rows, smallest = find("pgd", model, batch, settings)
    stands = np.isinf(smallest)
    assert 5 < stands.sum() < 40
    assert (rows["backward_passes"][stands] == 3).all()
    assert (rows["backward_passes"][~stands] > 5).all() and (rows["backward_passes"][~stands] <= 6 * 3).all()
    _, twice, again = find("pgd", model, batch, replace(settings, restarts=2))
    assert (twice["backward_passes"][stands & np.isinf(again)] == 6).all()
    assert not np.isinf(again[~stands]).any()  # the first start is the same


@pytest.mark.parametrize("name", ["pgd", "pgd-targeted", "pgd-l2", "fab"])
def test_it_depends_on_the_image_alone(name, network, batch):
    """Not on the batch nor on the pool, but for rounding."""
    changes = {"targets": 2} if name == "fab" else {}
    settings = config(name, "1" if name == "pgd-l2" else "8/255", steps=4, search=Search(4), **changes)
    whole = find(name, network, batch, settings)[2]
    small = find(name, network, batch, settings, batch_size=3)[2]
    halves = [find(name, network, tuple(x[half] for x in batch), settings)[2] for half in (slice(11), slice(11, None))]
    assert np.isfinite(whole).sum() > 5
    for other in (small, np.concatenate(halves)):
        close = np.isclose(whole, other, atol=1e-6)
        assert close.sum() >= len(close) - 1


def test_at_the_bracket_it_is_pgd_and_below_it_nearly_so(network, many):
    """The first ε is tried from pgd's own random start, so the same images fall. Below, pgd is another attempt from another
    start: what one of them fells the other may miss, so no order holds, only nearness; n = 200."""
    settings = config("pgd", "8/255", search=Search(6))
    _, rows, smallest = find("pgd", network, many, settings)
    for eps, allowed in (("8/255", 0), ("4/255", 4), ("2/255", 4)):
        plain = attacks.Attack("pgd", network, config("pgd", eps))
        with evaluating(network):
            told = score(network, plain(*many), many[2], many[1])
        stands = told["prediction"] == told["label"]
        within = smallest > float(Fraction(eps)) + 1e-6
        assert (stands != within).sum() <= allowed, eps
        assert 0 < within.sum() < 200 or eps == "8/255"
    assert rows["linf"].max() <= 8 / 255 + 1e-6


def test_foolbox_finds_perturbations_of_the_same_size(network, batch):
    """Its fast minimum norm attack (Pintor et al. 2021) knows neither an ε nor a bisection."""
    foolbox = pytest.importorskip("foolbox", reason="foolbox is not installed (pip install sanbench[test])")
    ours = find("pgd", network, batch, config("pgd", "64/255", steps=20, search=Search(9)))[2]
    with evaluating(network):
        wrapped = foolbox.PyTorchModel(network, bounds=(0, 1), device="cpu")
        theirs = foolbox.attacks.LInfFMNAttack(steps=150)
        _, found, success = theirs(wrapped, batch[0], batch[1], epsilons=None)
    far = (found - batch[0]).flatten(1).abs().amax(1).numpy()
    both = np.isfinite(ours) & success.numpy() & (ours > 0)
    assert both.sum() > 15
    ratio = ours[both] / far[both]
    assert 0.8 < np.median(ratio) < 1.2
    assert (ratio < 1.5).mean() > 0.9


def searched(model, image, label, target):
    """What foolbox 2 did, one image at a time: distance of the nearest example, or infinite."""

    def attempt(eps):
        x = image.clone()
        for _ in range(40):
            x = x.requires_grad_()
            (gradient,) = torch.autograd.grad(F.cross_entropy(model(x[None]), target[None]), x)
            x = (image + (x.detach() - eps / 30 * gradient.sign() - image).clamp(-eps, eps)).clamp(0, 1)
            if model(x[None]).argmax() == target:
                return (x - image).abs().max().item()
        return None

    nearest, eps, good, bad = math.inf, 0.3, None, 0.0
    for _ in range(20):
        if (found := attempt(eps)) is not None:
            nearest, good = found, eps
            break
        eps *= 1.5
    for _ in range(20 if good is not None else 0):
        eps = (good + bad) / 2
        if (found := attempt(eps)) is None:
            bad = eps
        else:
            nearest, good = min(nearest, found), eps
    return nearest


def test_search_is_that_of_foolbox_2(network, batch):
    """Written once more from what its source does; another order of sums may end a bisection elsewhere."""
    few = tuple(x[1:5] for x in batch)
    (step,) = options.parse(AttackOptions(attack="pgd-targeted", search=True), Request(0, 64, None))(
        type("Evaluated", (), {"model": network, "findings": ()}), None
    )
    assert step.config.search == FOOLBOX_2 and step.setting["step_size"] == "1/30 of ε" and step.setting["steps"] == 40
    with evaluating(network):
        perturbed = step(*few)
        target = perturbed.columns["target"]
        for n, (image, label) in enumerate(zip(few[0], few[1], strict=True)):
            if perturbed.columns["clean_prediction"][n] != label:
                continue
            wanted = searched(network, image, label, target[n])
            found = (
                perturbed.columns["linf"][n].item() if network(perturbed.images[n][None]).argmax() == target[n] else math.inf
            )
            assert found == pytest.approx(wanted, rel=0.02), n


WRONG = [
    (["--attack", "square", "--smallest"], "'square' is not accepted where the smallest eps is looked for: accepted are pgd"),
    (["--smallest", "--eps", "0"], "eps 0 is not accepted"),
    (["--bisections", "4"], "it belongs to --smallest, which is missing"),
    (["--search", "--eps", "8/255"], "--search begins at 0.3"),
    (["--search", "--attack", "pgd,fab"], "search is not accepted with attack pgd,fab: accepted are pgd and pgd-targeted"),
    (["--search", "--smallest"], "search is not accepted with smallest"),
    (["--smallest", "--attack", "pgd", "--surrogate", "other"], "surrogate other is not accepted where the smallest"),
]


@pytest.mark.parametrize(("words", "sentence"), WRONG)
def test_what_does_not_go_with_it_is_refused(words, sentence, tmp_path):
    done = sanbench("attack", *words, "--results", tmp_path, columns=300)
    assert done.exit_code == 2 and sentence in done.output


def test_a_search_goes_on_at_the_round_that_was_interrupted(network, batch, tmp_path, monkeypatch):
    monkeypatch.setattr("sanbench.evaluation.loop.KEEP", -1.0)
    pair = batch[:2]
    wanted = AttackOptions(attack="pgd", eps="8/255", smallest=True, bisections=3, steps=3)
    whole = library.evaluate(network, pair, wanted)
    done, original = [], attacks.run_round

    def rounds_then_stop(queried, turn, indices):
        done.append(turn.restart)
        if len(done) == 3:
            raise KeyboardInterrupt
        return original(queried, turn, indices)

    monkeypatch.setattr(attacks, "run_round", rounds_then_stop)
    with pytest.raises(KeyboardInterrupt):
        library.evaluate(network, pair, wanted, store=tmp_path)
    resumed = library.evaluate(network, pair, wanted, store=tmp_path)
    assert done == [0, 1, 2, 2, 3]
    pd.testing.assert_frame_equal(resumed.rows, whole.rows)


@pytest.mark.slow
@pytest.mark.parametrize("what", ["smallest", "limited", "averaged"])
def test_two_processes_give_the_rows_of_one(what, network, tmp_path, monkeypatch):
    """Budgets of each image, passes that are limited, and averaged gradients of a random network; 64 images in parts of 32."""
    monkeypatch.setattr(evaluation, "PART", 32)
    changes = {"smallest": {"search": Search(3)}, "limited": {"max_passes": 30, "restarts": 3}, "averaged": {"eot": 2}}[what]
    spec = ModelSpec(name="resnet26", num_classes=10, mean=(0.0,) * 3, std=(1.0,) * 3)
    model = Classifier(spec, Drops(network) if what == "averaged" else network)
    evaluated = EvaluatedModel(model, "w", "small", {}, {}, "s")
    found = []
    for processes in (1, 2):
        store, chosen = Store(tmp_path / str(processes)), EvaluationOptions(limit=64, nproc=processes)
        steps = bind(model, [("pgd", config("pgd", "8/255", **changes))])
        (one,) = evaluate(evaluated, load_dataset("fashion10k", "test"), steps, store, torch.device("cpu"), chosen)
        found.append(store.rows(one))
    assert found[0]["index"].tolist() == found[1]["index"].tolist()
    for name in ("prediction", "prediction_8bit", "forward_passes"):
        assert (found[0][name] != found[1][name]).sum() <= 1, name


def test_the_report_shows_medians_and_a_curve_that_falls(network, batch, tmp_path):
    chosen = [AttackOptions(attack="pgd,fab", eps="8/255", smallest=True, bisections=4, steps=4, targets=2), "accuracy"]
    found = library.evaluate(network, batch[:2], *chosen, store=tmp_path, name="small")
    one = next(r for r in found.records if r.setting.get("attack") == "pgd")
    assert one.kind == "smallest" and one.setting["tolerance"] == "1/510" and found.findings.flags(one) == []
    away = found.findings.distances(one)
    assert found.table["median_eps"].isna().tolist() == [False, False, True]
    assert found.table["median_eps"].iloc[0] == math.inf
    assert (away == 0).sum() == len(away) - one.counts["right_before"]
    checked = sanbench("results", "check", "--results", tmp_path)
    assert checked.exit_code == 0, checked.output
    with console.capture() as printed:
        print_records(found.records, found.findings, tmp_path)
    words = " ".join(printed.get().split())
    assert "smallest L∞" in words and "median ε, in 1/255 │ beyond" in words
    write_report(Store(tmp_path), "md,html,tex,csv")
    text = page(tmp_path, "smallest")
    curve = table(text, "pgd, smallest L∞ ε up to 8/255: robust accuracy")
    (column,) = [name for name in curve[0] if name not in ("ε", "n")]
    hits = [float(row[column].split()[0]) for row in curve]
    assert [row["ε"] for row in curve][:2] == ["0/255", "1/255"] and len(curve) == 9
    assert hits == sorted(hits, reverse=True) and hits[0] > hits[-1]
    assert hits[0] == pytest.approx(100 * one.counts["right_before"] / one.counts["images"], abs=0.05)
    assert hits[-1] == pytest.approx(100 * one.counts["correct"] / one.counts["images"], abs=0.05)
    (line,) = table(text, "pgd, smallest L∞ ε up to 8/255: smallest ε")
    assert line["median ε"].startswith("> 8 [") and line["median ε"].endswith(", > 8]/255")
    assert np.sort(away)[len(away) // 2] == math.inf
    assert "steps 4; restarts 1" in text and "tolerance 1/510" in text
    assert (tmp_path / "report" / "smallest.svg").is_file() and (tmp_path / "smallest.csv").is_file()


def test_the_interval_of_a_median_is_of_order_statistics():
    """n = 10: the 2nd and the 9th, with 97.9%; n = 5 has none. An example that was not found is beyond all others."""
    ten = np.array([3.0, 1, 2, 5, 4, 7, 6, 9, 8, math.inf])
    assert median(ten) == (5.0, 2.0, 9.0, 10)
    assert median(ten[:5])[1:3] == (-math.inf, math.inf)
    assert math.isnan(median(ten[:0]).value)
    draw = np.random.default_rng(0)
    covered = [found.low <= 0.5 <= found.high for found in (median(draw.random(30)) for _ in range(400))]
    assert 0.93 < np.mean(covered) < 0.99


def test_every_attack_that_is_searched_has_budgets_of_its_images_or_finds_the_nearest():
    assert [name for name, entry in ATTACKS.items() if entry.searched] == ["pgd", "pgd-targeted", "pgd-l2", "fab"]
