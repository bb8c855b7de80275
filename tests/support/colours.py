"""Images of one colour that stands for a class of ImageNet, and the network that reads it: `tests.support.colours:build`."""

from pathlib import Path

import torch
from PIL import Image
from torch import nn

from sanbench.models.classifier import Classifier
from sanbench.runs.evaluated import EvaluatedModel
from sanbench.store.schema import ModelSpec

CLASSES = 1000
NAME = "tests.support.colours:build"
SCALE = 1000.0  # of the logits: 25 levels of red apart are 10 logits apart
READ = ("--mean", "0,0,0", "--std", "1,1,1")


def colour(label: int) -> tuple[int, int, int]:
    """The digits of the class index, 25 levels apart, which JPEG keeps within two levels."""
    hundreds, tens, ones = (12 + 25 * (label // place % 10) for place in (100, 10, 1))
    return hundreds, tens, ones


def build() -> nn.Sequential:
    """The class whose colour is nearest to the image's mean: logits are distances, up to what all of them share."""
    levels = torch.tensor([colour(label) for label in range(CLASSES)]) / 255
    head = nn.Linear(3, CLASSES)
    with torch.no_grad():
        head.weight.copy_(2 * SCALE * levels)
        head.bias.copy_(-SCALE * levels.square().sum(1))
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), head)


def reader(side: int = 224) -> EvaluatedModel:
    """The network as what is evaluated."""
    spec = ModelSpec(name="colours", num_classes=CLASSES, mean=(0, 0, 0), std=(1, 1, 1))
    data = {"name": None, "root": "data", "image_size": side}
    return EvaluatedModel(Classifier(spec, build()).eval(), "c" * 64, "colours", data, {}, "not told")


def write_weights(path: Path) -> Path:
    torch.save(build().state_dict(), path)
    return path


def paint(path: Path, label: int, side: int = 224) -> None:
    """A file that shows class `label`, in the format of its suffix."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (side, side), colour(label)).save(path, quality=95)


def class_folders(split: Path, names: tuple[str, ...]) -> Path:
    """The empty folders of all classes."""
    for name in names:
        (split / name).mkdir(parents=True, exist_ok=True)
    return split
