"""MODELS and build_model: from a name and variations to a network that takes pixels."""

from dataclasses import dataclass
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from torchvision.models.resnet import Bottleneck

from sanbench.errors import InputError, unknown, validated
from sanbench.models.resnet import ResNetConfig, resnet
from sanbench.models.san import SAN, Block, SANConfig

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
SMALLEST_IMAGE = 32  # five halvings


@dataclass(frozen=True)
class Published:
    """ImageNet validation, single 224 centre crop, in % and units of 10^6 and 10^9, as printed with the released code."""

    top1: float
    top5: float
    parameters: float
    flops: float


@dataclass(frozen=True)
class Model:
    config: SANConfig | ResNetConfig
    published: Published | None = None
    baseline: str | None = None  # the ResNet that the paper compares it with


SAN10, SAN15, SAN19 = (2, 1, 2, 4, 1), (3, 2, 3, 5, 2), (3, 3, 4, 6, 3)
MODELS: dict[str, Model] = {
    "resnet26": Model(ResNetConfig(blocks=(1, 2, 4, 1)), Published(73.6, 91.7, 13.7, 2.4)),
    "san10_pairwise": Model(SANConfig(blocks=SAN10), Published(74.9, 92.1, 10.5, 2.2), "resnet26"),
    "san10_patchwise": Model(SANConfig(blocks=SAN10, attention="patchwise"), Published(77.1, 93.5, 11.8, 1.9), "resnet26"),
    "san10_scalar": Model(SANConfig(blocks=SAN10, attention="scalar"), None, "resnet26"),
    "resnet38": Model(ResNetConfig(blocks=(2, 3, 5, 2)), Published(76.0, 93.0, 19.6, 3.2)),
    "san15_pairwise": Model(SANConfig(blocks=SAN15), Published(76.6, 93.1, 14.1, 3.0), "resnet38"),
    "san15_patchwise": Model(SANConfig(blocks=SAN15, attention="patchwise"), Published(78.0, 93.9, 16.2, 2.6), "resnet38"),
    "san15_scalar": Model(SANConfig(blocks=SAN15, attention="scalar"), None, "resnet38"),
    "resnet50": Model(ResNetConfig(blocks=(3, 4, 6, 3)), Published(76.9, 93.5, 25.6, 4.1)),
    "san19_pairwise": Model(SANConfig(blocks=SAN19), Published(76.9, 93.4, 17.6, 3.8), "resnet50"),
    "san19_patchwise": Model(SANConfig(blocks=SAN19, attention="patchwise"), Published(78.2, 93.9, 20.5, 3.3), "resnet50"),
    "san19_scalar": Model(SANConfig(blocks=SAN19, attention="scalar"), None, "resnet50"),
}


class ModelSpec(BaseModel):
    """All that is needed to build a network again."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    num_classes: int = Field(default=1000, ge=1)
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    variation: dict[str, Any] = {}

    @property
    def label(self) -> str:
        """How tables name it: `san10_pairwise width=0.5`; a normalisation that is not ImageNet's stands there too."""
        usual = {"mean": IMAGENET_MEAN, "std": IMAGENET_STD}
        other = {field: ",".join(map(str, values)) for field in usual if (values := getattr(self, field)) != usual[field]}
        fields = [*sorted(self.variation.items()), *other.items()]
        return " ".join([self.name, *(f"{field}={value}" for field, value in fields)])


class Classifier(nn.Module):
    """Images in [0, 1], N x 3 x H x W with H and W from 32 up -> logits N x num_classes.

    Normalisation is inside, so that a perturbation is measured in pixels. `spec` rebuilds it.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, spec: ModelSpec, network: nn.Module) -> None:
        super().__init__()
        self.spec = spec
        self.network = network
        for name in ("mean", "std"):
            self.register_buffer(name, torch.tensor(getattr(spec, name))[:, None, None], persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        if images.dim() != 4 or images.shape[1] != 3 or min(images.shape[2:]) < SMALLEST_IMAGE:
            raise InputError(
                f"images of shape {tuple(images.shape)} are not accepted: N x 3 x H x W, H and W from {SMALLEST_IMAGE} up."
            )
        logits: Tensor = self.network((images - self.mean) / self.std)
        return logits


def resolve(name: str, **variation: Any) -> tuple[str, dict[str, Any]]:
    """The name in MODELS and what is left of the variation: ("san15", attention="patchwise") -> ("san15_patchwise", {}).

    `san15` means `san15_pairwise`. Raises InputError for an unknown name.
    """
    if f"{name}_pairwise" in MODELS:
        name = f"{name}_pairwise"
    if name not in MODELS:
        raise unknown("model", name, [*MODELS, "san10", "san15", "san19"])
    other = f"{name.split('_')[0]}_{variation.get('attention')}"
    if other in MODELS:
        name = other
        del variation["attention"]
    return name, variation


def model_config(name: str, **variation: Any) -> SANConfig | ResNetConfig:
    """The configuration of `name` with fields replaced. Raises InputError for an unknown or unfit field."""
    config = MODELS[name].config
    return validated(type(config), name, **{**config.model_dump(), **variation})


def build_model(
    name: str,
    num_classes: int = 1000,
    *,
    mean: tuple[float, float, float] = IMAGENET_MEAN,
    std: tuple[float, float, float] = IMAGENET_STD,
    **variation: Any,
) -> Classifier:
    """`build_model("san15_patchwise", num_classes=10, footprint=5)`: a network with fresh weights.

    `variation` are fields of `SANConfig`. Raises InputError for an unknown name, field or value.
    """
    name, variation = resolve(name, **variation)
    config = model_config(name, **variation)
    kept = {field: getattr(config, field) for field in sorted(variation)}
    spec = validated(ModelSpec, "model", name=name, num_classes=num_classes, mean=mean, std=std, variation=kept)
    network = SAN(config, num_classes) if isinstance(config, SANConfig) else resnet(config, num_classes)
    return Classifier(spec, network)


def zero_residuals(model: nn.Module) -> None:
    """Set the last layer of every residual branch to zero, in place: each block begins as the identity.

    A block of patchwise attention multiplies values with weights that depend on the same pixels, so that gradients grow from
    block to block: with the usual weights those of SAN10's first stage are a hundred times those of its last.
    """
    for module in model.modules():
        if isinstance(module, Block):
            nn.init.zeros_(module.expand.weight)
            assert module.expand.bias is not None
            nn.init.zeros_(module.expand.bias)
        elif isinstance(module, Bottleneck):
            nn.init.zeros_(module.bn3.weight)


def size(name: str, image_size: int = 224, **variation: Any) -> tuple[int, float]:
    """Parameters, and 10^9 multiply-accumulates an image in linear maps, gamma and aggregation, by torch's counter."""
    with torch.device("meta"):
        model = build_model(name, **variation).eval()
        with FlopCounterMode(display=False) as counter:
            model(torch.empty(1, 3, image_size, image_size))
    return sum(parameter.numel() for parameter in model.parameters()), counter.get_total_flops() / 2e9
