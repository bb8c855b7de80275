"""An attack that is interrupted goes on at its next pass of the network: to the same rows, bit for bit, no pass made twice."""

import os
import signal
import subprocess
import sys
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import torch
from torch import nn

from sanbench.data import ReadOptions, load_dataset
from sanbench.evaluation import evaluate as evaluation
from sanbench.evaluation import loop, parts
from sanbench.evaluation.attacks import attack as attacks
from sanbench.evaluation.attacks.options import bind
from sanbench.evaluation.attacks.table import ATTACKS, STANDARD, Round, Search, parse_attacks
from sanbench.evaluation.evaluate import evaluate
from sanbench.evaluation.parts import UNFINISHED, EvaluationOptions
from sanbench.models import Classifier
from sanbench.models.checkpoints import read_checkpoint
from sanbench.runs.evaluated import EvaluatedModel
from sanbench.store.files import Store
from sanbench.store.schema import ModelSpec
from tests.support.processes import ENVIRONMENT
from tests.support.quick_measurements import Drops, config

CPU = torch.device("cpu")
SPEC = ModelSpec(name="resnet26", num_classes=10, mean=(0.0,) * 3, std=(1.0,) * 3)


class Interruption:
    """Interrupts networks at the pass that comes after `most`, by a `blow`."""

    def __init__(self, most, blow):
        self.passes, self.most, self.blow = 0, most, blow

    def __call__(self, *_):
        if self.passes == self.most:
            self.blow()
        self.passes += 1


def ctrl_c():
    raise KeyboardInterrupt


def kill_9():
    os.kill(os.getpid(), signal.SIGKILL)


@contextmanager
def interrupted(most, *networks, blow=ctrl_c):
    interruption = Interruption(most, blow)
    handles = [network.register_forward_pre_hook(interruption) for network in networks]
    try:
        yield interruption
    finally:
        for handle in handles:
            handle.remove()


@pytest.fixture(scope="module")
def fashion():
    return load_dataset("fashion10k", "test")


@pytest.fixture
def often(monkeypatch):
    """What an attack knows is kept before each pass, not every 20 seconds."""
    monkeypatch.setattr(loop, "KEEP", -1.0)


class Masked(nn.Module):
    """Logits so large that the cross-entropy has no gradient."""

    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, x):
        return 1e4 * self.network(x)


CASES = {
    "fgsm": ("fgsm", config("fgsm")),
    "pgd, restarts": ("pgd", config("pgd", steps=3, restarts=2)),
    "pgd-targeted": ("pgd-targeted", config("pgd-targeted", steps=4)),
    "pgd-l2": ("pgd-l2", config("pgd-l2", "1/2", steps=4)),
    "apgd": ("apgd", config("apgd", steps=4)),
    "apgd, l2": ("apgd", config("apgd", "1/2", norm="l2", steps=4)),
    "apgd-dlr": ("apgd-dlr", config("apgd-dlr", steps=4)),
    "apgd-targeted, targets": ("apgd-targeted", config("apgd-targeted", "2/255", steps=3, targets=3)),
    "fab, targets and restarts": ("fab", config("fab", "2/255", steps=2, targets=2, restarts=2)),
    "fab, l2": ("fab", config("fab", "1/4", norm="l2", steps=3, targets=2)),
    "square": ("square", config("square")),
    "square, l2": ("square", config("square", "1/2", norm="l2")),
    "standard, members": ("standard", config("standard", "1/255")),
    "masked, with dead gradients": ("apgd", config("apgd", "2/255", steps=4)),
    "averaged": ("apgd", config("apgd", "2/255", steps=3, eot=2)),
    "averaged, without gradients": ("square", config("square", "2/255", steps=6, eot=2)),
    "limited": ("apgd", config("apgd", "1/255", steps=3, restarts=2, max_passes=12)),
    "limited, without gradients": ("square", config("square", "1/255", steps=5, restarts=2, max_passes=8)),
    "smallest, attempts": ("pgd", config("pgd", "8/255", steps=3, search=Search(2))),
    "nearest": ("fab", config("fab", "8/255", steps=3, targets=2, search=Search())),
    "transferred": ("pgd", config("pgd", "8/255", steps=3, restarts=2)),
}


