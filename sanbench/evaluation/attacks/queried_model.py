"""The network as an attack sees it: counts its passes, keeps what falls, and spends nothing on images that have fallen."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from sanbench.errors import SanbenchError
from sanbench.evaluation.attacks.budget import distance, inside_box
from sanbench.evaluation.kinds import TOLERANCE
from sanbench.evaluation.loop import predictions
from sanbench.evaluation.rng import PerImageRandom

SPENT = ("forward_passes", "backward_passes", "dead_gradients")
VARIATION = 1e-4  # of logits between identical runs: far above what sums in another order differ by
REMEMBERED = 2**28  # bytes of the answers to a round: of 400 queries of an image of 224 x 224 with gradients


class AllFallen(Exception):
    """Nothing is left to attack."""


class Aim(NamedTuple):
    """What an image has to do to leave: be told wrong (no target), or be given its target.

    `bounded` attacks never query outside ball and box (their budget is checked afterwards, and a violation fails the run);
    the others search for the nearest adversarial image, and only what lies inside counts.
    """

    norm: str
    eps: float | Tensor  # N where each image has its own
    bounded: bool = True
    target: Tensor | None = None
    leaves: bool = True  # False: keep to the last step (examples that shall fool other networks)
    nearest: bool = False  # without leaving, the nearest query that does it is kept, not the first


Loss = Callable[[Tensor, Tensor], Tensor]  # logits n x classes and their rows in the pool -> what each image ascends: n


class Differentiated(torch.autograd.Function):
    """Logits of images whose gradient is known already."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, logits: Tensor, gradient: Tensor) -> Tensor:
        ctx.save_for_backward(gradient)
        return logits.clone()

    @staticmethod
    def backward(ctx: Any, *_: Any) -> tuple[Tensor, None, None]:
        (gradient,) = ctx.saved_tensors
        return gradient, None, None


