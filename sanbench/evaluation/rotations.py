"""Zero-shot generalisation to rotated images (experiment 9 of the paper): exact rotations, no resampling."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sanbench.errors import InputError
from sanbench.evaluation.loop import Identity, Perturbation, Perturbed

ACCEPTED = "clockwise multiples of 90 degrees and the word flip (upside down)"


@dataclass(frozen=True)
class Rotation:
    """Clockwise by `angle` degrees, a multiple of 90, with torch.rot90, which turns counter-clockwise for k > 0."""

    angle: int
    experiment = "rotation"

    @property
    def setting(self) -> dict[str, Any]:
        return {"angle": self.angle}

    def __call__(self, images: Tensor, labels: Tensor, indices: Tensor) -> Perturbed:
        return Perturbed(torch.rot90(images, -self.angle // 90, (2, 3)), {})


@dataclass(frozen=True)
class Flip:
    """Upside down: rows reversed."""

    experiment = "rotation"

    @property
    def setting(self) -> dict[str, Any]:
        return {"angle": "flip"}

    def __call__(self, images: Tensor, labels: Tensor, indices: Tensor) -> Perturbed:
        return Perturbed(images.flip(2), {})


def parse_angles(text: str) -> list[Perturbation]:
    """`90,180,flip` -> perturbations; an angle of 0 is the identity. Raises InputError that names the word."""
    found: dict[str | int, Perturbation] = {}
    for word in (word.strip() for word in text.split(",")):
        if word == "flip":
            found["flip"] = Flip()
            continue
        try:
            angle = int(word)
        except ValueError:
            raise InputError(f"angle {word!r} is not accepted: accepted are {ACCEPTED}.") from None
        if angle % 90:
            raise InputError(f"angle {word} is not accepted: accepted are {ACCEPTED}.")
        found[angle % 360] = Rotation(angle % 360) if angle % 360 else Identity()
    return list(found.values())