@pytest.mark.parametrize("case", CASES)
def test_an_attack_goes_on_at_its_next_pass(case, network, fashion, often, tmp_path, monkeypatch):
    """It is interrupted after each of its passes (`standard` after each tenth, a mean of two passes after each mean)."""
    name, settings = CASES[case]
    monkeypatch.setattr(attacks, "at_once", lambda *_: 2)
    for member in STANDARD:
        monkeypatch.setitem(ATTACKS, member, replace(ATTACKS[member], steps=2))
    wrapped = Drops(network) if settings.eot > 1 else Masked(network) if "masked" in case else network
    evaluated = EvaluatedModel(Classifier(SPEC, wrapped), "w", "small", {}, {}, "s")
    other = attacks.Surrogate(deepcopy(network), "other", "w") if case == "transferred" else None
    attacked = [evaluated.model] if other is None else [evaluated.model, other.model]

    def found(folder, most=10**6):
        step = bind(evaluated.model, [(name, settings)], surrogate=other)
        with interrupted(most, *attacked) as counted:
            (record,) = evaluate(evaluated, fashion, step, folder, CPU, EvaluationOptions(limit=6))
        return record, counted.passes

    whole, store = Store(tmp_path / "whole"), Store(tmp_path / "interrupted")
    wanted, passes = found(whole)
    assert (whole.rows(wanted)["dead_gradients"].sum() > 0) == ("masked" in case)
    controls = whole.rows(wanted)["index"] % attacks.CONTROL == 0
    before = (int(controls.any()) + int((~controls).any())) * settings.eot * len(attacked)  # looks at the clean images
    after = (int(controls.any()) + 2) * settings.eot  # the second look at controls, in 8 bits, and what is scored
    stride = 10 if name == "standard" else settings.eot
    own = passes - before - after
    interruptions = (own - 1) // stride
    assert interruptions > 2
    for _ in range(interruptions):
        with pytest.raises(KeyboardInterrupt):
            found(store, before + stride)
    resumed, rest = found(store)
    assert rest == before + own - interruptions * stride + after
    assert resumed.counts == wanted.counts
    pd.testing.assert_frame_equal(store.rows(resumed), whole.rows(wanted), check_exact=True)
    assert not list(store.work.glob("parts/*/*.unfinished"))


class OfTen:
    """PGD of ten steps on six images that all stand: what was found, and the passes it took."""

    def __init__(self, network, images):
        self.evaluated, self.images = EvaluatedModel(Classifier(SPEC, network), "w", "small", {}, {}, "s"), images

    def __call__(self, folder, most=10**6):
        step = bind(self.evaluated.model, [("pgd", config("pgd", "1/25500", steps=10))])
        with interrupted(most, self.evaluated.model) as counted:
            (record,) = evaluate(self.evaluated, self.images, step, folder, CPU, EvaluationOptions(limit=6))
        return folder.rows(record), counted.passes


@pytest.fixture
def of_ten(network, fashion):
    return OfTen(network, fashion)


def test_what_is_remembered_of_a_round_has_a_limit(of_ten, often, tmp_path, monkeypatch):
    """Of three answers' size: the third fills it, and is not kept. Those after it are asked for again."""
    whole, passes = of_ten(Store(tmp_path / "whole"))
    attacked = int((whole["clean_prediction"] == whole["label"]).sum())
    answer = 4 * attacked * (10 + 1 + 3 * 32 * 32)  # logits, dead gradients and pixels
    monkeypatch.setattr(attacks, "REMEMBERED", 3 * answer)
    store = Store(tmp_path / "interrupted")
    with pytest.raises(KeyboardInterrupt):
        of_ten(store, passes - 5)
    (path,) = store.work.glob("parts/*/*.unfinished")
    kept = read_checkpoint(path, UNFINISHED)["answers"]
    assert [*kept] == [True] and kept[True].nbytes == 2 * answer
    resumed, rest = of_ten(store)
    assert rest == passes - 2
    pd.testing.assert_frame_equal(resumed, whole, check_exact=True)


def test_answers_are_told_to_the_images_that_asked(of_ten, often, tmp_path, monkeypatch):
    """Where fewer are attacked at once, as after another version's estimate or on another device, those begin their round."""
    monkeypatch.setattr(attacks, "at_once", lambda *_: 1)
    whole, passes = of_ten(Store(tmp_path / "whole"))
    attacked = int((whole["clean_prediction"] == whole["label"]).sum())
    store, looks = Store(tmp_path / "interrupted"), passes - 11 * attacked
    monkeypatch.setattr(attacks, "at_once", lambda *_: 2)
    with pytest.raises(KeyboardInterrupt):
        of_ten(store, 2 + 11 + 5)
    monkeypatch.setattr(attacks, "at_once", lambda *_: 1)
    resumed, rest = of_ten(store)
    assert rest == looks + 11 * (attacked - 2)
    pd.testing.assert_frame_equal(resumed, whole, check_exact=False, rtol=1e-4)


WITHIN = [("square", "linf"), ("square", "l2"), ("pgd", "linf"), ("apgd", "l2"), ("fab", "linf")]


