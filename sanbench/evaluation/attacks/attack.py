"""An attack as a perturbation: which images are attacked, how often, and what is kept of it."""

import copy
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import numpy as np
import torch
from torch import Tensor, nn

from sanbench.errors import InputError
from sanbench.evaluation.attacks.budget import budget_text, check_budget, in_eight_bits
from sanbench.evaluation.attacks.queried_model import VARIATION, Aim, AllFallen, QueriedModel
from sanbench.evaluation.attacks.table import ATTACKS, AttackConfig, Round, member_config
from sanbench.evaluation.loop import Perturbation, Perturbed, Seen, predictions
from sanbench.evaluation.rng import Averaged, ImageNoise, image_seed, per_image_random
from sanbench.evaluation.sanity_checks import attack_flags

if TYPE_CHECKING:
    from sanbench.runs.evaluated import EvaluatedModel
    from sanbench.store.rows import Rows


CONTROL = 4  # images with indices that are multiples of it are run twice
MANY = 10**9  # classes: more than any attack has targets
KEEP = 20.0  # seconds between two points from which an interrupted attack goes on, at least
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


class Point(NamedTuple):
    """Where an attack goes on: at a round, with the images from `place` on, after so many seconds.

    answers  of the queries that were made in that round already, where it has no gradients; see `QueriedModel.answers`
    """

    round: int = 0
    place: int = 0
    seconds: float = 0.0
    answers: Tensor | None = None


