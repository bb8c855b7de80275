"""Images turned by any angle, and resized: the same bits as torchvision's functions, which a test compares.

Written out here, because torchvision's import takes as long as torch's own.
"""

from math import cos, radians, sin

import torch
import torch.nn.functional as F
from torch import Tensor


def turned(images: Tensor, angle: float, interpolation: str, fill: float) -> Tensor:
    """Clockwise by `angle` degrees around the centre: N x C x H x W in, and out. What lies outside the image is `fill`."""
    height, width = images.shape[2:]
    turn = radians(-(-angle % 360))
    places = images.new_ones(height, width, 3)  # x, y, 1 of each pixel, from the centre
    places[..., 0] = torch.linspace((1 - width) / 2, (width - 1) / 2, width, device=images.device)
    places[..., 1] = torch.linspace((1 - height) / 2, (height - 1) / 2, height, device=images.device)[:, None]
    sources = images.new_tensor([[cos(turn), sin(turn), 0.0], [-sin(turn), cos(turn), 0.0]]).T
    sources = sources / images.new_tensor([width / 2, height / 2])
    grid = places.reshape(1, -1, 3).bmm(sources[None]).view(1, height, width, 2).expand(len(images), -1, -1, -1)
    inside = torch.ones_like(images[:, :1])
    sampled = F.grid_sample(torch.cat([images, inside], 1), grid, interpolation, "zeros", align_corners=False)
    pixels, share = sampled[:, :-1], sampled[:, -1:]
    return torch.where(share < 0.5, fill, pixels) if interpolation == "nearest" else (pixels - fill) * share + fill


def resized(images: Tensor, side: int) -> Tensor:
    """To `side` x `side`, bilinear, antialiased."""
    return F.interpolate(images, (side, side), mode="bilinear", align_corners=False, antialias=True)
