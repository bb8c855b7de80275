"""Random numbers of attacks: they belong to (seed, image, restart), not to the batch, the worker or the process."""

import zlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

SHARED = "shared by all images"
FEW = 16  # numbers: of so small a draw the call is what costs
AHEAD = 64  # such draws that are made at once


def image_seed(seed: int, image: int, stream: str, restart: int = 0) -> int:
    """A seed for one image's draws of one kind: the same in every batch, worker and process."""
    state = np.random.SeedSequence((seed, image, restart, zlib.crc32(stream.encode()))).generate_state(2, np.uint32)
    return int(state[0]) << 31 | int(state[1]) >> 1


class PerImageRandom(TorchFunctionMode):
    """Inside, what torchattacks draws from the global generator comes from generators of the images' own.

    A draw with four dimensions has a row for each image; `rows` tells which images those are now, as positions in
    `indices`. Any other draw is one that all images share (Square's places): it depends on seed and restart alone.
    """

    def __init__(
        self, seed: int, indices: Tensor, stream: str, restart: int = 0, rows: Callable[[int], Sequence[int]] = range
    ) -> None:
        super().__init__()
        self.rows = rows
        self.own = [seeded(image_seed(seed, image, stream, restart)) for image in indices.tolist()]
        self.shared = seeded(image_seed(seed, 0, f"{stream} {SHARED}", restart))
        self.ahead: dict[torch.Size, list[Tensor]] = {}  # by shape, of small draws: of all images, the next one last

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        options = kwargs or {}
        if func in (torch.Tensor.uniform_, torch.Tensor.normal_):
            return self.fill(args[0], func, args[1:], options)
        if func in (torch.rand, torch.randn):
            shape = args[0] if len(args) == 1 and not isinstance(args[0], int) else args
            fill = torch.Tensor.uniform_ if func is torch.rand else torch.Tensor.normal_
            return self.fill(torch.empty(tuple(shape), **options), fill, (), {})
        if func in (torch.randint, torch.randperm, torch.rand_like, torch.randn_like, torch.bernoulli, torch.multinomial):
            raise NotImplementedError(f"{func.__name__} would draw from the global generator")
        return func(*args, **options)

    def fill(self, out: Tensor, func: Callable[..., Tensor], bounds: tuple[Any, ...], options: dict[str, Any]) -> Tensor:
        with torch._C.DisableTorchFunction():
            if out.dim() != 4:
                return out.copy_(func(torch.empty(out.shape, dtype=out.dtype), *bounds, **options, generator=self.shared))
            rows = self.rows(len(out))
            if func is torch.Tensor.uniform_ and not bounds and out.dtype == torch.float32 and out[0].numel() <= FEW:
                return out.copy_(self.next_few(rows, out.shape[1:]))
            for row, place in zip(out, rows, strict=True):
                row.copy_(func(torch.empty(row.shape, dtype=row.dtype), *bounds, **options, generator=self.own[place]))
        return out

    def next_few(self, rows: Sequence[int], shape: torch.Size) -> Tensor:
        """A small draw of the images `rows`, the same numbers as one by one. Images that are not among them have left."""
        ahead = self.ahead.setdefault(shape, [])
        if not ahead:
            drawn = torch.zeros(len(self.own), AHEAD, *shape)
            for place in rows:
                drawn[place].uniform_(generator=self.own[place])
            ahead.extend(reversed(drawn.unbind(1)))
        found = ahead.pop()
        return found if len(rows) == len(self.own) else found[list(rows)]


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


class ImageNoise(TorchDispatchMode):
    """Inside, what a random network draws from the global generator belongs to (seed, image, pass), whatever the batch.

    A draw whose first dimension is that of the batch has a row for each of `images`, which are drawn one by one. Any other,
    such as noise on weights, is shared: it depends on seed and pass number `passes[0]` alone. In a batch of one image, a draw
    with one row is taken for the image's. The global generator is left as it was.
    """

    def __init__(self, seed: int, images: Sequence[int], stream: str, passes: Sequence[int]) -> None:
        super().__init__()
        self.seed, self.images, self.stream, self.passes = seed, images, stream, passes
        self.draws = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        options = kwargs or {}
        if torch.Tag.nondeterministic_seeded not in func.tags or options.get("generator") is not None:
            return func(*args, **options)
        self.draws += 1
        generators = [torch.default_generator, *(torch.cuda.default_generators if torch.cuda.is_initialized() else ())]
        before = [generator.get_state() for generator in generators]

        def drawn(seed: int, *values: Any) -> Any:
            for generator in generators:  # torch.manual_seed takes a hundred times as long
                generator.manual_seed(seed)
            return func(*values, **options)

        try:
            if not any(map(self.has_rows, args)):
                return drawn(self.seed_of(0, f"{self.stream} {SHARED}", self.passes[0]), *args)
            made = []
            for row, (image, number) in enumerate(zip(self.images, self.passes, strict=True)):
                made.append(drawn(self.seed_of(image, self.stream, number), *(self.row(value, row) for value in args)))
        finally:
            for generator, state in zip(generators, before, strict=True):
                generator.set_state(state)
        if func._schema.is_mutable:
            return args[0]  # its rows were views
        return tuple(map(torch.cat, zip(*made, strict=True))) if isinstance(made[0], tuple) else torch.cat(made)

    def seed_of(self, image: int, stream: str, number: int) -> int:
        return image_seed(self.seed, image, f"{stream} draw {self.draws}", number)

    def has_rows(self, value: Any) -> bool:
        """Whether it is a tensor, or a size, of a row an image."""
        shape = value.shape if isinstance(value, Tensor) else value if isinstance(value, list | tuple) else ()
        return len(shape) > 0 and shape[0] == len(self.images)

    def row(self, value: Any, number: int) -> Any:
        if not self.has_rows(value):
            return value
        return value[number : number + 1] if isinstance(value, Tensor) else [1, *value[1:]]


class Averaged:
    """`averaged(x)`: mean logits of `passes` passes of the next len(x) of `images`, each with `ImageNoise` of its own."""

    def __init__(self, model: Callable[[Tensor], Tensor], seed: int, images: Sequence[int], stream: str, passes: int) -> None:
        self.model, self.seed, self.images, self.stream, self.passes = model, seed, list(images), stream, passes

    def __call__(self, x: Tensor) -> Tensor:
        here, self.images = self.images[: len(x)], self.images[len(x) :]
        total: Any = 0
        for number in range(self.passes):
            with ImageNoise(self.seed, here, self.stream, [number] * len(here)):
                total = total + self.model(x)
        return total / self.passes