class Attack(Perturbation):
    """The attack `name` on `model`: every round of it on the images that are still right, the worst case of each kept.

    Images that the network has wrong are not robust already and are not attacked. An image leaves at the first query inside
    the budget that does what is aimed at, and its place in the batch goes to the next that stands (see `QueriedModel`).
    """

    has_examples = True
    again = "restart"  # what rounds with the same target are called

    def __init__(
        self, name: str, model: nn.Module, config: AttackConfig, batch_size: int = 64, surrogate: Surrogate | None = None
    ) -> None:
        self.name, self.model, self.config, self.batch_size, self.surrogate = name, model, config, batch_size, surrogate
        self.sizes: list[tuple[int, bool]] = []
        if surrogate is not None and not ATTACKS[name].transfers:
            accepted = ", ".join(other for other, entry in ATTACKS.items() if entry.transfers)
            raise InputError(
                f"attack {name!r} is not accepted with a surrogate: it looks for the nearest example or the first that works, "
                f"not the strongest. Accepted are {accepted}."
            )

    @property
    def kind(self) -> str:  # type: ignore[override]  # decided by the surrogate
        return "attack" if self.surrogate is None else "transfer"

    def flags(self, rows: "Rows", classes: int) -> list[str]:
        return attack_flags(rows, self.setting) if self.surrogate is None else []

    @property
    def reach(self) -> float:
        """The largest budget that any image may have."""
        return float(self.config.eps)

    @property
    def setting(self) -> dict[str, Any]:
        entry, config = ATTACKS[self.name], self.config
        setting: dict[str, Any] = {"attack": self.name, "norm": config.norm, "eps": budget_text(config.eps)}
        setting |= parameters(self.name, config)
        for member in entry.members:
            setting[member] = parameters(member, member_config(member, config))
        setting |= {"eot": config.eot} if config.eot > 1 else {}
        setting |= {"max_passes": config.max_passes} if config.max_passes else {}
        setting |= {"attacked": "images right before, until they fall", "seed": config.seed}
        if self.surrogate is not None:
            setting |= {"surrogate": self.surrogate.label, "surrogate_weights": self.surrogate.weights}
            setting["attacked"] = "images that the surrogate has right, all steps"
        return setting

    def __call__(self, images: Tensor, labels: Tensor, indices: Tensor) -> Perturbed:
        columns = {name: torch.zeros_like(labels) for name in SPENT}
        self.sizes.clear()
        clean = self.clean(self.model, images, indices, columns)
        victim = self.model if self.surrogate is None else self.surrogate.model
        logits = clean if self.surrogate is None else self.clean(victim, images, indices, columns)
        entry = ATTACKS[self.name]
        target = self.choose_targets(logits, labels, indices) if entry.aimed else None
        rounds = list(self.rounds(logits.shape[1])) if self.config.eps else []
        state = self.begun(images, predictions(logits) != labels) | columns
        left = state["left"]
        start = self.resume(state, indices)
        kept = started = time.monotonic()

        def keep(point: Point, answers: list[Tensor]) -> None:
            nonlocal kept
            if self.keeper is None or (now := time.monotonic()) - kept <= KEEP:
                return
            kept = now
            point = point._replace(seconds=start.seconds + now - started, answers=torch.cat(answers) if answers else None)
            self.keeper.keep({**state, **point._asdict(), "sizes": self.sizes, "indices": indices})

        most = [at_once(victim, images, turn) for turn in rounds]
        for point, rows in pools(start, most, left):
            turn = rounds[point.round]
            aim = self.aim(turn, None if target is None else target[rows], state, rows)
            queried = QueriedModel(victim, images[rows], labels[rows], logits[rows], aim, self.batch_size)
            queried.remember = self.remembers(turn)
            if point.answers is not None:
                queried.answers, queried.known = [point.answers], point.answers
            queried.told = self.teller(rounds, point, state, rows, keep)
            if self.config.max_passes:
                queried.remaining = state["remaining"][rows]
            if self.config.eot > 1:
                queried.eot, queried.noise = self.config.eot, self.noise(turn, indices[rows.cpu()])
            keep(point, queried.answers)
            made = run_round(queried, turn, indices[rows.cpu()])
            for name in SPENT:
                columns[name][rows] += queried.spent[name]
            self.sizes += queried.sizes
            self.take(state, rows, turn, queried, made)
            if queried.remaining is not None:
                state["remaining"][rows] = queried.remaining
                left |= state["remaining"] < self.config.eot
        columns |= {"clean_prediction": predictions(clean)} | self.controls(victim, images, logits, indices, columns)
        columns |= {} if target is None else {"target": target}
        columns |= {"member": state["member"]} if entry.members else {}
        if self.config.max_passes:
            columns["attack_passes"] = self.config.max_passes - state["remaining"]
        perturbed = self.checked(images, state["adversarial"], indices, columns)
        batches = len(self.sizes) + len(images.split(self.batch_size))  # the last look is the loop's, that scores them
        return perturbed._replace(places=batches * self.batch_size, earlier=start.seconds)

    def remembers(self, turn: Round) -> bool:
        """Whether a round goes on from the answers to its queries: what it asks next then follows from them."""
        return (
            self.keeper is not None
            and not ATTACKS[turn.attack].by_gradient
            and self.config.eot == 1
            and not self.config.max_passes
        )

    def begun(self, images: Tensor, wrong: Tensor) -> dict[str, Tensor]:
        """What is known of each image before the first round: N each, and the adversarial ones."""
        member = torch.full_like(wrong, -1, dtype=torch.int64)
        remaining = torch.full_like(member, self.config.max_passes or 0)
        found = {"fell": wrong.clone(), "left": wrong, "member": member, "adversarial": images.clone()}
        return found | {"remaining": remaining}

    def take(self, state: dict[str, Tensor], rows: Tensor, turn: Round, queried: QueriedModel, made: Tensor) -> None:
        """Put into `state` what a round did to the images `rows`: a worst case over rounds."""
        new = queried.fallen & ~state["fell"][rows]
        better = queried.left | ~state["fell"][rows]
        state["adversarial"][rows[better]] = made[better]
        state["member"][rows[new]] = number(ATTACKS[self.name].members, turn.attack)
        state["fell"][rows] |= queried.fallen
        state["left"][rows] |= queried.left

    def resume(self, state: dict[str, Tensor], indices: Tensor) -> Point:
        """Fill `state` with what was kept of these images: where to go on."""
        found = None if self.keeper is None else self.keeper.load()
        if found is None or found["indices"].tolist() != indices.tolist():
            return Point()
        for name, values in state.items():
            values.copy_(found[name])
        self.sizes[:] = found["sizes"]
        return Point(**{name: found[name] for name in Point._fields})

    def in_batches(self, size: int) -> Self:
        if size >= self.batch_size:
            return self
        smaller = copy.copy(self)
        smaller.batch_size, smaller.sizes = size, []
        return smaller

    @property
    def passes(self) -> int:
        every = sum(turn.passes for turn in self.rounds(MANY)) if self.config.eps else 1
        return min(every, self.config.max_passes or every)

    def teller(
        self,
        rounds: Sequence[Round],
        point: Point,
        state: dict[str, Tensor],
        rows: Tensor,
        keep: Callable[[Point, list[Tensor]], None],
    ) -> Callable[[QueriedModel], None]:
        """Has what is remembered of the round at `point` kept; every TELL seconds tells `watch` how far it is with `rows`, its
        target and start, and how many images stand."""
        number, images = point.round, len(state["fell"])
        before, whole = (sum(turn.passes for turn in some) for some in (rounds[:number], rounds))
        whole, turn = min(whole, self.config.max_passes or whole), rounds[number]
        own = [other for other in rounds if other.attack == turn.attack]
        targets, starts = (len({getattr(other, name) for other in own}) for name in ("target", "restart"))
        words = [f"target {turn.target - 1} of {targets}"] * (targets > 1)
        words += [f"{self.again} {turn.restart + 1} of {starts}"] * (starts > 1)
        about = ", ".join([turn.attack, *words])
        stood, fallen = int((~state["fell"]).sum()), state["fell"][rows]
        told = time.monotonic() - TELL

        def tell(queried: QueriedModel) -> None:
            nonlocal told
            if queried.remember:
                keep(point, queried.answers)
            if (now := time.monotonic()) - told < TELL:  # counting waits for the device
                return
            told = now
            here = min(1.0, queried.queries / turn.config.steps) * (int(rows[-1]) + 1 - point.place) / images
            share = min(1.0, (before + turn.passes * (point.place / images + here)) / whole)
            gone = queried.left if self.config.search else queried.fallen
            standing = None if self.surrogate else stood - int((gone & ~fallen).sum())
            self.watch(Seen(share, about, standing))

        return tell

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
        shown = self.averaged(model, indices, stream)
        return torch.cat([shown(chunk) for chunk in images.split(self.batch_size)])

    def averaged(self, model: nn.Module, indices: Tensor, stream: str) -> Callable[[Tensor], Tensor]:
        """The network, or the mean of `eot` passes of it, which is shown the images in order."""
        eot = self.config.eot
        return model if eot == 1 else Averaged(model, self.config.seed, indices.tolist(), stream, eot)

    def network(self, model: nn.Module, indices: Tensor) -> Callable[[Tensor], Tensor]:
        return self.averaged(model, indices, "scored")

    def noise(self, turn: Round, indices: Tensor) -> Callable[[Tensor, Tensor], ImageNoise]:
        """Of images of a pool and the numbers of their passes in this round."""
        numbers, name = indices.tolist(), f"{stream(turn)} {turn.restart} noise"
        return lambda rows, passes: ImageNoise(turn.config.seed, [numbers[row] for row in rows.tolist()], name, passes.tolist())

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
        return {"varies": varies, "probabilities": probability_like(logits)}

    def checked(self, images: Tensor, adversarial: Tensor, indices: Tensor, columns: dict[str, Tensor]) -> Perturbed:
        """Budget, box and NaN in float64, then the same examples as 8-bit images, scored."""
        norm, eps = self.config.norm, self.reach
        found = check_budget(images, adversarial, eps, self.name, norm)
        rounded = in_eight_bits(images, adversarial, eps, norm)
        columns["forward_passes"] += 2 * self.config.eot  # as it is and in 8 bits
        eight = predictions(self.look(self.model, rounded, indices, "in 8 bits"))
        return Perturbed(adversarial, columns | {norm: found, "prediction_8bit": eight}, rounded)


