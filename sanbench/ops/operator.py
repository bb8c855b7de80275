"""From a specification to an operator of torch: schema, fake kernel, backward, FLOPs; for attention also tiles of images.

`Operator` is what every operator here has in common, `Tiled` what the attention operators are. What surrounds attention
(`sanbench.ops.fused`) is another kind of `Operator`.
"""

import inspect
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cached_property, partial, wraps
from itertools import islice
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from sanbench.ops.checks import check
from sanbench.ops.footprint import Footprint, RowRange

Shape = Sequence[int]
SPECIFICATIONS: dict[str, Callable[..., Tensor]] = {}  # of every operator, by its name in torch.ops.sanbench
BODIES: dict[str, Callable[..., Any]] = {}  # what runs where no kernel serves, of every operator and every backward
LIBRARY = torch.library.Library("sanbench", "FRAGMENT")
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
    """Autocast ends at an operator: within it the specification decides what is computed in which dtype."""

    @wraps(run)
    def undisturbed(*values: Any) -> Any:
        device = values[0].device.type
        with torch.autocast(device, enabled=False) if torch.is_autocast_enabled(device) else nullcontext():
            return run(*values)

    return undisturbed


def flatten(values: Sequence[Any]) -> tuple[list[Any], list[int | None]]:
    """Arguments with the entries of lists one by one, and each list's length. Every call does it: torch's pytrees are slow."""
    leaves = [leaf for value in values for leaf in (value if isinstance(value, (list, tuple)) else [value])]
    return leaves, [len(value) if isinstance(value, (list, tuple)) else None for value in values]


def unflatten(leaves: Sequence[Any], lengths: Sequence[int | None]) -> list[Any]:
    """The inverse of `flatten`."""
    rest = iter(leaves)
    return [next(rest) if length is None else list(islice(rest, length)) for length in lengths]


def register(name: str, schema: str, body: Callable[..., Any], fake: Callable[..., Any]) -> None:
    """As torch.library.custom_op, whose kernels import torch's compiler when they are first called."""
    LIBRARY.define(f"{name}{schema}", tags=torch.Tag.pt2_compliant_tag)
    LIBRARY.impl(name, body, "CompositeExplicitAutograd")
    torch.library.register_fake(f"sanbench::{name}", fake)


def undifferentiated(ctx: Any, *grads: Any) -> None:
    raise NotImplementedError("The operators of sanbench have no second derivative.")


