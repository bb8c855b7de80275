"""Flipped bits, bombs and digests that do not fit: each is refused in one sentence, or changes nothing."""

import hashlib
import pickle
import random
import subprocess
import sys
import zipfile

import pytest
import torch
from safetensors.torch import save_file

import sanbench
from sanbench.errors import SanbenchError
from sanbench.models import building
from sanbench.models.checkpoints import FORMAT, load_model, read_checkpoint, save_checkpoint, write_whole
from sanbench.models.integrity import content_digest
from sanbench.models.weights import read_weights
from sanbench.runs.config import configure
from sanbench.runs.evaluated import EvaluatedModel
from sanbench.training.distributed import SINGLE
from sanbench.training.state import FORMAT as STATE
from sanbench.training.state import TrainState
from tests.support.commands import sanbench as command
from tests.support.processes import ENVIRONMENT

CPU = torch.device("cpu")
FLIPS = 200
NARROW = {"width": 0.125, "blocks": (1, 1, 1, 1, 1)}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A checkpoint and a training state with momenta, in a folder as a run's."""
    folder = tmp_path_factory.mktemp("files") / "mine"
    folder.mkdir()
    state = TrainState.build(configure("san10", changes={"width": 0.125}), CPU, SINGLE)
    for parameter in state.model.parameters():
        parameter.grad = torch.ones_like(parameter)
    state.optimizer.step()
    state.write(folder / "resume.pt")
    save_checkpoint(folder / "best.pt", state.model, data={"name": None}, selection="last epoch")
    return folder


@pytest.mark.parametrize(("dtype", "built"), [(torch.float32, ["cpu"]), (torch.float16, ["meta", "cpu"])])
def test_a_network_is_built_once_where_the_file_has_its_bytes(files, tmp_path, monkeypatch, dtype, built):
    """Else its shapes are compared first, without memory."""
    content = read_checkpoint(files / "best.pt")
    for name, value in content["state_dict"].items():
        content["state_dict"][name] = value.to(dtype) if value.is_floating_point() else value
    write_whole(tmp_path / "best.pt", content)
    build, devices = building.build_model, []
    monkeypatch.setattr(
        building, "build_model", lambda *a, **k: devices.append(str(torch.get_default_device())) or build(*a, **k)
    )
    model = load_model(tmp_path / "best.pt")
    assert devices == built
    assert all(torch.equal(value, content["state_dict"][name].to(value.dtype)) for name, value in model.state_dict().items())


@pytest.mark.parametrize(("name", "kind"), [("best.pt", FORMAT), ("resume.pt", STATE)])
def test_a_flipped_bit_is_refused_or_changes_nothing(files, tmp_path, name, kind):
    whole = (files / name).read_bytes()
    expected = content_digest(read_checkpoint(files / name, kind))
    path, generator, sentences = tmp_path / name, random.Random(0), []
    for _ in range(FLIPS):
        content = bytearray(whole)
        content[generator.randrange(len(whole))] ^= 1 << generator.randrange(8)
        path.write_bytes(content)
        try:
            found = content_digest(read_checkpoint(path, kind))
        except SanbenchError as error:
            sentences.append(str(error))
        else:
            assert found == expected
    assert len(sentences) > 0.9 * FLIPS
    assert all(str(path) in sentence and "\n" not in sentence for sentence in sentences)


@pytest.mark.parametrize("name", ["best.pt", "resume.pt"])
def test_a_cut_file_says_what_to_do(files, tmp_path, name):
    path = tmp_path / "mine" / name
    path.parent.mkdir()
    path.write_bytes((files / name).read_bytes()[:-1000])
    if name == "best.pt":
        (path.parent / "last.pt").write_bytes(b"")
        with pytest.raises(SanbenchError, match=r"best\.pt is damaged: .*Measure \S*last\.pt instead"):
            EvaluatedModel.load(path, "mine")
    else:
        with pytest.raises(SanbenchError, match=r"resume\.pt is damaged: .*Remove it, and --resume mine trains from the beg"):
            TrainState.load(None, path)


def test_what_is_written_by_others_and_fits_no_digest_is_refused(tmp_path):
    path = tmp_path / "best.pt"
    write_whole(path, {"format": FORMAT, "value": 1})
    content = torch.load(path)
    torch.save({**content, "value": 2}, path)  # its checksums fit
    with pytest.raises(SanbenchError, match="its digest does not fit"):
        read_checkpoint(path)


