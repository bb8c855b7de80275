"""Exports: other programs compute what the original computes."""

import json
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

from sanbench.models import build_model
from sanbench.models.checkpoints import weights_hash
from sanbench.models.export import export_model
from sanbench.runs.evaluated import load_evaluated
from tests.support.commands import sanbench
from tests.support.photographs import photograph_batch


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


@pytest.mark.parametrize(
    ("form", "name"),
    [("onnx", "san10"), ("pt2", "san10"), ("onnx", "resnet26"), pytest.param("pt2", "resnet26", marks=pytest.mark.slow)],
)
def test_exported_runs_agree_with_the_original(form, name, runs, tmp_path):
    """On real images, in a batch of another size than the one that was traced."""
    path = tmp_path / f"network.{form}"
    outcome = sanbench("export", name, "--format", form, "--output", path, "--runs", runs)
    assert outcome.exit_code == 0, outcome.output
    assert "N x 3 x 32 x 32" in outcome.output
    (evaluated,) = load_evaluated([name], runs)
    images = photograph_batch(32, 5)
    with torch.no_grad():
        expected = evaluated.model(images)
    assert expected.std(0).max() > 1e-3  # the images are told apart
    largest = max(1, expected.abs().max())  # logits of such short training reach thousands, and float32 has 7 digits
    assert (READERS[form](path, images) - expected).abs().max() < 1e-4 * largest


@pytest.mark.parametrize("attention", ["patchwise", "scalar"])
def test_exports_have_no_operators_of_ours_and_leave_none_of_theirs(attention, tmp_path):
    torch.manual_seed(0)
    model = build_model("san10", 4, attention=attention, width=0.5, blocks=(1, 1, 1, 1, 1)).eval()
    images = photograph_batch(64, 3)
    with torch.no_grad():
        before = model(images)
        export_model(model, "onnx", tmp_path / "network.onnx", 64)
        assert (onnx_logits(tmp_path / "network.onnx", images) - before).abs().max() < 1e-4
        assert torch.equal(model(images), before)  # and not from footprints that tracing left


def test_every_operator_can_be_exported():
    from sanbench.models.export import decompositions

    names = [name.removeprefix("sanbench::") for name in torch._C._dispatch_get_all_op_names() if name.startswith("sanbench::")]
    forward = {name.split(".")[0] for name in names if not name.endswith("_backward")}
    named = {str(operator).split(".")[1] for operator in decompositions()}
    assert forward == named


def test_safetensors_hold_the_weights_bit_for_bit_and_what_rebuilds_them(runs, tmp_path):
    from safetensors import safe_open

    assert sanbench("export", "san10", "--output", tmp_path / "san10.safetensors", "--runs", runs).exit_code == 0
    with safe_open(tmp_path / "san10.safetensors", "pt") as file:
        spec = json.loads(file.metadata()["model"])
    rebuilt = build_model(spec["name"], spec["num_classes"], **spec["variation"])
    rebuilt.load_state_dict(load_file(tmp_path / "san10.safetensors"))
    (evaluated,) = load_evaluated(["san10"], runs)
    assert weights_hash(rebuilt.state_dict()) == evaluated.weights


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
