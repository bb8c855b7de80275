"""Adversarial attacks (experiment 10 of the paper) in [0, 1] pixels; torchattacks takes the steps.

PAPER: white-box targeted PGD in the L-infinity ball. Budget, step size, steps and target choice were not published;
what is used here stands in every record.

torchattacks 3.5.1 is used where it can be trusted in float32 on [0, 1]: FGSM, PGD, PGDL2, APGD, FAB, and Square with
`resc_schedule=False`. Worked around: its draws depend on the batch (`rng.py`); its `AutoAttack` is not the standard ensemble
(10 steps, 999 targets on ImageNet), so `standard` is composed here; its `APGDT` gives all images of an L2 batch the first
one's step size, so `apgd-targeted` is `APGD` with the targeted loss. Left out: CW, which changed nothing where logits are
large and negative; MI-, DI- and TI-FGSM, which stall on zero gradients; FAB in L1, which crashes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from sanbench.errors import InputError, unknown
from sanbench.evaluation.attacks.budget import parse_budget
from sanbench.late import Late

if TYPE_CHECKING:
    import torch
    import torch.nn.functional as F
    import torchattacks
    from torch import Tensor

    from sanbench.evaluation.attacks.queried_model import QueriedModel
else:
    torch, F, torchattacks = Late("torch"), Late("torch.nn.functional"), Late("torchattacks")

TARGETS = ("random", "least-likely", "next")


@dataclass(frozen=True)
class AttackConfig:
    """Budget and step size in pixels of [0, 1], exact; `steps` are queries for square. `seed` of all random numbers.

    target    of pgd-targeted: a random other class, the least likely, or the next in order
    targets   how many classes, by descending logit, apgd-targeted and fab try
    """

    eps: Fraction
    step_size: Fraction
    steps: int = 10
    seed: int = 0
    norm: Literal["linf", "l2"] = "linf"
    restarts: int = 1
    target: str = "random"
    targets: int = 9

    def __post_init__(self) -> None:
        for name in ("steps", "restarts", "targets"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} {getattr(self, name)} is not accepted: it must be at least 1.")
        if self.target not in TARGETS:
            raise unknown("target", self.target, TARGETS)


class Round(NamedTuple):
    """One go at every image that is still right: restart `restart`, or the class of the `target`-th largest logit."""

    attack: str
    config: AttackConfig
    restart: int
    target: int = 2  # 1 is the label's own

    @property
    def passes(self) -> int:
        """Of an image that withstands it: a forward one a step, and by gradient a backward one, which counts as two."""
        return self.config.steps * (3 if ATTACKS[self.attack].by_gradient else 1)


Run = Callable[["QueriedModel", Round], "Tensor"]


@dataclass(frozen=True)
class Entry:
    """An attack: norms (the first is the default), default steps, what one round does, and how its record tells it."""

    run: Run
    steps: int
    norms: tuple[Literal["linf", "l2"], ...] = ("linf", "l2")
    about: tuple[tuple[str, Any], ...] = ()
    shown: tuple[str, ...] = ("steps", "restarts")  # fields of the config that it uses
    aimed: bool = False  # each image has one target, which it leaves at
    targets: bool = False  # a round for each of `config.targets` classes
    fewest_classes: int = 2
    bounded: bool = True
    by_gradient: bool = True
    transfers: bool = False  # what it returns is its strongest example, not the nearest
    members: tuple[str, ...] = ()


def fgsm(queried: QueriedModel, turn: Round) -> Tensor:
    return stepped(queried, torchattacks.FGSM(queried, float(turn.config.eps)))


def pgd(queried: QueriedModel, turn: Round) -> Tensor:
    """x <- clip(x + step_size * sign(grad)), from a uniform random start in the ball (Madry et al. 2018)."""
    c = turn.config
    return stepped(queried, torchattacks.PGD(queried, float(c.eps), float(c.step_size), c.steps, random_start=True))


def pgd_l2(queried: QueriedModel, turn: Round) -> Tensor:
    c = turn.config
    return stepped(queried, torchattacks.PGDL2(queried, float(c.eps), float(c.step_size), c.steps, random_start=True))


def stepped(queried: QueriedModel, attack: Any) -> Tensor:
    """Ascends the cross-entropy of the label or descends that of the target."""
    target = queried.aim.target
    sign, classes = (1, queried.labels) if target is None else (-1, target)
    queried.loss = lambda logits, rows: sign * cross_entropy(logits, classes[rows])
    if target is not None:
        attack.set_mode_targeted_by_function(lambda _, __: target, quiet=True)
    final: Tensor = attack(queried.images, queried.labels)
    with torch.no_grad():
        queried(final)  # the last step is a query too
    return final


def apgd(queried: QueriedModel, turn: Round, loss: str) -> Tensor:
    """Steps that halve where the loss stalls (Croce and Hein 2020). The targeted loss is the paper's DLR of equation 7."""
    c = turn.config
    attack = torchattacks.APGD(queried, NORMS[c.norm], float(c.eps), c.steps, loss="ce" if loss == "ce" else "dlr")
    told = cross_entropy if loss == "ce" else attack.dlr_loss
    queried.loss = lambda logits, rows: told(logits, queried.labels[rows])
    if loss == "targeted":
        target = queried.clean.argsort(1)[:, -turn.target]
        attack.dlr_loss = lambda logits, labels: targeted_dlr(logits, labels, target)
        queried.loss = lambda logits, rows: targeted_dlr(logits, queried.labels[rows], target[rows])
    with torch.no_grad():  # it enables gradients where it needs them; elsewhere its best images would keep every step's graph
        best: Tensor = attack.attack_single_run(queried.images, queried.labels)[0]
    return best


def cross_entropy(logits: Tensor, classes: Tensor) -> Tensor:
    return F.cross_entropy(logits, classes, reduction="none")