def test_digests_beside_a_file_and_in_its_name_are_compared(tmp_path):
    torch.save({"w": torch.ones(3)}, tmp_path / "w.pt")
    digest = hashlib.sha256((tmp_path / "w.pt").read_bytes()).hexdigest()
    for name in (f"net-{digest[:8]}.pth", f"net-{digest}.pt", "net-20240131.pt", "net-1234567.pt", "net-00000000x.pt"):
        (tmp_path / name).write_bytes((tmp_path / "w.pt").read_bytes())
        assert read_weights(tmp_path / name)[0].keys() == {"w"}
    (tmp_path / "net-0676ba61.pth").write_bytes((tmp_path / "w.pt").read_bytes())
    with pytest.raises(SanbenchError, match=rf"is not the file that its name tells: its SHA-256 is {digest[:12]}"):
        read_weights(tmp_path / "net-0676ba61.pth")
    beside = tmp_path / "w.pt.sha256"
    for text in (f"{digest}  w.pt\n", f"{digest.upper()} *w.pt", digest):
        beside.write_text(text)
        assert read_weights(tmp_path / "w.pt")
    beside.write_text(f"{'0' * 64}  w.pt\n")
    with pytest.raises(SanbenchError, match=r"that w\.pt\.sha256 tells"):
        read_weights(tmp_path / "w.pt")
    beside.write_text("nonsense")
    with pytest.raises(SanbenchError, match="is not what sha256sum writes"):
        read_weights(tmp_path / "w.pt")
    save_file({"w": torch.ones(3)}, tmp_path / "net-0676ba61.safetensors")
    with pytest.raises(SanbenchError, match="its name tells"):
        read_weights(tmp_path / "net-0676ba61.safetensors")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_weights_that_are_not_finite_are_refused_by_name(tmp_path, value):
    model = sanbench.build_model("san10", 3, **NARROW)
    with torch.no_grad():
        model.network.classifier.weight[1, 2] = value
    save_checkpoint(tmp_path / "best.pt", model)
    with pytest.raises(SanbenchError, match=r"NaN or infinite values in network\.classifier\.weight:"):
        load_model(tmp_path / "best.pt")
    weights = {f"fc.{name}": tensor for name, tensor in torch.nn.Linear(3, 2).state_dict().items()}
    weights["fc.bias"][0] = value
    torch.save(weights, tmp_path / "w.pt")
    outcome = command("accuracy", "torchvision:resnet18", "--weights", tmp_path / "w.pt", "--data", "fashion10k")
    assert outcome.exit_code == 1
    full = sanbench.build_model("resnet26", 3).network.state_dict()
    full["bn1.bias"][0] = value
    torch.save(full, tmp_path / "r.pt")
    outcome = command("import", tmp_path / "r.pt", "--model", "resnet26", "--output", tmp_path / "out.pt")
    assert outcome.exit_code == 1 and "infinite values in bn1.bias:" in outcome.stderr
    assert not (tmp_path / "out.pt").exists()


def bomb(path, kind):
    """A file of a few MB at most that asks for GB."""
    spec = {"name": "san10_pairwise", "num_classes": 10, "variation": {}}
    about = {"data": {"name": None}, "selection": "s", "state_dict": {"w": torch.zeros(1)}}
    variations = {"blocks": {"blocks": (10**6,) * 5}, "width": {"width": 8.0}, "footprint": {"footprint": 99999}}
    if kind in variations:
        write_whole(path, {"format": FORMAT, "model": {**spec, "variation": variations[kind]}, **about})
    elif kind == "classes":
        write_whole(path, {"format": FORMAT, "model": {**spec, "num_classes": 10**9}, **about})
    elif kind == "stride":
        head = torch.zeros(1, 2048).expand(10**7, 2048)
        torch.save({"format": FORMAT, "model": spec, **about, "state_dict": {"w": head}, "digest": "0"}, path)
    elif kind == "zip":
        torch.save({"format": FORMAT, "w": torch.zeros(1)}, path)
        with zipfile.ZipFile(path) as whole:
            members = {name: whole.read(name) for name in whole.namelist()}
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as packed:
            for name, content in members.items():
                packed.writestr(name, content)
            packed.writestr("best/data/1", bytes(3 * 10**8))
    elif kind == "self":
        content = {"format": FORMAT, "digest": "0"}
        for _ in range(40):
            content = {"format": FORMAT, "digest": "0", "a": content, "b": content}
        torch.save(content, path)
    else:
        path.write_bytes(pickle.dumps(bytearray))


BOMBS = ["blocks", "width", "footprint", "classes", "stride", "zip", "self", "pickle"]


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    """For each bomb the sentence that it is refused with, and by how many MiB the process grew."""
    folder = tmp_path_factory.mktemp("bombs")
    for kind in BOMBS:
        bomb(folder / f"{kind}.pt", kind)
    code = """
import resource, sys
from pathlib import Path
from sanbench.errors import SanbenchError
from sanbench.models.authors_checkpoints import import_authors_checkpoint
from sanbench.models.checkpoints import load_model
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
for path in sys.argv[1:]:
    for read in (load_model, lambda p: import_authors_checkpoint(Path(p), "san10", Path(p + ".out"))):
        before = peak()
        try:
            read(path)
            print("loaded")
        except SanbenchError as error:
            print(peak() - before, str(error))
"""
    paths = [str(folder / f"{kind}.pt") for kind in BOMBS]
    done = subprocess.run([sys.executable, "-c", code, *paths], env=ENVIRONMENT, capture_output=True, text=True, check=True)
    lines = done.stdout.splitlines()
    assert len(lines) == 2 * len(BOMBS), done.stdout
    return {kind: lines[2 * number : 2 * number + 2] for number, kind in enumerate(BOMBS)}


@pytest.mark.parametrize("kind", BOMBS)
def test_a_small_file_does_not_ask_for_gigabytes(outcomes, kind):
    for line in outcomes[kind]:
        grown, _, sentence = line.partition(" ")
        assert grown != "loaded" and int(grown) < 100, line
        assert f"{kind}.pt" in sentence
