"""Benchmarks: a SAN against its ResNet in one run, step by step in turn, so that a machine that drifts does so for both."""

import resource
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sanbench.device import describe, keep_memory, processor, versions
from sanbench.errors import InputError
from sanbench.models import build_model
from sanbench.models.san import SANConfig, SelfAttention
from sanbench.ops import cpu, gpu
from sanbench.progress import Progress, Report, silent
from sanbench.store.files import Benchmark

Mode = Literal["evaluate", "attack", "train"]
Precision = Literal["float32", "bfloat16"]
WARM_UP = 2  # steps of each side that are not counted
ATTENTIONS: tuple[Literal["pairwise", "patchwise"], ...] = ("pairwise", "patchwise")
STAGES = ((112, 64, 3), (56, 256, 7), (28, 512, 7), (14, 1024, 7), (7, 2048, 7))  # side, channels, footprint at 224


@dataclass(frozen=True)
class Case:
    """What is timed: one step of `mode` on a batch of float32 images.

    evaluate is a forward pass, attack a forward pass and the gradient of the images with frozen weights, train a forward
    pass, a backward pass and an SGD step. bfloat16 is autocast's; `compiled` steps run through torch.compile.
    """

    model: str
    mode: Mode = "evaluate"
    batch_size: int = 4
    image_size: int = 224
    variation: tuple[tuple[str, Any], ...] = ()
    dtype: Precision = "float32"
    compiled: bool = False

    def network(self, device: torch.device) -> nn.Module:
        """Fresh weights in the layout that is fastest for it."""
        torch.manual_seed(0)
        model = build_model(self.model, **dict(self.variation))
        return model.to(device).to(memory_format=torch.channels_last)


@dataclass(frozen=True)
class Comparison:
    """Medians of n steps in seconds, and the median and the range of the ratios of neighbouring steps (SAN / ResNet).

    kept is the memory that autograd keeps for the backward pass of a training or attack step, peak the largest resident
    memory of a process that does nothing else, both in bytes and both SAN first.
    """

    san: Case
    resnet: Case
    n: int
    seconds: tuple[float, float]
    ratio: float
    ratio_low: float
    ratio_high: float
    kept: tuple[int, int]
    peak: tuple[int, int]
    threads: int
    kernel: str
    device: str

    def record(self) -> Benchmark:
        """As results keep it."""
        sides = {side: {"model": c.model, **dict(c.variation)} for side, c in (("san", self.san), ("resnet", self.resnet))}
        shared = {name: getattr(self.san, name) for name in ("mode", "batch_size", "image_size", "dtype", "compiled")}
        footprint = dict(self.san.variation).get("footprint", SANConfig.model_fields["footprint"].default)
        run = {"footprint": footprint, "n": self.n, "threads": self.threads, "kernel": self.kernel}
        return Benchmark(
            experiment="model",
            setting={**sides, **shared, **run},
            device=self.device,
            seconds=dict(zip(sides, self.seconds, strict=True)),
            ratio=(self.ratio, self.ratio_low, self.ratio_high),
            bytes={side: (self.kept[at], self.peak[at]) for at, side in enumerate(sides)},
            versions=versions(),
        )


def compare(san: Case, resnet: Case, n: int, device: torch.device, progress: Report = silent) -> Comparison:
    """Time both in turn. Raises InputError if n is below 1."""
    if n < 1:
        raise InputError(f"n {n} is not accepted: it must be at least 1.")
    models = [case.network(device) for case in (san, resnet)]
    eager = [replace(case, compiled=False) for case in (san, resnet)]  # what autograd keeps is told by eager steps
    losses = [make_loss(case, model, device) for case, model in zip(eager, models, strict=True)]
    kept = [kept_for_backward(loss, model) for loss, model in zip(losses, models, strict=True)]
    losses = [make_loss(case, model, device) for case, model in zip((san, resnet), models, strict=True)]
    steps = [make_step(case, model, loss) for case, model, loss in zip((san, resnet), models, losses, strict=True)]
    seconds: tuple[list[float], list[float]] = ([], [])
    for run in range(n + WARM_UP):
        for taken, action in zip(seconds, steps, strict=True):
            elapsed = timed(action, device)
            if run >= WARM_UP:
                taken.append(elapsed)
        progress(Progress(f"{san.mode} {san.model} / {resnet.model}", run + 1, n + WARM_UP))
    ratios = [a / b for a, b in zip(*seconds, strict=True)]
    return Comparison(
        san=san,
        resnet=resnet,
        n=n,
        seconds=(statistics.median(seconds[0]), statistics.median(seconds[1])),
        ratio=statistics.median(ratios),
        ratio_low=min(ratios),
        ratio_high=max(ratios),
        kept=(kept[0], kept[1]),
        peak=(peak_memory(san, device), peak_memory(resnet, device)),
        threads=torch.get_num_threads(),
        kernel=(cpu if device.type == "cpu" else gpu).kernel(),
        device=describe(device),
    )


