"""Checkpoints as the paper's authors released them, and this toolkit's: the same tensors by other names."""

import re
from pathlib import Path
from typing import Any

from torch import Tensor

from sanbench.errors import InputError
from sanbench.models import MODELS, Classifier, ModelSpec, build_model, resolve
from sanbench.models.checkpoints import FORMAT, read_checkpoint, rebuild, save_checkpoint, write_whole
from sanbench.models.san import SANConfig
from sanbench.models.weights import check_fit, read_weights

BLOCK = {
    "before.0": "bn1",
    "attention.phi": "sam.conv1",
    "attention.psi": "sam.conv2",
    "attention.beta": "sam.conv3",
    "attention.gamma": "sam.conv_w",
    "attention.position": "sam.conv_p",
    "after.0": "bn2",
    "expand": "conv",
}
RENAMES = {  # what a name begins with here and there; ResNets have torchvision's names in both
    r"network\.": "",
    r"stem\.0\.": "conv_in.",
    r"stem\.1\.": "bn_in.",
    r"stages\.(\d)\.1\.": r"conv\1.",
    r"stages\.(\d)\.3\.": r"bn\1.",
    **{rf"stages\.(\d)\.2\.(\d)\.{re.escape(ours)}\.": rf"layer\1.\2.{theirs}." for ours, theirs in BLOCK.items()},
    r"classifier\.": "fc.",
}
HEAD = "fc.weight"  # classes x channels
FIGURES = ("epoch", "top1_val", "top5_val")  # what their files say beside the weights, and an import keeps


def authors_name(name: str) -> str:
    """A tensor of `Classifier`, as the released code calls it: network.stages.0.2.1.expand.weight -> layer0.1.conv.weight."""
    for ours, theirs in RENAMES.items():
        name = re.sub(f"^{ours}", theirs, name)
    return name


def import_authors_checkpoint(source: Path, name: str, target: Path, num_classes: int | None = None) -> Classifier:
    """Write the released network `name` in the file `source` as a checkpoint of this toolkit to `target`.

    The classes are counted in the file's last linear. A ResNet is read by torchvision's names. Raises InputError for other
    classes than `num_classes` and for an unknown network, SanbenchError that lists what does not fit.
    """
    name, _ = resolve(name)
    check_free(target)
    weights, about = read_weights(source)
    if about.get("format") == FORMAT:
        raise InputError(f"{source} is a checkpoint of sanbench already: --export writes it in the authors' layout.")
    found = len(weights[HEAD]) if HEAD in weights and weights[HEAD].dim() == 2 else num_classes or 1000
    if num_classes not in (None, found):
        raise InputError(f"classes {num_classes} is not accepted: {source} tells {found} apart.")
    model = build_model(name, found).eval()
    names = {ours: authors_name(ours) for ours in model.state_dict()}
    check_fit({names[ours]: tensor for ours, tensor in model.state_dict().items()}, weights, source, name)
    model.load_state_dict({ours: weights[theirs] for ours, theirs in names.items() if theirs in weights}, strict=False)
    figures = {key: plain(about[key]) for key in FIGURES if key in about}
    data = {"name": None, "root": "data", "image_size": 224}
    save_checkpoint(
        target, model, data=data, epoch=figures.get("epoch"), selection="not told", imported={"file": source.name, **figures}
    )
    return model


def export_authors_checkpoint(source: Path, target: Path) -> Classifier:
    """Write a checkpoint of this toolkit in the authors' layout: what `import_authors_checkpoint` reads, bit for bit.

    optimizer and scheduler, which their files hold too, are left out. Raises InputError for a network that is none of theirs.
    """
    check_free(target)
    content = read_checkpoint(source)
    model = rebuild(content, source)
    spec = model.spec
    config = MODELS[spec.name].config
    if spec != ModelSpec(name=spec.name, num_classes=spec.num_classes) or getattr(config, "attention", "") == "scalar":
        raise InputError(f"{source} is a {spec.label}, which the authors' code has no layout for: accepted are their networks.")
    prefix = "module." if isinstance(config, SANConfig) else ""  # a ResNet's layout is torchvision's
    weights: dict[str, Tensor] = {prefix + authors_name(name): tensor for name, tensor in model.state_dict().items()}
    told = {"epoch": content.get("epoch"), **content.get("imported", {})}
    write_whole(target, {"state_dict": weights, **{key: told[key] for key in FIGURES if told.get(key) is not None}})
    return model


def plain(value: Any) -> Any:
    """A numpy scalar as the number it is."""
    return value.item() if hasattr(value, "item") else value


def check_free(path: Path) -> None:
    if path.exists():
        raise InputError(f"{path} is there already: remove it, or name another file with --output.")