def targeted_dlr(logits: Tensor, labels: Tensor, targets: Tensor) -> Tensor:
    """-(z_label - z_target) / (z_(1) - (z_(3) + z_(4)) / 2), z_(k) the k-th largest: N."""
    ordered = logits.sort(1, descending=True).values
    return (pick(logits, targets) - pick(logits, labels)) / (ordered[:, 0] - (ordered[:, 2] + ordered[:, 3]) / 2 + 1e-12)


def pick(logits: Tensor, classes: Tensor) -> Tensor:
    return logits.gather(1, classes[:, None])[:, 0]


def fab(queried: QueriedModel, turn: Round) -> Tensor:
    """The nearest point beyond the linearised boundary to one class, step by step (Croce and Hein 2020)."""
    c = turn.config
    attack = torchattacks.FAB(queried, NORMS[c.norm], float(c.eps), c.steps, multi_targeted=True)
    attack.target_class = turn.target
    target = queried.clean.argsort(1)[:, -turn.target]
    queried.loss = lambda logits, rows: pick(logits, target[rows]) - pick(logits, queried.labels[rows])
    nearest: Tensor = attack.attack_single_run_targeted(queried.images, queried.labels, use_rand_start=turn.restart > 0)
    return nearest


def square(queried: QueriedModel, turn: Round) -> Tensor:
    """Random search by squares, no gradients (Andriushchenko et al. 2020); all images try the same places."""
    c = turn.config
    attack = torchattacks.Square(queried, NORMS[c.norm], float(c.eps), c.steps, resc_schedule=False)
    attack.init_hyperparam(queried.images)
    best: Tensor = attack.attack_single_run(queried.images, queried.labels)[1]
    return best


NORMS = {"linf": "Linf", "l2": "L2"}
BALL = (("start", "uniform in the ball"),)
STEPPED = ("step_size", "steps", "restarts")
STANDARD = ("apgd", "apgd-targeted", "fab", "square")

ATTACKS: dict[str, Entry] = {
    "fgsm": Entry(fgsm, 1, ("linf",), shown=(), transfers=True),
    "pgd": Entry(pgd, 10, ("linf",), BALL, STEPPED, transfers=True),
    "pgd-targeted": Entry(pgd, 10, ("linf",), BALL, (*STEPPED, "target"), aimed=True, transfers=True),
    "pgd-l2": Entry(pgd_l2, 10, ("l2",), (("start", "random direction and radius in the ball"),), STEPPED, transfers=True),
    "apgd": Entry(lambda g, t: apgd(g, t, "ce"), 100, about=(("loss", "cross-entropy"),), transfers=True),
    "apgd-dlr": Entry(lambda g, t: apgd(g, t, "dlr"), 100, about=(("loss", "DLR"),), fewest_classes=3, transfers=True),
    "apgd-targeted": Entry(
        lambda g, t: apgd(g, t, "targeted"),
        100,
        about=(("loss", "targeted DLR"),),
        shown=("steps", "restarts", "targets"),
        targets=True,
        fewest_classes=4,
    ),
    "fab": Entry(fab, 100, shown=("steps", "restarts", "targets"), targets=True, bounded=False),
    "square": Entry(square, 5000, about=(("loss", "margin"), ("p_init", 0.8)), by_gradient=False),
    "standard": Entry(pgd, 1, shown=(), about=(("members", list(STANDARD)),), fewest_classes=4, members=STANDARD),
}


def member_config(name: str, config: AttackConfig) -> AttackConfig:
    """The official setting: the steps of the table, one restart, nine targets."""
    return AttackConfig(config.eps, config.step_size, ATTACKS[name].steps, config.seed, config.norm)


def parse_attacks(
    names: str,
    eps: str,
    steps: int | None = None,
    step_size: str | None = None,
    seed: int = 0,
    norm: str | None = None,
    restarts: int | None = None,
    target: str | None = None,
    targets: int | None = None,
) -> list[tuple[str, AttackConfig]]:
    """Every attack of `pgd,square` with every budget of `2/255,8/255`; the step size defaults to a quarter of eps.

    Raises InputError for what is unknown, and for an option that none of the attacks uses.
    """
    attacks = list(dict.fromkeys(name.strip() for name in names.split(",")))
    for name in attacks:
        if name not in ATTACKS:
            raise unknown("attack", name, ATTACKS)
        if norm is not None and norm not in ATTACKS[name].norms:
            raise InputError(
                f"norm {norm!r} is not accepted for attack {name!r}: accepted is {' or '.join(ATTACKS[name].norms)}."
            )
    given = {"steps": steps, "step_size": step_size, "restarts": restarts, "target": target, "targets": targets}
    for field, value in given.items():
        if value is not None and not any(field in ATTACKS[name].shown for name in attacks):
            raise InputError(f"{field.replace('_', '-')} {value} is not accepted: no attack of {', '.join(attacks)} uses it.")
    chosen = []
    for name in attacks:
        entry = ATTACKS[name]
        ball = norm or entry.norms[0]
        budgets = sorted({parse_budget("eps", word, ball) for word in eps.split(",")})
        size = None if step_size is None else parse_budget("step-size", step_size, ball)
        if size == 0:
            raise InputError(f"step-size {step_size} is not accepted: no step would be taken.")
        for budget in budgets:
            config = AttackConfig(
                budget,
                budget / 4 if size is None else size,
                entry.steps if steps is None or "steps" not in entry.shown else steps,
                seed,
                entry.norms[0] if norm is None else entry.norms[entry.norms.index(norm)],
                1 if restarts is None or "restarts" not in entry.shown else restarts,
                target or "random",
                9 if targets is None else targets,
            )
            chosen.append((name, config))
    return chosen
