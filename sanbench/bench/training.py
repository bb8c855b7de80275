"""What the training loop costs beside the network: `sanbench bench train`."""

import statistics
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from sanbench.bench.machine import kernel
from sanbench.bench.timing import check_rounds, time_in_turn
from sanbench.data import load_dataset
from sanbench.progress import Report, silent
from sanbench.runs.config import TrainConfig
from sanbench.runs.run import Run
from sanbench.store.schema import Benchmark
from sanbench.training.distributed import SINGLE
from sanbench.training.interruption import Interruption
from sanbench.training.loop import Loop

LIMIT = 0.03  # of a step, for everything but forward, backward and optimiser
STEPS = 10  # of the real loop in a round
NETWORK = ("forward", "backward", "optimizer")  # parts of a step that are the network's own
DECISIVE = ("data", "image_size", "decoder", "precision", "compile", "workers", "accumulate", "deterministic")


def time_training(
    configs: Sequence[TrainConfig], n: int, device: torch.device, progress: Report = silent, steps: int = STEPS
) -> Benchmark:
    """The training loops of networks with one recipe on one data set, rounds of `steps` steps in turn.

    seconds are a round's, by the network's label. figures are by part and label: `images_per_second` of whole steps, the
    share of a step of each part, and `overhead`, the share in [0, 1] that is neither forward, backward nor optimiser on
    ready tensors: reading, augmentation, counting, logging. Raises InputError if n is below 1.
    """
    check_rounds(n)
    named = {config.model.label: config for config in configs}
    with ExitStack() as held:
        loops = {label: held.enter_context(looping(config, device, steps)) for label, config in named.items()}
        rounds: dict[str, list[dict[str, float]]] = {label: [] for label in loops}
        sides = {label: partial(time_epoch, loop, rounds[label]) for label, loop in loops.items()}
        timing = time_in_turn(sides, n, device, progress, "train " + " / ".join(loops))
        steps = next(iter(loops.values())).steps
    config = configs[0]
    images = steps * config.recipe.batch_size
    figures = {f"images_per_second {label}": images / seconds for label, seconds in timing.medians().items()}
    for label, shares in rounds.items():
        figures |= {f"{part} {label}": share for part, share in medians(shares[-n:]).items()}
    networks = [{"model": config.model.name, **config.model.variation} for config in named.values()]
    options = config.model_dump(mode="json", include=set(DECISIVE))
    setting = {"networks": networks, **options, "recipe": config.recipe.model_dump(mode="json"), "steps": steps}
    return timing.benchmark("train", {**setting, "kernel": kernel(device)}, device, figures=figures)


@contextmanager
def looping(config: TrainConfig, device: torch.device, steps: int) -> Iterator[Loop]:
    """The loop of `sanbench train`, epochs of at most `steps` steps, in a folder that goes away."""
    images = load_dataset(config.data, "train", config.read_options)
    spec = config.model.model_copy(update={"num_classes": len(images.classes)})
    config = config.model_copy(update={"model": spec})
    with TemporaryDirectory() as folder, ExitStack() as held:
        run = Run(Path(folder) / "run")
        run.open(config, False, held)
        yield Loop(config, run, images, images, device, silent, SINGLE, Interruption(), steps)


def time_epoch(loop: Loop, rounds: list[dict[str, float]]) -> None:
    rounds.append(loop.time_epoch())


def medians(rounds: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The median share of each part, and of all that is not the network's own."""
    shares = {part: statistics.median(one[part] for one in rounds) for part in rounds[0]}
    return {**shares, "overhead": 1 - statistics.median(sum(one[part] for part in NETWORK) for one in rounds)}