def timed(action: Callable[[], object], device: torch.device) -> float:
    """Seconds of one call, the device's work included."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    started = time.perf_counter()
    action()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - started


def make_loss(case: Case, model: nn.Module, device: torch.device) -> Callable[[], Tensor]:
    """The forward pass of the case's mode up to the loss; puts the model into the mode."""
    images = torch.rand(case.batch_size, 3, case.image_size, case.image_size, device=device)
    images = images.contiguous(memory_format=torch.channels_last)
    labels = torch.arange(case.batch_size, device=device)
    model.train(case.mode == "train").requires_grad_(case.mode == "train")
    images.requires_grad_(case.mode == "attack")
    run = torch.compile(model) if case.compiled else model

    def loss() -> Tensor:
        with torch.autocast(device.type, torch.bfloat16, enabled=case.dtype == "bfloat16"):
            return F.cross_entropy(run(images), labels)

    return loss


def make_step(case: Case, model: nn.Module, loss: Callable[[], Tensor]) -> Callable[[], object]:
    """One whole step of the case's mode."""
    if case.mode == "evaluate":
        return torch.no_grad()(loss)
    if case.mode == "attack":
        return lambda: loss().backward()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)

    def train() -> None:
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()

    return train


def kept_for_backward(loss: Callable[[], Tensor], model: nn.Module) -> int:
    """Bytes of the storages that autograd keeps behind a forward pass, each counted once, without the parameters."""
    parameters = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    storages: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            storages[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss()
    return sum(storages.values())


def peak_memory(case: Case, device: torch.device) -> int:
    """Largest memory of three steps in a process of its own, in bytes: resident on a CPU, allocated on a GPU."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(_peak, case, str(device)).result()


def _peak(case: Case, name: str) -> int:
    device = torch.device(name)
    keep_memory()
    model = case.network(device)
    action = make_step(case, model, make_loss(case, model, device))
    for _ in range(3):
        action()
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    status = Path("/proc/self/status")
    if status.is_file():  # Linux hands getrusage's maximum on from parent to child
        return next(1024 * int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith("VmHWM"))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


@dataclass(frozen=True)
class LayerTime:
    """Median seconds of one attention layer of SAN at 224, by kernel."""

    attention: str
    stage: int
    footprint: int
    direction: str
    batch_size: int
    n: int
    seconds: dict[str, float]

    def record(self) -> Benchmark:
        """As results keep it."""
        setting = {name: value for name, value in asdict(self).items() if name != "seconds"}
        return Benchmark(
            experiment="ops",
            setting={**setting, "image_size": 224, "dtype": "float32", "threads": torch.get_num_threads()},
            device=describe(torch.device("cpu")),
            seconds=self.seconds,
            versions=versions(),
        )


def time_layers(
    batch_size: int, footprint: int | None, n: int, kernels: Sequence[str], progress: Report = silent
) -> list[LayerTime]:
    """Forward and backward of each stage's layer in evaluation, every kernel in turn."""
    done, total = 0, len(ATTENTIONS) * len(STAGES) * 2
    found = []
    for attention in ATTENTIONS:
        config = SANConfig(blocks=(1, 1, 1, 1, 1), attention=attention)
        for stage, (side, channels, own) in enumerate(STAGES):
            size = own if stage == 0 or footprint is None else footprint
            torch.manual_seed(0)
            layer = SelfAttention(config, channels, size).eval()
            x = torch.randn(batch_size, channels, side, side).contiguous(memory_format=torch.channels_last)
            for direction in ("forward", "backward"):
                action = forward(layer, x) if direction == "forward" else backward(layer, x)
                taken: dict[str, list[float]] = {kernel: [] for kernel in kernels}
                for run in range(n + 1):
                    for kernel in kernels:
                        with cpu.use_kernel(kernel):
                            seconds = action()
                        if run:
                            taken[kernel].append(seconds)
                medians = {kernel: statistics.median(values) for kernel, values in taken.items()}
                found.append(LayerTime(attention, stage, size, direction, batch_size, n, medians))
                done += 1
                progress(Progress(f"{attention} stage {stage} {direction}", done, total))
    return found


def forward(layer: nn.Module, x: Tensor) -> Callable[[], float]:
    def run() -> float:
        with torch.no_grad():
            return timed(lambda: layer(x), x.device)

    return run


def backward(layer: nn.Module, x: Tensor) -> Callable[[], float]:
    def run() -> float:
        leaf = x.detach().requires_grad_()
        out = layer(leaf)
        return timed(lambda: out.backward(torch.ones_like(out)), x.device)

    return run


def machine() -> dict[str, str]:
    """What a reader of a measurement asks for: versions, devices, threads, and the kernels that attention runs on."""
    gpus = [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]
    return versions() | {
        "processor": processor(),
        "threads": str(torch.get_num_threads()),
        "gpu": ", ".join(gpus) or "none",
        "kernels": f"{cpu.kernel()} (available: {', '.join(cpu.available())})",
        "kernels on cuda": f"{gpu.kernel()} ({gpu.missing() or 'available: ' + ', '.join(gpu.available())})",
    }
