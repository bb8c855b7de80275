"""What a whole protocol would take on this device, from costs measured in about a minute: `sanbench bench protocol`."""

import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from sanbench.bench.machine import kernel
from sanbench.bench.photographs import make_imagenet
from sanbench.bench.timing import Timing, seconds_of
from sanbench.data import Batch, ReadOptions, load_dataset
from sanbench.data.images import pixels
from sanbench.data.loading import available_cpus, reading_processes
from sanbench.evaluation.attacks.attack import Attack
from sanbench.evaluation.attacks.table import ATTACKS, parse_attacks
from sanbench.evaluation.attacks.table import STANDARD as STANDARD_MEMBERS
from sanbench.evaluation.corruptions import parse_corruptions
from sanbench.evaluation.loop import Identity, Perturbation, evaluating, measure, predictions
from sanbench.evaluation.rotations import parse_angles
from sanbench.progress import Progress, Report, silent
from sanbench.runs.evaluated import EvaluatedModel, image_side
from sanbench.store.rows import Rows
from sanbench.store.schema import Benchmark

TURNS, ANGLES, BUDGETS = "90,180,270,flip", "15:360:15", "1/255,2/255,4/255,8/255"
STANDARD, STANDARD_SHARE = "4/255", 10  # of every tenth image: RobustBench takes 5,000 of ImageNet's 50,000
SAMPLE = {"cpu": 32, "cuda": 64}  # images
SAMPLES, SECONDS = 8, 45  # of `standard`, at most: it spends most on the few images that withstand it for long
FEW = 0.1  # of the photographs stand after pgd: more are shown to MEMBERS
MEMBERS = STANDARD_MEMBERS[:2]  # what withstands these, or pgd at the same budget, is taken to withstand all
STEPS = 11


class Line(NamedTuple):
    """A command of the protocol: how many conditions, on how many images, and its seconds."""

    command: str
    conditions: int
    images: int
    seconds: float


class Steadfast(nn.Module):
    """Logits that no perturbation of 4/255 changes the order of, with gradients: every pass of an attack is spent."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.slopes = nn.Parameter(torch.linspace(1e-3, 2e-3, classes), requires_grad=False)
        self.logits = nn.Parameter(torch.linspace(0, 10, classes), requires_grad=False)
        self.logits[-1] += 10

    def forward(self, images: Tensor) -> Tensor:
        return self.logits + self.slopes * images.mean((1, 2, 3))[:, None]


def time_protocol(
    evaluated: EvaluatedModel,
    images: int,
    top1: float,
    batch_size: int,
    device: torch.device,
    progress: Report = silent,
) -> tuple[list[Line], Benchmark]:
    """Accuracy, rotations, corruptions, pgd at four budgets, and `standard` on a tenth of `images`, by command.

    `standard` is left out for networks of fewer than four classes, which it cannot attack.

    Costs are measured on photographs of 500 x 375, with the network's own predictions as labels: an attack has to work on
    each. Of `images` it works on the share `top1` that the network has right. Of `standard` MEMBERS are timed on what falls to
    pgd at 4/255, on more photographs where nearly all do; what withstands them is taken to cost all passes.
    """
    sample = SAMPLE[device.type]
    batch, reading = read_sample(image_side(evaluated), SAMPLES * sample)
    batch = batch._replace(labels=own_predictions(evaluated.model, batch, device, batch_size))
    parts = zip(*(column.split(sample) for column in batch[:3]), strict=True)  # images, labels, indices
    samples = [batch._replace(images=images, labels=labels, indices=indices) for images, labels, indices in parts]
    right = samples[0]
    wrong = right._replace(labels=(right.labels + 1) % evaluated.model.spec.num_classes)
    figures: dict[str, float] = {"reading": reading}

    def timed(name: str, perturbations: Sequence[Perturbation], shown: Batch = right) -> list[Rows]:
        """Keep the device's seconds an image and condition, and give the rows."""
        found: list[Rows] = []

        def run() -> None:
            for outcome in measure(evaluated.model, [(shown, perturbations)], device, batch_size):
                found.extend(scored.rows for scored in outcome)

        figures[name] = seconds_of(run, (), device) / len(shown.labels) / len(perturbations)
        progress(Progress(f"bench protocol, {name}", len(figures), STEPS))
        return found

    timed("upright", [Identity()])  # the first pass of a network is slower
    timed("upright", [Identity()])
    turns, corruptions = parse_angles(TURNS), parse_corruptions("all", "1:5", 0)
    angles = [angle for angle in parse_angles(ANGLES) if angle not in turns]  # what was measured is not repeated
    timed("quarter turn", turns)
    timed("any angle", angles[:2])
    started = time.perf_counter()
    for corruption in corruptions:
        corruption.change(right.images[:2], right.indices[:2])
    figures["corrupting"] = (time.perf_counter() - started) / 2 / len(corruptions)
    attacks = {eps: Attack("pgd", evaluated.model, parse_attacks("pgd", eps)[0][1], batch_size) for eps in BUDGETS.split(",")}
    rows = {}
    for eps, attack in attacks.items():
        (rows[eps],) = timed(f"pgd {eps}", [attack])
    timed("not attacked", [attacks[STANDARD]], wrong)
    standard = evaluated.model.spec.num_classes >= ATTACKS["standard"].fewest_classes
    if standard:
        fell = torch.tensor(rows[STANDARD]["success"].tolist())
        seconds, shown, stood = 0.0, 0, int((~fell).sum())
        for whole in samples if stood <= FEW * sample else samples[:1]:
            left, shown = whole if shown else chosen(whole, fell), shown + sample
            for name in MEMBERS:
                if len(left.labels):
                    attack = Attack(name, evaluated.model, parse_attacks(name, STANDARD, restarts=1)[0][1], batch_size)
                    (found,) = timed(f"standard, {name}", [attack], left)
                    seconds += figures.pop(f"standard, {name}") * len(left.labels)
                    left = chosen(left, ~torch.tensor(found["success"].tolist()))
            stood += len(left.labels)
            if seconds > SECONDS:
                break
        figures |= {"falling to standard": seconds / shown, "withstanding standard": stood / shown}
        withstanding = withstanding_seconds(figures, rows, evaluated.model.spec.num_classes)
        figures["standard"] = figures["falling to standard"] + figures["withstanding standard"] * withstanding

    def attacked(*names: str) -> float:
        return sum(top1 * figures[name] + (1 - top1) * figures["not attacked"] for name in names)

    def together(on_device: float, beside: float) -> float:
        """Seconds an image: the cores of a CPU do both; a GPU waits for the slower."""
        if device.type == "cpu":
            return on_device + beside / available_cpus()
        return max(on_device, beside / reading_processes())

    fewer = round(images / STANDARD_SHARE)
    pgd = attacked(*(f"pgd {eps}" for eps in attacks))
    corrupting = len(corruptions) * figures["corrupting"]
    lines = [
        Line("accuracy", 1, images, together(figures["upright"], reading)),
        Line(f"rotate --angles {TURNS}", len(turns), images, together(len(turns) * figures["quarter turn"], reading)),
        Line(f"rotate --angles {ANGLES}", len(angles), images, together(len(angles) * figures["any angle"], reading)),
        Line("corrupt", len(corruptions), images, together(len(corruptions) * figures["upright"], reading + corrupting)),
        Line(f"attack --attack pgd --eps {BUDGETS}", len(attacks), images, together(pgd, reading)),
    ]
    if standard:
        lines.append(Line(f"attack --attack standard --eps {STANDARD}", 1, fewer, together(attacked("standard"), reading)))
    lines = [line._replace(seconds=line.images * line.seconds) for line in lines]
    network = {"model": evaluated.model.spec.name, **evaluated.model.spec.variation}
    setting = {"network": network, "images": images, "top1": top1, "batch_size": batch_size, "sample": sample}
    setting |= {"image_size": right.images.shape[-1], "kernel": kernel(device)}
    timing = Timing({line.command: [line.seconds] for line in lines})
    return lines, timing.benchmark("protocol", setting, device, figures=figures)


