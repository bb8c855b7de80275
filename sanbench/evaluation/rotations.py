"""Zero-shot generalisation to rotated images (experiment 9 of the paper).

Multiples of 90 degrees are exact. Any other angle is resampled, and its record declares interpolation, fill, crop and mask.
Images are cropped to the network's input first and rotated then; or, where the data set resizes them to more than that, rotated
first and cropped then, so that real pixels come into the corners. Which of the two stands in the record.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import sqrt
from typing import TYPE_CHECKING, Any

from sanbench.errors import InputError, unknown
from sanbench.evaluation.kinds import Request, RotationOptions
from sanbench.evaluation.loop import Identity, Perturbation, Perturbed
from sanbench.late import Late

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from sanbench.data import Images
    from sanbench.data import images as loaded
    from sanbench.evaluation import turning
    from sanbench.evaluation.kinds import Bind
    from sanbench.runs.evaluated import EvaluatedModel
else:
    torch, loaded, turning = Late("torch"), Late("sanbench.data.images"), Late("sanbench.evaluation.turning")

ACCEPTED = "clockwise degrees (90, 22.5), ranges start:stop:step (0:360:15, without the stop), and the words flip and mirror"
INTERPOLATIONS = ("nearest", "bilinear")
FILLS = {"black": 0.0, "grey": 0.5, "white": 1.0}
CROPS = ("none", "inscribed")
MASKS = ("none", "disc")
ORDERS = ("crop-first", "rotate-first")
WORDS = {"flip": 2, "mirror": 3}  # upside down: rows reversed; left to right: columns reversed


@dataclass(frozen=True)
class Frame:
    """How an image is turned by any angle, and what of it is shown.

    crop  inscribed: at every angle, 0 included, the centre square of side / sqrt 2, which no angle fills, resized to the side
    mask  disc: at every angle, 0 included, everything outside the inscribed circle is filled, so that corners tell nothing
    border  pixels on each side of the input that are rotated too, before the crop (an inscribed square is then that of both)
    """

    interpolation: str = "bilinear"
    fill: str = "black"
    crop: str = "none"
    mask: str = "none"
    border: int = 0

    def __post_init__(self) -> None:
        for field, known in {"interpolation": INTERPOLATIONS, "fill": FILLS, "crop": CROPS, "mask": MASKS}.items():
            if getattr(self, field) not in known:
                raise unknown(field, getattr(self, field), known)

    @property
    def changes_upright(self) -> bool:
        return (self.crop, self.mask) != ("none", "none")

    @property
    def setting(self) -> dict[str, Any]:
        order = "cropped to the input, then rotated"
        if self.border:
            order = f"rotated with {self.border} pixels more on each side, then cropped to the input"
        return {name: getattr(self, name) for name in ("interpolation", "fill", "crop", "mask")} | {"order": order}

    def turn(self, images: Tensor, angle: float | str) -> Tensor:
        """Clockwise; torch.rot90 turns counter-clockwise for positive numbers."""
        if isinstance(angle, str):
            return images.flip(WORDS[angle])
        if angle % 90 == 0:
            return torch.rot90(images, int(-angle // 90), (2, 3)).contiguous()
        return turning.turned(images, angle, self.interpolation, FILLS[self.fill])

    def show(self, images: Tensor) -> Tensor:
        side = min(images.shape[2:]) - 2 * self.border
        if self.border and self.crop == "none":
            images = loaded.centre(images, side)
        if self.mask == "disc":
            shown = min(images.shape[2:])
            places = torch.arange(shown, device=images.device) - (shown - 1) / 2
            outside = places.square()[:, None] + places.square()[None, :] > (shown / 2) ** 2
            images = images.masked_fill(outside, FILLS[self.fill])
        if self.crop == "inscribed":
            whole = min(images.shape[2:])
            inscribed = int(whole / sqrt(2))
            inner = loaded.centre(images, inscribed - (whole - inscribed) % 2)  # exactly in the centre
            images = turning.resized(inner, side)
        return images


@dataclass(frozen=True)
class Rotation(Perturbation):
    """Clockwise by `angle` degrees; or, if that is a word of WORDS, turned upside down or mirrored."""

    angle: float | str
    frame: Frame = Frame()
    kind = "rotation"

    @property
    def setting(self) -> dict[str, Any]:
        exact = (isinstance(self.angle, str) or self.angle % 90 == 0) and not self.frame.changes_upright
        return {"angle": self.angle} | ({} if exact else self.frame.setting)

    @property
    def border(self) -> int:  # type: ignore[override]  # the frame's
        return self.frame.border

    def __call__(self, images: Tensor, labels: Tensor, indices: Tensor) -> Perturbed:
        return Perturbed(self.frame.show(self.frame.turn(images, self.angle)), {})


def parse(options: RotationOptions, request: Request) -> Bind:
    frame = Frame(options.interpolation, options.fill, options.crop, options.mask)
    parse_angles(options.angles, frame)
    if options.order not in ORDERS:
        raise unknown("order", options.order, ORDERS)

    def bind(model: EvaluatedModel, images: Images) -> list[Perturbation]:
        return parse_angles(f"0,{options.angles}", parse_order(options.order, frame, images.name, images.widest))

    return bind


def parse_angles(text: str, frame: Frame = Frame()) -> list[Perturbation]:
    """`90,180:360:45,flip` -> perturbations, each once. Raises InputError that names the word.

    An angle of 0 is the identity, or the control where the frame changes upright images too.
    """
    found: dict[str | float, Perturbation] = {}
    for word in (word.strip() for word in text.split(",")):
        if word in WORDS:
            found[word] = Rotation(word, frame)
            continue
        for angle in (degrees % 360 for degrees in parse_range(word)):
            turned = Rotation(int(angle) if angle == int(angle) else angle, frame)
            found[angle] = turned if angle or frame.changes_upright else Identity()
    return list(found.values())


def parse_order(order: str, frame: Frame, name: str, widest: int) -> Frame:
    """`frame` with what data set `name` has around the input, if that rotates too. Raises InputError if nothing."""
    if order not in ORDERS:
        raise unknown("order", order, ORDERS)
    if order == "crop-first":
        return frame
    if widest == 0:
        raise InputError(f"order rotate-first is not accepted for {name}: its images are no larger than the network's input.")
    return replace(frame, border=widest)


def parse_range(word: str) -> list[float]:
    try:
        numbers = [float(part) for part in word.split(":")]
        if len(numbers) == 1 and abs(numbers[0]) < 1e6:
            return numbers
        start, stop, step = numbers
        count = (stop - start) / step
        if 0 < count <= 3600:
            return [start + n * step for n in range(int(count) + (count > int(count)))]
    except (ValueError, ZeroDivisionError, OverflowError):
        pass
    raise InputError(f"angle {word!r} is not accepted: accepted are {ACCEPTED}.")