def controlled(indices: Tensor, control: bool = True) -> Tensor:
    """Rows of the images that are controls, or of the others."""
    return ((indices % CONTROL == 0) == control).nonzero()[:, 0]


def probability_like(logits: Tensor) -> Tensor:
    """Rows that are non-negative and sum to 1: N."""
    return (logits >= 0).all(1) & ((logits.sum(1) - 1).abs() < 1e-4)


SPENT = ("forward_passes", "backward_passes", "dead_gradients")


def pools(start: Point, most: Sequence[int], left: Tensor) -> Iterator[tuple[Point, Tensor]]:
    """Each round on the images that have not `left` when it comes to them, `most` of them at once: their rows."""
    for number in range(start.round, len(most)):
        place = start.place if number == start.round else 0
        while len(rows := (~left[place:]).nonzero()[: most[number], 0] + place):
            yield start if (number, place) == start[:2] else Point(number, place), rows
            place = int(rows[-1]) + 1


def at_once(model: nn.Module, images: Tensor, turn: Round) -> int:
    """How many images make WORK in a round; all of them on a GPU, and where what was answered is remembered."""
    if images.device.type != "cpu" or not ATTACKS[turn.attack].by_gradient:
        return len(images)
    weights, pixels = sum(parameter.numel() for parameter in model.parameters()), images.shape[2] * images.shape[3]
    return max(1, int(WORK / max(1, turn.passes * weights * pixels)))


