"""Self-Attention Networks (Zhao, Jia, Koltun, CVPR 2020) and every variation of the paper's ablations."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import sanbench.ops  # noqa: F401  registers torch.ops.sanbench
from sanbench.models.configurations import DEFAULT_RELATION, SHARE, SANConfig
from sanbench.models.normalisation import is_fixed, normalisation, normalised
from sanbench.ops.cpu.block import LAYERS, block_in_one_step
from sanbench.ops.fused import normalised_linear, normalised_pool
from sanbench.relation import RELATIONS


class SelfAttention(nn.Module):
    """phi, psi, beta, gamma and position around one attention operator: N x C x H x W -> N x C/4 x H x W."""

    def __init__(self, config: SANConfig, channels: int, footprint: int) -> None:
        super().__init__()
        self.footprint, self.heads = footprint, config.heads
        self.attention, self.shared = config.attention, config.shared
        self.relation = config.relation or DEFAULT_RELATION[config.attention]
        narrow, wide = channels // 16, channels // 4
        width = wide if config.shared == "phi-psi-beta" else narrow
        self.phi = nn.Conv2d(channels, width, 1)
        if config.shared == "none":
            self.psi = nn.Conv2d(channels, width, 1)
        if config.shared != "phi-psi-beta":
            self.beta = nn.Conv2d(channels, wide, 1)

        encoding = (config.position or "relative") if config.attention == "pairwise" else "none"
        self.position = None if encoding == "none" else nn.Conv2d(2, 2, 1)
        self.relative = encoding == "relative"
        if self.attention == "scalar":
            return
        neighbours = footprint**2
        groups = wide // SHARE
        delta = RELATIONS[self.attention][self.relation].channels(width, neighbours) + (2 if self.position else 0)
        hidden, last = (narrow, groups) if self.attention == "pairwise" else (groups, groups * neighbours)
        widths = [delta] + [hidden] * (config.gamma_depth - 1) + [last]
        self.gamma = nn.Sequential()
        for depth in range(config.gamma_depth):
            is_last = depth == config.gamma_depth - 1
            self.gamma.extend(
                [nn.BatchNorm2d(widths[depth]), nn.ReLU(), nn.Conv2d(widths[depth], widths[depth + 1], 1, bias=is_last)]
            )

    def forward(self, x: Tensor) -> Tensor:
        return self.attend(*self.project(x))

    def attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """The attention of query phi(x), key psi(x) and value beta(x): N x C/4 x H x W."""
        if self.attention == "scalar":
            return torch.ops.sanbench.scalar_attention(query, key, value, self.heads, self.footprint, 1, 1)
        geometry = (self.relation, self.footprint, 1, 1)
        pixels = value.shape[-2] * value.shape[-1]
        if self.attention == "patchwise":
            pair = (query, key)
            gamma = self.mapping(lambda g: torch.ops.sanbench.patchwise_statistics(*pair, g, *geometry), pixels)
            return torch.ops.sanbench.patchwise_attention(*pair, value, gamma, *geometry)
        position = self.encode(value)
        pairs = pixels * self.footprint**2
        if (as_subtraction := RELATIONS["pairwise"][self.relation].as_subtraction) is not None:
            (query, key), geometry = as_subtraction(query, key), ("subtraction", *geometry[1:])
        gamma = self.mapping(lambda g: torch.ops.sanbench.pairwise_statistics(query, key, position, g, *geometry), pairs)
        return torch.ops.sanbench.pairwise_attention(query, key, value, position, gamma, *geometry)

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """phi(x), psi(x), beta(x), computed as one linear: x is read once, and a wide matrix product is faster."""
        weight, bias = (torch.cat(values) for values in self.linears())
        return self.parts(F.conv2d(x, weight[:, :, None, None], bias))

    def linears(self) -> tuple[list[Tensor], list[Tensor]]:
        """Weights, each outputs x inputs, and biases of phi, and of psi and beta where they are not shared with it."""
        linears: list[Any] = [getattr(self, name) for name in ("phi", "psi", "beta") if hasattr(self, name)]
        return [linear.weight.flatten(1) for linear in linears], [linear.bias for linear in linears]

    def parts(self, projected: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """phi(x), psi(x), beta(x) from the concatenated outputs of `linears`."""
        query, *others = projected.split([len(bias) for bias in self.linears()[1]], 1)
        return query, others[0] if len(others) == 2 else query, others[-1] if others else query

    def mapping(self, statistics: Callable[[list[Tensor]], Tensor], count: int) -> list[Tensor]:
        """gamma's tensors as the operators take them; in training `statistics` gives moments of `count` values an image."""
        gamma: list[Tensor] = []
        layers = list(self.gamma)
        for norm, linear in zip(layers[0::3], layers[2::3], strict=True):
            assert isinstance(norm, nn.BatchNorm2d) and isinstance(linear, nn.Conv2d)
            moments = statistics(gamma) if norm.training else None
            gamma += [*normalisation(norm, moments, count), linear.weight.flatten(1)]
            bias = linear.bias
        assert bias is not None
        return [*gamma, bias]

    def encode(self, x: Tensor) -> Tensor | None:
        """The learned position of every pixel of `x` as query i and as neighbour j: 2 x 2 x H x W. Coordinates span [-1, 1]."""
        if self.position is None:
            return None
        weight, bias = self.position.weight, self.position.bias  # float32 under autocast too: neighbours differ by little
        assert bias is not None
        coordinates = coordinates_of(x.shape[2], x.shape[3], weight.dtype, x.device)
        encoded = (weight * coordinates).sum(1) + bias[:, None, None]  # autocast would halve a convolution's precision
        return encoded.expand(2, -1, -1, -1) if self.relative else torch.stack([torch.zeros_like(encoded), -encoded])


