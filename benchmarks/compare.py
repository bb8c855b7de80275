"""Interleaved comparison of a SAN with a ResNet: `compare.py eval|attack|train pairwise|patchwise [runs] [cpu]`.

With `cpu` it runs on one thread and counts processor time, which other programs on the machine hardly disturb.

Prints medians of n and the median of the ratios of neighbouring runs. Both sides share the allocator's setting.
"""

import statistics
import sys
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torchvision.models.resnet import Bottleneck, ResNet

from sanbench.allocator import keep_memory
from sanbench.models.san import SAN, SANConfig
from sanbench.ops import cpu

BLOCKS = {"eval": ((3, 3, 4, 6, 3), [3, 4, 6, 3]), "train": ((2, 1, 2, 4, 1), [1, 2, 4, 1])}


def step(mode: str, model: torch.nn.Module, images: torch.Tensor) -> Callable[[], object]:
    labels = torch.zeros(len(images), dtype=torch.long)
    if mode == "train":
        optimizer = torch.optim.SGD(model.train().parameters(), lr=1e-4, momentum=0.9)

        def train() -> None:
            optimizer.zero_grad()
            F.cross_entropy(model(images), labels).backward()
            optimizer.step()

        return train
    model.eval()
    if mode == "attack":
        model.requires_grad_(False)  # only the image's gradient is wanted

        def attack() -> torch.Tensor:
            x = images.clone().requires_grad_()
            return torch.autograd.grad(F.cross_entropy(model(x), labels), x)[0]

        return attack
    return torch.no_grad()(lambda: model(images))


def main(mode: str, attention: str = "pairwise", runs: str = "9", clock: str = "wall") -> None:
    keep_memory()
    if clock == "cpu":
        torch.set_num_threads(1)
    now = time.process_time if clock == "cpu" else time.perf_counter
    san_blocks, resnet_blocks = BLOCKS.get(mode, BLOCKS["eval"])
    torch.manual_seed(0)
    images = torch.randn(4, 3, 224, 224).contiguous(memory_format=torch.channels_last)
    san = SAN(SANConfig(blocks=san_blocks, attention=attention), 1000).to(memory_format=torch.channels_last)
    resnet = ResNet(Bottleneck, resnet_blocks).to(memory_format=torch.channels_last)
    steps = [step(mode, san, images), step(mode, resnet, images)]
    seconds: list[list[float]] = [[], []]
    for run in range(int(runs) + 2):
        for which, action in enumerate(steps):
            start = now()
            action()
            if run > 1:
                seconds[which].append(now() - start)
    ratios = sorted(a / b for a, b in zip(*seconds, strict=True))
    medians = [1000 * statistics.median(s) for s in seconds]
    print(
        f"{mode} {attention}: SAN {medians[0]:.0f} ms, ResNet {medians[1]:.0f} ms, "
        f"ratio {statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f}), "
        f"n {runs}, {clock} time, threads {torch.get_num_threads()}, kernel {cpu.kernel()}"
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
