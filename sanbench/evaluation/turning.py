"""Images turned by any angle, and resized: the same bits as torchvision's functions, which a test compares.

Written out here, because torchvision's import takes as long as torch's own.
"""

from math import cos, radians, sin

import torch
import torch.nn.functional as F
from torch import Tensor

AT_ONCE = 8  # images: what is made on the way takes six times their memory, in blocks of several sizes


def turned(images: Tensor, angle: float, interpolation: str, fill: float) -> Tensor:
    """Clockwise by `angle` degrees around the centre: N x C x H x W in, and out. What lies outside the image is `fill`."""
    height, width = images.shape[2:]
    turn = radians(-(-angle % 360))
    places = images.new_ones(height, width, 3)  # x, y, 1 of each pixel, from the centre
    places[..., 0] = torch.linspace((1 - width) / 2, (width - 1) / 2, width, device=images.device)
    places[..., 1] = torch.linspace((1 - height) / 2, (height - 1) / 2, height, device=images.device)[:, None]
    sources = images.new_tensor([[cos(turn), sin(turn), 0.0], [-sin(turn), cos(turn), 0.0]]).T
    sources = sources / images.new_tensor([width / 2, height / 2])
    grid = places.reshape(1, -1, 3).bmm(sources[None]).view(1, height, width, 2)
    made = torch.empty_like(images)
    for some, into in zip(images.split(AT_ONCE), made.split(AT_ONCE), strict=True):
        shown = torch.cat([some, torch.ones_like(some[:, :1])], 1)
        sampled = F.grid_sample(shown, grid.expand(len(some), -1, -1, -1), interpolation, "zeros", align_corners=False)
        pixels, share = sampled[:, :-1], sampled[:, -1:]
        into[:] = torch.where(share < 0.5, fill, pixels) if interpolation == "nearest" else (pixels - fill) * share + fill
    return made


def resized(images: Tensor, side: int) -> Tensor:
    """To `side` x `side`, bilinear, antialiased."""
    return F.interpolate(images, (side, side), mode="bilinear", align_corners=False, antialias=True)
