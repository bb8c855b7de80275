"""Patchwise attention on the GPU: what is launched. The kernels are in `patchwise_forward` and `patchwise_backward`."""

from collections.abc import Callable
from typing import Any

import torch
import triton
from torch import Tensor

from sanbench.ops.checks import MAPS
from sanbench.ops.gpu.launch import Tile, launch, precision, upcast
from sanbench.ops.gpu.patchwise_backward import key_backward, query_backward, statistics_backward, value_backward
from sanbench.ops.gpu.patchwise_forward import PatchwiseShapes, attention_forward, statistics_forward
from sanbench.ops.gpu.patchwise_weights import first_weights, second_weights
from sanbench.ops.operator import memory_format

KERNELS = (
    attention_forward,
    statistics_forward,
    query_backward,
    key_backward,
    value_backward,
    first_weights,
    second_weights,
    statistics_backward,
)
BROAD = (query_backward, key_backward, first_weights)  # registers for R or M of a pixel beside its values
SPLITS = 64  # programs that add up gradients of the same weights, each over its own pixels
Grid = Callable[[dict[str, int]], tuple[int, ...]]


def dense(x: Tensor) -> Tensor:
    """x with pixels at equal steps and channels side by side, as the kernels read it; itself where it is so already."""
    step = x.stride(3)
    _, channels, height, width = x.shape
    is_dense = x.stride(1) == 1 and x.stride(2) == width * step and x.stride(0) == height * width * step and step >= channels
    return x if is_dense else x.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)


def by_slice(x: Tensor, narrow: int) -> Tensor:
    """Delta's channels, query first and then the key channel-major, as slices: ... x (R + R K) -> ... x (1 + K) x R."""
    return torch.cat([x[..., None, :narrow], x[..., narrow:].unflatten(-1, (narrow, -1)).transpose(-2, -1)], -2)


def channel_major(x: Tensor) -> Tensor:
    """The inverse of `by_slice`: ... x (1 + K) x R -> ... x (R + R K)."""
    return torch.cat([x[..., 0, :], x[..., 1:, :].transpose(-2, -1).flatten(-2)], -1)


