"""Other people's networks: `torchvision:resnet50`, `timm:NAME` or `module.path:factory`, with weights from a file."""

import difflib
import importlib
import importlib.util
import inspect
import math
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple, Self

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator, model_validator
from torch import Tensor, nn

from sanbench.errors import InputError, unknown, validated
from sanbench.models import IMAGENET_MEAN, IMAGENET_STD, SMALLEST_IMAGE, Classifier, ModelSpec
from sanbench.models.weights import load_weights, read_weights

Build = Callable[..., nn.Module]  # takes num_classes, unless it has no such parameter
Triple = tuple[float, float, float]


class Preprocessing(BaseModel):
    """What becomes of a photograph: its shorter side `resize`, of that the centre `crop`, then (pixels - mean) / std.

    Without `resize` it is 256/224 of `crop`. Images that are no photographs in folders are taken as they are.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    mean: Triple = IMAGENET_MEAN
    std: Triple = IMAGENET_STD
    resize: int | None = None
    crop: int = Field(default=224, ge=SMALLEST_IMAGE)
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
        return numbers

    @model_validator(mode="after")
    def consistent(self) -> Self:
        if self.resize is not None and self.resize < self.crop:
            raise InputError(f"resize {self.resize} is not accepted: a crop of {self.crop} has to fit in.")
        if min(self.std) <= 0:
            raise InputError(f"std {','.join(map(str, self.std))} is not accepted: each must be above 0.")
        return self


class Found(NamedTuple):
    """How a network is built, and the preprocessing that its source states."""

    build: Build
    stated: dict[str, Any]


def from_torchvision(name: str) -> Found:
    from torchvision import models

    known = models.list_models(module=models)
    if name not in known:
        raise unknown("torchvision model", name, known)
    return Found(lambda **options: models.get_model(name, weights=None, **options), {})


def from_timm(name: str) -> Found:
    if importlib.util.find_spec("timm") is None:
        raise InputError(f"timm:{name} is not accepted here: timm is missing, pip install 'sanbench[timm]'.")
    import timm

    if not timm.is_model(name):
        nearest = difflib.get_close_matches(name, timm.list_models(), n=1, cutoff=0.4)
        hint = f" Did you mean {nearest[0]!r}?" if nearest else ""
        raise InputError(f"Unknown timm model {name!r}.{hint} timm.list_models() has all {len(timm.list_models()):,}.")
    stated = timm.get_pretrained_cfg(name)
    assert stated is not None
    crop = stated.input_size[-1]
    view = {"mean": stated.mean, "std": stated.std, "crop": crop, "resize": int(crop / stated.crop_pct)}
    if stated.crop_mode != "center":
        raise InputError(f"timm:{name} is not accepted: it wants crop mode {stated.crop_mode}, accepted is center.")
    return Found(lambda **options: timm.create_model(name, **options), {**view, "interpolation": stated.interpolation})


def from_module(name: str) -> Found:
    """`package.module:function`, found as Python finds modules, and in the folder that the command is typed in."""
    path, _, attribute = name.partition(":")
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())  # processes that this one starts are given its path
    try:
        module = importlib.import_module(path)
    except (ImportError, SyntaxError, ValueError, TypeError) as error:
        accepted = "accepted are torchvision:NAME, timm:NAME and module.path:factory"
        raise InputError(f"{name} cannot be imported: {error}; {accepted}.") from error
    build = getattr(module, attribute, None)
    if not callable(build):
        raise InputError(f"{name} is not accepted: {path} has no function {attribute!r}.")
    return Found(build, {})


SOURCES: dict[str, Callable[[str], Found]] = {"torchvision": from_torchvision, "timm": from_timm}


def is_external(name: str) -> bool:
    """Whether `name` has the form of a network from elsewhere."""
    return ":" in name


def load_external(name: str, weights: Path, **chosen: Any) -> tuple[Classifier, Preprocessing]:
    """The network `name` with the state dict in `weights` (see `read_weights`), in evaluation mode on the CPU.

    `chosen` are fields of `Preprocessing`; what is not chosen is what the source states (timm does), else as the paper's.
    The classes are those of the head in the file. torchvision's own weights of googlenet and inception_v3 want mean and std
    0.5. Raises InputError for unknown names and values and for what gives no logits, SanbenchError for weights that do not fit.
    """
    source, _, rest = name.partition(":")
    found = SOURCES[source](rest) if source in SOURCES else from_module(name)
    view = validated(Preprocessing, "preprocessing", **{**found.stated, **chosen})
    tensors, _ = read_weights(weights)
    network = build_fitting(name, found.build, tensors)
    load_weights(network, tensors, weights, name)
    shown = view.model_dump(include={"resize", "crop", "interpolation"}, exclude_defaults=True)
    classes = count_classes(name, network.eval(), view.crop)
    spec = ModelSpec(name=name, num_classes=classes, mean=view.mean, std=view.std, variation=shown)
    return Classifier(spec, network).eval(), view


def build_fitting(name: str, build: Build, tensors: Mapping[str, Tensor]) -> nn.Module:
    """The network with as many classes as the one size that a head in the file has in place of the default's."""
    parameters = inspect.signature(build).parameters
    takes_classes = "num_classes" in parameters or any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    needs_classes = "num_classes" in parameters and parameters["num_classes"].default is inspect.Parameter.empty
    network = build(num_classes=1000) if needs_classes else build()
    if not isinstance(network, nn.Module):
        raise InputError(f"{name} is not accepted: it gives a {type(network).__name__}, not a torch.nn.Module.")
    other = {
        tensors[key].shape[:1]
        for key, tensor in network.state_dict().items()
        if key in tensors and tensors[key].shape != tensor.shape
    }
    if takes_classes and len(other) == 1 and (size := other.pop()):
        return build(num_classes=size[0])
    return network


@torch.no_grad()
def count_classes(name: str, network: nn.Module, side: int) -> int:
    """How many logits it gives for an image of `side` x `side`."""
    try:
        logits = network(torch.zeros(1, 3, side, side))
    except (RuntimeError, AssertionError, ValueError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0].rstrip(".")
        raise InputError(f"{name} takes no images of {side} x {side}: {reason}; --crop names another size.") from error
    if not isinstance(logits, Tensor) or logits.dim() != 2:
        form = " x ".join(map(str, logits.shape)) if isinstance(logits, Tensor) else type(logits).__name__
        raise InputError(f"{name} is not accepted: it gives {form}, not logits N x classes.")
    return logits.shape[1]
