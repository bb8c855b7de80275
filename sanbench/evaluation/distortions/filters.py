"""Filters, resampling and fractal noise of the benchmark, with lengths that follow the image's size.

Sums over pixels are taken by NumPy, SciPy and grid_sample, which take those of an image on one thread. torch's others, and its
interpolate, give other bits on another number of threads.
"""

from collections.abc import Iterable
from functools import lru_cache
from math import ceil, cos, radians, sin
from typing import Any, Literal

import numpy as np
import scipy.fft
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter
from scipy.sparse import block_diag, coo_array, csr_array
from torch import Tensor

SIDE = 224  # to which the benchmark's lengths refer

Array = NDArray[np.floating]


def scale(image: Tensor) -> float:
    """The image's pixels a pixel of the benchmark."""
    return min(image.shape[-2:]) / SIDE


def rescaled(kernel: Array, factor: float) -> Array:
    """An odd-sided kernel with its lengths times `factor`, and a sum of 1; where `factor` is 1, the kernel as it is.

    Each weight is spread over a square around the place where it lands: a pixel wide, or as wide as weights come to lie apart.
    """
    if factor == 1:
        return kernel
    reach = len(kernel) // 2
    width = max(1.0, factor)
    places, landed = np.arange(-ceil(reach * factor + width), ceil(reach * factor + width) + 1), np.arange(-reach, reach + 1)
    spread = ((width + 1) / 2 - abs(places[:, None] - factor * landed)).clip(0, 1)  # what a square and a pixel share
    made = np.einsum("pj,qj->pq", np.einsum("pi,ij->pj", spread, kernel), spread)
    return made / made.sum()


def filtered(image: Tensor, kernel: Array, beyond: Literal["edge", "reflect"]) -> Tensor:
    """C x H x W: the sum of kernel[down, right] x image[y + down, x + right], counted from the middle of the odd-sided kernel.

    Beyond the edges the outermost pixels are repeated ("edge"), or the image is mirrored at them ("reflect").
    """
    middle = len(kernel) // 2
    reaches = []  # up and down, left and right, as far as there are weights
    for axis in (1, 0):
        places = np.flatnonzero(kernel.any(axis))
        reaches.append((max(0, middle - places[0]), max(0, places[-1] - middle)))
    (up, down), (left, right) = reaches
    kernel = kernel[middle - up : middle + down + 1, middle - left : middle + right + 1]
    padded = np.pad(image.numpy(), ((0, 0), *reaches), beyond)
    shape = [scipy.fft.next_fast_len(side, real=True) for side in padded.shape[1:]]
    waves = scipy.fft.rfft2(padded, shape) * scipy.fft.rfft2(kernel[::-1, ::-1].astype(np.float32), shape)
    found = scipy.fft.irfft2(waves, shape)[:, up + down : padded.shape[1], left + right : padded.shape[2]]
    return torch.from_numpy(np.ascontiguousarray(found))


def blurred(image: Tensor, sigma: float) -> Tensor:
    """C x H x W with a Gaussian up to 4 sigmas, edges repeated: skimage.filters.gaussian with its defaults."""
    return torch.from_numpy(gaussian_filter(image.numpy(), (0, sigma, sigma), mode="nearest"))


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
    reach = int(3 * sigma + 0.5)  # as scipy.ndimage cuts it
    places = np.arange(-reach, reach + 1)
    line = np.exp(-0.5 * (places / sigma) ** 2)
    waves = np.cos(np.pi / side * np.outer(np.arange(side), places))
    return ((waves * line).sum(1) / line.sum()).astype(np.float32)


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