class QueriedModel(nn.Module):
    """`queried(x)` gives the logits of a pool of images; x has a row for each image, or for each that has not fallen.

    Rows of images that have fallen are not computed: they get the logits they fell with, and no gradient. Those that stand
    are put together to batches of `batch_size` anew in every query, so that all but the last one are full.

    The network goes back batch by batch as it is queried, so that the memory of one batch is enough for a pool of any size.
    For that the attack tells its `loss`; the gradient of each image is that of its own loss, whatever torchattacks averages.

    budgets      eps of each image, in float64: N
    loss         what the attack ascends
    adversarial  the query that fell, or else a copy of the image: N x 3 x H x W
    fallen       wrong in some query inside the budget: N
    left         has done what the aim asks: N
    answers      to the queries so far, by whether they went back, of each of their images: with a gradient its logits, how many
                 passes were dead, and that gradient, n x (classes + 1 + pixels); without one the label's logit (NaN where a
                 logit is not finite), the largest other and its class, n x 3
    room         bytes that these may still take: no query is remembered after those that fill it
    known        answers from before an interruption: they are told again, and the network is not asked
    nearest      where the nearest is kept, how far it is: N
    forward_passes, backward_passes, dead_gradients (all zero, or not finite, before its aim is reached): of each image, N
    """

    def __init__(self, model: nn.Module, images: Tensor, labels: Tensor, logits: Tensor, aim: Aim, batch_size: int) -> None:
        super().__init__()
        self.training = False  # torchattacks restores the mode it finds: a queried in training mode would train the network
        self.model, self.images, self.labels, self.aim, self.batch_size = model, images, labels, aim, batch_size
        self.budgets = torch.as_tensor(aim.eps, dtype=torch.float64, device=labels.device).expand(len(labels))
        self.clean, self.last = logits, logits.clone()
        self.nearest = torch.full_like(self.budgets, torch.inf)
        self.adversarial = images.clone()
        self.fallen = torch.zeros_like(labels, dtype=torch.bool)
        self.left = self.fallen.clone()
        self.alive = torch.arange(len(labels), device=labels.device)  # rows that have not left
        self.spent = {name: torch.zeros_like(labels) for name in SPENT}
        self.loss: Loss
        self.sizes: list[tuple[int, bool]] = []  # rows of each pass of the network, and whether it went back too
        self.queries = 0
        self.answers: dict[bool, list[Tensor]] = {False: [], True: []}
        self.room, self.known = 0, {back: labels.new_empty(0) for back in self.answers}
        self.remaining: Tensor | None = None  # passes that each image may still have, forward and backward: N
        self.eot = 1  # passes whose gradients and logits are averaged
        self.random: PerImageRandom  # the attack's draws
        self.noise: Callable[[Tensor, Tensor], AbstractContextManager[Any]] = lambda rows, passes: nullcontext()
        self.told: Callable[[QueriedModel], None] = lambda queried: None  # is called before each pass of the network

    def rows(self, count: int) -> Sequence[int]:
        """Which images the `count` rows of a query are: all, or those that have not left."""
        if count == len(self.labels):
            return range(count)
        if count != len(self.alive):
            raise SanbenchError(f"An attack queried {count} images, but {len(self.alive)} of {len(self.labels)} are left.")
        return self.alive.tolist()

    def forward(self, x: Tensor) -> Tensor:
        with torch._C.DisableTorchFunction():  # a network's own random numbers are its own
            return self.query(x)

    def query(self, x: Tensor) -> Tensor:
        whole = len(x) == len(self.labels)
        self.rows(len(x))
        if not x.requires_grad and whole and torch.equal(x, self.images):
            return self.clean.clone()
        alive = self.alive
        if len(alive) == 0:
            raise AllFallen
        self.queries += 1
        inner = x.detach()[alive] if whole and len(alive) < len(x) else x.detach()
        gradients = []
        for rows, shown, back in self.affordable(alive, inner, x.requires_grad):
            logits, found = self.answer(shown, rows, back)
            self.judge(rows, shown, logits)
            gradients += [(rows, found)] if back else []
        logits = self.last.clone() if whole else self.last[alive]
        if not x.requires_grad:
            return self.without_ties(logits, whole, alive)
        if len(gradients) == 1 and len(gradients[0][1]) == len(x):
            gradient = gradients[0][1].contiguous()  # torchattacks views it
        else:
            gradient = torch.zeros_like(x, memory_format=torch.contiguous_format)
            for rows, found in gradients:
                gradient.index_copy_(0, rows if whole else torch.searchsorted(alive, rows), found)
        differentiated: Tensor = Differentiated.apply(x, logits, gradient)
        return differentiated

    def affordable(self, alive: Tensor, x: Tensor, back: bool) -> Iterator[tuple[Tensor, Tensor, bool]]:
        """Rows of the pool, what they are shown, and whether with a gradient: forward alone where no more passes are left.

        Images without any are told to be wrong, so that attacks drop them, but have not fallen.
        """
        if self.remaining is None:
            yield alive, x, back
            return
        passes = self.remaining[alive] // self.eot
        spent = alive[passes < 1]
        self.last[spent] = torch.zeros_like(self.last[spent]).scatter(1, self.labels[spent][:, None], -1)
        self.alive = alive[passes >= 1]
        for places, deep in ((passes >= 1 + back, back), (passes == 1, False))[: 1 + back]:
            if places.any():
                yield alive[places], x[places], deep

    def go_on(self, answers: dict[bool, Tensor]) -> None:
        """Begin with what was answered before an interruption: the same queries follow from it."""
        for back, values in answers.items():
            self.known[back], self.answers[back] = values, [values]
            self.room -= values.nbytes

    def answer(self, x: Tensor, rows: Tensor, back: bool) -> tuple[Tensor, Tensor]:
        """Logits of images that are shown as x, and with `back` the gradient of each (else x): known, or asked for by batch."""
        passes = self.spent["forward_passes"][rows]
        self.spent["forward_passes"][rows] += self.eot
        if back:
            self.spent["backward_passes"][rows] += self.eot
        self.sizes += [(len(some), back) for some in rows.split(self.batch_size)] * self.eot
        if self.remaining is not None:
            self.remaining[rows] -= self.eot * (1 + back)
        if len(self.known[back]):
            logits, found, dead = self.recall(x, rows, back)
        else:
            parts = [(x, rows, passes)]
            if len(rows) > self.batch_size:
                parts = list(zip(*(values.split(self.batch_size) for values in parts[0]), strict=True))
            asked = [self.ask(chunk, those, before, back) for chunk, those, before in parts]
            logits, found, dead = (torch.cat(part) for part in zip(*asked, strict=True)) if len(asked) > 1 else asked[0]
            self.remember(logits, found, dead, rows, back)
        if back:
            self.spent["dead_gradients"][rows] += dead
        return logits, found

    def ask(self, x: Tensor, rows: Tensor, passes: Tensor, back: bool) -> tuple[Tensor, Tensor, Tensor]:
        """Logits of one batch and with `back` the gradients (else the images), means over `eot` passes, and in how many of
        these the gradient was dead. Each image had so many `passes` before."""
        asked = [self.ask_once(x, rows, passes + number, back) for number in range(self.eot)]
        if len(asked) == 1:
            return asked[0]
        logits, found, dead = (torch.stack(each) for each in zip(*asked, strict=True))
        return logits.mean(0), found.mean(0), dead.sum(0)

    def ask_once(self, x: Tensor, rows: Tensor, passes: Tensor, back: bool) -> tuple[Tensor, Tensor, Tensor]:
        self.told(self)
        with self.noise(rows, passes), torch.set_grad_enabled(back):
            x = x.detach().requires_grad_(back)
            logits: Tensor = self.model(x)
            if not back:
                return logits, x, torch.zeros_like(rows, dtype=torch.bool)
            (gradient,) = torch.autograd.grad(self.loss(logits, rows).sum(), x)
        size = torch.linalg.vector_norm(gradient.flatten(1), torch.inf, 1)
        finite = size.isfinite()
        dead = ((size == 0) | ~finite) & ~self.done(predictions(logits), rows)
        return logits.detach(), gradient if finite.all() else gradient.nan_to_num(0, 0, 0), dead

    def remember(self, logits: Tensor, found: Tensor, dead: Tensor, rows: Tensor, back: bool) -> None:
        """Add to `answers`, while there is `room`."""
        if self.room > 0:
            whole = [logits, dead[:, None].to(logits), found.flatten(1)]
            answer = torch.cat(whole, 1).cpu() if back else self.margins(logits, rows)
            self.answers[back].append(answer)
            self.room -= answer.nbytes

    def margins(self, logits: Tensor, rows: Tensor) -> Tensor:
        """What `answers` keeps of the logits of a query without gradients: of 5,000 queries all would be too many."""
        labels = self.labels[rows, None]
        other, place = logits.scatter(1, labels, -torch.inf).max(1)
        own = torch.where(logits.isfinite().all(1), logits.gather(1, labels)[:, 0], torch.nan)
        return torch.stack([own, other, place.to(own)], 1).cpu()

    def recall(self, x: Tensor, rows: Tensor, back: bool) -> tuple[Tensor, Tensor, Tensor]:
        """What `ask` gave, of the next images of what is `known`. Without a gradient, classes that were neither the label nor
        the largest lie below."""
        self.told(self)
        known, classes = self.known[back][: len(rows)].to(self.clean), self.clean.shape[1]
        self.known[back] = self.known[back][len(rows) :]
        if back:
            logits, dead, gradient = known.split([classes, 1, known.shape[1] - classes - 1], 1)
            return logits, gradient.reshape(x.shape).clone(), dead[:, 0].long()  # an attack changes it in place
        own, other, place = known[:, :, None].unbind(1)
        below = other.nextafter(other.new_tensor(-torch.inf)).repeat(1, classes)
        return below.scatter(1, place.long(), other).scatter(1, self.labels[rows, None], own), x, torch.zeros_like(rows)

    def release(self) -> None:
        """Let go of the images at once, and of `told`, which knows those of the whole part: attacks, their losses and random
        numbers refer to this and are referred to by it, so that they stay until Python looks for such circles."""
        self.images = self.adversarial = self.last.new_empty(0)
        self.answers, self.known = {}, {}
        self.told = lambda queried: None

    def done(self, prediction: Tensor, rows: Tensor) -> Tensor:
        """Whether the aim is reached by predictions for `rows` of the pool. There is nothing to climb then: the DLR of an image
        whose own class is the third is 1 everywhere around it."""
        return prediction != self.labels[rows] if self.aim.target is None else prediction == self.aim.target[rows]

    @torch.no_grad()
    def judge(self, alive: Tensor, x: Tensor, logits: Tensor) -> None:
        """Keep what has fallen; what has done what the aim asks leaves. A target hit replaces what was only wrong.

        Logits that are not finite are no prediction, so the image has fallen; the attack is given finite ones that are wrong.
        """
        prediction, labels = predictions(logits), self.labels[alive]
        wrong = prediction != labels
        if wrong.any():
            wrong_logits = torch.zeros_like(logits).scatter(1, labels[:, None], -1)
            logits = torch.where((prediction < 0)[:, None], wrong_logits, logits)
        self.last[alive] = logits
        if not self.aim.bounded:
            away = distance(self.images[alive], x, self.aim.norm)
            wrong &= (away <= self.budgets[alive] + TOLERANCE[self.aim.norm] / 2) & inside_box(x)
        if not wrong.any():  # most queries of a search
            return
        done = wrong & self.done(prediction, alive)
        kept = done | (wrong & ~self.fallen[alive])
        if self.aim.nearest:
            kept = done & (away < self.nearest[alive])
            self.nearest[alive[kept]] = away[kept]
        self.adversarial[alive[kept]] = x[kept]
        self.fallen[alive[wrong]] = True
        if self.aim.leaves or self.aim.nearest:
            self.left[alive[done]] = True
        if self.aim.leaves:
            self.alive = self.alive[~self.left[self.alive]]

    def without_ties(self, logits: Tensor, whole: bool, alive: Tensor) -> Tensor:
        """Square drops an image whose margin is 0; here a tie that is told right has not fallen."""
        labels = (self.labels if whole else self.labels[alive])[:, None]
        own = logits.gather(1, labels)
        tied = logits.scatter(1, labels, -torch.inf).amax(1, keepdim=True) == own
        if not tied.any():
            return logits
        tied &= logits.argmax(1, keepdim=True) == labels
        return logits.scatter(1, labels, torch.where(tied, torch.nextafter(own, own.new_tensor(torch.inf)), own))
