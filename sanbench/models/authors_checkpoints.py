"""Checkpoints of the paper's authors, and this toolkit's: the same tensors by other names."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sanbench.errors import InputError
from sanbench.late import Late
from sanbench.models import MODELS, family_of, resolve
from sanbench.models.checkpoints import FORMAT, read_checkpoint, rebuild, save_checkpoint, write_whole
from sanbench.store.schema import ModelSpec

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from sanbench.models import Classifier, building
    from sanbench.models import weights as files
else:
    torch, building, files = Late("torch"), Late("sanbench.models.building"), Late("sanbench.models.weights")

HEAD = "fc.weight"  # classes x channels
FIGURES = ("epoch", "top1_val", "top5_val")  # what the authors' files hold beside the weights and an import keeps


def authors_names(model: Classifier) -> dict[str, str]:
    """The authors' name of every tensor: network.stages.0.2.1.expand.weight -> layer0.1.conv.weight."""
    names = {}
    for name in model.state_dict():
        renamed = name.removeprefix("network.")
        for pattern, replacement in family_of(model.spec.name).authors_names.items():
            renamed = re.sub(f"^{pattern}", replacement, renamed)
        names[name] = renamed
    return names


def import_authors_checkpoint(source: Path, name: str, target: Path, num_classes: int | None = None) -> Classifier:
    """Write the authors' network `name` in the file `source` as a checkpoint of this toolkit to `target`.

    The number of classes is that of the file's last linear. Raises InputError for another number than `num_classes` and for
    an unknown network, SanbenchError that lists the tensors that do not fit.
    """
    name, _ = resolve(name)
    check_free(target)
    if not source.is_file():
        raise InputError(f"There is no file {source}.")
    weights, about = files.read_weights(source)
    if about.get("format") == FORMAT:
        raise InputError(f"{source} is a checkpoint of sanbench already: --export writes it in the authors' layout.")
    found = len(weights[HEAD]) if HEAD in weights and weights[HEAD].dim() == 2 else num_classes or 1000
    if num_classes not in (None, found):
        raise InputError(f"classes {num_classes} is not accepted: {source} has {found}.")
    with torch.device("meta"):  # shapes are compared before memory is taken
        names = authors_names(wanted := building.build_model(name, found))
    files.check_fit({names[name]: tensor for name, tensor in wanted.state_dict().items()}, weights, source, name)
    files.check_finite(weights, source)
    model = building.build_model(name, found).eval()
    model.load_state_dict({name: weights[renamed] for name, renamed in names.items() if renamed in weights}, strict=False)
    figures = {key: plain(about[key]) for key in FIGURES if key in about}
    data = {"name": None, "root": "data", "image_size": 224}
    save_checkpoint(
        target, model, data=data, epoch=figures.get("epoch"), selection="not told", imported={"file": source.name, **figures}
    )
    return model


def export_authors_checkpoint(source: Path, target: Path) -> Classifier:
    """Write a checkpoint of this toolkit in the authors' layout: what `import_authors_checkpoint` reads, bit for bit.

    The states of optimizer and scheduler, which the authors' files hold too, are left out. Raises InputError for a network
    that the authors have not published.
    """
    check_free(target)
    content = read_checkpoint(source)
    model = rebuild(content, source)
    spec = model.spec
    if spec != ModelSpec(name=spec.name, num_classes=spec.num_classes) or MODELS[spec.name].published is None:
        raise InputError(f"{source} is a {spec.label}, which the authors' code has no layout for: accepted are their networks.")
    prefix, names = family_of(spec.name).authors_prefix, authors_names(model)
    weights: dict[str, Tensor] = {prefix + names[name]: tensor for name, tensor in model.state_dict().items()}
    about = {"epoch": content.get("epoch"), **content.get("imported", {})}
    write_whole(target, {"state_dict": weights, **{key: about[key] for key in FIGURES if about.get(key) is not None}})
    return model


def plain(value: Any) -> Any:
    """The Python number of a NumPy scalar; other values as they are."""
    return value.item() if hasattr(value, "item") else value


def check_free(path: Path) -> None:
    """Raises InputError if `path` exists."""
    if path.exists():
        raise InputError(f"{path} is there already: remove it, or name another file with --output.")
