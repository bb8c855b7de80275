"""Networks by name: from a name and a variation to a configuration. What builds networks is imported when it is asked for."""

from typing import TYPE_CHECKING, Any

from pydantic import BaseModel

from sanbench.errors import unknown, validated
from sanbench.late import attributes
from sanbench.models.configurations import SMALLEST_IMAGE
from sanbench.models.families import FAMILIES, MODELS, family_name, family_of
from sanbench.store.schema import ModelSpec

if TYPE_CHECKING:
    from sanbench.models.building import build_model, counted_kept, counted_size, zero_residuals
    from sanbench.models.classifier import Classifier

__all__ = ["FAMILIES", "MODELS", "SMALLEST_IMAGE", "Classifier", "baseline_of", "build_model", "counted_kept", "counted_size"]
__all__ += ["family_name", "family_of", "kept_bytes", "model_config", "resolve", "size", "zero_residuals"]

__getattr__ = attributes(
    __name__,
    {
        "Classifier": "sanbench.models.classifier",
        **dict.fromkeys(("build_model", "counted_kept", "counted_size", "zero_residuals"), "sanbench.models.building"),
    },
)


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


def size(name: str, image_size: int = 224, num_classes: int = 1000, **variation: Any) -> tuple[int, float]:
    """Parameters, and 10^9 multiply-accumulates an image in linear maps, gamma and aggregation.

    In closed form where the family has one, else as `counted_size`. Raises InputError as `build_model` does.
    """
    name, variation = resolve(name, **variation)
    closed = family_of(name).size
    if closed is None:
        from sanbench.models.building import counted_size

        return counted_size(name, image_size, num_classes, **variation)
    parameters, macs = closed(model_config(name, **variation), num_classes, image_size)
    return parameters, macs / 1e9


def kept_bytes(name: str, image_size: int, num_classes: int, images: int, **variation: Any) -> int:
    """Bytes that autograd keeps for the backward pass of a training step with so many images, in float32.

    In closed form where the family has one, else as `counted_kept`. Raises InputError as `build_model` does, and for a batch
    that cannot be normalised.
    """
    name, variation = resolve(name, **variation)
    closed = family_of(name).kept
    if closed is None:
        from sanbench.models.building import counted_kept

        return counted_kept(name, image_size, num_classes, images, **variation)
    return closed(model_config(name, **variation), num_classes, image_size, images)
