"""An attack as a perturbation: which images are attacked, how often, and what is kept of it."""

import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext, suppress
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from sanbench.errors import InputError
from sanbench.evaluation.attacks.budget import budget_text, check_budget, in_eight_bits
from sanbench.evaluation.attacks.queried_model import REMEMBERED, SPENT, VARIATION, Aim, AllFallen, QueriedModel
from sanbench.evaluation.attacks.table import ATTACKS, AttackConfig, Round, member_config
from sanbench.evaluation.loop import Interruptible, Perturbation, Perturbed, Seen, predictions
from sanbench.evaluation.rng import Averaged, ImageNoise, PerImageRandom, image_seed
from sanbench.evaluation.sanity_checks import attack_flags

if TYPE_CHECKING:
    from sanbench.store.rows import Rows

CONTROL = 4  # images with indices that are multiples of it are run twice
MANY = 10**9  # classes: more than any attack has targets
WORK = 1e15  # passes x weights x pixels: half a minute of a SAN on two cores
TELL = 0.5  # seconds between two tellings of how far it is


def parameters(name: str, config: AttackConfig) -> dict[str, Any]:
    """What decides the attack beside norm and budget."""
    shown = {field: getattr(config, field) for field in ATTACKS[name].shown}
    if "step_size" in shown:
        shown["step_size"] = budget_text(config.step_size)
    return shown | dict(ATTACKS[name].about)


class Surrogate(NamedTuple):
    """The network that transferred examples are made on, in place of the one that they are scored on."""

    model: nn.Module
    label: str
    weights: str


