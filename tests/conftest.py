"""Small but real: fashion10k images as files in class folders, and a network trained on them."""

import os
from dataclasses import replace
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch: threads that spin take the cores from other processes
if "PYTEST_XDIST_WORKER" in os.environ:  # the other cores are the other workers'
    os.environ["OMP_NUM_THREADS"] = "1"

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from sanbench.data import ReadOptions, load_dataset
from sanbench.evaluation.attacks.table import ATTACKS
from sanbench.runs.config import configure
from sanbench.runs.evaluated import EvaluatedModel
from sanbench.runs.run import Run
from sanbench.training.loop import train
from tests.support.class_folders import make_class_folders
from tests.support.commands import sanbench
from tests.support.quick_measurements import FEW
from tests.support.small_study import places, write


@pytest.fixture(scope="session")
def folder(tmp_path_factory) -> Path:
    """Three classes of Fashion-MNIST under train/ and val/, as PNG files of 32 x 32."""
    return make_class_folders(tmp_path_factory.mktemp("folder"))


@pytest.fixture(scope="session")
def runs(folder, tmp_path_factory) -> Path:
    """runs/ with a SAN and its ResNet, both of width 0.5, trained on `folder` for two epochs."""
    root = tmp_path_factory.mktemp("runs")
    for model in ("resnet26", "san10"):
        changes = {"epochs": 2, "batch_size": 8, "lr": 0.01, "width": 0.5}
        config = configure(model, f"folder:{folder}", changes=changes, image_size=32, workers=0)
        train(config, root / model, torch.device("cpu"))
    return root


@pytest.fixture(scope="session")
def resnet_run(runs) -> Run:
    return Run(runs / "resnet26")


@pytest.fixture(scope="session")
def san_run(runs) -> Run:
    return Run(runs / "san10")


@pytest.fixture(scope="session")
def evaluated(san_run):
    return EvaluatedModel.load(san_run.checkpoint, san_run.name)


@pytest.fixture(scope="session")
def images(folder):
    return load_dataset(f"folder:{folder}", "test", ReadOptions(image_size=32))


@pytest.fixture(scope="session")
def network():
    """Ten classes, a quarter of a second of training: right on most images, and nowhere near robust."""
    train = load_dataset("fashion10k", "train")
    images, labels = train.images[:2000, :1].float() / 255, train.labels[:2000]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layers = [nn.Conv2d(3, 8, 5, stride=2), nn.ReLU(), nn.Conv2d(8, 16, 3, stride=2), nn.ReLU(), nn.Flatten()]
        model = nn.Sequential(*layers, nn.Linear(576, 10))
        optimizer = torch.optim.Adam(model.parameters(), 2e-3)
        for step in range(120):
            rows = torch.arange(step * 64, step * 64 + 64) % 2000
            optimizer.zero_grad()
            F.cross_entropy(model(images[rows].expand(-1, 3, -1, -1)), labels[rows]).backward()
            optimizer.step()
    return model.eval()


@pytest.fixture(scope="session")
def batch():
    test = load_dataset("fashion10k", "test")
    chosen = list(range(0, 2000, 80))
    return test.read(chosen).float() / 255, test.labels[chosen], torch.tensor(chosen)


@pytest.fixture
def quick(monkeypatch):
    """Members of the ensemble with few steps."""
    for name, entry in ATTACKS.items():
        monkeypatch.setitem(ATTACKS, name, replace(entry, steps=min(entry.steps, FEW)))


@pytest.fixture(scope="session")
def many():
    """200 images, so that one is 0.5%."""
    test = load_dataset("fashion10k", "test")
    chosen = list(range(0, 2000, 10))
    return test.read(chosen).float() / 255, test.labels[chosen], torch.tensor(chosen)


@pytest.fixture
def small(tmp_path) -> Path:
    """The photographs as a complete set of their own classes, `SMALL`."""
    from tests.support.photographs import place, wnid  # by foolbox, which is asked for only where photographs are

    return place(tmp_path / "small", name=wnid, side=64)


@pytest.fixture(scope="session")
def done(folder, tmp_path_factory) -> Path:
    """A folder with small.toml, run by one worker to its end."""
    root = tmp_path_factory.mktemp("study")
    write(root, folder)
    outcome = sanbench("study", "run", root / "small.toml", *places(root), columns=200)
    assert outcome.exit_code == 0, outcome.output
    (root / "output.txt").write_text(outcome.output)
    return root
