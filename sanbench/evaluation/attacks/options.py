"""The options of `sanbench attack`: what is typed wrong is said before torch is imported."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sanbench.evaluation.attacks.table import parse_attacks
from sanbench.evaluation.kinds import AttackOptions, Request
from sanbench.late import Late

if TYPE_CHECKING:
    from sanbench.data import Images
    from sanbench.evaluation.attacks import attack
    from sanbench.evaluation.kinds import Bind
    from sanbench.evaluation.loop import Perturbation
    from sanbench.runs.evaluated import EvaluatedModel
else:
    attack = Late("sanbench.evaluation.attacks.attack")


def parse(options: AttackOptions, request: Request) -> Bind:
    wanted = parse_attacks(
        options.attack,
        options.eps,
        options.steps,
        options.step_size,
        request.seed,
        options.norm,
        options.restarts,
        options.target,
        options.targets,
    )
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
