"""The memory of an attack does not grow with its steps."""

import sys
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path

import pytest
import torch
from torch import nn

from sanbench.evaluation.attacks.table import ATTACKS
from tests.support.quick_measurements import config, run

MOST = 60  # MiB by which the peaks may differ; twenty more steps, of 6 MiB of images each, would be 120
PEAK = Path("/proc/self/clear_refs")

pytestmark = pytest.mark.skipif(not PEAK.exists() or sys.platform != "linux", reason="the kernel tells no peak of memory here")


class Few(nn.Module):
    """1,000 weights, 6 MiB of images: what grows is what an attack keeps."""

    def __init__(self):
        super().__init__()
        self.network = nn.Sequential(nn.Conv2d(3, 4, 16, stride=16), nn.Flatten(), nn.Linear(4 * 14 * 14, 5))

    def forward(self, x):
        return self.network(x - 0.5) * 100  # far from the boundary, so that every step is taken


def peak(steps: int, name: str, model: nn.Module, batch) -> float:
    """MiB that the process had at most while the attack ran."""
    settings = replace(config(name, "1/255000"), steps=steps, targets=1)
    PEAK.write_text("5")
    run(name, model, batch, settings)
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024


def peaks(name: str) -> tuple[float, float]:
    """Of 8 and of 28 steps."""
    torch.manual_seed(0)
    model, images = Few().eval(), torch.rand(10, 3, 224, 224)
    with torch.no_grad():
        labels = model(images).argmax(1)
    batch = images, labels, torch.arange(10)
    few = max(peak(8, name, model, batch) for _ in range(2))  # the heap drifts a little: the kinder of two
    return few, min(peak(28, name, model, batch) for _ in range(2))


@pytest.fixture(scope="module")
def fresh():
    """A process in which nothing else ran: the heap of one that freed much drifts by more than an attack keeps."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        yield pool


@pytest.mark.parametrize("name", [name for name, entry in ATTACKS.items() if not entry.members and "steps" in entry.shown])
def test_the_peak_is_that_of_a_few_steps(name, fresh):
    few, many = fresh.submit(peaks, name).result()
    assert many - few < MOST
