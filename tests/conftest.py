"""Small but real: fashion10k images as files in class folders, and a network trained on them."""

from pathlib import Path

import pytest
import torch
from PIL import Image

from sanbench.data import load_dataset
from sanbench.training.config import configure
from sanbench.training.loop import train
from sanbench.training.runs import Run

CLASSES = {"bag": 8, "sneaker": 7, "trouser": 1}
PER_SPLIT = {"train": 16, "val": 6}


@pytest.fixture(scope="session")
def folder(tmp_path_factory) -> Path:
    """Three classes of Fashion-MNIST under train/ and val/, as PNG files of 32 x 32."""
    root = tmp_path_factory.mktemp("folder")
    images = load_dataset("fashion10k", "train")
    for name, label in CLASSES.items():
        own = iter((images.labels == label).nonzero().flatten().tolist())
        for split, number in PER_SPLIT.items():
            place = root / split / name
            place.mkdir(parents=True)
            for index in range(number):
                pixels = images.read([next(own)])[0].permute(1, 2, 0).numpy()
                Image.fromarray(pixels).save(place / f"{index:02d}.png")
    return root


@pytest.fixture(scope="session")
def runs(folder, tmp_path_factory) -> Path:
    """runs/ with two networks trained on `folder` for two epochs."""
    root = tmp_path_factory.mktemp("runs")
    for model in ("resnet26", "san10"):
        changes = {"epochs": 2, "batch_size": 8, "lr": 0.01, **({} if model == "resnet26" else {"width": 0.5})}
        config = configure(model, f"folder:{folder}", changes=changes, image_size=32)
        train(config, root / model, torch.device("cpu"))
    return root


@pytest.fixture(scope="session")
def resnet_run(runs) -> Run:
    return Run(runs / "resnet26")


@pytest.fixture(scope="session")
def san_run(runs) -> Run:
    return Run(runs / "san10")
