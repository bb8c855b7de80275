"""From a specification to an operator of torch: schema, tiling over images, fake kernel, backward, FLOPs.

A specification is plain PyTorch in which the images of a batch do not meet. Its arguments annotated `Tensor`
hold one entry an image; those annotated `Tensor | None` or `list[Tensor]` are shared by all images. From that
follow, for every operator alike,

- the body: a few images at a time, or some rows of one, so that the tensors expanded over the footprint stay in the
  cache and never exist for a whole batch;
- the backward, an operator of its own: recomputes tile by tile, keeps nothing but the inputs, and returns
  gradients only for the tensors that ask for one.
"""

import inspect
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from functools import partial, wraps
from itertools import islice
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten
from torch.utils.flop_counter import register_flop_formula

from sanbench.ops.checks import check
from sanbench.ops.footprint import Footprint, Rows

Shape = Sequence[int]
BODIES: dict[str, Callable[..., Any]] = {}  # the default body of every operator, forward and backward: tiled PyTorch
SPECIFICATIONS: dict[str, Callable[..., Tensor]] = {}
TILE = 2**21  # elements a tile expands to: few enough for the last-level cache, enough to hide the cost of a call
_tile: ContextVar[float] = ContextVar("tile", default=TILE)


@contextmanager
def tile_size(elements: float | None) -> Iterator[None]:
    """Tiles that expand to `elements`; None: the whole batch at once."""
    token = _tile.set(math.inf if elements is None else elements)
    try:
        yield
    finally:
        _tile.reset(token)


def memory_format(like: Tensor) -> torch.memory_format:
    """What belongs to a map is laid out as that map, also when it is a slice of a wider one."""
    is_last = like.dim() == 4 and like.stride(1) == 1 and like.shape[2] * like.shape[3] > 1
    return torch.channels_last if is_last else torch.contiguous_format


