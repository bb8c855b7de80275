"""What `sanbench show` is asked for: wrong words are told before torch is imported."""

from dataclasses import dataclass

from sanbench.errors import InputError
from sanbench.evaluation.attacks.table import parse_attacks
from sanbench.evaluation.kinds import AttackOptions


@dataclass(frozen=True)
class Asked:
    """What is shown of an image.

    pixel     row and column in the image, whose attention is shown; None: the centre
    stage     the stage whose attention is shown, mean and spread; None: the mean of every stage
    channels  whether each weight channel is shown too
    rotate    clockwise degrees of a second row; None: no such row
    attack    of a third row, as `sanbench.attack` takes it: "pgd:8/255"
    """

    pixel: tuple[int, int] | None = None
    stage: int | None = None
    channels: bool = False
    rotate: float | None = None
    attack: str | None = None


def check_attack(attack: str) -> None:
    """Raises InputError for what is not one attack with one budget, before anything is loaded."""
    name, _, eps = attack.partition(":")
    if len(parse_attacks(name, eps or AttackOptions().eps)) != 1:
        raise InputError(f"attack {attack!r} is not accepted: name one attack and one budget, as in pgd:8/255.")
