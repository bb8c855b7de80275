"""What the attention layers of SAN cost on the CPU by kernel: `sanbench bench ops`."""

from collections.abc import Iterator, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from sanbench.bench.shapes import FUSED
from sanbench.bench.timing import time_in_turn
from sanbench.errors import validated
from sanbench.models.configurations import SANConfig
from sanbench.models.san import SelfAttention
from sanbench.ops import cpu
from sanbench.progress import Progress, Report, silent
from sanbench.store.schema import Benchmark

CPU = torch.device("cpu")


def time_layers(
    batch_size: int,
    image_size: int,
    footprint: int | None,
    kernels: Sequence[str] | None,
    n: int,
    progress: Report = silent,
) -> Iterator[Benchmark]:
    """Forward and backward of the five stages' layers in evaluation, float32, every kernel in turn.

    Without `kernels` all that run here but plain, which expands whole batches; `footprint` is that of stages 1 to 4, None the
    default. Raises InputError for an unknown kernel, an even footprint, and n below 1; SanbenchError for a kernel that cannot
    run here.
    """
    chosen = [name for name in cpu.available() if name != "plain"] if kernels is None else kernels
    changed = {} if footprint is None else {"footprint": footprint}
    configs = [validated(SANConfig, "SAN", blocks=(1, 1, 1, 1, 1), attention=attention, **changed) for attention in FUSED]
    layers = [(config, number, stage) for config in configs for number, stage in enumerate(config.stages(image_size))]
    done = 0
    for config, number, stage in layers:
        torch.manual_seed(0)
        layer = SelfAttention(config, stage.channels, stage.footprint).eval()
        x = torch.randn(batch_size, stage.channels, stage.side, stage.side).contiguous(memory_format=torch.channels_last)
        setting = {"attention": config.attention, "stage": number, "footprint": stage.footprint}
        shared = {"batch_size": batch_size, "image_size": image_size, "dtype": "float32"}
        forwards = {kernel: partial(forward, kernel, layer, x) for kernel in chosen}
        backwards = {kernel: partial(backward, kernel) for kernel in chosen}
        graphs = {kernel: partial(graph, kernel, layer, x) for kernel in chosen}
        for direction, sides, setup in (("forward", forwards, {}), ("backward", backwards, graphs)):
            timing = time_in_turn(sides, n, CPU, setup=setup)
            done += 1
            progress(Progress("attention layers", done, 2 * len(layers)))
            yield timing.benchmark("ops", {**setting, "direction": direction, **shared}, CPU)


@torch.no_grad()
def forward(kernel: str, layer: nn.Module, x: Tensor) -> None:
    with cpu.use_kernel(kernel):
        layer(x)


def graph(kernel: str, layer: nn.Module, x: Tensor) -> tuple[Tensor]:
    """The layer's output, from which a backward pass reaches the maps and the weights: what `backward` takes."""
    with cpu.use_kernel(kernel):
        return (layer(x.detach().requires_grad_()),)


def backward(kernel: str, out: Tensor) -> None:
    with cpu.use_kernel(kernel):
        out.backward(torch.ones_like(out))