class PatchwiseCall:
    """One call's arguments as the kernels name and read them, and their launches."""

    def __init__(
        self, query: Tensor, key: Tensor, gamma: list[Tensor], footprint: int, value: Tensor | None = None, **_: Any
    ) -> None:
        maps = {name: dense(x) for name, x in zip(MAPS, (query, key, value), strict=True) if x is not None}
        self.images, narrow, self.height, self.width = query.shape
        self.dtype, self.device = query.dtype, query.device
        self.pixels = self.images * self.height * self.width
        scale, shift, weight = (by_slice(x, narrow) for x in gamma[:3])
        groups = 1 if value is None else len(gamma[5]) // footprint**2
        self.shapes = PatchwiseShapes(
            narrow=narrow,
            hidden=len(gamma[2]),
            groups=groups,
            share=1 if value is None else value.shape[1] // groups,
            size=footprint,
            repeated=min(self.height, self.width) <= footprint // 2,
            precision="interpreter" if upcast() else precision(),
            narrow_block=min(triton.next_power_of_2(narrow), 32 if self.dtype == torch.float32 else 128),
        )
        self.known: dict[str, Any] = {
            **maps,
            **{f"stride_{name[0]}": x.stride(3) for name, x in maps.items()},
            "images": self.images,
            "height": self.height,
            "width": self.width,
            "scale": scale.contiguous(),
            "shift": shift.contiguous(),
            "weight": weight.movedim(0, -1).to(self.dtype).contiguous(),
            "SHAPES": self.shapes,
        }
        last = [x.to(self.dtype).contiguous() if x.dim() == 2 else x.contiguous() for x in gamma[3:]]
        self.known |= dict(zip(("scale2", "shift2", "second", "bias"), last, strict=False))

    def __call__(self, kernel: Any, grid: Grid | None = None, **arguments: Any) -> None:
        """Launch `kernel` with what it asks for of the call's and the given arguments."""
        self.known |= arguments
        asked = {name: self.known[name] for name in kernel.arg_names if name in self.known}
        launch(kernel, grid or self.programs, tiles(kernel, self.shapes, self.width, self.dtype), asked)

    def programs(self, tile: dict[str, int]) -> tuple[int, ...]:
        if tile["ROWS"] == 0:
            return (triton.cdiv(self.pixels, tile["COLUMNS"]),)
        return (self.images * triton.cdiv(self.height, tile["ROWS"]) * triton.cdiv(self.width, tile["COLUMNS"]),)

    def empty(self, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.empty(shape, dtype=dtype, device=self.device)

    def split(self) -> tuple[int, int]:
        """Pixels of a program that adds up over them, a multiple of every tile's, and how many such parts there are."""
        step = triton.cdiv(triton.cdiv(self.pixels, SPLITS), 128) * 128
        return step, triton.cdiv(self.pixels, step)


def tiles(kernel: Any, shapes: PatchwiseShapes, width: int, dtype: torch.dtype) -> tuple[Tile, ...]:
    """What autotune may try: the tile that is best on paper, and half of it with as many warps, for small batches (with half as
    many where R is beyond 64: warps side by side in M would each hold all of a pixel's R).

    Registers decide: P x Q x BLOCK sums of values, P x M of gamma, or R x M where W1's gradient is added up; operands of a dot
    in float32 take twice as many, three times over. Squares have the smallest halo; on narrow maps they would own pixels that
    do not exist. Kernels that write a part a program have one tile, as their callers make
    room for the parts, and so has `value_backward`, whose half spills.
    """
    block = min(16, triton.next_power_of_2(shapes.groups))
    warps, pixels = 4, 64
    if dtype == torch.float32:
        warps = 8 if shapes.narrow > 16 else 4
        least = {attention_forward: 32, value_backward: 32, first_weights: 16, statistics_backward: 32, query_backward: 32}
        if shapes.narrow > 64 or (shapes.narrow > 32 and kernel in (attention_forward, value_backward, first_weights)):
            pixels = least.get(kernel, 64)
        warps = 4 if pixels == 16 else 8 if kernel is query_backward else warps
        block = min(block, 8) if kernel is value_backward and shapes.narrow > 64 else block
    elif (shapes.narrow > 32 and kernel is value_backward) or (shapes.narrow > 64 and kernel in BROAD):
        warps = 8
    if kernel is second_weights and shapes.groups < 8:
        pixels = 32  # each with 16 / groups neighbours at once
    found = [tile_of(kernel, pixels, width, warps, block)]
    if pixels > 16 and kernel not in (query_backward, statistics_forward, value_backward):
        halved = kernel is attention_forward and shapes.narrow > 64 and dtype != torch.float32
        found.append(tile_of(kernel, pixels // 2, width, warps // 2 if halved else warps, block))
    return tuple(found)


def tile_of(kernel: Any, pixels: int, width: int, warps: int, block: int) -> Tile:
    """`pixels` in a square or twice as wide as high, or on narrow maps one after the other."""
    if width <= 16 and kernel is not statistics_forward:
        return Tile.of(warps, ROWS=0, COLUMNS=pixels, BLOCK=block)
    rows = 1 << (pixels.bit_length() - 1) // 2
    return Tile.of(warps, ROWS=rows, COLUMNS=pixels // rows, BLOCK=block)


def forward(**arguments: Any) -> Tensor:
    """patchwise_attention or, without a value, patchwise_statistics, of their arguments by name."""
    call = PatchwiseCall(**arguments)
    if "value" not in arguments:
        return statistics(call)
    value = arguments["value"]
    out = torch.empty_like(value, memory_format=torch.channels_last)
    call(attention_forward, out=out, stride_out=out.stride(3))
    return out.contiguous(memory_format=memory_format(value))


def statistics(call: PatchwiseCall) -> Tensor:
    """Moments of u, N x 2 x M, from those of the programs' pixels."""
    tile = dict(tiles(statistics_forward, call.shapes, call.width, call.dtype)[0].constants)
    moments = call.empty(*call.programs(tile), 2, call.shapes.hidden)
    call(statistics_forward, moments=moments)
    means, squares = moments.unflatten(0, (call.images, -1)).unbind(2)  # images x programs x M
    rows, columns = (
        (size - torch.arange(0, size, step, device=call.device)).clamp_max(step)
        for size, step in ((call.height, tile["ROWS"]), (call.width, tile["COLUMNS"]))
    )
    size = call.height * call.width
    share = (rows[:, None] * columns).flatten()[:, None] / size
    mean = (share * means).sum(1)
    variance = squares.sum(1) / size + (share * (means - mean[:, None]).square()).sum(1)
    return torch.stack([mean, variance], 1)


def backward(grad: Tensor, weights: bool, **arguments: Any) -> dict[str, list[Tensor]]:
    """Gradients by argument, those of gamma only where `weights`."""
    call = PatchwiseCall(**arguments)
    found = {m: torch.empty_like(arguments[m], memory_format=torch.channels_last) for m in MAPS if m in arguments}
    kept = (call.images, call.height, call.width, call.shapes.hidden)
    gradients: dict[str, Any] = {f"grad_{name}": x for name, x in found.items()} | {
        "grad_u": call.empty(*kept, dtype=call.dtype)
    }
    gamma: list[Tensor] = []
    if "value" in arguments:
        tile = dict(tiles(query_backward, call.shapes, call.width, call.dtype)[0].constants)
        partial = call.empty(*call.programs(tile), 2, call.shapes.hidden)
        grad, h = dense(grad), call.empty(*kept, dtype=call.dtype)
        call(query_backward, grad=grad, stride_grad=grad.stride(3), h=h, partial=partial, **gradients)
        call(value_backward)
        gamma = [*partial.sum(0), *second_gradients(call)] if weights else []
    else:
        call(statistics_backward, grad=grad.contiguous(), moments=statistics(call), **gradients)
    parts = triton.cdiv(call.shapes.narrow, call.shapes.narrow_block)
    call(key_backward, lambda tile: (*call.programs(tile), parts))
    gamma = first_gradients(call) + gamma if weights else []
    maps = {name: [x.contiguous(memory_format=memory_format(arguments[name]))] for name, x in found.items()}
    return maps | {"gamma": [x.to(like.dtype) for x, like in zip(gamma, arguments["gamma"], strict=False)]}


def first_gradients(call: PatchwiseCall) -> list[Tensor]:
    """Of s1, t1 and W1, from what `query_backward` or `statistics_backward` left behind."""
    step, parts = call.split()
    scale, shift, weight = (call.empty(parts, *call.known[name].shape) for name in ("scale", "shift", "weight"))
    grid = (1 + call.shapes.neighbours, parts, triton.cdiv(call.shapes.narrow, call.shapes.narrow_block))
    call(
        first_weights,
        lambda _: grid,
        grad_weight=weight,
        grad_scale=scale,
        grad_shift=shift,
        step=step,
        pixel_count=call.pixels,
    )
    return [channel_major(scale.sum(0)), channel_major(shift.sum(0)), channel_major(weight.sum(0).movedim(-1, 0))]


def second_gradients(call: PatchwiseCall) -> list[Tensor]:
    """Of W2 and bias, from what `query_backward` left behind."""
    step, parts = call.split()
    weight, bias = (call.empty(parts, *call.known[name].shape) for name in ("second", "bias"))

    def grid(tile: dict[str, int]) -> tuple[int, ...]:
        shapes = call.shapes.tiled(**{name.lower(): size for name, size in tile.items()})
        return shapes.size * triton.cdiv(shapes.size, shapes.beside), parts, triton.cdiv(shapes.groups, shapes.block)

    call(second_weights, grid, grad_weight=weight, grad_bias=bias, step=step, pixel_count=call.pixels)
    return [weight.sum(0), bias.sum(0)]
