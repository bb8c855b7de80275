"""ProcessGroup: processes that train together, started by `launch` or torchrun, over `torch.distributed`."""

import os
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from sanbench.errors import InputError, SanbenchError
from sanbench.training.launcher import is_launched

T = TypeVar("T")
LOST = re.compile(r"gloo|nccl|connection (closed|reset|refused)|broken pipe|TCPStore|socket", re.IGNORECASE)


class LostProcess(SanbenchError):
    """Another process of the group has ended."""


@dataclass(frozen=True)
class ProcessGroup:
    """The processes of one training. All of them must call a method at the same point, but for `share` and `check`."""

    rank: int = 0
    size: int = 1

    @property
    def is_rank_zero(self) -> bool:
        """Whether this process writes files and prints."""
        return self.rank == 0

    def share(self, count: int, parts: int) -> list[range]:
        """The positions, in a global batch of `count` images, of this process's `parts` parts."""
        pieces = self.size * parts
        bounds = [count * piece // pieces for piece in range(pieces + 1)]
        return [range(bounds[piece], bounds[piece + 1]) for piece in range(self.rank * parts, (self.rank + 1) * parts)]

    def check(self, batch_size: int, parts: int) -> None:
        """Raises InputError if the global batch cannot be divided into equal parts."""
        if batch_size % (self.size * parts):
            fit = [n for n in range(1, batch_size + 1) if batch_size % n == 0]
            raise InputError(
                f"A batch of {batch_size} images does not divide into {self.size} processes x {parts} accumulated parts: "
                f"processes x --accumulate must be one of {', '.join(map(str, fit))}."
            )

    def all_reduce_sum(self, values: Tensor) -> Tensor:
        """The sum of all processes' `values`."""
        values = values.clone()
        if self.size > 1:
            dist.all_reduce(values)
        return values

    def broadcast(self, tensors: Iterable[Tensor]) -> None:
        """Give all processes what rank 0 has."""
        if self.size > 1:
            for tensor in tensors:
                dist.broadcast(tensor, 0)

    def all_reduce_any(self, *flags: bool) -> list[bool]:
        """For each flag, whether it is set in any process. The CPUs communicate, so that no device is waited for."""
        if self.size == 1:
            return list(flags)
        values = torch.tensor(flags, dtype=torch.uint8)
        dist.all_reduce(values, dist.ReduceOp.MAX)
        return [bool(flag) for flag in values.tolist()]

    def raise_if_any(self, sentence: str | None, kind: type[SanbenchError] = SanbenchError) -> None:
        """Raises the same error on all processes if any of them passes a sentence."""
        sentences: list[str | None] = [sentence]
        if self.size > 1:
            sentences = [None] * self.size
            dist.all_gather_object(sentences, sentence)
        first = next(filter(None, sentences), None)
        if first is not None:
            raise kind(first)

    def broadcast_from_rank_zero(self, function: Callable[[], T]) -> T:
        """What `function` returns or raises on rank 0, on all processes."""
        outcome: list[Any] = [None]
        if self.is_rank_zero:
            try:
                outcome = [function()]
            except SanbenchError as error:
                outcome = [error]
        if self.size > 1:
            dist.broadcast_object_list(outcome)
        if isinstance(outcome[0], SanbenchError):
            raise outcome[0]
        return outcome[0]


SINGLE = ProcessGroup()


@contextmanager
def joined(device: torch.device) -> Iterator[tuple[ProcessGroup, torch.device]]:
    """The group that this process belongs to, and its device: gloo communicates on the CPU, nccl on CUDA."""
    if not is_launched():
        yield SINGLE, device
        return
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    try:
        dist.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo")
        yield ProcessGroup(dist.get_rank(), dist.get_world_size()), device
    except RuntimeError as error:  # gloo's and nccl's errors are no class of their own
        if not LOST.search(str(error)):
            raise
        raise LostProcess(
            "Another process of the training has ended, and this one cannot go on without it: --resume goes on after the last "
            "step that was saved."
        ) from error
    finally:
        with suppress(RuntimeError):  # of a group that has lost a process
            dist.destroy_process_group()