def sampled(image: Tensor, ys: Array, xs: Array, beyond: Literal["reflect", "repeat"]) -> Tensor:
    """C x H' x W' at the places ys and xs, which broadcast to H' x W', in pixels: linearly between pixels.

    Beyond the edges the image is mirrored: at its outermost pixels ("reflect"), or half a pixel beyond them, so that they come
    twice ("repeat").
    """
    grid = np.empty((1, *np.broadcast_shapes(ys.shape, xs.shape), 2), np.float32)
    corners = beyond == "reflect"  # whether -1 and 1 are the middles of the outermost pixels, or their ends
    for axis, (places, side) in enumerate(zip((xs, ys), reversed(image.shape[1:]), strict=True)):
        grid[0, ..., axis] = 2 * places / (side - 1) - 1 if corners else (2 * places + 1) / side - 1
    return F.grid_sample(image[None], torch.from_numpy(grid), "bilinear", "reflection", align_corners=corners)[0]


def magnified(image: Tensor, factors: Iterable[float]) -> Tensor:
    """C x H x W: the sum of the image's middle magnified by each factor >= 1, as by scipy.ndimage.zoom(order=1) there."""
    channels, height, width = image.shape
    lines = image.numpy().transpose(1, 0, 2).reshape(height, -1)
    columns: Array = np.zeros((channels * width, height), lines.dtype)
    for factor in factors:
        columns += magnifier(width, factor, channels, lines.dtype) @ (magnifier(height, factor, 1, lines.dtype) @ lines).T
    return torch.from_numpy(np.ascontiguousarray(columns.reshape(channels, width, height).transpose(0, 2, 1)))


@lru_cache(maxsize=256)
def magnifier(side: int, factor: float, times: int, dtype: "np.dtype[Any]") -> csr_array:
    """Linear interpolation of `side` pixels, as a matrix that does it to so many lines below each other.

    The pixels that are kept are a whole number, and the first and the last of them fall on those of the outcome.
    """
    kept = ceil(side / factor)
    made = round(kept * factor)
    places = (side - kept) // 2 + (np.arange(side) + (made - side) // 2) * ((kept - 1) / max(1, made - 1))
    before = np.minimum(places.astype(int), side - 2)
    rows, weight = np.arange(side), places - before
    weights, columns = np.concatenate([1 - weight, weight]), np.concatenate([before, before + 1])
    line = coo_array((weights.astype(dtype), (np.tile(rows, 2), columns)), shape=(side, side))
    return csr_array(block_diag([line] * times))


def plasma(side: int, decay: float, draw: torch.Generator) -> Array:
    """side x side, a power of 2, from 0 to 1: midpoint displacement on a torus, each step `decay` times weaker."""
    heights, spread = np.zeros((1, 1), np.float32), 100.0

    def displaced(sums: Array) -> Array:
        """The mean of four neighbours, and noise."""
        noise = torch.rand(sums.shape, generator=draw).numpy()
        noise -= 0.5
        noise *= 2 * spread**2
        sums *= 0.25
        sums += noise
        return sums

    while len(heights) < side:
        rows = heights + rolled(heights, 1, 0)
        middles = displaced(rows + rolled(rows, 1, 1))
        tops = displaced(middles + rolled(middles, -1, 0) + heights + rolled(heights, 1, 1))
        lefts = displaced(middles + rolled(middles, -1, 1) + rows)
        finer = np.empty((2 * len(heights), 2 * len(heights)), np.float32)
        finer[::2, ::2], finer[::2, 1::2], finer[1::2, ::2], finer[1::2, 1::2] = heights, tops, lefts, middles
        heights, spread = finer, spread / decay
    heights -= heights.min()
    return heights / heights.max()


def rolled(values: Array, ahead: int, axis: int) -> Array:
    """The neighbours that many places ahead on a torus."""
    order = np.arange(len(values)) + ahead
    return values.take(order, axis, mode="wrap")


def clouds(image: Tensor, decay: float, draw: torch.Generator) -> Tensor:
    """H x W of `plasma` on the least power of 2 that holds the image."""
    height, width = image.shape[1:]
    return torch.from_numpy(plasma(1 << (max(height, width) - 1).bit_length(), decay, draw)[:height, :width])