def without_autocast(run: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(run)
    def undisturbed(*values: Any) -> Any:
        device = values[0].device.type
        with torch.autocast(device, enabled=False) if torch.is_autocast_enabled(device) else nullcontext():
            return run(*values)

    return undisturbed


def flatten(values: Sequence[Any]) -> tuple[list[Any], list[int | None]]:
    """Arguments with the entries of lists one by one, and each list's length. Every step does it: torch's pytrees are slow."""
    leaves = [leaf for value in values for leaf in (value if isinstance(value, (list, tuple)) else [value])]
    return leaves, [len(value) if isinstance(value, (list, tuple)) else None for value in values]


def unflatten(leaves: Sequence[Any], lengths: Sequence[int | None]) -> list[Any]:
    rest = iter(leaves)
    return [next(rest) if length is None else list(islice(rest, length)) for length in lengths]


def heights(rows: Sequence[Rows]) -> list[int]:
    return [tile[1] - tile[0] for tile in rows if tile is not None]


def joined(parts: Sequence[Tensor], rows: Sequence[int]) -> Tensor:
    """A map from its tiles of rows."""
    return torch.cat(list(parts), -2)


def define(
    specification: Callable[..., Tensor],
    shape: Callable[..., Shape],
    macs: Callable[..., int],
    merge: Callable[[Sequence[Tensor], Sequence[int]], Tensor] = joined,
    least: torch.dtype | None = None,
) -> None:
    """Register `specification` as torch.ops.sanbench.<its name>.

    `shape` and `macs` return the output's shape and the multiply-accumulates an image, from the operator's arguments
    by name with shapes in place of tensors. The last three arguments of every operator are footprint, stride
    and dilation; the specification takes besides the `rows` of the output it is to compute, and `merge` makes
    an image's result from the results for some rows each. The result has the first argument's dtype, but no narrower
    one than `least`. Autocast ends at the operator: within it the specification decides what is computed in which dtype.
    """
    name = f"sanbench::{specification.__name__}"
    signature = inspect.signature(specification)
    parameters = {p: value for p, value in signature.parameters.items() if p != "rows"}
    per_image = [parameter.annotation is Tensor for parameter in parameters.values()]

    def prototype() -> None: ...

    prototype.__signature__ = signature.replace(parameters=list(parameters.values()))  # type: ignore[attr-defined]  # infer_schema reads it
    schema = torch.library.infer_schema(prototype, mutates_args=())
    arguments = schema[1 : schema.index(") -> ")]

    def split(values: Sequence[Any]) -> list[tuple[slice, list[Rows], list[Any]]]:
        """Images of a tile, its rows (several only where one image is too large) and the arguments of those images."""
        batches = [value for value, is_batch in zip(values, per_image, strict=True) if is_batch]
        expanded = max(batch[0].numel() for batch in batches) * values[-3] ** 2  # elements an image
        images = int(min(len(batches[0]), max(1, _tile.get() / expanded)))
        rows: list[Rows] = [None]
        if expanded > _tile.get():
            height = Footprint(*values[-3:]).output_size(*batches[-1].shape[-2:])[0]
            step = int(max(1, _tile.get() * height // expanded))
            rows = [(first, min(first + step, height)) for first in range(0, height, step)]
        return [
            (tile, rows, [v[tile] if batch else v for v, batch in zip(values, per_image, strict=True)])
            for tile in (slice(first, first + images) for first in range(0, len(batches[0]), images))
        ]

    def on_rows(values: Sequence[Any], tile: Rows) -> Tensor:
        return specification(*values, rows=tile)

    def over_rows(run: Callable[[Rows], Tensor], rows: list[Rows]) -> Tensor:
        return run(None) if len(rows) == 1 else merge([run(tile) for tile in rows], heights(rows))

    @without_autocast
    def body(*values: Any) -> Tensor:
        check(specification.__name__, dict(zip(parameters, values, strict=True)))
        images = [over_rows(partial(on_rows, v), rows) for _, rows, v in split(values)]
        return torch.cat(images).contiguous(memory_format=layout(values))

    def layout(values: Sequence[Any]) -> torch.memory_format:
        value = dict(zip(parameters, values, strict=True)).get("value")
        return torch.contiguous_format if value is None else memory_format(value)

    forward = torch.library.custom_op(name, body, mutates_args=(), schema=schema)

    def by_name(values: Sequence[Any]) -> dict[str, Any]:
        return dict(zip(parameters, tree_map(lambda v: v.shape if isinstance(v, Tensor) else v, values), strict=True))

    @forward.register_fake
    def fake(*values: Any) -> Tensor:
        check(specification.__name__, dict(zip(parameters, values, strict=True)))
        like, size = values[0], tuple(shape(**by_name(values)))
        dtype = like.dtype if least is None else torch.promote_types(like.dtype, least)
        return torch.empty(size, dtype=dtype, device=like.device, memory_format=layout(values))

    @without_autocast
    def backward_body(grad: Tensor, *values_and_needs: Any) -> list[Tensor]:
        *values, needs = values_and_needs
        wanted = [position for position, need in enumerate(needs) if need]
        collected: list[list[Tensor]] = []
        for images, rows, tile_values in split(values):
            leaves, structure = tree_flatten(tile_values)

            def run(tile: Rows, *chosen: Tensor, leaves: list[Any] = leaves, structure: Any = structure) -> Tensor:
                replaced = list(leaves)
                for position, tensor in zip(wanted, chosen, strict=True):
                    replaced[position] = tensor
                return specification(*tree_unflatten(replaced, structure), rows=tile)

            chosen = [leaves[position] for position in wanted]
            total: list[Tensor] = []
            parts = of_tiles(grad[images], partial(on_rows, tile_values), rows)
            for tile, part in zip(rows, parts, strict=True):
                grads = torch.func.vjp(partial(run, tile), *chosen)[1](part)
                total = [a + b for a, b in zip(total, grads, strict=True)] if total else list(grads)
            collected.append(total)
        shared = [is_shared for is_shared, need in zip(shared_leaves(values), needs, strict=True) if need]
        inputs = [leaf for leaf, need in zip(tree_flatten(values)[0], needs, strict=True) if need]
        return [
            (torch.stack(parts).sum(0) if is_shared else torch.cat(parts)).contiguous(memory_format=memory_format(like))
            for like, is_shared, parts in zip(inputs, shared, zip(*collected, strict=True), strict=True)
        ]

    def of_tiles(grad: Tensor, run: Callable[[Rows], Tensor], rows: list[Rows]) -> Sequence[Tensor]:
        """The gradient of an image's result as gradients of the results for its tiles of rows."""
        if len(rows) == 1:
            return [grad]
        if merge is joined:
            return torch.split(grad, heights(rows), -2)
        parts = [run(tile) for tile in rows]
        gradients: Sequence[Tensor] = torch.func.vjp(lambda *tiles: merge(tiles, heights(rows)), *parts)[1](grad)
        return gradients

    def shared_leaves(values: Sequence[Any]) -> list[bool]:
        return [not is_batch for value, is_batch in zip(values, per_image, strict=True) for _ in tree_flatten(value)[0]]

    def backward_fake(grad: Tensor, *values_and_needs: Any) -> list[Tensor]:
        *values, needs = values_and_needs
        leaves, _ = tree_flatten(values)
        return [
            torch.empty_like(leaf, memory_format=memory_format(leaf)) for leaf, need in zip(leaves, needs, strict=True) if need
        ]

    backward_schema = f"(Tensor grad, {arguments}, bool[] needs) -> Tensor[]"
    backward = torch.library.custom_op(f"{name}_backward", backward_body, mutates_args=(), schema=backward_schema)
    backward.register_fake(backward_fake)

    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        leaves, ctx.lengths = flatten(inputs)
        ctx.positions = [position for position, leaf in enumerate(leaves) if isinstance(leaf, Tensor)]
        ctx.constants = [None if isinstance(leaf, Tensor) else leaf for leaf in leaves]
        ctx.save_for_backward(*(leaves[position] for position in ctx.positions))

    def autograd(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        leaves = list(ctx.constants)
        for position, tensor in zip(ctx.positions, ctx.saved_tensors, strict=True):
            leaves[position] = tensor
        needs, _ = flatten(ctx.needs_input_grad)
        grads = iter(backward(grad, *unflatten(leaves, ctx.lengths), needs))
        return tuple(unflatten([next(grads) if need else None for need in needs], ctx.lengths))

    forward.register_autograd(autograd, setup_context=setup_context)

    def flops(*shapes: Any, out_shape: Any = None, **_: Any) -> int:
        return 2 * shapes[0][0] * macs(**dict(zip(parameters, shapes, strict=True)))

    BODIES[specification.__name__], BODIES[f"{specification.__name__}_backward"] = body, backward_body
    SPECIFICATIONS[specification.__name__] = specification
    packet = getattr(torch.ops.sanbench, specification.__name__)
    register_flop_formula(packet)(flops)
