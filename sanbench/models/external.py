"""Other people's networks: `torchvision:resnet50`, `timm:NAME` or `module.path:factory`, with weights from a file."""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import inspect
import math
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Self, cast

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator, model_validator

from sanbench.errors import InputError, unknown, validated
from sanbench.late import Late
from sanbench.models.configurations import SMALLEST_IMAGE
from sanbench.store.schema import IMAGENET_MEAN, IMAGENET_STD, ModelSpec, Triple

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from sanbench.models import classifier, weights
else:
    torch, classifier, weights = Late("torch"), Late("sanbench.models.classifier"), Late("sanbench.models.weights")

Build = Callable[..., "nn.Module"]  # takes num_classes, unless it has no such parameter


class Preprocessing(BaseModel):
    """A photograph's shorter side is resized to `resize`, its centre cropped to `crop`, then (pixels - mean) / std.

    `resize` is 256/224 of `crop` by default. Images of data sets in memory are neither resized nor cropped.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    mean: Triple = IMAGENET_MEAN
    std: Triple = IMAGENET_STD
    resize: int | None = Field(default=None, le=8192)
    crop: int = Field(default=224, ge=SMALLEST_IMAGE, le=4096)
    interpolation: Literal["nearest", "bilinear", "bicubic", "lanczos"] = "bilinear"

    @field_validator("mean", "std", mode="before")
    @classmethod
    def three_numbers(cls, value: Any, info: ValidationInfo) -> Any:
        words = value.split(",") if isinstance(value, str) else list(value)
        try:
            numbers = tuple(map(float, words))
        except (TypeError, ValueError):
            numbers = ()
        if len(numbers) != 3 or not all(map(math.isfinite, numbers)):
            raise InputError(f"{info.field_name} {value!r} is not accepted: write three numbers, as in 0.485,0.456,0.406.")
        if max(numbers) > 1:
            raise InputError(f"{info.field_name} {value!r} is not accepted: pixels lie in [0, 1], so divide it by 255.")
        return numbers

    @model_validator(mode="after")
    def consistent(self) -> Self:
        if self.resize is not None and self.resize < self.crop:
            raise InputError(f"resize {self.resize} is not accepted: a crop of {self.crop} has to fit in.")
        if min(self.std) <= 0:
            raise InputError(f"std {','.join(map(str, self.std))} is not accepted: each must be above 0.")
        return self


class Factory(NamedTuple):
    """The function that builds a network, and the preprocessing that its library documents."""

    build: Build
    preprocessing: dict[str, Any]


def from_torchvision(name: str) -> Factory:
    from torchvision import models

    known = models.list_models(module=models)
    if name not in known:
        raise unknown("torchvision model", name, known)
    return Factory(lambda **options: models.get_model(name, weights=None, **options), {})


def from_timm(name: str) -> Factory:
    if importlib.util.find_spec("timm") is None:
        raise InputError(f"timm:{name} is not accepted here: timm is missing, pip install 'sanbench[timm]'.")
    import timm

    if not timm.is_model(name):
        nearest = difflib.get_close_matches(name, timm.list_models(), n=1, cutoff=0.4)
        hint = f" Did you mean {nearest[0]!r}?" if nearest else ""
        raise InputError(f"Unknown timm model {name!r}.{hint} timm.list_models() has all {len(timm.list_models()):,}.")
    config = timm.get_pretrained_cfg(name)
    assert config is not None
    if config.crop_mode != "center":
        raise InputError(f"timm:{name} is not accepted: it wants crop mode {config.crop_mode}, accepted is center.")
    crop = config.input_size[-1]
    sides = {"crop": crop, "resize": int(crop / config.crop_pct), "interpolation": config.interpolation}
    return Factory(lambda **options: timm.create_model(name, **options), {"mean": config.mean, "std": config.std, **sides})


def from_module(name: str) -> Factory:
    return Factory(imported(name, "accepted are torchvision:NAME, timm:NAME and module.path:factory"), {})


def imported(name: str, accepted: str) -> Callable[..., Any]:
    """`package.module:function`, from Python's path and the working directory. Raises InputError, with what is accepted."""
    path, _, attribute = name.partition(":")
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())  # child processes are given the same path
    try:
        module = importlib.import_module(path)
    except Exception as error:  # a module may raise anything
        raise InputError(f"{name} cannot be imported: {first_line(error)}; {accepted}.") from error
    found = getattr(module, attribute, None)
    if not callable(found):
        raise InputError(f"{name} is not accepted: {path} has no function {attribute!r}.")
    return cast(Callable[..., Any], found)


