"""Bytes that autograd keeps of a training step for the backward pass, in closed form: a plan of a training builds no network.

Counted is what the operators keep that every device has, in float32: of a SAN's blocks the compiled kernels for CPUs keep
less. A test compares this with what torch keeps of the network itself, without numbers (`counted_kept`): that imports
torch's compiler, which takes as long as torch.
"""

from sanbench.errors import InputError
from sanbench.models.configurations import EXPANSION, NO_VARIANCE, RECOMPUTED, ResNetConfig, SANConfig
from sanbench.models.sizes import gamma_widths, projected_widths

NUMBER = 4  # bytes
PLACE = 2  # numbers that the position of a maximum takes


def check_variance(values: int) -> None:
    """Raises InputError for a batch with one value a channel in its smallest maps."""
    if values < 2:
        raise InputError(NO_VARIANCE)


def moved(images: int, channels: int) -> int:
    """Numbers kept of how moments become scale and shift: what the means of images differ by, and four of each channel."""
    return (images + 4) * channels


def normalised(images: int, channels: int, pixels: int, following: int) -> int:
    """Numbers kept of a map that is normalised by its moments, and `following` of what is made of it, unless that is computed
    again."""
    numbers = channels * pixels
    return images * (numbers + 2 * channels) + moved(images, channels) + (following if numbers < RECOMPUTED else 0)


def san(config: SANConfig, classes: int, image_size: int, images: int) -> int:
    channels, pixels = config.channels(0), image_size**2
    kept = images * 3 * pixels
    for blocks, (side, outputs, footprint) in zip(config.blocks, config.stages(image_size), strict=True):
        kept += normalised(images, channels, pixels, images * channels * side**2)  # pooled
        channels, pixels = outputs, side**2
        kept += blocks * san_block(config, channels, footprint, pixels, images)
    check_variance(images * pixels)
    return NUMBER * (kept + normalised(images, channels, pixels, 0) + images * channels)


def san_block(config: SANConfig, channels: int, footprint: int, pixels: int, images: int) -> int:
    wide, (_, projected) = channels // 4, projected_widths(config, channels)
    weights = projected * channels  # of all projections together, a copy
    kept = normalised(images, channels, pixels, images * channels * pixels + weights) + images * projected * pixels
    if config.attention == "pairwise" and config.position != "none":  # coordinates, and what is learned of them
        kept += (6 if config.position == "absolute" else 4) * pixels
    if config.attention != "scalar":
        kept += sum(moved(images, width) for width in gamma_widths(config, channels, footprint)[:-1])
    return kept + normalised(images, wide, pixels, images * wide * pixels)


def resnet(config: ResNetConfig, classes: int, image_size: int, images: int) -> int:
    def normed(channels: int, side: int) -> int:
        """The map, and four numbers of each channel: running and own averages."""
        return (images * side**2 + 4) * channels

    side, inputs = -(-image_size // 2), 64
    kept = images * 3 * image_size**2 + normed(inputs, side) + images * inputs * side**2
    side = -(-side // 2)
    kept += images * inputs * side**2 * (1 + PLACE)
    for stage, blocks in enumerate(config.blocks):
        planes = config.planes(stage)
        outputs = EXPANSION * planes
        for block in range(blocks):
            stride = 2 if stage and not block else 1
            kept += normed(planes, side) + images * planes * side**2
            side = -(-side // stride)
            kept += normed(planes, side) + images * planes * side**2 + normed(outputs, side) + images * outputs * side**2
            kept += normed(outputs, side) if stride != 1 or inputs != outputs else 0
            inputs = outputs
    check_variance(images * side**2)
    return NUMBER * (kept + images * inputs)
