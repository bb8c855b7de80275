"""Released checkpoints: their logits are those of the equations, and they go back bit for bit."""

import collections
import shutil
from functools import cache

import numpy as np
import pytest
import torch

from sanbench import load_model
from sanbench.models import build_model
from sanbench.models.checkpoints import save_checkpoint, weights_hash
from sanbench.store.files import Store
from tests.support import authors_code
from tests.support.commands import sanbench
from tests.support.photographs import photograph_batch

SAN10 = (2, 1, 2, 4, 1)


@cache  # ten million numbers, which no test changes
def random_weights(kind, classes):
    """A released state dict with numbers as unlike fresh ones as trained ones are."""
    generator = torch.Generator().manual_seed(3)
    weights = {}
    for name, shape in authors_code.shapes(SAN10, kind, classes).items():
        if name.endswith("num_batches_tracked"):
            weights[name] = torch.tensor(77)
        elif name.endswith("running_var") or (name.endswith("weight") and len(shape) == 1):
            weights[name] = torch.rand(shape, generator=generator) + 0.5
        elif name.endswith("weight"):
            inputs = shape[1]
            weights[name] = torch.randn(shape, generator=generator) * (1.5 / inputs) ** 0.5
        else:
            weights[name] = torch.randn(shape, generator=generator) * 0.3
        if kind == "patchwise" and ".conv_w.5." in name:  # without a softmax 49 neighbours would add up
            weights[name] /= 50
    return weights


def released_file(path, kind="pairwise", classes=5, legacy=False, **changes):
    """As the authors' training wrote it: wrapped in data parallel, an accuracy as a numpy scalar, the optimizer's state."""
    weights = collections.OrderedDict((f"module.{name}", x) for name, x in random_weights(kind, classes).items())
    content = {
        "epoch": 100,
        "state_dict": weights,
        "optimizer": {
            "state": {0: {"momentum_buffer": torch.ones(3)}},
            "param_groups": [{"lr": np.float64(0.1), "params": [0]}],
        },
        "scheduler": {"last_epoch": 100},
        "top1_val": np.float64(76.5),
        "top5_val": np.float32(93.25),
    }
    torch.save(content | changes, path, _use_new_zipfile_serialization=not legacy)
    return weights


@pytest.mark.parametrize("kind", ["pairwise", "patchwise"])
def test_imported_weights_give_the_logits_of_the_equations(kind, tmp_path):
    """In float64 and under the authors' names; tests/authors_code.py knows nothing of the library."""
    weights = released_file(tmp_path / "theirs.pth", kind)
    outcome = sanbench("import", tmp_path / "theirs.pth", "--model", f"san10_{kind}", "--output", tmp_path / "ours.pt")
    assert outcome.exit_code == 0, outcome.output
    assert f"san10_{kind}, 5 classes" in outcome.output
    model = load_model(tmp_path / "ours.pt")
    pixels = photograph_batch(48, 2)
    expected = authors_code.logits(
        pixels.numpy(), {name.removeprefix("module."): x for name, x in weights.items()}, kind, SAN10
    )
    with torch.no_grad():
        found, exact = model(pixels).numpy(), model.double()(pixels.double()).numpy()
    assert np.ptp(expected) > 1
    assert np.abs(expected[0] - expected[1]).max() > 1e-2
    np.testing.assert_allclose(exact, expected, rtol=1e-6, atol=1e-6)  # the network's mean and std are float32 numbers
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-3)


AS_WELL = [pytest.param("pairwise", True, marks=pytest.mark.slow), pytest.param("patchwise", False, marks=pytest.mark.slow)]


@pytest.mark.parametrize(("kind", "legacy"), [("pairwise", False), ("patchwise", True), *AS_WELL])
def test_import_and_export_are_bit_exact(kind, legacy, tmp_path):
    weights = released_file(tmp_path / "theirs.pth", kind, legacy=legacy)
    assert (
        sanbench("import", tmp_path / "theirs.pth", "--model", f"san10_{kind}", "--output", tmp_path / "ours.pt").exit_code == 0
    )
    assert sanbench("import", tmp_path / "ours.pt", "--export", "--output", tmp_path / "back.pth").exit_code == 0
    back = torch.load(tmp_path / "back.pth", weights_only=True)
    assert back["state_dict"].keys() == weights.keys()
    assert all(
        torch.equal(x, back["state_dict"][name]) and x.dtype == back["state_dict"][name].dtype for name, x in weights.items()
    )
    assert {name: back[name] for name in ("epoch", "top1_val", "top5_val")} == {
        "epoch": 100,
        "top1_val": 76.5,
        "top5_val": 93.25,
    }
    assert (
        sanbench("import", tmp_path / "back.pth", "--model", f"san10_{kind}", "--output", tmp_path / "again.pt").exit_code == 0
    )
    again, ours = (load_model(tmp_path / name).state_dict() for name in ("again.pt", "ours.pt"))
    assert weights_hash(again) == weights_hash(ours)


def test_a_resnet_is_imported_by_torchvisions_names(tmp_path):
    model = build_model("resnet26", 4)
    torch.save(model.network.state_dict(), tmp_path / "plain.pth")
    assert sanbench("import", tmp_path / "plain.pth", "--model", "resnet26", "--output", tmp_path / "ours.pt").exit_code == 0
    assert weights_hash(load_model(tmp_path / "ours.pt").state_dict()) == weights_hash(model.state_dict())
    assert sanbench("import", tmp_path / "ours.pt", "--export", "--output", tmp_path / "back.pth").exit_code == 0
    assert torch.load(tmp_path / "back.pth")["state_dict"].keys() == model.network.state_dict().keys()