class Attack(Perturbation):
    """The attack `name` on `model`: every round of it on the images that are still right, the worst case of each kept.

    Images that the network has wrong are not robust already and are not attacked. An image leaves at the first query inside
    the budget that does what is aimed at, and its place in the batch goes to the next that stands (see `QueriedModel`).
    """

    has_examples = True
    whole = True
    again = "restart"  # what rounds with the same target are called

    def __init__(
        self, name: str, model: nn.Module, config: AttackConfig, batch_size: int = 64, surrogate: Surrogate | None = None
    ) -> None:
        self.name, self.model, self.config, self.batch_size, self.surrogate = name, model, config, batch_size, surrogate
        self.kind = "transfer" if surrogate else "smallest" if config.search else "attack"
        self.sizes: list[tuple[int, bool]] = []  # of each pass of the network, and whether it went back too
        if surrogate is not None and not ATTACKS[name].transfers:
            accepted = ", ".join(other for other, entry in ATTACKS.items() if entry.transfers)
            raise InputError(
                f"attack {name!r} is not accepted with a surrogate: it looks for the nearest example or the first that works, "
                f"not the strongest. Accepted are {accepted}."
            )

    def flags(self, rows: "Rows", classes: int) -> list[str]:
        return attack_flags(rows, self.setting) if self.surrogate is None else []

    @property
    def reach(self) -> float:
        """The largest budget that any image may have."""
        return float(self.config.eps)

    @property
    def setting(self) -> dict[str, Any]:
        config = self.config
        setting: dict[str, Any] = {"attack": self.name, "norm": config.norm, "eps": budget_text(config.eps)}
        setting |= parameters(self.name, config)
        setting |= {member: parameters(member, member_config(member, config)) for member in ATTACKS[self.name].members}
        setting |= {"eot": config.eot} if config.eot > 1 else {}
        setting |= {"max_passes": config.max_passes} if config.max_passes else {}
        setting |= {"attacked": "images right before, until they fall", "seed": config.seed}
        if self.surrogate is not None:
            setting |= {"surrogate": self.surrogate.label, "surrogate_weights": self.surrogate.weights}
            setting["attacked"] = "images that the surrogate has right, all steps"
        return setting

    def __call__(self, images: Tensor, labels: Tensor, indices: Tensor) -> Perturbed:
        config, entry = self.config, ATTACKS[self.name]
        columns = {name: torch.zeros_like(labels) for name in SPENT}
        self.sizes = []
        victim, logits = self.model, self.clean(self.model, images, indices, columns)
        clean = predictions(logits)
        if self.surrogate is not None:
            victim = self.surrogate.model
            logits = self.clean(victim, images, indices, columns)
        target = self.choose_targets(logits, labels, indices) if entry.aimed else None
        rounds = list(self.rounds(logits.shape[1])) if config.eps else []
        state = self.begun(images, predictions(logits) != labels) | columns
        known = Interruptible(self.keeper, state, indices)
        start = known.where.get("round", 0), known.where.get("rows", [0])
        self.sizes, self.told = known.where.get("sizes", self.sizes), -math.inf
        most = [at_once(victim, images, turn) for turn in rounds]
        for number, rows in pools(start[0], start[1][0], most, state["left"]):
            turn, numbers = rounds[number], indices[rows.cpu()]
            aim = self.aim(turn, None if target is None else target[rows], state, rows)
            shown = images[rows] if len(rows) < len(images) else images
            queried = QueriedModel(victim, shown, labels[rows], logits[rows], aim, self.batch_size)
            if self.keeper and (images.device.type == "cpu" or not ATTACKS[turn.attack].by_gradient):
                queried.room = REMEMBERED  # what is asked next follows from the answers
            if (number, rows.tolist()) == start:  # on another device they may be in another pool
                queried.go_on(known.where.pop("answers", {}))
            queried.told = partial(self.tell, known, rounds, number, rows)
            queried.eot = config.eot
            if config.max_passes:
                queried.remaining = state["remaining"][rows]
            self.keep(known, number, rows, queried)
            self.take(state, rows, turn, queried, run_round(queried, turn, numbers))
            for name in SPENT:
                columns[name][rows] += queried.spent[name]
            self.sizes += queried.sizes
            if queried.remaining is not None:
                state["remaining"][rows] = queried.remaining
                state["left"] |= state["remaining"] < config.eot
            queried.release()
        columns |= {"clean_prediction": clean} | self.controls(victim, images, logits, indices, columns)
        columns |= {} if target is None else {"target": target}
        columns |= {"member": state["member"]} if entry.members else {}
        columns |= {"attack_passes": config.max_passes - state["remaining"]} if config.max_passes else {}
        return self.checked(images, state["adversarial"], indices, columns)._replace(earlier=known.earlier)

    def begun(self, images: Tensor, wrong: Tensor) -> dict[str, Tensor]:
        """What is known of each image before the first round: N each, and the adversarial ones."""
        member = torch.full_like(wrong, -1, dtype=torch.int64)
        state = {"fell": wrong.clone(), "left": wrong, "member": member, "adversarial": images.clone()}
        return state | {"remaining": torch.full_like(member, self.config.max_passes or 0)}

    def take(self, state: dict[str, Tensor], rows: Tensor, turn: Round, queried: QueriedModel, made: Tensor) -> None:
        """Put into `state` what a round did to the images `rows`: a worst case over rounds."""
        new = queried.fallen & ~state["fell"][rows]
        better = queried.left | ~state["fell"][rows]
        state["adversarial"][rows[better]] = made[better]
        if members := ATTACKS[self.name].members:
            state["member"][rows[new]] = members.index(turn.attack)
        state["fell"][rows] |= queried.fallen
        state["left"][rows] |= queried.left

    @property
    def passes(self) -> int:
        return self.cost(self.rounds(MANY)) if self.config.eps else 1

    def cost(self, rounds: Iterable[Round]) -> int:
        """Passes of an image that withstands these rounds."""
        every = sum(turn.passes for turn in rounds)
        return min(every, self.config.max_passes or every)

    def keep(self, known: Interruptible, number: int, rows: Tensor, queried: QueriedModel) -> None:
        """Keep, if that is due, that the attack goes on at a round with the images `rows` and the answers to their queries."""
        if known.is_due():
            answers = {back: torch.cat(parts) for back, parts in queried.answers.items() if parts}
            known.keep(round=number, rows=rows.tolist(), answers=answers, sizes=self.sizes)

    def tell(self, known: Interruptible, rounds: list[Round], number: int, rows: Tensor, queried: QueriedModel) -> None:
        """Before each pass of the network: keep what is remembered, and every TELL seconds tell `watch` how far it is with
        `rows`, its target and start, and how many images stand."""
        if queried.room > 0:
            self.keep(known, number, rows, queried)
        if (now := time.monotonic()) - self.told < TELL:  # counting waits for the device
            return
        self.told, turn, fell = now, rounds[number], known.state["fell"]
        own = [other for other in rounds if other.attack == turn.attack]
        targets, starts = (len({getattr(other, name) for other in own}) for name in ("target", "restart"))
        words = [f"target {turn.target - 1} of {targets}"] * (targets > 1)
        words += [f"{self.again} {turn.restart + 1} of {starts}"] * (starts > 1)
        first, last = int(rows[0]), int(rows[-1])
        here = min(1.0, queried.queries / turn.config.steps) * (last + 1 - first)
        done = self.cost(rounds[:number]) + turn.passes * (first + here) / len(fell)
        gone = queried.left if self.config.search else queried.fallen
        standing = None if self.surrogate else int((~fell).sum() - (gone & ~fell[rows]).sum())
        self.watch(Seen(min(1.0, done / self.cost(rounds)), ", ".join([turn.attack, *words]), standing))

    def rounds(self, classes: int) -> Iterable[Round]:
        """In order. Raises InputError for too few classes."""
        for name in ATTACKS[self.name].members or (self.name,):
            entry, config = ATTACKS[name], member_config(name, self.config) if name != self.name else self.config
            fewest = max(entry.fewest_classes, ATTACKS[self.name].fewest_classes)
            if classes < fewest:
                raise InputError(f"attack {self.name!r} needs {fewest} classes; the network tells {classes} apart.")
            targets = range(2, 2 + min(config.targets, classes - 1) if entry.targets else 3)
            every = [Round(name, config, restart, target) for target in targets for restart in range(config.restarts)]
            if config.max_passes:  # all targets have their turn before the passes are spent
                every.sort(key=lambda turn: turn.restart)
            yield from every

    def aim(self, turn: Round, target: Tensor | None, state: dict[str, Tensor], rows: Tensor) -> Aim:
        """Of the images `rows`, of which `state` tells what became of them."""
        config = self.config
        return Aim(config.norm, float(config.eps), ATTACKS[turn.attack].bounded, target, leaves=self.surrogate is None)

    def choose_targets(self, logits: Tensor, labels: Tensor, indices: Tensor) -> Tensor:
        """A class other than the label for each image: N."""
        classes = logits.shape[1]
        if classes < 2:
            raise InputError("A targeted attack needs at least two classes.")
        if self.config.target == "least-likely":
            return logits.scatter(1, labels[:, None], torch.inf).argmin(1)
        if self.config.target == "next":
            return (labels + 1) % classes
        draws = [np.random.default_rng(image_seed(self.config.seed, int(i), "target")).integers(1, classes) for i in indices]
        return (labels + torch.tensor(draws, device=labels.device)) % classes

    def clean(self, model: nn.Module, images: Tensor, indices: Tensor, columns: dict[str, Tensor]) -> Tensor:
        """Logits, N x classes. Controls are apart from the others, so that their second look is in the same batches."""
        columns["forward_passes"] += self.config.eot
        parts = [rows for rows in (controlled(indices), controlled(indices, False)) if len(rows)]
        looked = torch.cat([self.look(model, images[rows], indices[rows], "clean") for rows in parts])
        return torch.empty_like(looked).index_copy_(0, torch.cat(parts).to(looked.device), looked)

    @torch.no_grad()
    def look(self, model: nn.Module, images: Tensor, indices: Tensor, stream: str) -> Tensor:
        self.sizes += [(len(chunk), False) for chunk in images.split(self.batch_size)] * self.config.eot
        shown = self.network(model, indices, stream)
        return torch.cat([shown(chunk) for chunk in images.split(self.batch_size)])

    def network(self, model: nn.Module, indices: Tensor, stream: str = "scored") -> Callable[[Tensor], Tensor]:
        """The network, or the mean of `eot` passes of it, which is shown the images in order."""
        eot = self.config.eot
        return model if eot == 1 else Averaged(model, self.config.seed, indices.tolist(), stream, eot)

    def controls(
        self, model: nn.Module, images: Tensor, logits: Tensor, indices: Tensor, columns: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        """What gives a mask away: logits that differ between identical runs (every fourth image), or probabilities."""
        rows = controlled(indices)
        varies = torch.zeros_like(logits[:, 0], dtype=torch.bool)
        if len(rows):
            again, first = self.look(model, images[rows], indices[rows], "again"), logits[rows]
            columns["forward_passes"][rows] += self.config.eot
            varies[rows] = ((again - first).abs() > VARIATION * first.abs().clamp(min=1)).any(1)
        probabilities = (logits >= 0).all(1) & ((logits.sum(1) - 1).abs() < 1e-4)  # rows that sum to 1
        return {"varies": varies, "probabilities": probabilities}

    def checked(self, images: Tensor, adversarial: Tensor, indices: Tensor, columns: dict[str, Tensor]) -> Perturbed:
        """Budget, box and NaN in float64, then the same examples as 8-bit images, scored."""
        norm, eps = self.config.norm, self.reach
        found = check_budget(images, adversarial, eps, self.name, norm)
        rounded = in_eight_bits(images, adversarial, eps, norm)
        columns["forward_passes"] += 2 * self.config.eot  # as it is and in 8 bits
        eight = predictions(self.look(self.model, rounded, indices, "in 8 bits"))
        batches = len(self.sizes) + len(images.split(self.batch_size))  # the last look is the loop's, that scores them
        columns |= {norm: found, "prediction_8bit": eight}
        return Perturbed(adversarial, columns, rounded, places=batches * self.batch_size)


def controlled(indices: Tensor, control: bool = True) -> Tensor:
    """Rows of the images that are controls, or of the others."""
    return ((indices % CONTROL == 0) == control).nonzero()[:, 0]


def pools(first: int, place: int, most: Sequence[int], left: Tensor) -> Iterator[tuple[int, Tensor]]:
    """The number of each round from the `first` on, and the rows of images that have not `left` when it comes to them, `most`
    of them at once. In the first round they begin at `place`."""
    for number in range(first, len(most)):
        while len(rows := (~left[place:]).nonzero()[: most[number], 0] + place):
            yield number, rows
            place = int(rows[-1]) + 1
        place = 0


def at_once(model: nn.Module, images: Tensor, turn: Round) -> int:
    """How many images make WORK in a round; all of them on a GPU, and without gradients, where what is remembered is small."""
    if images.device.type != "cpu" or not ATTACKS[turn.attack].by_gradient:
        return len(images)
    weights, pixels = sum(parameter.numel() for parameter in model.parameters()), images.shape[2] * images.shape[3]
    return max(1, int(WORK / max(1, turn.passes * weights * pixels)))


def run_round(queried: QueriedModel, turn: Round, indices: Tensor) -> Tensor:
    """What fell, and for the others what the attack ended with (the image itself where that may lie outside the ball)."""
    kept, seed = queried.images, turn.config.seed
    if queried.eot > 1:
        numbers, stream = indices.tolist(), f"{turn.stream} {turn.restart} noise"
        queried.noise = lambda rows, passes: ImageNoise(seed, [numbers[row] for row in rows.tolist()], stream, passes.tolist())
    entry = ATTACKS[turn.attack]
    queried.random = PerImageRandom(seed, indices, turn.stream, turn.restart, queried.rows)
    with torch.enable_grad(), nullcontext() if entry.own_draws else queried.random, suppress(AllFallen):
        final = entry.run(queried, turn).detach()
        if not (queried.aim.leaves or queried.aim.nearest):
            return final
        kept = final if queried.aim.bounded else queried.images
        if queried.remaining is not None:  # what has no passes left may have been moved without a query
            kept = torch.where(queried.remaining[:, None, None, None] < queried.eot, queried.images, kept)
    return torch.where(queried.fallen[:, None, None, None], queried.adversarial, kept)