LIBRARIES: dict[str, Callable[[str], Factory]] = {"torchvision": from_torchvision, "timm": from_timm}


def is_external(name: str) -> bool:
    """Whether `name` has the form of a network from elsewhere."""
    return ":" in name


def load_external(name: str, file: Path, **preprocessing: Any) -> tuple[classifier.Classifier, Preprocessing]:
    """The network `name` with the state dict in `file` (see `read_weights`), in evaluation mode on the CPU.

    `preprocessing` holds fields of `Preprocessing`; the others are what the library documents (timm does), else the paper's.
    The number of classes is that of the head in the file. torchvision's own weights of googlenet and inception_v3 want mean
    and std 0.5. Raises InputError for unknown names and values and for a network that gives no logits, SanbenchError for
    weights that do not fit.
    """
    library, _, model = name.partition(":")
    factory = LIBRARIES[library](model) if library in LIBRARIES else from_module(name)
    applied = validated(Preprocessing, "preprocessing", **{**factory.preprocessing, **preprocessing})
    tensors, _ = weights.read_weights(file)
    network = build_fitting(name, factory.build, tensors)
    weights.load_weights(network, tensors, file, name)
    variation = applied.model_dump(include={"resize", "crop", "interpolation"}, exclude_defaults=True)
    classes = count_classes(name, network.eval(), applied.crop)
    spec = ModelSpec(name=name, num_classes=classes, mean=applied.mean, std=applied.std, variation=variation)
    return classifier.Classifier(spec, network).eval(), applied


def build_fitting(name: str, build: Build, tensors: Mapping[str, Tensor]) -> nn.Module:
    """The network with the file's number of classes: where one length differs from the default network's, it is that."""
    parameters = inspect.signature(build).parameters
    takes_classes = "num_classes" in parameters or any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    needs_classes = "num_classes" in parameters and parameters["num_classes"].default is inspect.Parameter.empty
    network = built(name, build, **({"num_classes": 1000} if needs_classes else {}))
    if not isinstance(network, torch.nn.Module):
        raise InputError(f"{name} is not accepted: it gives a {type(network).__name__}, not a torch.nn.Module.")
    other = {
        tensors[key].shape[:1]
        for key, tensor in network.state_dict().items()
        if key in tensors and tensors[key].shape != tensor.shape
    }
    if takes_classes and len(other) == 1 and (size := other.pop()):
        validated(ModelSpec, name, name=name, num_classes=size[0])  # before memory is taken for them
        return built(name, build, num_classes=size[0])
    return network


def built(name: str, build: Build, **options: Any) -> Any:
    """What `build` gives. Raises InputError with the network's name where it raises."""
    try:
        return build(**options)
    except Exception as error:  # it may be anybody's code
        raise InputError(f"{name} cannot be built: {first_line(error)}.") from error


def first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0].rstrip(".")


def count_classes(name: str, network: nn.Module, side: int) -> int:
    """How many logits `network` gives for an image of `side` x `side`. Raises InputError where it gives none."""
    try:
        with torch.no_grad():
            logits = network(torch.zeros(1, 3, side, side))
    except Exception as error:  # it may be anybody's code
        reason = first_line(error)
        raise InputError(f"{name} takes no images of {side} x {side}: {reason}; --crop names another size.") from error
    if not isinstance(logits, torch.Tensor) or logits.dim() != 2:
        form = " x ".join(map(str, logits.shape)) if isinstance(logits, torch.Tensor) else type(logits).__name__
        raise InputError(f"{name} is not accepted: it gives {form}, not logits N x classes.")
    return logits.shape[1]
