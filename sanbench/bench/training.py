"""What the training loop costs beside the network: `sanbench bench train`."""

import statistics
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from sanbench.data import load_dataset
from sanbench.progress import Progress, Report, silent
from sanbench.runs.config import TrainConfig
from sanbench.runs.run import Run
from sanbench.training.distributed import SINGLE
from sanbench.training.interruption import Interruption
from sanbench.training.loop import Loop

LIMIT = 0.03  # of a step, for everything but forward, backward and optimiser
STEPS = 10  # of the real loop in a round


@dataclass(frozen=True)
class Throughput:
    """Medians of n rounds of STEPS steps each.

    images_per_second counts whole steps; overhead is the share of a step, in [0, 1], that is neither forward, backward nor
    optimiser on ready tensors: reading, augmentation, counting, logging.
    """

    network: str
    images_per_second: float
    overhead: float
    shares: dict[str, float]
    batch_size: int
    n: int


def throughput(configs: Sequence[TrainConfig], n: int, device: torch.device, progress: Report = silent) -> list[Throughput]:
    """The training loop of each configuration, a round each in turn, so that a machine that drifts does so for all."""
    with ExitStack() as held:
        loops = [held.enter_context(looping(config, device)) for config in configs]
        rounds: list[list[dict[str, float]]] = [[] for _ in loops]
        for turn in range(n + 1):  # the first warms up
            for loop, found in zip(loops, rounds, strict=True):
                shares = one_round(loop)
                if turn:
                    found.append(shares)
            progress(Progress("train " + " / ".join(config.model.label for config in configs), turn + 1, n + 1))
    return [summary(config, found) for config, found in zip(configs, rounds, strict=True)]


@contextmanager
def looping(config: TrainConfig, device: torch.device) -> Iterator[Loop]:
    """The loop of `sanbench train`, epochs of STEPS steps, in a folder that goes away."""
    images = load_dataset(config.data, "train", config.read_options)
    spec = config.model.model_copy(update={"num_classes": len(images.classes)})
    config = config.model_copy(update={"model": spec})
    with TemporaryDirectory() as folder, ExitStack() as held:
        run = Run(Path(folder) / "run")
        run.open(config, False, held)
        loop = Loop(config, run, images, images, device, silent, SINGLE, Interruption())
        loop.steps = min(loop.steps, STEPS)
        loop.state.clock.waits = True
        yield loop


def one_round(loop: Loop) -> dict[str, float]:
    clock, state = loop.state.clock, loop.state
    clock.reset()
    loop.train_epoch()
    shares = clock.shares() | {"seconds": clock.total() / loop.steps}  # a step
    state.epoch, state.step = state.epoch + 1, 0
    state.totals.zero_()
    return shares


def summary(config: TrainConfig, rounds: Sequence[dict[str, float]]) -> Throughput:
    median = {name: statistics.median(shares[name] for shares in rounds) for name in rounds[0]}
    seconds = median.pop("seconds")
    own = [shares["forward"] + shares["backward"] + shares["optimizer"] for shares in rounds]
    speed = config.recipe.batch_size / seconds
    return Throughput(config.model.label, speed, 1 - statistics.median(own), median, config.recipe.batch_size, len(rounds))
