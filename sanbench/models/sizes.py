"""Parameters and multiply-accumulates of the networks in closed form: `sanbench models` builds none and needs no torch.

Counted are linear maps, gamma and aggregation, as torch's counter does on the network itself; a test compares the two.
"""

from itertools import pairwise

from sanbench.models.configurations import DEFAULT_RELATION, EXPANSION, SHARE, ResNetConfig, SANConfig
from sanbench.relation import RELATIONS

Size = tuple[int, int]  # parameters, multiply-accumulates of an image


def convolution(inputs: int, outputs: int, side: int, kernel: int = 1) -> Size:
    """Without a bias, behind or before a batch normalisation of its outputs; `side` is that of its map."""
    weights = inputs * outputs * kernel**2
    return weights + 2 * outputs, weights * side**2


def total(parts: list[Size]) -> Size:
    return sum(parameters for parameters, _ in parts), sum(macs for _, macs in parts)


def san(config: SANConfig, classes: int, image_size: int) -> Size:
    inputs = config.channels(0)
    parts = [convolution(3, inputs, image_size)]
    for blocks, (side, channels, footprint) in zip(config.blocks, config.stages(image_size), strict=True):
        parts += [convolution(inputs, channels, side), *[san_block(config, channels, footprint, side**2)] * blocks]
        inputs = channels
    return total([*parts, ((inputs + 1) * classes, inputs * classes)])


def projected_widths(config: SANConfig, channels: int) -> tuple[int, int]:
    """Channels of phi, and of all projections of a block together."""
    query = channels // (4 if config.shared == "phi-psi-beta" else 16)
    others = {"none": query + channels // 4, "phi-psi": channels // 4, "phi-psi-beta": 0}
    return query, query + others[config.shared]


def gamma_widths(config: SANConfig, channels: int, footprint: int) -> list[int]:
    """Channels from the relation to the weights: what each linear of gamma has as inputs, and the outputs of the last."""
    relation = RELATIONS[config.attention][config.relation or DEFAULT_RELATION[config.attention]]
    position, groups = 2 * (config.attention == "pairwise" and config.position != "none"), channels // 4 // SHARE
    seen = relation.channels(projected_widths(config, channels)[0], footprint**2) + position
    hidden, last = (channels // 16, groups) if config.attention == "pairwise" else (groups, groups * footprint**2)
    return [seen, *[hidden] * (config.gamma_depth - 1), last]


def san_block(config: SANConfig, channels: int, footprint: int, pixels: int) -> Size:
    wide, neighbours = channels // 4, footprint**2
    query, projected = projected_widths(config, channels)
    parameters = 2 * channels + (channels + 1) * projected + 2 * wide + (wide + 1) * channels
    macs = channels * (projected + wide)
    if config.attention == "scalar":
        return parameters, pixels * (macs + neighbours * (query + wide))
    relation = RELATIONS[config.attention][config.relation or DEFAULT_RELATION[config.attention]]
    widths = gamma_widths(config, channels, footprint)
    linears = sum(one * following for one, following in pairwise(widths))
    encoded = 6 if config.attention == "pairwise" and config.position != "none" else 0
    parameters += encoded + linears + 2 * sum(widths[:-1]) + widths[-1]
    macs += relation.macs(query, neighbours) + linears * (neighbours if config.attention == "pairwise" else 1)
    return parameters, pixels * (macs + wide * neighbours)


def resnet(config: ResNetConfig, classes: int, image_size: int) -> Size:
    side = -(-image_size // 2)
    inputs, parts = 64, [convolution(3, 64, side, kernel=7)]
    side = -(-side // 2)
    for stage, blocks in enumerate(config.blocks):
        planes = config.planes(stage)
        outputs = EXPANSION * planes
        for block in range(blocks):
            stride = 2 if stage and not block else 1
            parts.append(convolution(inputs, planes, side))
            side = -(-side // stride)
            parts += [convolution(planes, planes, side, kernel=3), convolution(planes, outputs, side)]
            parts += [convolution(inputs, outputs, side)] if stride != 1 or inputs != outputs else []
            inputs = outputs
    return total([*parts, ((inputs + 1) * classes, inputs * classes)])
