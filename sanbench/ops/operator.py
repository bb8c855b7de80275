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
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import TreeSpec, tree_flatten, tree_map, tree_unflatten
from torch.utils.flop_counter import register_flop_formula

Shape = Sequence[int]
TILE = 2**21  # elements a tile expands to: small enough for the last-level cache, large enough to hide the cost of a call


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
        images = max(1, TILE // (largest * values[-3] ** 2))
        tiles = [slice(start, start + images) for start in range(0, len(batches[0]), images)]
        return [(tile, [v[tile] if batch else v for v, batch in zip(values, per_image, strict=True)]) for tile in tiles]

    def body(*values: Any) -> Tensor:
        return torch.cat([specification(*tile) for _, tile in split(values)])

    forward = torch.library.custom_op(name, body, mutates_args=(), schema=schema)

    def by_name(values: Sequence[Any]) -> dict[str, Any]:
        return dict(zip(parameters, tree_map(lambda v: v.shape if isinstance(v, Tensor) else v, values), strict=True))

    @forward.register_fake
    def fake(*values: Any) -> Tensor:
        return values[0].new_empty(shape(**by_name(values)))

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
        return [
            torch.stack(parts).sum(0) if is_shared else torch.cat(parts)
            for is_shared, parts in zip(shared, zip(*collected, strict=True), strict=True)
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
        return [leaf.new_empty(leaf.shape) for leaf, need in zip(leaves, needs, strict=True) if need]

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

    packet = getattr(torch.ops.sanbench, specification.__name__)
    register_flop_formula(packet)(flops)
