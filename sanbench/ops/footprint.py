"""Footprints R(i): which pixels j a pixel i attends to. The only place that knows borders."""

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from sanbench.errors import InputError

RowRange = tuple[int, int]  # rows of the output, from the first up to the second


@dataclass(frozen=True)
class Footprint:
    """R(i) = {i + dilation * (s - size // 2) : s in {0..size-1}^2}, for i on a grid of step `stride`.

    Borders are reflected without repeating the border pixel, as often as needed: a map of one pixel
    repeats its only value, so every map size works (section 3.1 of the paper leaves this open).
    `rows` narrows i to a tile of the map.

    Raises InputError if size is not odd and positive, or stride or dilation is below 1.
    """

    size: int
    stride: int = 1
    dilation: int = 1
    rows: RowRange | None = None

    def __post_init__(self) -> None:
        if self.size < 1 or self.size % 2 == 0:
            raise InputError(f"footprint {self.size} is not accepted: it must be an odd number from 1 up.")
        for name in ("stride", "dilation"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} {getattr(self, name)} is not accepted: it must be at least 1.")

    def output_size(self, height: int, width: int) -> tuple[int, int]:
        """Number of pixels i in each direction: ceil(size / stride), or the tile's rows."""
        first, last = self.rows or (0, (height - 1) // self.stride + 1)
        return last - first, (width - 1) // self.stride + 1

    def centre(self, x: Tensor) -> Tensor:
        """x at i: N x C x H x W -> N x C x 1 x P, with P the number of output pixels."""
        first, last = self.rows or (0, None)
        return x[..., :: self.stride, :: self.stride][..., first:last, :].flatten(-2).unsqueeze(-2)

    def expand(self, x: Tensor) -> Tensor:
        """x at every j in R(i): N x C x H x W -> N x C x K x P, K = size^2 in row-major order."""
        height, width = x.shape[-2:]
        index = neighbours(self, height, width).to(x.device)
        return x.flatten(-2).index_select(-1, index).unflatten(-1, (self.size**2, -1))


def reflect(index: Tensor, size: int) -> Tensor:
    """Position in 0..size-1 of a position outside, by repeated reflection at both borders."""
    if size == 1:
        return torch.zeros_like(index)
    folded = index % (2 * size - 2)
    return torch.minimum(folded, 2 * size - 2 - folded)


@lru_cache(maxsize=256)
def neighbours(footprint: Footprint, height: int, width: int) -> Tensor:
    """Flat pixel index of neighbour k of output pixel p, at [k * P + p]."""

    def along(size: int) -> Tensor:  # size (of the footprint) x output pixels
        offset = footprint.dilation * (torch.arange(footprint.size) - footprint.size // 2)
        return reflect(torch.arange(0, size, footprint.stride) + offset[:, None], size)

    first, last = footprint.rows or (0, None)
    rows, columns = along(height)[:, first:last], along(width)
    return (rows[:, None, :, None] * width + columns[None, :, None, :]).flatten()
