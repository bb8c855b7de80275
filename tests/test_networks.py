"""Networks that come and go: released checkpoints against the equations, exports against the original, torch.hub."""

import collections
import json
import runpy
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from sanbench import load_model
from sanbench.models import MODELS, build_model
from sanbench.models.checkpoints import save_checkpoint, weights_hash
from sanbench.models.export import export_model
from sanbench.ops.operator import SPECIFICATIONS
from sanbench.training.runs import load_subjects
from tests import released
from tests.commands import sanbench
from tests.photographs import PHOTOGRAPHS

ROOT = Path(__file__).parent.parent
SAN10 = (2, 1, 2, 4, 1)


def photographs(side, number=3):
    """Real pixels, N x 3 x side x side in [0, 1]."""
    images = [np.asarray(Image.open(path).convert("RGB").resize((side, side))) for path in list(PHOTOGRAPHS)[:number]]
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float() / 255


def random_weights(kind, classes):
    """A released state dict with numbers as unlike fresh ones as trained ones are."""
    generator = torch.Generator().manual_seed(3)
    weights = {}
    for name, shape in released.shapes(SAN10, kind, classes).items():
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
    """In float64 and under the authors' names; tests/released.py knows nothing of the library."""
    weights = released_file(tmp_path / "theirs.pth", kind)
    outcome = sanbench("import", tmp_path / "theirs.pth", "--model", f"san10_{kind}", "--output", tmp_path / "ours.pt")
    assert outcome.exit_code == 0, outcome.output
    assert f"san10_{kind}, 5 classes" in outcome.output
    model = load_model(tmp_path / "ours.pt")
    pixels = photographs(48, 2)
    expected = released.logits(pixels.numpy(), {name.removeprefix("module."): x for name, x in weights.items()}, kind, SAN10)
    with torch.no_grad():
        found, exact = model(pixels).numpy(), model.double()(pixels.double()).numpy()
    assert np.ptp(expected) > 1
    assert np.abs(expected[0] - expected[1]).max() > 1e-2
    np.testing.assert_allclose(exact, expected, rtol=1e-6, atol=1e-6)  # the network's mean and std are float32 numbers
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("kind", ["pairwise", "patchwise"])
@pytest.mark.parametrize("legacy", [False, True])
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
    assert outcome.exit_code == 1 and "Cannot write" in outcome.stderr


def test_an_import_is_measured_like_a_run_once_the_data_are_named(tmp_path, folder):
    released_file(tmp_path / "theirs.pth", classes=3)
    assert sanbench("import", tmp_path / "theirs.pth", "--model", "san10", "--output", tmp_path / "ours.pt").exit_code == 0
    places = ["--runs", tmp_path / "runs", "--results", tmp_path / "results"]
    unnamed = sanbench("accuracy", tmp_path / "ours.pt", *places)
    assert unnamed.exit_code == 2 and "name a data set with --data" in unnamed.stderr
    outcome = sanbench("accuracy", tmp_path / "ours.pt", "--data", f"folder:{folder}", "--limit", 2, *places)
    assert outcome.exit_code == 0, outcome.output
    (path,) = (tmp_path / "results" / "records").glob("*.json")
    record = json.loads(path.read_text())
    assert record["training"] == {
        "epoch": 100,
        "imported": {"file": "theirs.pth", "epoch": 100, "top1_val": 76.5, "top5_val": 93.25},
    }
    assert sanbench("report", *places[2:]).exit_code == 0
    assert "epoch 100 (not told)" in (tmp_path / "results" / "report.md").read_text()


# Exports


def onnx_logits(path, images):
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(["logits"], {"images": images.numpy()})[0])


LOADS_PT2 = """
import sys, torch
program = torch.export.load(sys.argv[1]).module()
torch.save(program(torch.load(sys.argv[2])), sys.argv[3])
assert not [name for name in sys.modules if name.startswith("sanbench")]
"""


def pt2_logits(path, images):
    """In a process of its own, which has PyTorch and not this toolkit."""
    inputs, outputs = path.with_suffix(".in"), path.with_suffix(".out")
    torch.save(images, inputs)
    command = [sys.executable, "-I", "-c", LOADS_PT2, str(path), str(inputs), str(outputs)]
    subprocess.run(command, check=True, cwd=path.parent, capture_output=True)
    return torch.load(outputs)


READERS = {"onnx": onnx_logits, "pt2": pt2_logits}


