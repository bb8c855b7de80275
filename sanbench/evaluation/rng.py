"""Random numbers of attacks: they belong to (seed, image, restart), not to the batch, the worker or the process."""

import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

SHARED = "shared by all images"


def image_seed(seed: int, image: int, stream: str, restart: int = 0) -> int:
    """A seed for one image's draws of one kind: the same in every batch, worker and process."""
    state = np.random.SeedSequence((seed, image, restart, zlib.crc32(stream.encode()))).generate_state(2, np.uint32)
    return int(state[0]) << 31 | int(state[1]) >> 1


class PerImageRandom(TorchFunctionMode):
    """Inside, what torchattacks draws from the global generator comes from generators of the images' own.

    A draw with four dimensions has a row for each image; `rows` tells which images those are now, as positions in
    `indices`. Any other draw is one that all images share (Square's places): it depends on seed and restart alone.
    """

    def __init__(self, seed: int, indices: Tensor, stream: str, restart: int, rows: Callable[[int], Sequence[int]]) -> None:
        super().__init__()
        self.rows = rows
        self.own = [seeded(image_seed(seed, image, stream, restart)) for image in indices.tolist()]
        self.shared = seeded(image_seed(seed, 0, f"{stream} {SHARED}", restart))

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
            for row, place in zip(out, self.rows(len(out)), strict=True):
                row.copy_(func(torch.empty(row.shape, dtype=row.dtype), *bounds, **options, generator=self.own[place]))
        return out


@contextmanager
def per_image_random(
    seed: int, indices: Tensor, stream: str, restart: int = 0, rows: Callable[[int], Sequence[int]] = range
) -> Iterator[None]:
    with PerImageRandom(seed, indices, stream, restart, rows):
        yield


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)
