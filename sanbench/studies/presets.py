"""PRESETS of `sanbench reproduce`: two SANs and a ResNet are trained, measured and reported in one call."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from sanbench.data import load_dataset
from sanbench.evaluation.attacks.attack import bind
from sanbench.evaluation.attacks.table import parse_attacks
from sanbench.evaluation.corruptions import parse_corruptions
from sanbench.evaluation.evaluate import evaluate
from sanbench.evaluation.loop import Identity, Perturbation
from sanbench.evaluation.parts import EvaluationOptions
from sanbench.evaluation.rotations import Frame, parse_angles
from sanbench.models import family_name
from sanbench.progress import Report, silent, within
from sanbench.runs.config import configure
from sanbench.runs.evaluated import EvaluatedModel
from sanbench.runs.run import Run, differences
from sanbench.store.files import Store
from sanbench.store.schema import Record
from sanbench.training.loop import train

NETWORKS = ("resnet26", "san10_pairwise", "san10_patchwise")


@dataclass(frozen=True)
class Attacks:
    """Attacks with each of their budgets on the same `limit` images; without `steps`, each attack's default."""

    names: str
    eps: str
    limit: int | None = None
    steps: int | None = None


@dataclass(frozen=True)
class Preset:
    """What is trained and measured on fashion10k.

    sweep     resampled angles, in each of `frames`
    networks  the preset that trains the networks, if it is another one
    changes   fields of recipe and network by the name of the network's family, see `sanbench.models.FAMILIES`
    """

    attacks: tuple[Attacks, ...]
    angles: str = "90,180,270,flip"
    sweep: str = ""
    frames: tuple[Frame, ...] = (Frame(),)
    corruptions: str = ""
    severity: str = "1:5"
    networks: str = ""
    changes: dict[str, dict[str, Any]] = field(default_factory=dict)


PRESETS: dict[str, Preset] = {
    "quick": Preset(
        (Attacks("pgd,pgd-targeted", "2/255,4/255,8/255", 200),),
        sweep="0:360:45",
        changes={
            "san": {"width": 0.375, "epochs": 5, "lr": 0.004, "warmup_epochs": 0.5, "crops": False, "zero_init": True},
            "resnet": {"width": 0.375, "epochs": 5, "warmup_epochs": 0.5, "crops": False, "zero_init": True},
        },
    ),
    "all": Preset(
        (
            Attacks("fgsm,pgd,pgd-targeted", "1/255,2/255,4/255,8/255", 200),
            Attacks("pgd", "8/255", 200, steps=100),
            Attacks("pgd-l2", "1/4,1/2", 200),
            Attacks("apgd,apgd-dlr", "2/255,8/255", 100),
            Attacks("pgd,apgd-targeted,fab,square,standard", "2/255", 32),
        ),
        angles="90,180,270,flip,mirror",
        sweep="0:360:15",
        frames=(Frame(), Frame(crop="inscribed"), Frame(mask="disc")),
        corruptions="all",
        networks="quick",
    ),
    "full": Preset(
        (
            Attacks("fgsm,pgd,pgd-targeted,apgd,apgd-dlr,apgd-targeted,fab", "1/255,2/255,4/255,8/255,16/255"),
            Attacks("pgd-l2", "1/4,1/2,1"),
            Attacks("square,standard", "1/255,2/255"),
        ),
        sweep="0:360:15",
        frames=(Frame(), Frame(crop="inscribed"), Frame(mask="disc")),
        corruptions="all",
        changes={"san": {"epochs": 30}, "resnet": {"epochs": 30}},
    ),
}


def reproduce(preset: str, runs: Path, store: Store, device: torch.device, progress: Report = silent) -> list[Record]:
    """Train what is not trained and measure what is not measured; the records.

    Finished runs and records are used as they are, unfinished ones go on. Raises InputError for runs with other settings.
    """
    chosen = PRESETS[preset]
    networks = chosen.networks or preset
    changes = PRESETS[networks].changes
    store.check_writable()
    images = load_dataset("fashion10k", "test")
    records = []
    stages = 2 + len(chosen.attacks)  # of each network: training, measuring, attacks
    for number, name in enumerate(NETWORKS):
        told = [
            within(progress, (number + stage / stages) / len(NETWORKS), (number + (stage + 1) / stages) / len(NETWORKS))
            for stage in range(stages)
        ]
        config = configure(name, "fashion10k", changes=changes.get(family_name(name)))
        run = Run(runs / f"{networks}-{name}")
        if run.exists():
            differences(run, config)
        train(config, run.folder, device, told[0], resume=run.exists())
        evaluated = EvaluatedModel.load(run.checkpoint, run.name)
        evaluated.model.to(device)
        conditions: list[Perturbation] = [Identity(), *parse_angles(chosen.angles)]
        for frame in chosen.frames if chosen.sweep else ():
            seen = [known.setting for known in conditions]
            conditions += [turned for turned in parse_angles(chosen.sweep, frame) if turned.setting not in seen]
        if chosen.corruptions:
            conditions += parse_corruptions(chosen.corruptions, chosen.severity, seed=0)
        records += evaluate(evaluated, images, conditions, store, device, progress=told[1])
        for each, bar in zip(chosen.attacks, told[2:], strict=True):
            attacks = bind(evaluated.model, parse_attacks(each.names, each.eps, each.steps))
            records += evaluate(evaluated, images, attacks, store, device, EvaluationOptions(limit=each.limit), bar)
    return records
