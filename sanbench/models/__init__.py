"""build_model: from a name and a variation to a network that takes pixels. The names stand in `families.py`."""

from typing import Any

import torch
from pydantic import BaseModel
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from sanbench.errors import unknown, validated
from sanbench.models.classifier import SMALLEST_IMAGE, Classifier
from sanbench.models.families import FAMILIES, MODELS, family_name, family_of
from sanbench.store.schema import IMAGENET_MEAN, IMAGENET_STD, ModelSpec

__all__ = ["FAMILIES", "MODELS", "SMALLEST_IMAGE", "Classifier", "baseline_of", "build_model", "family_name", "family_of"]
__all__ += ["model_config", "resolve", "size", "zero_residuals"]


def build_model(
    name: str,
    num_classes: int = 1000,
    *,
    mean: tuple[float, float, float] = IMAGENET_MEAN,
    std: tuple[float, float, float] = IMAGENET_STD,
    **variation: Any,
) -> Classifier:
    """`build_model("san15_patchwise", num_classes=10, footprint=5)`: a network with fresh weights.

    `variation` holds fields of the family's configuration. Raises InputError for an unknown name, field or value.
    """
    name, variation = resolve(name, **variation)
    spec = validated(ModelSpec, "model", name=name, num_classes=num_classes, mean=mean, std=std, variation=variation)
    return Classifier(spec, family_of(name).build(model_config(name, **variation), num_classes))


def resolve(name: str, **variation: Any) -> tuple[str, dict[str, Any]]:
    """A network's name, and how its configuration differs: ("san15", attention="patchwise") -> ("san15_patchwise", {}).

    It is the network of the family in MODELS that has the fewest fields of another value. Raises InputError for an unknown
    name, field or value.
    """
    aliases = {short: full for family in FAMILIES.values() for short, full in family.aliases.items()}
    name = aliases.get(name, name)
    if name not in MODELS:
        raise unknown("model", name, [*MODELS, *aliases])
    config, named = model_config(name, **variation), MODELS[name].config
    distances = {  # to the configuration that is asked for, then to the named one
        other: (len(difference(config, network.config)), len(difference(named, network.config)))
        for other, network in family_of(name).networks.items()
    }
    name = min(distances, key=lambda other: distances[other])
    return name, difference(config, MODELS[name].config)


def difference(config: BaseModel, other: BaseModel) -> dict[str, Any]:
    """The fields of `config` that have another value in `other`."""
    return {name: value for name, value in sorted(config) if value != getattr(other, name)}


def model_config(name: str, **variation: Any) -> Any:
    """The configuration of `name` with fields replaced. Raises InputError for an unknown or unfit field."""
    config = MODELS[name].config
    return validated(type(config), name, **{**config.model_dump(), **variation})


def baseline_of(spec: ModelSpec) -> ModelSpec | None:
    """The network that `spec` is compared with, None where there is none.

    It has the values of `spec` in all fields that its own family knows: a SAN of width 0.375 is compared with a ResNet of
    width 0.375. Classes and normalisation are those of `spec`.
    """
    entry = MODELS.get(spec.name)
    if entry is None or entry.baseline is None:
        return None
    known = family_of(entry.baseline).fields
    name, variation = resolve(entry.baseline, **{field: v for field, v in spec.variation.items() if field in known})
    return ModelSpec(name=name, num_classes=spec.num_classes, mean=spec.mean, std=spec.std, variation=variation)


def zero_residuals(model: Classifier) -> None:
    """Set the last layer of every residual branch to zero, in place: each block begins as the identity.

    A block of patchwise attention multiplies values with weights that depend on the same pixels, so that gradients grow from
    block to block: with the usual weights those of SAN10's first stage are a hundred times those of its last.
    """
    for layer in family_of(model.spec.name).residual_ends(model.network):
        for parameter in layer.parameters():
            nn.init.zeros_(parameter)


def size(name: str, image_size: int = 224, **variation: Any) -> tuple[int, float]:
    """Parameters, and 10^9 multiply-accumulates an image in linear maps, gamma and aggregation, by torch's counter."""
    with torch.device("meta"):
        model = build_model(name, **variation).eval()
        with FlopCounterMode(display=False) as counter:
            model(torch.empty(1, 3, image_size, image_size))
    return sum(parameter.numel() for parameter in model.parameters()), counter.get_total_flops() / 2e9
