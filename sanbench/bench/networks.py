"""What a SAN costs against its ResNet: steps timed in turn, and memory. `sanbench bench model`."""

import resource
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from itertools import product
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sanbench.bench.machine import kernel
from sanbench.bench.shapes import find_dtype
from sanbench.bench.timing import check_rounds, time_in_turn
from sanbench.device import keep_memory
from sanbench.errors import InputError
from sanbench.models import MODELS, build_model, resolve
from sanbench.models.configurations import SANConfig
from sanbench.progress import Report, silent
from sanbench.store.schema import Benchmark

Mode = Literal["evaluate", "attack", "train"]
WARM_UP = 2  # steps of each side that are not counted
FOOTPRINT: int = SANConfig.model_fields["footprint"].default


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
    dtype: str = "float32"
    compiled: bool = False

    def network(self, device: torch.device) -> nn.Module:
        """Fresh weights in the layout that is fastest for it."""
        torch.manual_seed(0)
        model = build_model(self.model, **dict(self.variation))
        return model.to(device).to(memory_format=torch.channels_last)


def time_pairs(
    names: Sequence[str],
    image_sizes: Sequence[int],
    footprints: Sequence[int],
    width: float,
    n: int,
    device: torch.device,
    progress: Report = silent,
    **step: Any,
) -> Iterator[Benchmark]:
    """A benchmark for each SAN, image size and footprint, against the SAN's ResNet. `step` holds other fields of `Case`.

    Raises InputError for a name that is no SAN, an unknown dtype, and n below 1.
    """
    resolved = [resolve(name)[0] for name in names]
    baselines = {name: MODELS[name].baseline for name in resolved}
    for (name, baseline), image_size, footprint in product(baselines.items(), image_sizes, footprints):
        if baseline is None:
            raise InputError(f"{name} is not accepted: name a SAN, it is timed against its ResNet.")
        shared = () if width == 1 else (("width", width),)
        variation = shared if footprint == FOOTPRINT else (*shared, ("footprint", footprint))
        san = Case(name, image_size=image_size, variation=variation, **step)
        yield time_pair(san, replace(san, model=baseline, variation=shared), n, device, progress)


def time_pair(san: Case, resnet: Case, n: int, device: torch.device, progress: Report = silent) -> Benchmark:
    """Steps of both in turn. Raises InputError for an unknown dtype, and n below 1.

    bytes holds for each side the memory that autograd keeps for the backward pass of a training or attack step, and the
    largest memory of a process that does nothing else.
    """
    check_rounds(n)
    find_dtype(san.dtype)
    cases = {"san": san, "resnet": resnet}
    models = {side: case.network(device) for side, case in cases.items()}
    eager = {side: replace(case, compiled=False) for side, case in cases.items()}  # what is kept shows in eager steps only
    kept = {side: kept_for_backward(make_loss(case, models[side], device), models[side]) for side, case in eager.items()}
    losses = {side: make_loss(case, models[side], device) for side, case in cases.items()}
    steps = {side: make_step(case, models[side], losses[side]) for side, case in cases.items()}
    timing = time_in_turn(steps, n, device, progress, f"{san.mode} {san.model} / {resnet.model}", warm_up=WARM_UP)
    setting = {side: {"model": case.model, **dict(case.variation)} for side, case in cases.items()}
    shared = {field: getattr(san, field) for field in ("mode", "batch_size", "image_size", "dtype", "compiled")}
    footprint = dict(san.variation).get("footprint", FOOTPRINT)
    return timing.benchmark(
        "model",
        {**setting, **shared, "footprint": footprint, "kernel": kernel(device)},
        device,
        bytes={side: (kept[side], peak_memory(case, device)) for side, case in cases.items()},
    )


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
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9, fused=True)  # as in training

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
    return peak_of_this_process(device)


def peak_of_this_process(device: torch.device) -> int:
    """The most memory so far, in bytes: resident on a CPU, allocated by torch on a GPU."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    status = Path("/proc/self/status")
    if status.is_file():  # Linux hands getrusage's maximum on from parent to child
        return next(1024 * int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith("VmHWM"))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