@pytest.mark.parametrize(("name", "norm"), WITHIN)
def test_a_round_of_several_batches_goes_on_at_its_query(name, norm, evaluated, images, often, tmp_path, monkeypatch):
    """Square asks of all images at once in up to four batches, the others of three images."""
    turn = Round(name, config(name, "1/255" if norm == "linf" else "1/10", norm=norm, steps=8), 0)
    pictures = images.read([0]).float()
    monkeypatch.setattr(attacks, "WORK", 3.9 * turn.passes * sum(p.numel() for p in evaluated.model.parameters()) * 32 * 32)
    assert attacks.at_once(evaluated.model, pictures, turn) == (1 if name == "square" else 3)

    def found(folder, most=10**6):
        step = bind(evaluated.model, [(name, turn.config)])
        with interrupted(most, evaluated.model) as counted:
            (record,) = evaluate(evaluated, images, step, folder, CPU, EvaluationOptions(batch_size=5))
        return record, counted.passes

    whole, store = Store(tmp_path / "whole"), Store(tmp_path / "interrupted")
    wanted, passes = found(whole)
    with pytest.raises(KeyboardInterrupt):
        found(store, passes // 2)
    resumed, rest = found(store)
    looks, again = 4, rest - (passes - passes // 2)  # looks at the clean images: five controls and thirteen others
    assert again < looks + 4 if name == "square" else again == looks
    assert resumed.counts == wanted.counts
    pd.testing.assert_frame_equal(store.rows(resumed), whole.rows(wanted), check_exact=True)


def fab(checkpoint, folder, results):
    """A network, and what measures it by FAB towards two classes, one image at a time."""
    evaluated = EvaluatedModel.load(checkpoint, "san10")
    images = load_dataset(f"folder:{folder}", "test", ReadOptions(image_size=32))
    step = bind(evaluated.model, [("fab", config("fab", "1/255", steps=4, targets=2))])
    store, options = Store(results), EvaluationOptions(workers=0)
    return evaluated.model, lambda: store.rows(*evaluate(evaluated, images, step, store, CPU, options))


def die(checkpoint, folder, results, last):
    """The same in a process that is killed before the pass after the `last`."""
    loop.KEEP, attacks.WORK = -1.0, 1.0
    network, found = fab(Path(checkpoint), folder, Path(results))
    with interrupted(int(last), network, blow=kill_9):
        found()


def test_kill_9_loses_no_pass_of_an_attack(san_run, folder, often, tmp_path, monkeypatch):
    """Three times, within the rounds of three images."""
    monkeypatch.setattr(attacks, "WORK", 1.0)

    def counted(results):
        network, found = fab(san_run.checkpoint, folder, results)
        with interrupted(10**6, network) as passes:
            return found(), passes.passes

    whole, passes = counted(tmp_path / "whole")
    looks, last = 2, 2 + 13
    code = "import sys; from tests.test_interrupted_attacks import die; die(*sys.argv[1:])"
    for _ in range(3):
        words = [sys.executable, "-c", code, str(san_run.checkpoint), str(folder), str(tmp_path / "killed"), str(last)]
        done = subprocess.run(words, env=ENVIRONMENT, capture_output=True, text=True)
        assert done.returncode == -signal.SIGKILL, done.stderr
    resumed, rest = counted(tmp_path / "killed")
    assert rest == passes - 3 * (last - looks)
    pd.testing.assert_frame_equal(resumed, whole, check_exact=True)


def test_a_damaged_state_of_an_attack_is_no_state(evaluated, images, tmp_path):
    (perturbation,) = bind(evaluated.model, parse_attacks("fgsm", "1/255"))
    measured = evaluation.measurement(evaluated, images, range(len(images)), perturbation, EvaluationOptions())
    told: list[str] = []
    kept = parts.Kept(Store(tmp_path), measured, 0, told.append)
    assert kept.load() is None and not told
    kept.keep({"round": 3})
    assert kept.load() == {"round": 3}
    path = kept.store.unfinished_path(measured, 0)
    whole = path.read_bytes()
    path.write_bytes(whole[:100])
    assert kept.load() is None
    for place in range(0, len(whole), len(whole) // 60):  # each flip is told, or changes nothing that is read
        told.clear()
        path.write_bytes(flipped(whole, place))
        assert kept.load() == (None if told else {"round": 3})
    told.clear()
    path.write_bytes(flipped(whole, whole.index(b"round") + 2))
    assert kept.load() is None
    assert len(told) == 1 and told[0].endswith("This part is measured from its beginning.")


def flipped(content: bytes, place: int) -> bytes:
    return content[:place] + bytes([content[place] ^ 4]) + content[place + 1 :]
