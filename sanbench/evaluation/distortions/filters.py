"""Filters, resampling and fractal noise of the benchmark, with lengths that follow the image's size.

Sums over pixels are taken by NumPy, SciPy and grid_sample, which take those of an image on one thread: torch's others may give
other bits on another number of threads.
"""

from functools import lru_cache
from math import ceil, cos, radians, sin
from typing import Literal

import numpy as np
import scipy.fft
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

SIDE = 224  # to which the benchmark's lengths refer

Array = NDArray[np.floating]


def scale(image: Tensor) -> float:
    """The image's pixels a pixel of the benchmark."""
    return min(image.shape[-2:]) / SIDE


def rescaled(kernel: Array, factor: float) -> Array:
    """An odd-sided kernel with its lengths times `factor`, and a sum of 1; where `factor` is 1, the kernel as it is.

    Each weight is spread linearly over the pixels around the place where it lands, as far as the neighbouring weights land.
    """
    if factor == 1:
        return kernel
    reach = len(kernel) // 2
    width = max(1.0, factor)
    places, landed = np.arange(-ceil(reach * factor + width), ceil(reach * factor + width) + 1), np.arange(-reach, reach + 1)
    spread = np.maximum(0, 1 - abs(places[:, None] - factor * landed) / width)
    made = np.einsum("pi,ij,qj->pq", spread, kernel, spread)
    return made / made.sum()


def filtered(image: Tensor, kernel: Array, beyond: Literal["edge", "reflect"]) -> Tensor:
    """C x H x W: the sum of kernel[down, right] x image[y + down, x + right], counted from the middle of the odd-sided kernel.

    Beyond the edges the outermost pixels are repeated ("edge"), or the image is mirrored at them ("reflect").
    """
    reach = len(kernel) // 2
    padded = np.pad(image.numpy(), ((0, 0), (reach, reach), (reach, reach)), beyond)
    shape = [scipy.fft.next_fast_len(side, real=True) for side in padded.shape[1:]]
    waves = scipy.fft.rfft2(padded, shape) * scipy.fft.rfft2(kernel[::-1, ::-1].astype(np.float32), shape)
    found = scipy.fft.irfft2(waves, shape)[:, 2 * reach : padded.shape[1], 2 * reach : padded.shape[2]]
    return torch.from_numpy(np.ascontiguousarray(found))


def gaussian_line(sigma: float, truncate: float) -> Array:
    """A Gaussian's weights at the pixels up to `truncate` sigmas, as scipy.ndimage cuts it."""
    reach = int(truncate * sigma + 0.5)
    line = np.exp(-0.5 * (np.arange(-reach, reach + 1) / sigma) ** 2)
    return line / line.sum()


def blurred(image: Tensor, sigma: float) -> Tensor:
    """C x H x W with a Gaussian up to 4 sigmas, edges repeated: skimage.filters.gaussian with its defaults."""
    line = gaussian_line(sigma, 4)
    return filtered(image, np.outer(line, line), "edge")


def smoothed(fields: Tensor, sigma: float) -> Tensor:
    """C x H x W with a Gaussian up to 3 sigmas, the image mirrored at its edges: scipy.ndimage.gaussian_filter(mode="reflect").

    Mirrored so, a symmetric filter multiplies the cosine transform by its own: sigma costs nothing.
    """
    down, right = (response(side, sigma) for side in fields.shape[1:])
    waves = scipy.fft.dctn(fields.numpy(), axes=(1, 2)) * (down[:, None] * right)
    return torch.from_numpy(scipy.fft.idctn(waves, axes=(1, 2)))


@lru_cache(maxsize=32)
def response(side: int, sigma: float) -> Array:
    """What `smoothed` multiplies each cosine wave of `side` pixels by."""
    line = gaussian_line(sigma, 3)
    places = np.arange(len(line)) - len(line) // 2
    waves = np.cos(np.pi / side * np.outer(np.arange(side), places))
    return (waves * line).sum(1).astype(np.float32)


