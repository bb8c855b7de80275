"""What the Triton kernels share: which pixels a program owns, what is next to them, products in a chosen precision."""

from functools import lru_cache

import torch
import triton
import triton.language as tl
from torch import Tensor

from sanbench.ops.closed_form import occurrences

LOG2E = 1.4426950408889634


def power_of_two(size: int, least: int = 1) -> int:
    return max(least, 1 << (size - 1).bit_length())


@lru_cache(maxsize=256)
def multiplicities(size: int, footprint: int, device: torch.device) -> Tensor:
    """[j, o]: how often pixel j is a neighbour of pixel j + o - footprint // 2, 0 where there is none; float32."""
    pixels = torch.arange(size, device=device)
    other = pixels[:, None] + torch.arange(footprint, device=device) - footprint // 2
    inside = (other >= 0) & (other < size)
    often = occurrences(size, footprint, device).sum(0)  # [i, j]
    return torch.where(inside, often[other.clamp(0, size - 1), pixels[:, None]], 0).float()


@triton.jit
def pixels(tile, height, width, PIXELS: tl.constexpr, COLUMNS: tl.constexpr):
    """Row, column and existence of a tile's PIXELS: rows of COLUMNS, or one after the other (0). One that is not there
    stands for the nearest that is, so that only stores ask for existence."""
    lane = tl.arange(0, PIXELS)
    if COLUMNS == 0:
        at = tile * PIXELS + lane
        y, x = at // width, at % width
    else:
        across = tl.cdiv(width, COLUMNS)
        y = (tile // across) * (PIXELS // COLUMNS) + lane // COLUMNS
        x = (tile % across) * COLUMNS + lane % COLUMNS
    exists = (y < height) & (x < width)
    return tl.minimum(y, height - 1), tl.minimum(x, width - 1), exists


@triton.jit
def reflect(index, size, SMALL: tl.constexpr):
    """The pixel that stands for one outside; SMALL: a map no larger than half the footprint is reflected repeatedly."""
    if SMALL:
        period = tl.maximum(2 * size - 2, 1)
        index = (index + 6 * period) % period
    else:
        index = tl.abs(index)
    return tl.minimum(index, 2 * size - 2 - index)


@triton.jit
def channels_of(pointer, channel, SIZE: tl.constexpr, BLOCK: tl.constexpr):
    """Load a block of channels, [pixels, BLOCK] as float32; those beyond SIZE are 0."""
    if SIZE % BLOCK == 0:
        return tl.load(pointer).to(tl.float32)
    else:
        return tl.load(pointer, mask=(channel < SIZE)[None, :], other=0).to(tl.float32)


@triton.jit
def vector(pointer, index, SIZE: tl.constexpr, BLOCK: tl.constexpr):
    """Load a block of entries, [BLOCK]; those beyond SIZE are 0."""
    if SIZE % BLOCK == 0:
        return tl.load(pointer + index)
    else:
        return tl.load(pointer + index, mask=index < SIZE, other=0)


@triton.jit
def matrix(pointer, row, column, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Load these rows and columns of a contiguous ROWS x COLUMNS matrix; what it has not is 0."""
    inside = (row < ROWS)[:, None] & (column < COLUMNS)[None, :]
    return tl.load(pointer + row[:, None] * COLUMNS + column[None, :], mask=inside, other=0)


@triton.jit
def settled(x):
    """x [rows, columns] itself, computed by one thread an entry before a product reads it.

    The compiler gives what leads to a product the layout of the product's operand, up to the loads. Warps that share an
    operand then each compute all of it: at 128 channels 8 warps held 64 registers a thread where 8 do. It does not
    move layouts over a choice by index, which always falls on x and costs nothing.
    """
    return tl.where((tl.arange(0, x.shape[1]) < x.shape[1])[None, :], x, 0.0)


@triton.jit
def product(x, w, start, PRECISION: tl.constexpr, UPCAST: tl.constexpr):
    """start + x @ w: x rounded to w's dtype, sums in float32."""
    x = x.to(w.dtype)
    if UPCAST:
        x, w = x.to(tl.float32), w.to(tl.float32)
    return tl.dot(x, w, start, input_precision=PRECISION)
