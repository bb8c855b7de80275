"""From a specification to an operator of torch: schema, tiling over images, fake kernel, backward, FLOPs.

A specification is plain PyTorch in which the images of a batch do not meet. Its arguments annotated `Tensor`
hold one entry an image; those annotated `Tensor | None` or `list[Tensor]` are shared by all images. From that
follow, for every operator alike,

- the body: a few images at a time, so that the tensors expanded over the footprint stay in the cache and
  never exist for a whole batch;
- the backward, an operator of its own: recomputes tile by tile, keeps nothing but the inputs, and returns
  gradients only for the tensors that ask for one.
"""

import inspect
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import TreeSpec, tree_flatten, tree_map, tree_unflatten
from torch.utils.flop_counter import register_flop_formula

Shape = Sequence[int]
BODIES: dict[str, Callable[..., Any]] = {}  # the default body of every operator, forward and backward: tiled PyTorch
SPECIFICATIONS: dict[str, Callable[..., Tensor]] = {}
TILE = 2**21  # elements a tile expands to: small enough for the last-level cache, large enough to hide the cost of a call
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


def define(specification: Callable[..., Tensor], shape: Callable[..., Shape], macs: Callable[..., int]) -> None:
    """Register `specification` as torch.ops.sanbench.<its name>.

    `shape` and `macs` return the output's shape and the multiply-accumulates an image, from the operator's arguments
    by name with shapes in place of tensors. The last three arguments of every operator are footprint, stride
    and dilation.
    """
    name = f"sanbench::{specification.__name__}"
    parameters = inspect.signature(specification).parameters
    per_image = [parameter.annotation is Tensor for parameter in parameters.values()]
    schema = torch.library.infer_schema(specification, mutates_args=())
    arguments = schema[1 : schema.index(") -> ")]

    def split(values: Sequence[Any]) -> list[tuple[slice, list[Any]]]:
        """The same arguments for one tile of images after the other."""
        batches = [value for value, is_batch in zip(values, per_image, strict=True) if is_batch]
        largest = max(batch[0].numel() for batch in batches)
        images = int(min(len(batches[0]), max(1, _tile.get() // (largest * values[-3] ** 2))))
        tiles = [slice(start, start + images) for start in range(0, len(batches[0]), images)]
        return [(tile, [v[tile] if batch else v for v, batch in zip(values, per_image, strict=True)]) for tile in tiles]

    def body(*values: Any) -> Tensor:
        out = torch.cat([specification(*tile) for _, tile in split(values)])
        return out.contiguous(memory_format=layout(values))

    def layout(values: Sequence[Any]) -> torch.memory_format:
        value = dict(zip(parameters, values, strict=True)).get("value")
        return torch.contiguous_format if value is None else memory_format(value)

    forward = torch.library.custom_op(name, body, mutates_args=(), schema=schema)

    def by_name(values: Sequence[Any]) -> dict[str, Any]:
        return dict(zip(parameters, tree_map(lambda v: v.shape if isinstance(v, Tensor) else v, values), strict=True))

    @forward.register_fake
    def fake(*values: Any) -> Tensor:
        return torch.empty(
            tuple(shape(**by_name(values))), dtype=values[0].dtype, device=values[0].device, memory_format=layout(values)
        )

    def backward_body(grad: Tensor, *values_and_needs: Any) -> list[Tensor]:
        *values, needs = values_and_needs
        collected: list[list[Tensor]] = []
        for tile, tile_values in split(values):
            leaves, structure = tree_flatten(tile_values)
            wanted = [position for position, need in enumerate(needs) if need]

            run = partial(run_with, leaves, structure, wanted)
            pullback = torch.func.vjp(run, *(leaves[position] for position in wanted))[1]
            collected.append(pullback(grad[tile]))
        shared = [is_shared for is_shared, need in zip(shared_leaves(values), needs, strict=True) if need]
        inputs = [leaf for leaf, need in zip(tree_flatten(values)[0], needs, strict=True) if need]
        return [
            (torch.stack(parts).sum(0) if is_shared else torch.cat(parts)).contiguous(memory_format=memory_format(like))
            for like, is_shared, parts in zip(inputs, shared, zip(*collected, strict=True), strict=True)
        ]

    def run_with(leaves: list[Any], structure: TreeSpec, wanted: list[int], *chosen: Tensor) -> Tensor:
        """The specification as a function of the leaves at `wanted` alone."""
        replacement = dict(zip(wanted, chosen, strict=True))
        return specification(*tree_unflatten([replacement.get(i, leaf) for i, leaf in enumerate(leaves)], structure))

    def shared_leaves(values: Sequence[Any]) -> list[bool]:
        return [not is_batch for value, is_batch in zip(values, per_image, strict=True) for _ in tree_flatten(value)[0]]

    def backward_fake(grad: Tensor, *values_and_needs: Any) -> list[Tensor]:
        *values, needs = values_and_needs
        leaves, _ = tree_flatten(values)
        return [
            torch.empty_like(leaf, memory_format=memory_format(leaf)) for leaf, need in zip(leaves, needs, strict=True) if need
        ]

    backward = torch.library.custom_op(
        f"{name}_backward", backward_body, mutates_args=(), schema=f"(Tensor grad, {arguments}, bool[] needs) -> Tensor[]"
    )
    backward.register_fake(backward_fake)

    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        leaves, ctx.structure = tree_flatten(list(inputs))
        ctx.positions = [position for position, leaf in enumerate(leaves) if isinstance(leaf, Tensor)]
        ctx.constants = [None if isinstance(leaf, Tensor) else leaf for leaf in leaves]
        ctx.save_for_backward(*(leaves[position] for position in ctx.positions))

    def autograd(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        leaves = list(ctx.constants)
        for position, tensor in zip(ctx.positions, ctx.saved_tensors, strict=True):
            leaves[position] = tensor
        needs, _ = tree_flatten(list(ctx.needs_input_grad))
        grads = iter(backward(grad, *tree_unflatten(leaves, ctx.structure), needs))
        return tuple(tree_unflatten([next(grads) if need else None for need in needs], ctx.structure))

    forward.register_autograd(autograd, setup_context=setup_context)

    def flops(*shapes: Any, out_shape: Any = None, **_: Any) -> int:
        return 2 * shapes[0][0] * macs(**dict(zip(parameters, shapes, strict=True)))

    BODIES[specification.__name__], BODIES[f"{specification.__name__}_backward"] = body, backward_body
    SPECIFICATIONS[specification.__name__] = specification
    packet = getattr(torch.ops.sanbench, specification.__name__)
    register_flop_formula(packet)(flops)