def run_round(queried: QueriedModel, turn: Round, indices: Tensor) -> Tensor:
    """What fell, and for the others what the attack ended with (the image itself where that may lie outside the ball)."""
    kept = queried.images
    with torch.enable_grad(), per_image_random(turn.config.seed, indices, stream(turn), turn.restart, queried.rows):
        try:
            final = ATTACKS[turn.attack].run(queried, turn).detach()
            if not (queried.aim.leaves or queried.aim.nearest):
                return final
            kept = final if queried.aim.bounded else queried.images
            if queried.remaining is not None:  # what has no passes left may have been moved without a query
                kept = torch.where(queried.remaining[:, None, None, None] < queried.eot, queried.images, kept)
        except AllFallen:
            pass
    return torch.where(queried.fallen[:, None, None, None], queried.adversarial, kept)


def stream(turn: Round) -> str:
    """Of a member of `standard` the same as of the attack alone."""
    return f"{turn.attack} {turn.target}"


def number(members: Sequence[str], name: str) -> int:
    return members.index(name) if name in members else -1


def bind(
    model: nn.Module, attacks: Sequence[tuple[str, AttackConfig]], batch_size: int = 64, surrogate: Surrogate | None = None
) -> list[Perturbation]:
    """The attacks as perturbations of images for `model`."""
    from sanbench.evaluation.attacks.smallest import Smallest  # it is made of this module

    return [
        (Attack if config.search is None else Smallest)(name, model, config, batch_size, surrogate) for name, config in attacks
    ]


def check_gradients(evaluated: "EvaluatedModel", attacks: Sequence[tuple[str, AttackConfig]]) -> None:
    """Raises InputError for an attack that needs gradients, of a network that gives the pixels none."""
    needing = [name for name, _ in attacks if ATTACKS[name].by_gradient]
    if needing and "no-gradient" in evaluated.findings:
        others = ", ".join(name for name, entry in ATTACKS.items() if not entry.by_gradient)
        raise InputError(
            f"attack {needing[0]!r} is not accepted for {evaluated.run}: no gradient reaches its pixels. Accepted is {others}."
        )
