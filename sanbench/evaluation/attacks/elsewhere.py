"""Attacks from elsewhere: `package.module:function`, verified and recorded as those of ATTACKS are.

The function is `(model, images, labels, eps) -> images`: a network from pixels in [0, 1] to logits, n x 3 x H x W, n, and a
number of pixels in [0, 1]. What it returns is what counts, whatever it tried before.
"""

import hashlib
import importlib
import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from sanbench.errors import InputError, SanbenchError, short_of_memory, unknown
from sanbench.evaluation.attacks import attack
from sanbench.evaluation.attacks import options as attack_options
from sanbench.evaluation.attacks.budget import budget_text, parse_budget
from sanbench.evaluation.attacks.table import AttackConfig
from sanbench.evaluation.kinds import NORMS, AttackOptions, Request
from sanbench.evaluation.loop import Perturbation, Perturbed, Seen, predictions
from sanbench.evaluation.rng import image_seed
from sanbench.models.external import first_line, imported

if TYPE_CHECKING:
    from sanbench.data import Images
    from sanbench.evaluation.kinds import Bind
    from sanbench.runs.evaluated import EvaluatedModel

AT_ONCE = 32  # neighbouring images of a measurement that the function is given: all parts have a multiple of them
UNKNOWN = 2_000  # passes that are planned for an image: so many that parts are the smallest ones
ACCEPTED = "accepted is package.module:function, with (model, images, labels, eps) -> images"
OF_ANY = ("attack", "eps", "norm")  # options that an attack from elsewhere takes
OF_OURS = ("steps", "step_size", "restarts", "target", "targets")  # that only say how those of ATTACKS beside it do it


class Counted(nn.Module):
    """The network as it is given away: its mode stays, its passes count, and it sees at most `batch_size` images at once."""

    def __init__(self, network: nn.Module, batch_size: int) -> None:
        super().__init__()
        self.network, self.batch_size, self.training = network, batch_size, False
        self.passes = {"forward_passes": 0, "backward_passes": 0}  # of one image each
        self.sizes: list[tuple[int, bool]] = []  # of each pass of the network, and whether it may go back

    def train(self, mode: bool = True) -> "Counted":
        return self

    def forward(self, x: Tensor) -> Tensor:
        back, chunks = torch.is_grad_enabled() and x.requires_grad, x.split(self.batch_size)
        self.passes["forward_passes"] += len(x)
        self.sizes += [(len(chunk), back) for chunk in chunks]
        again = back and len(chunks) > 1  # computed again on the way back, so that the memory of one batch is enough
        logits = torch.cat([checkpoint(self.network, c, use_reentrant=False) if again else self.network(c) for c in chunks])
        if back:
            logits.register_hook(self.went_back)
        return logits

    def went_back(self, gradient: Tensor) -> None:
        self.passes["backward_passes"] += len(gradient)


class Elsewhere(attack.Attack):
    """The function `name` on the images that are right before, in groups of neighbours.

    An image's random numbers and passes are those of its group, so they depend on which images are measured, but neither on
    the batch nor on the process.
    """

    has_examples = False

    @property
    def setting(self) -> dict[str, Any]:
        setting = {"attack": self.name, "norm": self.config.norm, "eps": budget_text(self.config.eps)}
        setting |= {"source": source_digest(self.name), "attacked": f"images right before, of {AT_ONCE} together"}
        return setting | {"seed": self.config.seed}

    @property
    def passes(self) -> int:
        return UNKNOWN if self.config.eps else 1

    def __call__(self, images: Tensor, labels: Tensor, indices: Tensor) -> Perturbed:
        columns = {name: torch.zeros_like(labels) for name in ("forward_passes", "backward_passes")}
        self.sizes = []
        logits = self.clean(self.model, images, indices, columns)
        right, adversarial = predictions(logits) == labels, images.clone()
        for group in torch.arange(len(images), device=images.device).split(AT_ONCE):
            rows = group[right[group]]
            if len(rows) == 0 or not self.config.eps:
                continue
            self.watch(Seen(int(group[0]) / len(images), self.name))
            counted = Counted(self.model, self.batch_size)
            adversarial[rows] = self.made(counted, images[rows], labels[rows], int(indices[int(group[0])]))
            self.sizes += counted.sizes
            for name, total in counted.passes.items():
                columns[name][rows] += torch.arange(len(rows), 0, -1, device=rows.device).add(total - 1) // len(rows)
        columns |= {"clean_prediction": predictions(logits)} | self.controls(self.model, images, logits, indices, columns)
        return self.checked(images, adversarial, indices, columns)

    def made(self, counted: Counted, images: Tensor, labels: Tensor, first: int) -> Tensor:
        """What the function returns. Raises SanbenchError where it fails, or returns anything but as many images."""
        function = imported(self.name, ACCEPTED)
        try:
            with torch.enable_grad(), own_generators(image_seed(self.config.seed, first, self.name)):
                made = function(counted, images.clone(), labels.clone(), float(self.config.eps))
        except Exception as error:  # it may be anybody's code
            if short_of_memory(error):
                raise
            raise SanbenchError(f"{self.name} failed: {first_line(error)}. Nothing was recorded.") from error
        if not isinstance(made, Tensor) or made.shape != images.shape or not made.is_floating_point():
            found = f"{made.dtype} {tuple(made.shape)}" if isinstance(made, Tensor) else type(made).__name__
            raise SanbenchError(f"{self.name} returned {found}, not images {tuple(images.shape)}. Nothing was recorded.")
        return made.detach().to(images)


@contextmanager
def own_generators(seed: int) -> Iterator[None]:
    """Inside, the generators of torch, numpy and random begin at `seed`; afterwards they are as they were."""
    before = random.getstate(), np.random.get_state()  # noqa: NPY002  what anybody's code draws from
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        np.random.seed(seed % 2**32)  # noqa: NPY002
        random.seed(seed)
        try:
            yield
        finally:
            random.setstate(before[0])
            np.random.set_state(before[1])  # noqa: NPY002


def source_digest(name: str) -> str:
    """The beginning of the SHA-256 of the file that holds the function's module."""
    file = importlib.import_module(name.partition(":")[0]).__file__
    return hashlib.sha256(Path(file).read_bytes()).hexdigest()[:16] if file else "unknown"


def parse(options: AttackOptions, request: Request) -> "Bind":
    """Attacks of which at least one is from elsewhere.

    Raises InputError for what cannot be imported or called, and for options that these do not take.
    """
    words = list(dict.fromkeys(word.strip() for word in options.attack.split(",")))
    foreign, ours = [word for word in words if ":" in word], [word for word in words if ":" not in word]
    norm = options.norm or "linf"
    if norm not in NORMS:
        raise unknown("norm", norm, NORMS)
    for name in foreign:
        imported(name, ACCEPTED)
    for field in fields(options):
        value = getattr(options, field.name)
        if field.name not in (*OF_ANY, *(OF_OURS if ours else ())) and value != field.default:
            option = field.name.replace("_", "-")
            raise InputError(f"{option} {value} is not accepted for attack {foreign[0]!r}: it takes eps alone.")
    budgets = sorted({parse_budget("eps", word, norm) for word in options.eps.split(",")})
    configs = [AttackConfig(eps, eps, 1, request.seed, norm) for eps in budgets]
    rest = attack_options.parse(replace(options, attack=",".join(ours)), request) if ours else None

    def bound(evaluated: "EvaluatedModel", images: "Images") -> list[Perturbation]:
        made = [Elsewhere(name, evaluated.model, config, request.batch_size) for name in foreign for config in configs]
        return [*(rest(evaluated, images) if rest else []), *made]

    return bound