class Evil:
    """Runs code when it is unpickled in the ordinary way."""

    def __reduce__(self):
        return (shutil.rmtree, ("/nowhere",))


def lacking(path):
    weights = released_file(path)
    del weights["module.layer3.2.sam.conv_p.bias"]
    weights["module.layer9.weight"] = weights.pop("module.conv4.weight")
    weights["module.fc.bias"] = torch.zeros(6)
    torch.save({"state_dict": weights}, path)


BAD_IMPORTS = [  # what is wrong with the file, options, the sentence, the exit code
    (lacking, ["--model", "san10"], "Missing: layer3.2.sam.conv_p.bias, conv4.weight; unknown: layer9.weight; of another", 1),
    (lacking, ["--model", "san10"], "fc.bias is 6 instead of 5", 1),
    (
        released_file,
        ["--model", "san10_patchwise"],
        "does not hold the weights of a san10_patchwise. Unknown: layer0.0.sam.",
        1,
    ),
    (released_file, ["--model", "san10_patchwise"], "and 90 more", 1),
    (released_file, ["--model", "resnet50"], "does not hold the weights of a resnet50. Missing: ", 1),
    (released_file, ["--model", "san10", "--classes", "7"], "classes 7 is not accepted", 2),
    (released_file, ["--model", "san16"], "'san16'", 2),
    (released_file, [], "--model san15_pairwise", 2),
    (released_file, ["--export", "--model", "san10"], "--export is not accepted with --model", 2),
    (released_file, ["--export"], "is a file of another program", 1),
    (lambda path: None, ["--model", "san10"], "There is no file", 2),
    (lambda path: path.write_text("no pickle"), ["--model", "san10"], "not a readable checkpoint", 1),
    (lambda path: torch.save({"state_dict": {}}, path), ["--model", "san10"], "it holds nothing", 1),
    (lambda path: torch.save([1], path), ["--model", "san10"], "is not a state dict, it holds list", 1),
    (lambda path: torch.save({"epoch": 3}, path), ["--model", "san10"], "it holds epoch", 1),
    (lambda path: released_file(path, args=Evil()), ["--model", "san10"], "holds shutil.rmtree: accepted are tensors", 1),
    (lambda path: save_checkpoint(path, build_model("san10", 3)), ["--model", "san10"], "is a checkpoint of sanbench", 2),
    (lambda path: save_checkpoint(path, build_model("san10", 3, width=0.5)), ["--export"], "san10_pairwise width=0.5", 2),
    (lambda path: save_checkpoint(path, build_model("san10_scalar", 3)), ["--export"], "san10_scalar", 2),
]


@pytest.mark.parametrize(("write", "options", "sentence", "code"), BAD_IMPORTS, ids=[str(row[2:]) for row in BAD_IMPORTS])
def test_what_cannot_be_imported_is_told_in_one_sentence(write, options, sentence, code, tmp_path):
    write(tmp_path / "file.pth")
    outcome = sanbench("import", tmp_path / "file.pth", *options, "--output", tmp_path / "out.pt")
    assert outcome.exit_code == code, outcome.output
    assert sentence in " ".join(outcome.stderr.split())
    assert outcome.stderr.count("\n") == 1
    assert "Traceback" not in outcome.output
    assert not (tmp_path / "out.pt").exists()


def test_a_taken_output_stays_as_it_is(tmp_path, san_run):
    (tmp_path / "taken").write_text("mine")
    released_file(tmp_path / "theirs.pth")
    commands = [
        ["import", tmp_path / "theirs.pth", "--model", "san10"],
        ["import", san_run.folder / "last.pt", "--export"],
        ["export", san_run.folder / "last.pt"],
    ]
    for command in commands:
        outcome = sanbench(*command, "--output", tmp_path / "taken")
        assert outcome.exit_code == 2
        assert "is there already" in outcome.stderr
    assert (tmp_path / "taken").read_text() == "mine"
    outcome = sanbench(*commands[0], "--output", tmp_path / "nowhere" / "out.pt")
    assert outcome.exit_code == 2 and "there is no folder" in outcome.stderr


def test_an_import_is_measured_like_a_run_once_the_data_are_named(tmp_path, folder):
    released_file(tmp_path / "theirs.pth", classes=3)
    assert sanbench("import", tmp_path / "theirs.pth", "--model", "san10", "--output", tmp_path / "ours.pt").exit_code == 0
    places = ["--runs", tmp_path / "runs", "--results", tmp_path / "results"]
    unnamed = sanbench("accuracy", tmp_path / "ours.pt", *places)
    assert unnamed.exit_code == 2 and "name a data set with --data" in unnamed.stderr
    outcome = sanbench("accuracy", tmp_path / "ours.pt", "--data", f"folder:{folder}", "--limit", 2, *places)
    assert outcome.exit_code == 0, outcome.output
    (record,) = Store(tmp_path / "results").records()
    assert record.training == {
        "epoch": 100,
        "imported": {"file": "theirs.pth", "epoch": 100, "top1_val": 76.5, "top5_val": 93.25},
    }
    assert sanbench("report", *places[2:]).exit_code == 0
    assert "epoch 100 (not told)" in (tmp_path / "results" / "report" / "provenance.md").read_text()
