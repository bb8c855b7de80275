"""ResNet baselines: bottleneck ResNets with the block counts of the paper's comparison.

Tensors have torchvision's names and, by the same seed, its values: a test compares the networks bit by bit. Written out here,
because torchvision's import takes as long as torch's own: it pulls in torch's compiler.
"""

from collections.abc import Iterator

import torch.nn.functional as F
from torch import Tensor, nn

from sanbench.models.configurations import EXPANSION, ResNetConfig


class Bottleneck(nn.Module):
    """relu(shortcut(x) + branch(x)), N x C x H x W -> N x 4 planes x ceil(H / stride) x ceil(W / stride)."""

    def __init__(self, inputs: int, planes: int, stride: int) -> None:
        super().__init__()
        outputs = EXPANSION * planes
        self.conv1, self.bn1 = nn.Conv2d(inputs, planes, 1, bias=False), nn.BatchNorm2d(planes)
        self.conv2, self.bn2 = nn.Conv2d(planes, planes, 3, stride, padding=1, bias=False), nn.BatchNorm2d(planes)
        self.conv3, self.bn3 = nn.Conv2d(planes, outputs, 1, bias=False), nn.BatchNorm2d(outputs)
        self.downsample = None
        if stride != 1 or inputs != outputs:
            self.downsample = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)), inplace=True)
        out = F.relu(self.bn2(self.conv2(out)), inplace=True)
        out = self.bn3(self.conv3(out))
        out += x if self.downsample is None else self.downsample(x)
        return F.relu(out, inplace=True)


class ResNet(nn.Module):
    """Normalised images N x 3 x H x W, H and W from 32 up -> logits N x num_classes."""

    def __init__(self, config: ResNetConfig, num_classes: int) -> None:
        super().__init__()
        inputs = 64
        self.conv1, self.bn1 = nn.Conv2d(3, inputs, 7, 2, padding=3, bias=False), nn.BatchNorm2d(inputs)
        self.maxpool = nn.MaxPool2d(3, 2, padding=1)
        stages = [nn.Sequential() for _ in config.blocks]
        for stage, blocks in enumerate(config.blocks):
            for block in range(blocks):
                stages[stage].append(Bottleneck(inputs, config.planes(stage), 2 if stage and not block else 1))
                inputs = EXPANSION * config.planes(stage)
        self.layer1, self.layer2, self.layer3, self.layer4 = stages
        if config.width == 1:
            self.fc = nn.Linear(inputs, num_classes)
        else:
            nn.Linear(2048, 1000)  # torchvision draws its own head first: a seed has given these weights since
        for module in self.modules():
            if isinstance(module, nn.Conv2d) and not module.weight.is_meta:  # of those torch would import its compiler
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        if config.width != 1:
            self.fc = nn.Linear(inputs, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.maxpool(F.relu(self.bn1(self.conv1(x)), inplace=True))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.fc(F.adaptive_avg_pool2d(x, 1).flatten(1))


def residual_ends(network: nn.Module) -> Iterator[nn.Module]:
    """The last batch normalisation of every block's branch."""
    return (module.bn3 for module in network.modules() if isinstance(module, Bottleneck))