@pytest.mark.parametrize("form", READERS)
@pytest.mark.parametrize("name", ["san10", "resnet26"])
def test_exported_runs_agree_with_the_original(form, name, runs, tmp_path):
    """On real images, in a batch of another size than the one that was traced."""
    path = tmp_path / f"network.{form}"
    outcome = sanbench("export", name, "--format", form, "--output", path, "--runs", runs)
    assert outcome.exit_code == 0, outcome.output
    assert "N x 3 x 32 x 32" in outcome.output
    (subject,) = load_subjects([name], runs)
    images = photographs(32, 5)
    with torch.no_grad():
        expected = subject.model(images)
    assert expected.std(0).max() > 1e-3  # the images are told apart
    largest = max(1, expected.abs().max())  # logits of such short training reach thousands, and float32 has 7 digits
    assert (READERS[form](path, images) - expected).abs().max() < 1e-4 * largest


@pytest.mark.parametrize("attention", ["patchwise", "scalar"])
def test_exports_have_no_operators_of_ours_and_leave_none_of_theirs(attention, tmp_path):
    torch.manual_seed(0)
    model = build_model("san10", 4, attention=attention, width=0.5, blocks=(1, 1, 1, 1, 1)).eval()
    images = photographs(64, 3)
    with torch.no_grad():
        before = model(images)
        export_model(model, "onnx", tmp_path / "network.onnx", 64)
        assert (onnx_logits(tmp_path / "network.onnx", images) - before).abs().max() < 1e-4
        assert torch.equal(model(images), before)  # and not from footprints that tracing left


def test_every_operator_can_be_exported():
    from sanbench.models.export import decompositions

    forward = {name for name in dir(torch.ops.sanbench) if not name.endswith("_backward") and name not in ("name",)}
    named = {str(operator).split(".")[1] for operator in decompositions()}
    assert {name for name in forward if name in SPECIFICATIONS or "relu" in name} <= named


def test_safetensors_hold_the_weights_bit_for_bit_and_what_rebuilds_them(runs, tmp_path):
    from safetensors import safe_open

    assert sanbench("export", "san10", "--output", tmp_path / "san10.safetensors", "--runs", runs).exit_code == 0
    with safe_open(tmp_path / "san10.safetensors", "pt") as file:
        spec = json.loads(file.metadata()["model"])
    rebuilt = build_model(spec["name"], spec["num_classes"], **spec["variation"])
    rebuilt.load_state_dict(load_file(tmp_path / "san10.safetensors"))
    (subject,) = load_subjects(["san10"], runs)
    assert weights_hash(rebuilt.state_dict()) == subject.weights


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--format", "tflite"], "Unknown format 'tflite'"),
        (["--format", "onnx", "--image-size", "16"], "image-size 16"),
        (["san1O"], "Did you mean 'san10'"),
    ],
)
def test_what_cannot_be_exported_ends_with_2(arguments, sentence, runs, tmp_path):
    name = [] if arguments[0] == "san1O" else ["san10"]
    outcome = sanbench("export", *name, *arguments, "--output", tmp_path / "out", "--runs", runs)
    assert outcome.exit_code == 2
    assert sentence in outcome.stderr and outcome.stderr.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_onnx_that_is_not_installed_is_named(runs, tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    outcome = sanbench("export", "resnet26", "--format", "onnx", "--output", tmp_path / "out", "--runs", runs)
    assert outcome.exit_code == 2
    assert "pip install 'sanbench[onnx]'" in outcome.stderr


# torch.hub

HUB = [name for name in MODELS if not name.endswith("scalar")]


def test_the_hub_has_six_sans_and_three_resnets():
    assert len(HUB) == 9
    scope = runpy.run_path(str(ROOT / "hubconf.py"))
    assert {name for name, entry in scope.items() if isinstance(entry, partial)} == set(HUB)


@pytest.mark.parametrize("name", HUB)
def test_the_hub_builds(name):
    with torch.device("meta"):
        model = torch.hub.load(str(ROOT), name, source="local", num_classes=3)
        assert model(torch.empty(2, 3, 64, 64)).shape == (2, 3)
    assert model.spec.name == name


def test_the_hubs_dependencies_are_what_is_imported(tmp_path):
    """In a process that sees the repository only through torch.hub."""
    code = "import sys, torch; model = torch.hub.load(sys.argv[1], 'san10_pairwise', source='local', num_classes=2, width=0.5)"
    code += "; print(model.spec.label, sys.modules['sanbench'].__file__)"
    done = subprocess.run([sys.executable, "-I", "-c", code, str(ROOT)], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("san10_pairwise width=0.5") and str(ROOT) in done.stdout
