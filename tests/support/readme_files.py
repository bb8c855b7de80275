"""The files that the README's commands on other people's networks name, made where a command is tried."""

import re
from pathlib import Path

import timm
import torch
import torchvision
from safetensors.torch import save_file

from sanbench.data import read_list
from sanbench.data.imagenet import wnids
from sanbench.data.shifted import SHIFTED
from sanbench.models import build_model
from sanbench.models.authors_checkpoints import export_authors_checkpoint
from sanbench.models.checkpoints import save_checkpoint
from tests.support.colours import class_folders, paint
from tests.support.photographs import place

STUDIES = Path(__file__).parents[2] / "docs/studies.md"
MODULE = """
import torchvision
def factory(num_classes=1000):
    return torchvision.models.squeezenet1_1(num_classes=num_classes)
"""
ATTACK = "def by_foolbox(model, images, labels, eps):\n    return images\n"


def squeezenet(path: Path) -> None:
    (path.parent / "mynets.py").write_text(MODULE)
    torch.save(torchvision.models.squeezenet1_1().state_dict(), path)


def san10(path: Path) -> None:
    save_checkpoint(path, build_model("san10", 3))


def released(path: Path) -> None:
    san10(path.with_suffix(".ours"))
    export_authors_checkpoint(path.with_suffix(".ours"), path)


def published_sets(folder: Path) -> None:
    """An image of ImageNet-A and one of ImageNet-C."""
    for split, classes in ((folder / "imagenet-a", SHIFTED["imagenet-a"].classes), (folder / "fog" / "3", wnids())):
        paint(class_folders(split, classes) / classes[0] / "0.JPEG", 0)


def robustbench_images(folder: Path) -> None:
    """The names of RobustBench's 5,000 images."""
    class_folders(folder / "val", wnids())
    for _, path in read_list("robustbench-imagenet-5000").lines:
        (folder / "val" / path).touch()


FILES = {
    "sets": published_sets,
    "val-set": robustbench_images,
    "mine.toml": lambda path: path.write_text(re.findall(r"```toml\n(.*?)```", STUDIES.read_text(), re.S)[0]),
    "my-list.txt": lambda path: path.write_text("bag/00.png\n3\n"),
    "pgd,myattacks:by_foolbox": lambda path: (path.parent / "myattacks.py").write_text(ATTACK),
    "squeezenet.pth": squeezenet,
    "mine.pt": squeezenet,
    "timm.safetensors": lambda path: save_file(timm.create_model("resnet10t").state_dict(), path),
    "san10.pth": released,
    "released.pt": san10,
    "folder:photographs": lambda path: place(path.parent / "photographs", splits=("val",), side=64),
}


def provide(words: list[str], folder: Path) -> None:
    """Make what the command reads; what it writes stands behind --output."""
    for before, word in zip(["", *words], words, strict=False):
        if word in FILES and before != "--output":
            FILES[word](folder / word)