def chosen(batch: Batch, which: Tensor) -> Batch:
    return batch._replace(images=batch.images[which], labels=batch.labels[which], indices=batch.indices[which])


@torch.no_grad()
def own_predictions(model: nn.Module, batch: Batch, device: torch.device, batch_size: int = 64) -> Tensor:
    """As labels: an attack then has to work on every image."""
    with evaluating(model):
        shown = batch.images.split(batch_size)
        return torch.cat([predictions(model(pixels(images.to(device)))) for images in shown]).cpu()


def read_sample(side: int, count: int) -> tuple[Batch, float]:
    """`count` photographs of `side` x `side`, and the seconds that one process takes to read one."""
    with tempfile.TemporaryDirectory() as folder:
        make_imagenet(Path(folder), count)
        photographs = load_dataset(f"folder:{folder}", "test", ReadOptions(image_size=side))
        started = time.perf_counter()
        batch = photographs.__getitems__(list(range(count)))
        return batch, (time.perf_counter() - started) / count


def withstanding_seconds(figures: dict[str, float], rows: dict[str, Rows], classes: int) -> float:
    """Of `standard` on an image that withstands it, from the time of a pass in what was measured: `rows` of pgd by budget."""
    forward = figures["upright"]
    total = sum(figures[f"pgd {eps}"] * len(found["forward_passes"]) for eps, found in rows.items())
    spent = {name: sum(found[name].sum() for found in rows.values()) for name in ("forward_passes", "backward_passes")}
    backward = max(0.0, (total - forward * spent["forward_passes"]) / max(1, spent["backward_passes"]))
    whole = all_passes(classes)
    return forward * whole["forward_passes"] + backward * whole["backward_passes"]


def all_passes(classes: int) -> dict[str, int]:
    """Forward and backward passes that `standard` spends on an image that withstands it, by a network that never falls.

    They grow evenly with a member's steps: two short runs of each tell them.
    """
    network, label = Steadfast(classes), torch.tensor([classes - 1])
    spent = dict.fromkeys(("forward_passes", "backward_passes"), 0)
    for name in STANDARD_MEMBERS:
        few, more = (
            Attack(name, network, parse_attacks(name, STANDARD, steps=steps)[0][1])(
                torch.full((1, 3, 32, 32), 0.5), label, torch.tensor([0])
            ).columns
            for steps in (5, 10)
        )
        for passes in spent:
            spent[passes] += int(more[passes] - few[passes]) * ATTACKS[name].steps // 5
    return spent