def coordinates_of(height: int, width: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Of every pixel, across and down: 2 x H x W."""
    down, across = (torch.linspace(-1, 1, n, device=device, dtype=dtype) for n in (height, width))
    return torch.stack([across.expand(height, width), down[:, None].expand(height, width)])


class Block(nn.Module):
    """Pre-activation residual: x + linear(relu(BN(attention(relu(BN(x)))))), N x C x H x W."""

    def __init__(self, config: SANConfig, channels: int, footprint: int) -> None:
        super().__init__()
        self.before = nn.Sequential(nn.BatchNorm2d(channels))
        self.attention = SelfAttention(config, channels, footprint)
        self.after = nn.Sequential(nn.BatchNorm2d(channels // 4))
        self.expand = nn.Conv2d(channels // 4, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        if (out := self.in_one_step(x)) is not None:
            return out
        before, after = self.before[0], self.after[0]
        assert isinstance(before, nn.BatchNorm2d) and isinstance(after, nn.BatchNorm2d)
        if is_fixed(self, x):  # normalised maps and sums are not written to memory
            projected = normalised_linear(x, *normalisation(before), *self.attention.linears())
            attended = self.attention.attend(*self.attention.parts(projected))
            weight, bias = self.expand.weight.flatten(1), self.expand.bias
            assert bias is not None
            return normalised_linear(attended, *normalisation(after), [weight], [bias], x)
        attended = self.attention.attend(*normalised(before, x, self.attention.project))
        return normalised(after, attended, self.expand).add_(x)  # in place: autograd does not need a linear's output

    def in_one_step(self, x: Tensor) -> Tensor | None:
        """The block, if the compiled kernels serve it as a whole."""
        attention = self.attention
        gamma: Any = getattr(attention, "gamma", ())
        if x.device.type != "cpu" or attention.shared != "none" or len(gamma) != 6:
            return None
        layers = (attention.phi, attention.psi, attention.beta, gamma[0], gamma[2], gamma[3], gamma[5])
        named = dict(zip(LAYERS, (self.before[0], *layers, self.after[0], self.expand), strict=True))
        geometry = (attention.attention, attention.relation, attention.footprint)
        return block_in_one_step(x, *geometry, named, attention.encode(x))


class SAN(nn.Module):
    """Normalised images N x 3 x H x W, H and W from 32 up -> logits N x num_classes."""

    def __init__(self, config: SANConfig, num_classes: int) -> None:
        super().__init__()
        self.config = config
        inputs = config.channels(0)
        self.stem = nn.Sequential(nn.Conv2d(3, inputs, 1, bias=False), nn.BatchNorm2d(inputs))
        self.stages = nn.Sequential()
        for stage, blocks in enumerate(config.blocks):
            channels = config.channels(stage)
            self.stages.append(
                nn.Sequential(
                    nn.MaxPool2d(2),
                    nn.Conv2d(inputs, channels, 1, bias=False),
                    nn.Sequential(*(Block(config, channels, config.stage_footprint(stage)) for _ in range(blocks))),
                    nn.BatchNorm2d(channels),
                )
            )
            inputs = channels
        self.classifier = nn.Linear(inputs, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = x.contiguous(memory_format=torch.channels_last)  # faster for 1x1 convolutions, pooling and normalisation
        linear, norm = self.stem
        assert isinstance(linear, nn.Conv2d)
        pool: Callable[..., Tensor] = normalised_pool
        if is_fixed(self.stem, x):  # the largest map is not written to memory
            pool = partial(normalised_pool, weight=linear.weight.flatten(1))
        else:
            x = linear(x)
        for stage in self.stages:
            assert isinstance(stage, nn.Sequential)
            _, linear, blocks, following = stage  # pooling is fused with the normalisation before it
            assert isinstance(linear, nn.Conv2d)
            x = blocks(normalised(norm, x, partial(pooled_linear, linear), pool))
            norm, pool = following, normalised_pool
        return self.classifier(normalised(norm, x, partial(torch.mean, dim=(2, 3))))


def pooled_linear(linear: nn.Conv2d, x: Tensor) -> Tensor:
    """linear(x), where x is not negative: then it is relu(1 x + 0), and `normalised_linear` has the faster kernel."""
    if not is_fixed(linear, x):
        out: Tensor = linear(x)
        return out
    inputs, outputs = (x.new_zeros(channels) for channels in (linear.in_channels, linear.out_channels))
    return normalised_linear(x, inputs + 1, inputs, [linear.weight.flatten(1)], [outputs])


def residual_ends(network: nn.Module) -> Iterator[nn.Module]:
    """The last linear of every block."""
    return (module.expand for module in network.modules() if isinstance(module, Block))
