"""ResNet baselines: torchvision's bottleneck ResNet with the block counts of the paper's comparison."""

from pydantic import BaseModel, ConfigDict
from torchvision.models.resnet import Bottleneck, ResNet


class ResNetConfig(BaseModel):
    """`ResNetConfig(blocks=(1, 2, 4, 1))` is ResNet26; a baseline has no variations."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    blocks: tuple[int, int, int, int]


def resnet(config: ResNetConfig, num_classes: int) -> ResNet:
    """Normalised images N x 3 x H x W, H and W from 32 up -> logits N x num_classes."""
    return ResNet(Bottleneck, list(config.blocks), num_classes=num_classes)
