"""What a study would take: device-hours from benchmarks of this device, memory and disk, before anything is done."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cache
from typing import TYPE_CHECKING

from sanbench.data.loading import available_cpus
from sanbench.device import describe
from sanbench.runs.config import TrainConfig
from sanbench.store.files import Store
from sanbench.store.schema import Benchmark
from sanbench.studies.expand import TablePlan, Training, Wanted
from sanbench.studies.shape import Shape, shape_of
from sanbench.studies.status import Standing
from sanbench.training.plan import STATE, Plan, plan_for

if TYPE_CHECKING:
    import torch

ROW = 20  # bytes of an image's row, compressed, about
PGD = 3 * 10  # passes of pgd, as `Round.passes` counts them: 10 steps, a backward pass as two


@dataclass(frozen=True)
class Line:
    """A training or the measuring of a network: what is left of it.

    seconds  of the device; None: unknown, no benchmark of this device tells. at_most: an upper bound
    memory   bytes of one process in training, in float32; None: unknown
    disk     bytes that it leaves; None: unknown
    """

    name: str
    what: str
    seconds: float | None
    at_most: bool = False
    memory: int | None = None
    disk: int | None = None


def estimate(standing: Standing, store: Store, device: torch.device, processes: int = 1) -> dict[str, list[Line]]:
    """By run, its training and its measurements that are not done; a measurement a kind and number of images."""
    known = [one for one in store.benchmarks() if one.device == describe(device)]
    found: dict[str, list[Line]] = {}
    for training in standing.expansion.trainings:
        lines = []
        if not standing.is_done(training) and not standing.is_trained(training):
            lines.append(of_training(training, known, processes))
        for (kind, limit), own in grouped(standing.missing(training)).items():
            lines.append(of_measuring(training, kind, limit, own, known, device))
        if lines:
            found[training.name] = lines
    return found


def grouped(wanted: Sequence[Wanted]) -> dict[tuple[str, int | None], list[Wanted]]:
    found: dict[tuple[str, int | None], list[Wanted]] = {}
    for each in wanted:
        found.setdefault((each.kind, each.limit), []).append(each)
    return found


def of_training(training: Training, known: Sequence[Benchmark], processes: int) -> Line:
    config, shape = training.config, shape_of(training.config)
    if shape is None:
        return Line(training.name, "train", None)
    planned = planned_for(config.model_dump_json(), shape, processes)
    speed = next((s for one in reversed(known) if (s := images_per_second(one, config))), None)
    seconds = shape.train * config.recipe.epochs / speed if speed else None
    copies = 2 + 1 + STATE[config.recipe.optimizer] + bool(config.recipe.ema)  # best, last, and while it lasts resume
    return Line(training.name, "train", seconds, False, planned.memory, 4 * planned.parameters * copies)


@cache
def planned_for(config: str, shape: Shape, processes: int) -> Plan:
    """The plan of a training on so many images, which need not be there."""
    return plan_for(TrainConfig.model_validate_json(config), shape.side, shape.classes, shape.train, processes)


def images_per_second(one: Benchmark, config: TrainConfig) -> float | None:
    """What `sanbench bench train` found of this network, data and batch."""
    same = one.kind == "train" and all(
        one.setting.get(name) == getattr(config, name) for name in ("data", "image_size", "decoder", "precision", "compile")
    )
    alike = same and one.setting.get("recipe", {}).get("batch_size") == config.recipe.batch_size
    return one.figures.get(f"images_per_second {config.model.label}") if alike else None


def of_measuring(
    training: Training, kind: str, limit: int | None, own: Sequence[Wanted], known: Sequence[Benchmark], device: torch.device
) -> Line:
    config, shape = training.config, shape_of(training.config)
    what = f"{kind}, {len(own)} condition{'s' * (len(own) > 1)}"
    if shape is None:
        return Line(training.name, what, None)
    images = min(limit or shape.test, shape.test)
    network = {"model": config.model.name, **config.model.variation}
    fitting = [one for one in known if one.kind == "protocol" and one.setting["network"] == network]
    figures = next((one.figures for one in reversed(fitting) if one.setting["image_size"] == shape.side), None)
    each = [None if figures is None else seconds_an_image(wanted, figures, device) for wanted in own]
    seconds = None if None in each else images * sum(filter(None, each))
    at_most = kind == "attack"
    return Line(training.name, f"{what}, {images:,} images", seconds, at_most, None, ROW * images * len(own))


def seconds_an_image(wanted: Wanted, figures: dict[str, float], device: torch.device) -> float | None:
    """From what `sanbench bench protocol` measured, without reading; an attack as if no image fell."""
    setting = json.loads(wanted.setting)
    match wanted.kind:
        case "accuracy":
            return figures["upright"]
        case "rotation":
            exact = set(setting) == {"angle"}
            return figures["quarter turn" if exact else "any angle"]
        case "corruption":
            beside = figures["corrupting"] / (available_cpus() if device.type == "cpu" else 1)
            return figures["upright"] + beside
        case "attack":
            budgets = {Fraction(name.removeprefix("pgd ")): value for name, value in figures.items() if name.startswith("pgd ")}
            return wanted.passes * max(budgets.values()) / PGD if budgets else None
    return None


def totals(found: dict[str, list[Line]], standing: Standing, table: TablePlan) -> tuple[float, int]:
    """Seconds that are known of a table's networks, and how many lines of them are not."""
    names = {training.name for training in standing.trainings(table)}
    lines = [line for name in names for line in found.get(name, [])]
    return sum(line.seconds or 0 for line in lines), sum(line.seconds is None for line in lines)
