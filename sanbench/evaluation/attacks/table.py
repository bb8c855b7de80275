"""Adversarial attacks (experiment 10 of the paper) in [0, 1] pixels.

PAPER: white-box targeted PGD in the L-infinity ball. Budget, step size, steps and target choice were not published;
what is used here stands in every record.

FGSM and PGD are written here, so that each image may have its own budget. torchattacks 3.5.1 is used where it can be trusted
in float32 on [0, 1]: APGD, FAB, and Square with `resc_schedule=False`. Worked around: its draws depend on the batch
(`sanbench.evaluation.rng`); its `AutoAttack` is not the standard ensemble (10 steps, 999 targets on ImageNet), so `standard`
is composed here; its `APGDT` gives all images of an L2 batch the first one's step size, so `apgd-targeted` is `APGD` with
the targeted loss. Left out: CW, which changed nothing where logits are large and negative; MI-, DI- and TI-FGSM, which
stall on zero gradients; FAB in L1, which crashes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import TYPE_CHECKING, Any, NamedTuple

from sanbench.errors import InputError, unknown
from sanbench.evaluation.attacks.budget import parse_budget
from sanbench.late import Late

if TYPE_CHECKING:
    import torch
    import torch.nn.functional as F
    import torchattacks
    from torch import Tensor

    from sanbench.evaluation.attacks.queried_model import QueriedModel
    from sanbench.evaluation.rng import PerImageRandom
else:
    torch, F, torchattacks = Late("torch"), Late("torch.nn.functional"), Late("torchattacks")

TARGETS = ("random", "least-likely", "next")


@dataclass(frozen=True)
class Search:
    """How an image's smallest eps is looked for: up from a first one, then by bisection. Steps are scaled with eps.

    tries         how many eps, each `growth` times the one before, until one succeeds
    bisections    then so many, each halving what lies between success and failure
    random_start  or from the image itself
    """

    bisections: int = 8
    tries: int = 1
    growth: Fraction = Fraction(1)
    random_start: bool = True


# What `ProjectedGradientDescentAttack` of foolbox 2 did by default, from eps 0.3 in 40 steps of 0.01, returning at the first
# success (its foolbox/attacks/iterative_projected_gradient.py).
FOOLBOX_2 = Search(bisections=20, tries=20, growth=Fraction(3, 2), random_start=False)


@dataclass(frozen=True)
class AttackConfig:
    """Budget and step size in pixels of [0, 1], exact; `steps` are queries for square. `seed` of all random numbers.

    target    of pgd-targeted: a random other class, the least likely, or the next in order
    targets   how many classes, by descending logit, apgd-targeted and fab try
    eot       passes of a random network whose gradients and logits are averaged (Athalye et al. 2018)
    max_passes  forward and backward ones that the attack may spend on an image, over all restarts
    search    looks for the smallest budget of each image, of which `eps` is the first that is tried
    """

    eps: Fraction
    step_size: Fraction
    steps: int = 10
    seed: int = 0
    norm: str = "linf"
    restarts: int = 1
    target: str = "random"
    targets: int = 9
    eot: int = 1
    max_passes: int | None = None
    search: Search | None = None

    def __post_init__(self) -> None:
        for name in ("steps", "restarts", "targets", "eot"):
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
    def stream(self) -> str:
        """Of random numbers: of a member of `standard` the same as of the attack alone."""
        return f"{self.attack} {self.target}"

    @property
    def passes(self) -> int:
        """Of an image that withstands it: a forward one a step, and by gradient a backward one, which counts as two."""
        return self.config.steps * self.config.eot * (3 if ATTACKS[self.attack].by_gradient else 1)


@dataclass(frozen=True)
class Entry:
    """An attack: norms (the first is the default), default steps, what one round does, and how its record tells it."""

    run: Callable[[QueriedModel, Round], Tensor]
    steps: int
    norms: tuple[str, ...] = ("linf", "l2")
    about: tuple[tuple[str, Any], ...] = ()
    shown: tuple[str, ...] = ("steps", "restarts")  # fields of the config that it uses
    aimed: bool = False  # each image has one target, which it leaves at
    targets: bool = False  # a round for each of `config.targets` classes
    fewest_classes: int = 2
    bounded: bool = True
    by_gradient: bool = True
    own_draws: bool = False  # it enters `queried.random` where it draws; otherwise it runs inside
    transfers: bool = False  # what it returns is its strongest example, not the nearest
    searched: bool = False  # the smallest eps can be looked for: each image may have its own, or the attack finds the nearest
    members: tuple[str, ...] = ()


def pgd(queried: QueriedModel, turn: Round) -> Tensor:
    c = turn.config
    return projected(queried, c.norm, float(c.step_size / c.eps), c.steps, c.search is None or c.search.random_start)


def projected(queried: QueriedModel, norm: str, step: float, steps: int, random_start: bool) -> Tensor:
    """x <- project(x + step * eps * direction(grad)), with eps of each image (Madry et al. 2018).

    Ascends the cross-entropy of the label or descends that of the target. The direction is the gradient's sign, of L2 the
    gradient at length 1.
    """
    images, target = queried.images, queried.aim.target
    sign, classes = (1, queried.labels) if target is None else (-1, target)
    queried.loss = lambda logits, rows: sign * cross_entropy(logits, classes[rows])
    every, eps = torch.arange(len(images), device=images.device), queried.budgets.to(images.dtype)[:, None, None, None]
    x = start(images, eps, norm).add_(images).clamp_(0, 1) if random_start else images
    for _ in range(steps):
        x = x.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(queried.loss(queried(x), every).sum(), x)
        # in place: at 224 x 224 each copy of a pool is a hundred megabytes
        away = gradient.sign_() if norm == "linf" else gradient.div_(lengths(gradient) + 1e-10)
        away.mul_(step * eps).add_(x.detach()).sub_(images)
        inside = away.clamp_(-eps, eps) if norm == "linf" else away.mul_((eps / lengths(away)).clamp(max=1))
        x = inside.add_(images).clamp_(0, 1)
    with torch.no_grad():
        queried(x)  # the last step is a query too
    return x


def start(images: Tensor, eps: Tensor, norm: str) -> Tensor:
    """A random point of each image's ball: uniform in that of L-infinity, of a random direction and radius in that of L2."""
    if norm == "linf":  # in float64, which rounds as the generator's own draws from an interval do
        draws = torch.rand(images.shape, device=images.device).double()
        return draws.mul_(2 * eps.double()).sub_(eps.double()).to(images.dtype)
    direction = torch.randn(images.shape, device=images.device)
    return direction.mul_(torch.rand((len(images), 1, 1, 1), device=images.device) / lengths(direction) * eps)


