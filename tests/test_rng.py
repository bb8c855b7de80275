"""Random numbers belong to (seed, image, restart): not to the batch, and not to the process."""

import pandas as pd
import pytest
import torch

from sanbench.data import load_dataset
from sanbench.evaluation import evaluate as evaluation
from sanbench.evaluation.attacks.options import bind
from sanbench.evaluation.attacks.table import ATTACKS, parse_attacks
from sanbench.evaluation.evaluate import evaluate
from sanbench.evaluation.parts import EvaluationOptions
from sanbench.evaluation.rng import AHEAD, PerImageRandom, image_seed, seeded
from sanbench.models import Classifier
from sanbench.runs.evaluated import EvaluatedModel
from sanbench.store.files import Store
from sanbench.store.schema import ModelSpec
from tests.support.quick_measurements import config, run

LONG = {"apgd-targeted", "fab", "standard"}  # a round for each of several targets


def brief(name, **changes):
    """So that some images fall and some stand."""
    targets = {"targets": 2} if "targets" in ATTACKS[name].shown else {}
    return config(name, "1/2" if name == "pgd-l2" else "3/255", **targets, **changes)


@pytest.fixture
def drawn(monkeypatch):
    """Every row that is drawn, under the seed of its image's generator."""
    found = {}
    original = PerImageRandom.fill

    def fill(self, out, *rest):
        filled = original(self, out, *rest)
        if out.dim() == 4:
            for row, place in zip(filled, self.rows(len(filled)), strict=True):
                found.setdefault(self.own[place].initial_seed(), []).append(row.numpy().tobytes())
        return filled

    monkeypatch.setattr(PerImageRandom, "fill", fill)
    return found


@pytest.mark.parametrize("name", [pytest.param(name, marks=[pytest.mark.slow] * (name in LONG)) for name in ATTACKS])
def test_draws_are_equal_bit_by_bit_in_batches_of_1_7_and_64_and_rows_but_for_rounding(name, network, many, quick, drawn):
    """On 200 images; also with each half of them in a pool of its own, as two processes have them."""
    indices = many[2]
    found, seen = [], []
    for size in (1, 7, 64):
        drawn.clear()
        found.append(run(name, network, many, brief(name), batch_size=size)[2])
        seen.append(dict(drawn))
    drawn.clear()
    halves = [run(name, network, tuple(x[half] for x in many), brief(name))[2] for half in (slice(100), slice(100, 200))]
    found.append(pd.concat(halves, ignore_index=True))
    seen.append(dict(drawn))
    allowed = 0.005 * len(indices)
    for rows, draws in zip(found[1:], seen[1:], strict=True):
        assert rows["index"].tolist() == indices.tolist()
        assert (rows["prediction"] != found[0]["prediction"]).sum() <= allowed
        assert (rows["prediction_8bit"] != found[0]["prediction_8bit"]).sum() <= allowed
        assert set(draws) == set(seen[0]) or len(set(draws) ^ set(seen[0])) <= 2 * allowed  # rounds of one that fell elsewhere
        assert all(draws[seed] == seen[0][seed] for seed in set(draws) & set(seen[0]))
    assert bool(seen[0]) == (name not in {"fgsm", "fab"})  # these draw nothing in their first start


@pytest.mark.slow
def test_two_processes_give_the_rows_of_one(network, tmp_path, monkeypatch):
    """Every attack, through the evaluation loop; 200 images in parts of 64."""
    monkeypatch.setattr(evaluation, "PART", 64)
    spec = ModelSpec(name="resnet26", num_classes=10, mean=(0.0,) * 3, std=(1.0,) * 3)
    evaluated = EvaluatedModel(Classifier(spec, network), "w", "small", {}, {}, "s")
    wanted = [(name, brief(name)) for name in ATTACKS if name != "standard"]
    wanted += parse_attacks("standard", "32/255")  # at which nearly all fall at once: its official steps take long
    results = []
    for processes in (1, 2):
        store, protocol = Store(tmp_path / str(processes)), EvaluationOptions(limit=200, nproc=processes)
        attacks = bind(evaluated.model, wanted)
        records = evaluate(evaluated, load_dataset("fashion10k", "test"), attacks, store, torch.device("cpu"), protocol)
        results.append({record.setting["attack"]: store.rows(record) for record in records})
    assert set(results[0]) == set(ATTACKS)
    for name, one in results[0].items():
        two = results[1][name]
        assert one["index"].tolist() == two["index"].tolist()
        assert (one["prediction"] != two["prediction"]).sum() <= 1, name


def draws(kind, size, indices, seed=3, restart=0):
    parts = []
    for chunk in indices.split(size):
        with PerImageRandom(seed, chunk, "pgd", restart):
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


def test_small_draws_made_ahead_are_those_that_were_made_one_by_one_also_of_images_that_stay_when_others_leave():
    indices, left, standing = torch.arange(50, 57), [0, 3, 4], [0]
    random = PerImageRandom(1, indices, "square", rows=lambda count: standing)
    generators = [seeded(image_seed(1, image, "square")) for image in indices.tolist()]
    for standing in [[*range(7)]] * (AHEAD // 2) + [left] * AHEAD:
        with random:
            found = torch.rand([len(standing), 3, 1, 1])
        assert torch.equal(found, torch.stack([torch.rand(3, 1, 1, generator=generators[place]) for place in standing]))


def test_shared_draws_do_not_depend_on_the_images_and_unknown_ones_fail():
    found = []
    for indices in (torch.arange(3), torch.arange(50, 57)):
        with PerImageRandom(1, indices, "square"):
            found.append((torch.rand([1]), torch.rand([3, 1, 1])))
    assert torch.equal(found[0][0], found[1][0]) and torch.equal(found[0][1], found[1][1])
    with PerImageRandom(1, torch.arange(3), "square"), pytest.raises(NotImplementedError):
        torch.randint(0, 4, (3,))


@pytest.mark.parametrize("name", ATTACKS)
def test_attacks_leave_the_global_generator_alone(name, network, batch, quick):
    before = torch.get_rng_state()
    run(name, network, tuple(x[:6] for x in batch), config(name))
    assert torch.equal(torch.get_rng_state(), before)
