"""ResNet baselines: torchvision's bottleneck ResNet with the block counts of the paper's comparison."""

from collections.abc import Iterator
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field
from torch import nn
from torchvision.models.resnet import Bottleneck, ResNet

Blocks = Annotated[int, Field(ge=1, le=100)]  # of a stage


class ResNetConfig(BaseModel):
    """`ResNetConfig(blocks=(1, 2, 4, 1))` is ResNet26.

    width   multiplies every stage's channels, in multiples of 32, as a SAN's does; the stem keeps its 64
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    blocks: tuple[Blocks, Blocks, Blocks, Blocks]
    width: float = Field(default=1.0, gt=0, le=8)


class Scaled(ResNet):  # type: ignore[misc]  # torchvision has no types
    """torchvision's ResNet with stages of another width."""

    def __init__(self, config: ResNetConfig, num_classes: int) -> None:
        self.width = config.width
        super().__init__(Bottleneck, list(config.blocks))
        self.fc = nn.Linear(self.inplanes, num_classes)

    def _make_layer(self, block: Any, planes: int, *rest: Any, **options: Any) -> nn.Sequential:
        return super()._make_layer(block, max(8, round(planes * self.width / 8) * 8), *rest, **options)


def build(config: ResNetConfig, num_classes: int) -> ResNet:
    """Normalised images N x 3 x H x W, H and W from 32 up -> logits N x num_classes."""
    if config.width != 1:
        return Scaled(config, num_classes)
    return ResNet(Bottleneck, list(config.blocks), num_classes=num_classes)


def residual_ends(network: nn.Module) -> Iterator[nn.Module]:
    """The last batch normalisation of every block's branch."""
    return (module.bn3 for module in network.modules() if isinstance(module, Bottleneck))
