"""`standard` against the official AutoAttack: the same images stand, and the benchmark that times both."""

import pytest
import torch

from sanbench.bench import official
from sanbench.bench.official import agreement, run_official
from sanbench.evaluation.loop import evaluating
from sanbench.models import build_model
from sanbench.models.checkpoints import save_checkpoint
from sanbench.store.files import Store
from tests.support.commands import sanbench
from tests.support.quick_measurements import config, run

pytest.importorskip("pyautoattack", reason="pyautoattack is not installed (pip install sanbench[test])")


@pytest.mark.slow
@pytest.mark.parametrize(("norm", "eps"), [("linf", "8/255"), ("l2", "1")])
def test_the_same_images_stand_as_under_the_official_attack(norm, eps, network, many):
    """On 128 images, of which 1% is one: that an image stands or falls may hang on where two random searches began."""
    images, labels, indices = (values[:128] for values in many)
    settings = config("standard", eps, norm=norm)
    _, perturbed, rows = run("standard", network, (images, labels, indices), settings)
    with evaluating(network):
        theirs = run_official(network, images, labels, settings, 64)
        found = agreement(network, images, labels, perturbed.images, theirs, settings)
    print(found)
    assert 10 < found.standing < found.right_before - 10
    assert found.only_standing + found.only_standing_official <= 0.01 * len(images)
    assert found.invalid == 0
    assert found.standing == (rows["prediction"] == rows["label"]).sum()


def test_an_example_outside_the_ball_does_not_decide(network, many):
    images, labels, _ = many
    settings = config("standard", "8/255")
    with evaluating(network):
        right = network(images).argmax(1) == labels
        elsewhere = images.clone()
        elsewhere[right] = 1 - images[right]  # far outside
        found = agreement(network, images, labels, images, elsewhere, settings)
    stand = int(((network(elsewhere).argmax(1) == labels) & right).sum())
    assert (
        found.right_before == found.standing == right.sum() and found.standing_official == stand + found.only_standing_official
    )
    assert found.invalid == found.only_standing == right.sum() - stand > 20


def test_the_benchmark_records_both(tmp_path, quick, monkeypatch):
    """The members have few steps, and the official attack gives up at once."""
    torch.manual_seed(0)
    data = {"name": "fashion10k", "root": "data", "image_size": 32}
    save_checkpoint(tmp_path / "fresh.pt", build_model("resnet26", 10, width=0.25), data=data, selection="none")
    monkeypatch.setattr(official, "run_official", lambda model, images, labels, config, batch_size: images.clone())
    words = ["bench", "evaluate", tmp_path / "fresh.pt", "--attack", "standard", "--eps", "8/255", "--images", 12, "-n", 1]
    outcome = sanbench(*words, "--results", tmp_path / "results", columns=200)
    assert outcome.exit_code == 0, outcome.output
    (found,) = Store(tmp_path / "results").benchmarks()
    assert found.kind == "standard" and found.ratio[0] == found.seconds["standard"] / found.seconds["official"]
    assert found.setting["threads"] == 1 and found.setting["n"] == 1 and found.setting["eps"] == "8/255"
    assert found.figures["standing_official"] == found.figures["right_before"] > found.figures["standing"]
    assert found.figures["only_standing_official"] > 0 == found.figures["invalid"]
    assert "Time over the official's" in outcome.stdout and "stand there alone" in outcome.stdout


def test_a_missing_package_is_named(monkeypatch, tmp_path):
    monkeypatch.setitem(__import__("sys").modules, "pyautoattack", None)
    outcome = sanbench("bench", "evaluate", "resnet26", "--attack", "standard", "--results", tmp_path / "new", columns=200)
    assert outcome.exit_code == 2 and "The official AutoAttack is missing: pip install pyautoattack." in outcome.stderr


def test_official_random_numbers_are_not_everybodys(network, batch):
    """Its two evaluations are alike, and the global generator goes on as if it had not run."""
    images, labels, _ = batch
    settings = config("standard", "4/255")

    class OneAttack:
        def __init__(self, model, **options):
            torch.manual_seed(options["seed"])

        def run_standard_evaluation(self, images, labels, batch_size):
            return images + torch.rand(len(images), 1, 1, 1), labels

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(official, "official_attack", lambda: OneAttack)
        torch.manual_seed(5)
        expected = torch.rand(1)
        torch.manual_seed(5)
        first, second = (run_official(network, images, labels, settings, 8) for _ in range(2))
        assert torch.equal(first, second) and torch.equal(torch.rand(1), expected)
