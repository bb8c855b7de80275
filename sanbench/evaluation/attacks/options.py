"""The options of `sanbench attack`: what is typed wrong is said before torch is imported."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sanbench.errors import InputError
from sanbench.evaluation.attacks.table import ATTACKS, FOOLBOX_2, Search, parse_attacks
from sanbench.evaluation.kinds import AttackOptions, Request
from sanbench.late import Late

if TYPE_CHECKING:
    from sanbench.data import Images
    from sanbench.evaluation.attacks import attack, elsewhere
    from sanbench.evaluation.kinds import Bind
    from sanbench.evaluation.loop import Perturbation
    from sanbench.runs.evaluated import EvaluatedModel
else:
    attack, elsewhere = (Late(f"sanbench.evaluation.attacks.{name}") for name in ("attack", "elsewhere"))


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
    wanted = parse_attacks(
        options.attack,
        eps,
        steps,
        step_size,
        request.seed,
        options.norm,
        options.restarts,
        options.target,
        options.targets,
        search,
        options.eot,
        options.max_passes,
    )
    if options.bisections is not None and not any(ATTACKS[name].bounded for name, _ in wanted):
        raise InputError(f"bisections {options.bisections} is not accepted: {options.attack} finds the nearest without them.")
    source = None
    if options.surrogate is not None:
        source = request.load(options.surrogate, options.surrogate_weights)
        attack.check_gradients(source, wanted)

    def bound(evaluated: EvaluatedModel, images: Images) -> list[Perturbation]:
        surrogate = None
        if source is None:
            attack.check_gradients(evaluated, wanted)
        else:
            name = f"{source.network.label} ({source.run})"
            surrogate = attack.Surrogate(source.telling(images).model, name, source.weights)
        return attack.bind(evaluated.model, wanted, request.batch_size, surrogate)

    return bound
