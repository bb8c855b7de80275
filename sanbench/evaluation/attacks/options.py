"""From the options of `sanbench attack` to perturbations: what is typed wrong is said before torch is imported."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from sanbench.errors import InputError
from sanbench.evaluation.attacks.table import ATTACKS, FOOLBOX_2, AttackConfig, Search, parse_attacks
from sanbench.evaluation.kinds import AttackOptions, Request
from sanbench.late import Late

if TYPE_CHECKING:
    from torch import nn

    from sanbench.data import Images
    from sanbench.evaluation.attacks import attack, elsewhere, smallest
    from sanbench.evaluation.kinds import Bind
    from sanbench.evaluation.loop import Perturbation
    from sanbench.runs.evaluated import EvaluatedModel
else:
    attack, elsewhere, smallest = (Late(f"sanbench.evaluation.attacks.{name}") for name in ("attack", "elsewhere", "smallest"))


def parse(options: AttackOptions, request: Request) -> Bind:
    if ":" in options.attack:
        return elsewhere.parse(options, request)
    search, eps, steps, step_size = None, options.eps, options.steps, options.step_size
    if options.smallest:
        search = Search() if options.bisections is None else Search(options.bisections)
    if options.search:
        if options.smallest or options.eps != AttackOptions.eps:
            raise InputError("search is not accepted with smallest or eps: it looks for the smallest, and begins at 0.3.")
        if set(options.attack.replace(" ", "").split(",")) - {"pgd", "pgd-targeted"}:
            raise InputError(f"search is not accepted with attack {options.attack}: accepted are pgd and pgd-targeted.")
        search, eps, steps, step_size = FOOLBOX_2, "0.3", steps or 40, step_size or "0.01"
    if options.max_passes is not None and (search is not None or options.surrogate is not None):
        raise InputError(f"max-passes {options.max_passes} is not accepted with smallest, search or surrogate.")
    if search is not None and options.surrogate is not None:
        raise InputError(f"surrogate {options.surrogate} is not accepted where the smallest eps is looked for.")
    further = {name: getattr(options, name) for name in ("norm", "restarts", "target", "targets", "eot", "max_passes")}
    wanted = parse_attacks(options.attack, eps, steps, step_size, request.seed, search=search, **further)
    if options.bisections is not None and not any(ATTACKS[name].bounded for name, _ in wanted):
        raise InputError(f"bisections {options.bisections} is not accepted: {options.attack} finds the nearest without them.")
    source = None
    if options.surrogate is not None:
        source = request.load(options.surrogate, options.surrogate_weights)
        check_gradients(source, wanted)

    def bound(evaluated: EvaluatedModel, images: Images) -> list[Perturbation]:
        surrogate = None
        if source is None:
            check_gradients(evaluated, wanted)
        else:
            name = f"{source.network.label} ({source.run})"
            surrogate = attack.Surrogate(source.telling(images).model, name, source.weights)
        return bind(evaluated.model, wanted, request.batch_size, surrogate)

    return bound


def bind(
    model: nn.Module,
    attacks: Sequence[tuple[str, AttackConfig]],
    batch_size: int = 64,
    surrogate: attack.Surrogate | None = None,
) -> list[Perturbation]:
    """The attacks as perturbations of images for `model`."""
    made: list[Perturbation] = []
    for name, config in attacks:
        kind = smallest.Smallest if config.search else attack.Attack
        made.append(kind(name, model, config, batch_size, surrogate))
    return made


def check_gradients(evaluated: EvaluatedModel, attacks: Sequence[tuple[str, AttackConfig]]) -> None:
    """Raises InputError for an attack that needs gradients, of a network that gives the pixels none."""
    needing = [name for name, _ in attacks if ATTACKS[name].by_gradient]
    if needing and "no-gradient" in evaluated.findings:
        others = ", ".join(name for name, entry in ATTACKS.items() if not entry.by_gradient)
        raise InputError(
            f"attack {needing[0]!r} is not accepted for {evaluated.run}: no gradient reaches its pixels. Accepted is {others}."
        )