def lengths(images: Tensor) -> Tensor:
    """Their L2 norms: N x 1 x 1 x 1."""
    return images.flatten(1).norm(dim=1)[:, None, None, None]


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
        return attack.attack_single_run(queried.images, queried.labels)[0]


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
    return attack.attack_single_run_targeted(queried.images, queried.labels, use_rand_start=turn.restart > 0)


def square(queried: QueriedModel, turn: Round) -> Tensor:
    """Random search by squares, no gradients (Andriushchenko et al. 2020); all images try the same places."""
    c = turn.config
    attack = torchattacks.Square(queried, NORMS[c.norm], float(c.eps), c.steps, resc_schedule=False)
    attack.init_hyperparam(queried.images)
    for name in ("random_choice", "random_int", "eta"):  # to look at all that it calls took a thirtieth of a search
        setattr(attack, name, within(queried.random, getattr(attack, name)))
    return attack.attack_single_run(queried.images, queried.labels)[1]


def within(random: PerImageRandom, draw: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def drawn(*values: Any) -> Tensor:
        with random:
            return draw(*values)

    return drawn


NORMS = {"linf": "Linf", "l2": "L2"}
BALL = (("start", "uniform in the ball"),)
STEPPED = ("step_size", "steps", "restarts")
STANDARD = ("apgd", "apgd-targeted", "fab", "square")

ATTACKS: dict[str, Entry] = {
    "fgsm": Entry(lambda g, t: projected(g, t.config.norm, 1.0, 1, random_start=False), 1, ("linf",), shown=(), transfers=True),
    "pgd": Entry(pgd, 10, ("linf",), BALL, STEPPED, transfers=True, searched=True),
    "pgd-targeted": Entry(pgd, 10, ("linf",), BALL, (*STEPPED, "target"), aimed=True, transfers=True, searched=True),
    "pgd-l2": Entry(
        pgd, 10, ("l2",), (("start", "random direction and radius in the ball"),), STEPPED, transfers=True, searched=True
    ),
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
    "fab": Entry(fab, 100, shown=("steps", "restarts", "targets"), targets=True, bounded=False, searched=True),
    "square": Entry(square, 5000, about=(("loss", "margin"), ("p_init", 0.8)), by_gradient=False, own_draws=True),
    "standard": Entry(pgd, 1, shown=(), about=(("members", list(STANDARD)),), fewest_classes=4, members=STANDARD),
}


def member_config(name: str, config: AttackConfig) -> AttackConfig:
    """The official setting: the steps of the table, one restart, nine targets."""
    return replace(config, steps=ATTACKS[name].steps, restarts=1, targets=9)


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
    search: Search | None = None,
    eot: int = 1,
    max_passes: int | None = None,
) -> list[tuple[str, AttackConfig]]:
    """Every attack of `pgd,square` with every budget of `2/255,8/255`; the step size defaults to a quarter of eps.

    With `max_passes` an attack begins anew until they are spent, unless `restarts` says how often.

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
        if search is not None and not ATTACKS[name].searched:
            accepted = ", ".join(other for other, entry in ATTACKS.items() if entry.searched)
            raise InputError(f"attack {name!r} is not accepted where the smallest eps is looked for: accepted are {accepted}.")
    given = {"steps": steps, "step_size": step_size, "restarts": restarts, "target": target, "targets": targets}
    for field, value in given.items():
        if value is not None and not any(field in ATTACKS[name].shown for name in attacks):
            raise InputError(f"{field.replace('_', '-')} {value} is not accepted: no attack of {', '.join(attacks)} uses it.")
    chosen: list[tuple[str, AttackConfig]] = []
    for name in attacks:
        entry = ATTACKS[name]
        ball = norm or entry.norms[0]
        budgets = sorted({parse_budget("eps", word, ball) for word in eps.split(",")})
        size = None if step_size is None else parse_budget("step-size", step_size, ball)
        if size == 0:
            raise InputError(f"step-size {step_size} is not accepted: no step would be taken.")
        if search is not None and not budgets[0]:
            raise InputError("eps 0 is not accepted where the smallest eps is looked for: it has to be above 0.")
        taken = entry.steps if steps is None or "steps" not in entry.shown else steps
        again = 1 if max_passes is None else -(-max_passes // (taken * eot))  # at most: each step is a pass or more
        starts = 1 if "restarts" not in entry.shown else again if restarts is None else restarts
        rest = (taken, seed, ball, starts, target or "random", 9 if targets is None else targets, eot, max_passes, search)
        chosen += [(name, AttackConfig(budget, size or budget / 4, *rest)) for budget in budgets]
    return chosen