def motion_kernel(radius: int, sigma: float, degrees: float) -> Array:
    """The benchmark's motion blur, which is ImageMagick's: half a Gaussian on the pixels nearest to a ray from the middle."""
    reach = 2 * radius
    kernel = np.zeros((2 * reach + 1, 2 * reach + 1))
    line = np.exp(-((np.arange(reach + 1) / sigma) ** 2) / 2)
    for place, weight in enumerate(line / line.sum()):
        down, right = (ceil(place * part - 0.5) for part in (sin(radians(degrees)), cos(radians(degrees))))
        kernel[reach + down, reach + right] += weight
    return kernel


def moved(image: Tensor, radius: int, sigma: float, degrees: float, factor: float) -> Tensor:
    """C x H x W blurred by motion, all lengths times `factor`, in 8 bits as ImageMagick returns it."""
    found = filtered(image, rescaled(motion_kernel(radius, sigma, degrees), factor), "edge")
    return (found * 255).round_() / 255


def sampled(image: Tensor, ys: Array, xs: Array, repeated: bool = True) -> Tensor:
    """C x H' x W' at the places ys and xs, which broadcast to H' x W', in pixels: linearly between pixels.

    Beyond the edges the image is mirrored: at half a pixel beyond them, so that the outermost pixel is `repeated`, or at it.
    """
    grid = np.empty((1, *np.broadcast_shapes(ys.shape, xs.shape), 2), np.float32)
    for axis, (places, side) in enumerate(zip((xs, ys), reversed(image.shape[1:]), strict=True)):
        grid[0, ..., axis] = (2 * places + 1) / side - 1 if repeated else 2 * places / (side - 1) - 1
    return F.grid_sample(image[None], torch.from_numpy(grid), "bilinear", "reflection", align_corners=not repeated)[0]


def zoomed(image: Tensor, factor: float) -> Tensor:
    """C x H x W: the middle of the image magnified by `factor` >= 1, as the benchmark does it with scipy.ndimage.zoom(order=1).

    The pixels that are kept are a whole number, and the corners of the kept part fall on those of the outcome.
    """
    places = []
    for side in image.shape[1:]:
        kept = ceil(side / factor)
        made = round(kept * factor)
        step = (kept - 1) / max(1, made - 1)
        places.append((side - kept) // 2 + (np.arange(side) + (made - side) // 2) * step)
    return sampled(image, places[0][:, None], places[1])


def plasma(side: int, decay: float, draw: torch.Generator) -> Array:
    """side x side, a power of 2, from 0 to 1: midpoint displacement on a torus, each step `decay` times weaker."""
    heights = np.zeros((side, side), np.float32)
    spread, step = 100.0, side

    def displaced(corners: Array) -> Array:
        noise = torch.rand(corners.shape, generator=draw).numpy()
        return corners / 4 + np.float32(spread**2) * (2 * noise - 1)

    while step >= 2:
        half = step // 2
        corners = heights[::step, ::step]
        rows = corners + np.roll(corners, -1, 0)
        heights[half::step, half::step] = displaced(rows + np.roll(rows, -1, 1))
        centres = heights[half::step, half::step]
        across = corners + np.roll(corners, -1, 1)
        heights[::step, half::step] = displaced(centres + np.roll(centres, 1, 0) + across)
        heights[half::step, ::step] = displaced(centres + np.roll(centres, 1, 1) + rows)
        spread, step = spread / decay, half
    heights -= heights.min()
    return heights / heights.max()


def clouds(image: Tensor, decay: float, draw: torch.Generator) -> Tensor:
    """H x W of `plasma` on the least power of 2 that holds the image."""
    height, width = image.shape[1:]
    return torch.from_numpy(plasma(1 << (max(height, width) - 1).bit_length(), decay, draw)[:height, :width])
