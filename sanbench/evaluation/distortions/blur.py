"""Blur: defocus, frosted glass, motion and zoom."""

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.ndimage import correlate
from torch import Tensor

from sanbench.evaluation.distortions.filters import Array, blurred, filtered, magnified, moved, rescaled, scale


def defocus_blur(image: Tensor, strength: tuple[int, float], draw: torch.Generator) -> Tensor:
    radius, sigma = strength
    return filtered(image, rescaled(disc(radius, sigma), scale(image)), "reflect")


def disc(radius: int, sigma: float) -> Array:
    """The benchmark's disc, smoothed by a Gaussian of 3 pixels (radius up to 8) or 5, mirrored at the kernel's own edge."""
    reach = max(radius, 8)
    ys, xs = np.mgrid[-reach : reach + 1, -reach : reach + 1]
    inside = ys**2 + xs**2 <= radius**2
    wide = 1 if radius <= 8 else 2
    line = np.exp(-((np.arange(-wide, wide + 1) / sigma) ** 2) / 2)
    return correlate(inside / inside.sum(), np.outer(line, line) / line.sum() ** 2, mode="mirror")


def glass_blur(image: Tensor, strength: tuple[float, int, int], draw: torch.Generator) -> Tensor:
    """Blurred, cut to 8 bits, each pixel taken from one nearby (see `shuffled`), and blurred again.

    Where the reach is less than a pixel, so large a share of the pixels is taken from neighbours.
    """
    sigma, reach, rounds = strength
    factor = scale(image)
    share, reach = reach * factor, max(1, round(reach * factor))
    height, width = image.shape[1:]
    pixels = np.arange(height * width).reshape(height, width)
    inside = np.s_[reach + 1 : height - reach + 1, reach + 1 : width - reach + 1]
    order = pixels.flatten()
    steps = np.arange(-reach, reach)
    neighbours = (steps[:, None] * width + steps).flatten()
    for _ in range(rounds):
        moves = neighbours[torch.randint(len(neighbours), pixels[inside].shape, generator=draw).numpy()]
        if share < 1:
            moves *= torch.rand(moves.shape, generator=draw).numpy() < share
        sources = pixels.copy()
        sources[inside] += moves
        order = order[shuffled(sources.flatten())]
    exact = (image * 255).round().double() / 255  # in float64: a level less here may be two in the end
    levels = (blurred(exact, sigma * factor) * 255).floor().float() / 255
    mixed = np.take(levels.numpy().reshape(len(image), -1), order, 1).reshape(image.shape)
    return blurred(torch.from_numpy(mixed), sigma * factor)


def shuffled(sources: NDArray[np.intp]) -> NDArray[np.intp]:
    """Which pixel each one shows once all of them, from the last to the first, have become their sources.

    The benchmark's code reads as a swap, but assigns through views of an array: the source stays. It is met as it has become by
    then where it lies behind, and else as it was. The first case is a link, and links are followed until there are none.
    """
    count = len(sources)
    behind = sources > np.arange(count)
    links = np.where(behind, sources, count + sources)  # from `count` on: as it was
    (linked,) = behind.nonzero()
    while len(linked):
        links[linked] = links[links[linked]]
        linked = linked[links[linked] < count]
    return links - count


def motion_blur(image: Tensor, strength: tuple[int, float], draw: torch.Generator) -> Tensor:
    degrees = 90 * torch.rand((), generator=draw).item() - 45
    return moved(image, *strength, degrees, scale(image))


def zoom_blur(image: Tensor, strength: tuple[float, float], draw: torch.Generator) -> Tensor:
    """The mean of the image and its magnifications from 1 to `largest`."""
    largest, step = strength
    zooms = np.arange(1, largest, step).tolist()
    return (2 * image + magnified(image, zooms[1:])) / (len(zooms) + 1)  # twice: itself, and a zoom of 1