@dataclass(frozen=True)
class Operator(ABC):
    """torch.ops.sanbench.<name>, and its backward as an operator of its own, <name>_backward.

    `shape` and `macs` return the output's shape and the multiply-accumulates an image, from the operator's arguments by
    name with shapes in place of tensors. The output has the first argument's dtype, but no narrower one than `least`.
    A map is laid out as the argument `value` or, where there is none, as the first.

    A kind of operators says how the output (`body`) and the gradients (`backward`) are computed, what autograd saves
    between them (`save`) and how it calls the backward (`differentiate`).
    """

    name: str
    specification: Callable[..., Tensor]
    shape: Callable[..., Shape]
    macs: Callable[..., int] = lambda **_: 0
    least: torch.dtype | None = None

    @cached_property
    def parameters(self) -> dict[str, inspect.Parameter]:
        """The operator's arguments: those of the specification but the rows of a tile."""
        every = inspect.signature(self.specification).parameters
        return {name: parameter for name, parameter in every.items() if name != "rows"}

    @cached_property
    def schema(self) -> str:
        def prototype() -> None: ...

        signature = inspect.Signature(list(self.parameters.values()), return_annotation=Tensor)
        prototype.__signature__ = signature  # type: ignore[attr-defined]  # infer_schema reads it
        return torch.library.infer_schema(prototype, mutates_args=())

    @property
    @abstractmethod
    def backward_schema(self) -> str: ...

    @abstractmethod
    def body(self, *values: Any) -> Tensor: ...

    @abstractmethod
    def save(self, ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None: ...

    @abstractmethod
    def differentiate(self, ctx: Any, grad: Tensor) -> tuple[Any, ...]: ...

    @abstractmethod
    def backward(self, grad: Tensor, *values: Any) -> list[Tensor]: ...

    @abstractmethod
    def backward_fake(self, grad: Tensor, *values: Any) -> list[Tensor]: ...

    @cached_property
    def backward_operator(self) -> Callable[..., list[Tensor]]:
        return getattr(torch.ops.sanbench, f"{self.name}_backward").default

    def fake(self, *values: Any) -> Tensor:
        """The output without its numbers: what tracing sees."""
        leaves, lengths = flatten(values)
        shapes = unflatten([leaf.shape if isinstance(leaf, Tensor) else leaf for leaf in leaves], lengths)
        size = tuple(self.shape(**dict(zip(self.parameters, shapes, strict=True))))
        dtype = values[0].dtype if self.least is None else torch.promote_types(values[0].dtype, self.least)
        layout = self.layout(values) if len(size) == 4 else torch.contiguous_format
        return torch.empty(size, dtype=dtype, device=values[0].device, memory_format=layout)

    def layout(self, values: Sequence[Any]) -> torch.memory_format:
        """Of a map that the operator returns."""
        return memory_format(dict(zip(self.parameters, values, strict=True)).get("value", values[0]))

    def flops(self, *shapes: Any, out_shape: Any = None, **_: Any) -> int:
        return 2 * shapes[0][0] * self.macs(**dict(zip(self.parameters, shapes, strict=True)))

    def define(self) -> None:
        """Register the operator and its backward, and enter them in SPECIFICATIONS and BODIES."""
        body, backward = without_autocast(self.body), without_autocast(self.backward)
        pullback = f"{self.name}_backward"
        register(self.name, self.schema, body, self.fake)
        register(pullback, self.backward_schema, backward, self.backward_fake)
        torch.library.register_autograd(f"sanbench::{self.name}", self.differentiate, setup_context=self.save)
        torch.library.register_autograd(f"sanbench::{pullback}", undifferentiated)
        register_flop_formula(getattr(torch.ops.sanbench, self.name))(self.flops)
        SPECIFICATIONS[self.name], BODIES[self.name], BODIES[pullback] = self.specification, body, backward


def heights(rows: Sequence[RowRange | None]) -> list[int]:
    return [tile[1] - tile[0] for tile in rows if tile is not None]


def joined(parts: Sequence[Tensor], rows: Sequence[int]) -> Tensor:
    """A map from its tiles of rows."""
    return torch.cat(list(parts), -2)


@dataclass(frozen=True)
class Tiled(Operator):
    """An operator whose specification expands maps over footprints, computed a tile of a batch at a time.

    The images of a batch do not meet in the specification. Its arguments annotated `Tensor` hold one entry an image, those
    annotated `Tensor | None` or `list[Tensor]` are shared by all images; the last three are footprint, stride and
    dilation, and besides it takes the `rows` of the output that it is to compute. From that follow

    - the body: a few images at a time, or some rows of one, so that the tensors expanded over the footprint stay in the
      cache and never exist for a whole batch. `merge` makes an image's result from the results for some rows each;
    - the backward: computes again tile by tile, keeps nothing but the inputs, and returns gradients only for the
      tensors that ask for one.
    """

    merge: Callable[[Sequence[Tensor], Sequence[int]], Tensor] = joined

    @cached_property
    def per_image(self) -> list[bool]:
        """Whether an argument holds one entry an image."""
        return [parameter.annotation is Tensor for parameter in self.parameters.values()]

    @property
    def backward_schema(self) -> str:
        arguments = self.schema[1 : self.schema.index(") -> ")]
        return f"(Tensor grad, {arguments}, bool[] needs) -> Tensor[]"

    def tiles(self, values: Sequence[Any]) -> Iterator[tuple[slice, list[RowRange | None], list[Any]]]:
        """Images of a tile, its rows (several only where one image is too large) and the arguments of those images."""
        batches = [value for value, is_batch in zip(values, self.per_image, strict=True) if is_batch]
        expanded = max(batch[0].numel() for batch in batches) * values[-3] ** 2  # elements an image
        images = int(min(len(batches[0]), max(1, _tile.get() / expanded)))
        rows: list[RowRange | None] = [None]
        if expanded > _tile.get():
            height = Footprint(*values[-3:]).output_size(*batches[-1].shape[-2:])[0]
            step = int(max(1, _tile.get() * height // expanded))
            rows = [(first, min(first + step, height)) for first in range(0, height, step)]
        for first in range(0, len(batches[0]), images):
            tile = slice(first, first + images)
            yield tile, rows, [v[tile] if batch else v for v, batch in zip(values, self.per_image, strict=True)]

    def body(self, *values: Any) -> Tensor:
        check(self.name, dict(zip(self.parameters, values, strict=True)))
        images = []
        for _, rows, part in self.tiles(values):
            results = [self.specification(*part, rows=tile) for tile in rows]
            images.append(results[0] if len(rows) == 1 else self.merge(results, heights(rows)))
        out = torch.cat(images)
        return out.contiguous(memory_format=self.layout(values)) if out.dim() == 4 else out

    def fake(self, *values: Any) -> Tensor:
        check(self.name, dict(zip(self.parameters, values, strict=True)))
        return super().fake(*values)

    def save(self, ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        leaves, ctx.lengths = flatten(inputs)
        ctx.positions = [position for position, leaf in enumerate(leaves) if isinstance(leaf, Tensor)]
        ctx.constants = [None if isinstance(leaf, Tensor) else leaf for leaf in leaves]
        ctx.save_for_backward(*(leaves[position] for position in ctx.positions))

    def differentiate(self, ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        leaves = list(ctx.constants)
        for position, tensor in zip(ctx.positions, ctx.saved_tensors, strict=True):
            leaves[position] = tensor
        needs, _ = flatten(ctx.needs_input_grad)
        grads = iter(self.backward_operator(grad, *unflatten(leaves, ctx.lengths), needs))
        return tuple(unflatten([next(grads) if need else None for need in needs], ctx.lengths))

    def backward(self, grad: Tensor, *values_and_needs: Any) -> list[Tensor]:
        """Gradients of those entries of the arguments whose `needs` is true, each laid out as the entry."""
        *values, needs = values_and_needs
        wanted = [position for position, need in enumerate(needs) if need]
        collected = [self.pullback(grad[images], part, rows, wanted) for images, rows, part in self.tiles(values)]
        leaves, _ = flatten(values)
        is_batch = [batch for value, batch in zip(values, self.per_image, strict=True) for _ in flatten([value])[0]]
        return [
            (torch.cat(parts) if is_batch[position] else torch.stack(parts).sum(0)).contiguous(
                memory_format=memory_format(leaves[position])
            )
            for position, parts in zip(wanted, zip(*collected, strict=True), strict=True)
        ]

    def pullback(self, grad: Tensor, values: list[Any], rows: list[RowRange | None], wanted: list[int]) -> list[Tensor]:
        """The gradients of some images, of the entries at `wanted`, added up over the tiles of rows."""
        leaves, lengths = flatten(values)

        def run(tile: RowRange | None, *chosen: Tensor) -> Tensor:
            replaced = list(leaves)
            for position, tensor in zip(wanted, chosen, strict=True):
                replaced[position] = tensor
            return self.specification(*unflatten(replaced, lengths), rows=tile)

        total: list[Tensor] = []
        for tile, part in zip(rows, self.of_rows(grad, values, rows), strict=True):
            grads = torch.func.vjp(partial(run, tile), *(leaves[position] for position in wanted))[1](part)
            total = [a + b for a, b in zip(total, grads, strict=True)] if total else list(grads)
        return total

    def of_rows(self, grad: Tensor, values: list[Any], rows: list[RowRange | None]) -> Sequence[Tensor]:
        """The gradient of an image's result as gradients of the results for its tiles of rows."""
        if len(rows) == 1:
            return [grad]
        if self.merge is joined:
            return torch.split(grad, heights(rows), -2)
        parts = [self.specification(*values, rows=tile) for tile in rows]
        gradients: Sequence[Tensor] = torch.func.vjp(lambda *tiles: self.merge(tiles, heights(rows)), *parts)[1](grad)
        return gradients

    def backward_fake(self, grad: Tensor, *values_and_needs: Any) -> list[Tensor]:
        *values, needs = values_and_needs
        leaves = [leaf for leaf, need in zip(flatten(values)[0], needs, strict=True) if need]
        return [torch.empty_like(leaf, memory_format=memory_format(leaf)) for leaf in leaves]
