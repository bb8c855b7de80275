"""What evaluation costs beside the network, image after image: speed, waiting and memory. `sanbench bench pipeline`."""

import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from itertools import product
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import torch
from torch import Tensor, nn

from sanbench.bench.machine import kernel
from sanbench.bench.timing import Timing
from sanbench.data import Images, ReadOptions, batches, load_dataset
from sanbench.data.images import pixels
from sanbench.device import keep_memory, resident_memory, trim_heap
from sanbench.evaluation.attacks.options import bind
from sanbench.evaluation.attacks.table import parse_attacks
from sanbench.evaluation.corruptions import parse_corruptions
from sanbench.evaluation.evaluate import evaluate
from sanbench.evaluation.loop import Perturbation
from sanbench.evaluation.parts import EvaluationOptions
from sanbench.evaluation.rotations import parse_angles
from sanbench.models import Classifier
from sanbench.progress import Progress, Report, silent
from sanbench.runs.evaluated import EvaluatedModel, fresh_or_evaluated
from sanbench.store.files import Store
from sanbench.store.schema import Benchmark, ModelSpec

STUB = "stub"
CASES = ("accuracy", "rotation by 30°", "corruption fog 3", "pgd, 2 steps")
TENTH = 0.1  # of the images: the most memory while the first are measured is compared with that of the last


class Stub(nn.Module):
    """One 1 x 1 convolution and the mean over the map: what is left is what evaluation costs."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.convolution = nn.Conv2d(3, classes, 1)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.convolution(images.mean((2, 3), keepdim=True))[:, :, 0, 0]
        return logits

    @torch.no_grad()
    def fit(self, colours: Tensor) -> None:
        """Tell by the mean colour which of `colours`, classes x 3, is the nearest: squared distances, less what all share."""
        self.convolution.weight.copy_(2 * colours[:, :, None, None])
        self.convolution.bias.copy_(-colours.square().sum(1))  # type: ignore[union-attr]  # it has one


class Outcome(NamedTuple):
    seconds: float
    waited: float
    early: int  # resident bytes of the measuring process
    late: int


def time_pipeline(
    network: str, runs: Path, root: Path, images: int, workers: Sequence[int], device: torch.device, progress: Report = silent
) -> Iterator[Benchmark]:
    """Each case of CASES on `images` of the ImageNet in `root`, by each number of reading processes, in a process of its own.

    `network` is "stub", a run, a checkpoint or a model with fresh weights. figures: images a second, the share of the time
    spent waiting for images, and the most resident memory in bytes that was seen in the first and in the last tenth of the
    images: from one moment to the next it differs by a batch. Raises InputError for an unknown network and for images that
    are missing.
    """
    evaluated = load(network, runs)
    load_dataset("imagenet", "test", ReadOptions(root))
    cases = list(product(CASES, workers))
    for done, (case, count) in enumerate(cases, start=1):
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
            found = pool.submit(run_case, network, runs, root, images, case, count, str(device)).result()
        figures = {"images_per_second": images / found.seconds, "waiting": found.waited / found.seconds}
        figures |= {"resident_early": found.early, "resident_late": found.late}
        setting = {"network": evaluated.network.label, "case": case, "images": images, "workers": count}
        setting |= {"kernel": kernel(device)}
        yield Timing({"evaluation": [found.seconds]}).benchmark("pipeline", setting, device, figures=figures)
        progress(Progress("bench pipeline", done, len(cases)))


def load(network: str, runs: Path) -> EvaluatedModel:
    if network != STUB:
        return fresh_or_evaluated(network, runs)
    model = Classifier(ModelSpec(name=STUB), Stub(1000)).eval()
    return EvaluatedModel(model, STUB, STUB, {"name": "imagenet", "image_size": 224}, {}, "not trained")


def run_case(network: str, runs: Path, root: Path, images: int, case: str, workers: int, device_name: str) -> Outcome:
    keep_memory()
    device, evaluated = torch.device(device_name), load(network, runs)
    evaluated.model.to(device)
    seen = {"early": 0, "late": 0}

    def watch(now: Progress) -> None:
        for name, here in (("early", now.done <= TENTH * now.total), ("late", now.done >= (1 - TENTH) * now.total)):
            if here:
                seen[name] = max(seen[name], resident_memory())

    with TemporaryDirectory() as folder:
        options = EvaluationOptions(limit=images, workers=workers)
        photographs = load_dataset("imagenet", "test", ReadOptions(root))
        if network == STUB:
            fit(evaluated.model, photographs, workers)
            trim_heap()  # of what fitting took no more is resident
        started = time.perf_counter()
        (record,) = evaluate(evaluated, photographs, perturbations(case, evaluated), Store(folder), device, options, watch)
        seconds = time.perf_counter() - started
    return Outcome(seconds, record.waited or 0.0, **seen)


def fit(stub: Classifier, images: Images, workers: int) -> None:
    """Let it tell classes apart by one image of each, as far as colours do: what is wrong before is not attacked."""
    chosen = torch.tensor(one_of_each_class(images)).split(EvaluationOptions().batch_size)
    colours = torch.zeros(stub.outputs, 3)
    for batch in batches(images, [some.tolist() for some in chosen], workers):
        colours[batch.labels] = pixels(batch.images).mean((2, 3))
    assert isinstance(stub.network, Stub)
    stub.network.fit((colours.to(stub.mean) - stub.mean[:, 0, 0]) / stub.std[:, 0, 0])


def one_of_each_class(images: Images) -> list[int]:
    """The first image of each, in the order of the classes."""
    first = {label: index for index, label in reversed(list(enumerate(images.labels.tolist())))}
    return [first[label] for label in sorted(first)]


def perturbations(case: str, evaluated: EvaluatedModel) -> list[Perturbation]:
    every: dict[str, list[Perturbation]] = {
        "accuracy": parse_angles("0"),
        "rotation by 30°": parse_angles("30"),
        "corruption fog 3": parse_corruptions("fog", "3", 0),
        "pgd, 2 steps": bind(evaluated.model, parse_attacks("pgd", "4/255", 2)),
    }
    return every[case]
