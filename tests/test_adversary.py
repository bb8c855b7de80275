"""Adversarial training: the examples are the evaluation's PGD, and a run with them goes on bit for bit."""

import copy
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from sanbench.errors import InputError
from sanbench.evaluation.attacks.budget import check_budget, distance
from sanbench.evaluation.rng import image_seed
from sanbench.models import build_model
from sanbench.models.checkpoints import read_checkpoint, weights_hash
from sanbench.runs.config import Recipe, configure
from sanbench.runs.run import Run
from sanbench.training import loop
from sanbench.training.adversary import adversarial
from sanbench.training.augment import TrainBatch
from sanbench.training.loop import train
from sanbench.training.state import TrainState
from tests.support.processes import SANBENCH
from tests.test_distributed import parted, ran, training

CPU = torch.device("cpu")
EPS, STEPS = 4 / 255, 3
RECIPE = Recipe(epochs=1, batch_size=8, lr=0.1, adversary="pgd", adversary_eps="4/255", adversary_steps=STEPS)


@pytest.fixture(scope="module")
def model():
    """In training mode, with running statistics of its own."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = build_model("san10", 10, width=0.25, footprint=3)
        model.train()(torch.rand(8, 3, 32, 32))
    return model


@pytest.fixture(scope="module")
def part(batch):
    images, labels, indices = batch
    return TrainBatch(images[:8], labels[:8], labels[:8], indices[:8], 0)


def by_the_formula(model, part, epoch, seed=0):
    """x <- clip(x + eps/4 sign(grad)) from a uniform start, for each image alone, to the last step."""
    model, made = copy.deepcopy(model).eval(), []
    for image, label, index in zip(part.pixels, part.labels, part.indices.tolist()):
        generator = torch.Generator().manual_seed(image_seed(seed, index, "pgd 2", epoch))
        x = (image + torch.empty_like(image).uniform_(-EPS, EPS, generator=generator)).clamp(0, 1)
        for _ in range(STEPS):
            x = x.detach().requires_grad_()
            (gradient,) = torch.autograd.grad(F.cross_entropy(model(x[None]), label[None]), x)
            x = torch.min(torch.max(x + EPS / 4 * gradient.sign(), image - EPS), image + EPS).clamp(0, 1)
        made.append(x.detach())
    return torch.stack(made)


def test_the_examples_are_those_of_the_formula_in_evaluation_mode(model, part):
    before = copy.deepcopy(model.state_dict())
    wanted = [parameter.requires_grad for parameter in model.parameters()]
    made = adversarial(model, part, RECIPE, 0, 5)
    check_budget(part.pixels, made.pixels, EPS, "pgd")
    assert distance(part.pixels, made.pixels, "linf").min() > 0.9 * EPS  # all of them, also those that were wrong before
    close = (made.pixels - by_the_formula(model, part, 5)).abs() < 1e-5
    assert close.float().mean() > 0.97  # the sign of a gradient near 0 hangs on rounding
    assert made.labels is part.labels and not made.pixels.requires_grad
    assert all(module.training for module in model.modules())
    assert [parameter.requires_grad for parameter in model.parameters()] == wanted
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(torch.equal(values, before[name]) for name, values in model.state_dict().items())
    evaluated = copy.deepcopy(model).eval()
    losses = [F.cross_entropy(evaluated(pixels), part.labels) for pixels in (part.pixels, made.pixels)]
    assert losses[1] > losses[0]


def test_an_example_belongs_to_seed_image_and_epoch(model, part):
    whole = adversarial(model, part, RECIPE, 0, 0).pixels
    half = TrainBatch(*(values[4:] for values in part[:4]), 0)
    assert ((adversarial(model, half, RECIPE, 0, 0).pixels - whole[4:]).abs() < 1e-5).float().mean() > 0.97
    for seed, epoch in ((1, 0), (0, 1)):
        assert (adversarial(model, part, RECIPE, seed, epoch).pixels != whole).flatten(1).any(1).all()


@pytest.fixture(scope="module")
def config(folder):
    """Two epochs of six steps."""
    changes = {"epochs": 2, "batch_size": 8, "width": 0.25, "lr": 0.01, "ema": 0.9}
    changes |= {"adversary": "pgd", "adversary_eps": "4/255", "adversary_steps": 2}
    return configure("resnet26", f"folder:{folder}", changes=changes, image_size=32, workers=0)


class Kill(BaseException):
    """Nothing in the library catches it."""


def weights(run):
    return {name: weights_hash(read_checkpoint(run.folder / name)["state_dict"]) for name in ("last.pt", "best.pt")}


def test_a_kill_changes_nothing(config, tmp_path, monkeypatch):
    """After the ninth step, saved after each: the second process draws the starting points that the first would have drawn."""
    seen, learn = [], TrainState.train_step

    def watched(self, parts, *rest):
        seen.append(parts[0].pixels.clone())
        return learn(self, parts, *rest)

    def killed(self, *rest):
        if self.epoch == 1 and self.step == 3:
            raise Kill
        return learn(self, *rest)

    monkeypatch.setattr(TrainState, "train_step", watched)
    straight = train(config, tmp_path / "straight", CPU)
    whole = list(seen)
    often = config.model_copy(update={"save_minutes": 1e-9})
    monkeypatch.setattr(TrainState, "train_step", killed)
    with pytest.raises(Kill):
        train(often, tmp_path / "run", CPU)
    seen.clear()
    monkeypatch.setattr(TrainState, "train_step", watched)
    resumed = train(often, tmp_path / "run", CPU, resume=True)
    assert len(whole) == 12 and len(seen) == 3
    assert all(torch.equal(one, other) for one, other in zip(seen, whole[9:]))
    assert weights(resumed) == weights(straight)
    assert Run(tmp_path / "run").config().recipe.adversary_eps == "4/255"


def test_the_network_learns_from_the_examples(config, tmp_path, monkeypatch):
    given, learn = [], TrainState.train_step
    attack = loop.adversarial

    def attacked(model, part, *rest):
        given.append((part, attack(model, part, *rest)))
        return given[-1][1]

    def stops(self, parts, *rest):
        learn(self, parts, *rest)
        assert parts == [given[-1][1]]
        raise Kill

    monkeypatch.setattr(loop, "adversarial", attacked)
    monkeypatch.setattr(TrainState, "train_step", stops)
    with pytest.raises(Kill):
        train(config, tmp_path / "run", CPU)
    ((part, made),) = given
    assert 0.9 * EPS < distance(part.pixels, made.pixels, "linf").min() < EPS + 1e-6


@pytest.mark.slow
def test_two_processes_attack_as_one_does(folder, tmp_path):
    """As tests/test_distributed.py asks of other recipes: the same loss, and nearly the same weights after a step."""
    more = ["--set", "adversary=pgd", "--set", "adversary_steps=2", "--set", "optimizer=sgd", "--set", "weight_decay=0.0001"]
    for name, processes in (("one", []), ("two", ["--nproc", "2"])):
        outcome = ran([*SANBENCH, *training("resnet26", folder, tmp_path, name, *more, *processes)])
        assert outcome.returncode == 0, outcome.stderr
    one, two = (Run(Path(tmp_path) / name).epochs()[0] for name in ("one", "two"))
    assert two["loss"] == pytest.approx(one["loss"], rel=1e-3)
    assert parted(tmp_path, "one", "two") < 0.03


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"adversary": "fgsm"}, "adversary=fgsm is not accepted"),
        ({"adversary": "pgd", "adversary_eps": "8"}, "adversary_eps '8' is not accepted: accepted are fractions such as 8/255"),
        ({"adversary": "pgd", "adversary_eps": "0"}, "adversary_eps '0' is not accepted"),
        ({"adversary": "pgd", "adversary_eps": "1/0"}, "adversary_eps '1/0' is not accepted"),
        ({"adversary": "pgd", "adversary_eps": "1e99999999"}, "adversary_eps '1e99999999' is not accepted"),
        ({"adversary": "pgd", "adversary_steps": "0"}, "adversary_steps=0 is not accepted"),
        ({"adversary": "pgd", "mixup": "0.2"}, "adversary pgd is not accepted with mixup or cutmix"),
        ({"adversary_eps": "2/255"}, "adversary_eps 2/255 is not accepted: without adversary=pgd it has no effect"),
        ({"adversary_steps": 3}, "adversary_steps 3 is not accepted: without adversary=pgd it has no effect"),
    ],
)
def test_what_no_recipe_has_is_named(changes, named):
    with pytest.raises(InputError, match=named):
        configure("san10", changes=changes)
