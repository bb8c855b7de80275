"""Budgets of attacks: how they are written, how far an image is from another, and the check after every attack."""

from __future__ import annotations

import re
from collections.abc import Callable
from fractions import Fraction
from typing import TYPE_CHECKING

from sanbench.errors import InputError, SanbenchError
from sanbench.evaluation.kinds import TOLERANCE
from sanbench.late import Late

if TYPE_CHECKING:
    import torch
    from torch import Tensor
else:
    torch = Late("torch")

BOX_TOLERANCE = 1e-6
AT_ONCE = 2**19  # pixels in float64, 4 MiB: seven such blocks are in use at once
WRITTEN = re.compile(r"\d{1,20}(/(?P<below>\d{1,20}))?|(\d{1,20}\.?\d{0,20}|\.\d{1,20})(e-?\d{1,2})?", re.ASCII | re.IGNORECASE)


def parse_budget(option: str, text: str, norm: str = "linf") -> Fraction:
    """`8/255` or `0.03` -> an exact number of pixels in [0, 1]; an L2 norm may exceed 1. Raises InputError that names it."""
    written = WRITTEN.fullmatch(text.strip())  # Fraction alone would take 1e999999999, and all memory for it
    value = Fraction(text.strip()) if written and int(written["below"] or 1) else Fraction(-1)
    if 0 <= value <= 1 or (norm == "l2" and value > 1):
        return value
    hint = f" Did you mean {text.strip()}/255?" if 1 < value <= 255 else ""
    raise InputError(
        f"{option} {text.strip()!r} is not accepted: pixels lie in [0, 1], so accepted are fractions such as 8/255 "
        f"and decimals from 0 to 1.{hint}"
    )


def budget_text(value: Fraction) -> str:
    """8/255 for 8/255, which a Fraction would print as it is, and 3/255 for 3/255, which it would print as 1/85."""
    return f"{value * 255}/255" if (value * 255).denominator == 1 else str(value)


def distance(images: Tensor, adversarial: Tensor, norm: str) -> Tensor:
    """Of each pair of images, in float64: N."""

    def measured(images: Tensor, adversarial: Tensor) -> Tensor:
        difference = (adversarial.double() - images.double()).flatten(1)
        if norm == "linf":
            return difference.abs().amax(1)
        pair = difference if len(difference) != 1 else difference.expand(2, -1)  # threads would share the sum of one row alone
        return pair.square().sum(1).sqrt()[: len(difference)]

    return by_few(measured, images, adversarial, images.new_empty(len(images), dtype=torch.float64))


def by_few(function: Callable[[Tensor, Tensor], Tensor], images: Tensor, adversarial: Tensor, made: Tensor) -> Tensor:
    """`made`, with what `function` gives of each pair of images, for as many pairs at once as have AT_ONCE pixels."""
    few = max(1, AT_ONCE // images.shape[1:].numel())
    for one, other, into in zip(images.split(few), adversarial.split(few), made.split(few), strict=True):
        into.copy_(function(one, other))
    return made


def check_budget(images: Tensor, adversarial: Tensor, eps: float, name: str, norm: str = "linf") -> Tensor:
    """Distance of each image, in float64. Raises SanbenchError if the ball or the box was left, or at NaN."""
    found = distance(images, adversarial, norm)
    worst = found.max().item() if len(found) else 0.0
    if not worst <= eps + TOLERANCE[norm]:  # catches NaN too
        raise SanbenchError(f"{name} left its budget: distance {worst:.9f} for eps {eps:.9f}. Nothing was recorded.")
    if not inside_box(adversarial).all():
        low, high = adversarial.min().item(), adversarial.max().item()
        raise SanbenchError(f"{name} left the pixel box [0, 1]: values from {low:.9f} to {high:.9f}. Nothing was recorded.")
    return found


def inside_box(images: Tensor) -> Tensor:
    flat = images.flatten(1)
    return (flat.amin(1) >= -BOX_TOLERANCE) & (flat.amax(1) <= 1 + BOX_TOLERANCE)


def in_eight_bits(images: Tensor, adversarial: Tensor, eps: float, norm: str) -> Tensor:
    """`adversarial` on 256 levels and inside the ball around `images` and the box: what a PNG would hold.

    Rounded, then for L-infinity each pixel clipped to the levels inside the ball; for L2 an image whose rounding left the
    ball has its differences from the nearest level of the original cut towards 0 instead. Where no level is inside the
    ball (its centre is between two levels and eps is small) the nearest to the original is taken.
    """

    def rounded(images: Tensor, adversarial: Tensor) -> Tensor:
        levels, centre = (adversarial.double() * 255).round().clamp(0, 255), images.double() * 255
        nearest = centre.round()
        if norm == "linf":
            slack = 255 * TOLERANCE[norm]
            low, high = (centre - 255 * eps - slack).ceil(), (centre + 255 * eps + slack).floor()
            levels = torch.where(low <= high, levels.clamp(low, high), nearest).clamp(0, 255)
        else:
            outside = distance(images, levels / 255, norm) > eps
            cut = nearest + (adversarial.double() * 255 - nearest).trunc()
            levels = torch.where(outside[:, None, None, None], cut, levels)
        return levels / 255

    return by_few(rounded, images, adversarial, torch.empty_like(images))
