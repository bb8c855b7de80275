"""`sanbench reproduce`: two self-attention networks and a ResNet, trained, measured and reported in one call."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from sanbench.data import load_dataset
from sanbench.evaluation.attacking import bind
from sanbench.evaluation.attacks import parse_attacks
from sanbench.evaluation.corruptions import parse_corruptions
from sanbench.evaluation.experiments import Protocol, evaluate
from sanbench.evaluation.loop import Identity, Perturbation
from sanbench.evaluation.rotations import parse_angles
from sanbench.progress import Report, silent
from sanbench.records import Record, Store
from sanbench.report import write_report
from sanbench.training.config import configure
from sanbench.training.loop import train
from sanbench.training.runs import Run, differences

MODELS = ("resnet26", "san10_pairwise", "san10_patchwise")


@dataclass(frozen=True)
class Preset:
    """What is trained and measured on fashion10k; `changes` are fields of recipe and network."""

    eps: str
    limit: int | None
    steps: int | None = None  # each attack's own
    angles: str = "90,180,270,flip"
    attacks: str = "pgd,pgd-targeted"
    ensemble: str = ""  # budgets of the standard ensemble, and of square beside it
    sweep: str = ""  # resampled angles
    corruptions: str = ""
    severity: str = "1:5"
    san: dict[str, Any] = field(default_factory=dict)
    resnet: dict[str, Any] = field(default_factory=dict)


PRESETS: dict[str, Preset] = {
    "quick": Preset(
        eps="2/255,4/255,8/255",
        limit=300,
        sweep="0:360:45",
        san={"width": 0.5, "epochs": 8, "crops": False},
        resnet={"epochs": 6, "crops": False},
    ),
    "full": Preset(
        eps="1/255,2/255,4/255,8/255,16/255",
        limit=None,
        attacks="fgsm,pgd,pgd-targeted,apgd,apgd-dlr,apgd-targeted,fab",
        ensemble="1/255,2/255",
        sweep="0:360:15",
        corruptions="all",
        san={"epochs": 30},
        resnet={"epochs": 30},
    ),
}


def reproduce(
    preset: str, runs: Path, store: Store, device: torch.device, progress: Report = silent
) -> tuple[list[Record], list[str]]:
    """Train what is not trained, measure what is not measured, write the report; its records and its files.

    What an interruption left of a training or a measurement goes on. Raises InputError for runs with other settings.
    """
    chosen = PRESETS[preset]
    store.check_writable()
    images = load_dataset("fashion10k", "test")
    records = []
    for name in MODELS:
        changes = chosen.resnet if name.startswith("resnet") else chosen.san
        config = configure(name, "fashion10k", changes=changes)
        run = Run(runs / f"{preset}-{name}")
        if run.exists():
            differences(run, config, 1)
        train(config, run.folder, device, progress, resume=run.exists())
        subject = run.subject()
        subject.model.to(device)
        wanted = parse_attacks(chosen.attacks, chosen.eps, chosen.steps)
        if chosen.ensemble:
            wanted += parse_attacks("square,standard", chosen.ensemble)
        attacks = bind(subject.model, wanted)
        everything = Protocol()
        conditions: list[Perturbation] = [Identity(), *parse_angles(chosen.angles)]
        if chosen.sweep:
            conditions += [p for p in parse_angles(chosen.sweep) if p.setting not in [known.setting for known in conditions]]
        if chosen.corruptions:
            conditions += parse_corruptions(chosen.corruptions, chosen.severity, seed=0)
        records += evaluate(subject, images, conditions, store, device, everything, progress)
        records += evaluate(subject, images, attacks, store, device, Protocol(limit=chosen.limit), progress)
    return records, write_report(store)
