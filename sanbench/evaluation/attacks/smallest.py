"""The smallest perturbation of each image: how far an attack has to go until its aim is reached."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from sanbench.evaluation.attacks.attack import Attack
from sanbench.evaluation.attacks.budget import budget_text, distance
from sanbench.evaluation.attacks.queried_model import Aim, QueriedModel
from sanbench.evaluation.attacks.table import ATTACKS, FOOLBOX_2, Round, Search


class Smallest(Attack):
    """The nearest example that attack `name` finds, up to budget `config.eps`: its distance is the image's smallest ε.

    An attack of one budget is tried with budgets of each image's own (see `Search`); what finds the nearest example runs as
    it is. An image for which nothing is found stays as it is. A smaller perturbation may exist: this is an upper bound.
    """

    again = "attempt"

    @property
    def search(self) -> Search:
        assert self.config.search is not None
        return self.config.search

    @property
    def bisects(self) -> bool:
        return ATTACKS[self.name].bounded

    @property
    def reach(self) -> float:
        largest = float(self.config.eps * self.search.growth ** (self.search.tries - 1)) if self.bisects else super().reach
        return min(largest, 1.0) if self.config.norm == "linf" else largest

    @property
    def setting(self) -> dict[str, Any]:
        config, search = self.config, self.search
        setting = super().setting | {"attacked": "images right before"}
        if self.bisects:
            setting |= {"step_size": f"{config.step_size / config.eps} of ε", "bisections": search.bisections}
            setting |= {"tries": search.tries, "growth": str(search.growth)} if search.tries > 1 else {}
            setting |= {} if search.random_start else {"start": "the image itself"}
            setting |= {"search": "as foolbox 2 by default"} if search == FOOLBOX_2 else {}
            if search.tries == 1:
                setting["tolerance"] = budget_text(config.eps / 2**search.bisections)
        return setting

    def begun(self, images: Tensor, wrong: Tensor) -> dict[str, Tensor]:
        """Beside what an attack keeps: the distance of the nearest example, the largest ε that failed and the smallest that
        succeeded, the next one with the restarts that failed there, and how many ε were tried before a success and after."""
        never = torch.full_like(wrong, torch.inf, dtype=torch.float64)
        none = torch.zeros_like(wrong, dtype=torch.int64)
        further = {"distance": never, "low": torch.zeros_like(never), "high": never.clone()}
        further |= {"eps": torch.full_like(never, float(self.config.eps))}
        return super().begun(images, wrong) | further | {"failed": none, "tried": none.clone(), "halved": none.clone()}

    def rounds(self, classes: int) -> Iterable[Round]:
        if not self.bisects:
            yield from super().rounds(classes)
            return
        (first, *_) = super().rounds(classes)
        for number in range((self.search.tries + self.search.bisections) * self.config.restarts):
            yield first._replace(restart=number)  # each has random numbers of its own

    def aim(self, turn: Round, target: Tensor | None, state: dict[str, Tensor], rows: Tensor) -> Aim:
        if not self.bisects:
            return super().aim(turn, target, state, rows)._replace(leaves=False, nearest=True)
        return super().aim(turn, target, state, rows)._replace(eps=state["eps"][rows])

    def take(self, state: dict[str, Tensor], rows: Tensor, turn: Round, queried: QueriedModel, made: Tensor) -> None:
        found = queried.left
        away = distance(queried.images, made, self.config.norm).where(found, torch.inf)
        nearer = away < state["distance"][rows]
        state["adversarial"][rows[nearer]] = made[nearer]
        state["distance"][rows[nearer]] = away[nearer]
        state["fell"][rows] |= found
        if self.bisects:
            narrowed = self.narrowed({name: state[name][rows] for name in SEARCHED}, found)
            for name, values in narrowed.items():
                state[name][rows] = values

    def narrowed(self, now: dict[str, Tensor], found: Tensor) -> dict[str, Tensor]:
        """What is known of images after their attack at `eps` has succeeded where `found`: N each."""
        failed = torch.where(found, 0, now["failed"] + 1)
        moves = found | (failed == self.config.restarts)
        between = now["high"].isfinite()
        low = torch.where(moves & ~found & between, now["eps"], now["low"])
        high = torch.where(found, now["eps"], now["high"])
        tried, halved = now["tried"] + (moves & ~between), now["halved"] + (moves & between)
        following = torch.where(high.isfinite(), (low + high) / 2, now["eps"] * float(self.search.growth))
        ended = (~high.isfinite() & (tried >= self.search.tries)) | (halved >= self.search.bisections)
        return {
            "low": low,
            "high": high,
            "eps": torch.where(moves, following, now["eps"]),
            "failed": torch.where(moves, 0, failed),
            "tried": tried,
            "halved": halved,
            "left": moves & ended,
        }


SEARCHED = ("low", "high", "eps", "failed", "tried", "halved")
