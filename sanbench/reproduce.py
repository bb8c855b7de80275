"""`sanbench reproduce`: two self-attention networks and a ResNet, trained, measured and reported in one call."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from sanbench.data import load_dataset
from sanbench.evaluation.attacks import bind, parse_attacks
from sanbench.evaluation.experiments import Protocol, evaluate
from sanbench.evaluation.loop import Identity
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
    steps: int = 10
    angles: str = "90,180,270,flip"
    attacks: str = "pgd,pgd-targeted"
    san: dict[str, Any] = field(default_factory=dict)
    resnet: dict[str, Any] = field(default_factory=dict)


PRESETS: dict[str, Preset] = {
    "quick": Preset(
        eps="1/255,2/255,4/255,8/255",
        limit=500,
        san={"width": 0.5, "epochs": 5},
        resnet={"epochs": 8},
    ),
    "full": Preset(eps="1/255,2/255,4/255,8/255,16/255", limit=None, san={"epochs": 30}, resnet={"epochs": 30}),
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
        attacks = bind(subject.model, parse_attacks(chosen.attacks, chosen.eps, chosen.steps, None, seed=0))
        everything = Protocol()
        rotations = [Identity(), *parse_angles(chosen.angles)]
        records += evaluate(subject, images, rotations, store, device, everything, progress)
        records += evaluate(subject, images, attacks, store, device, Protocol(limit=chosen.limit), progress)
    return records, write_report(store)
