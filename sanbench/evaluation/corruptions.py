"""Common corruptions of images at five severities: ImageNet-C (Hendrycks and Dietterich, ICLR 2019), made while measuring.

At 224 pixels the definitions and the strengths are those of the benchmark's `make_imagenet_c.py`, up to a level of 256, but for
what an entry's `definition` says in the record and in the report. At other sizes lengths are scaled with the side of the image,
so that a severity looks the same; the strengths stay. CIFAR-10-C has weaker strengths of its own, and those who report on it
read its files: what is made here of small images is not to be compared with it. As in the benchmark, values are cut to 8 bits;
it stored them as JPEG of quality 85 besides.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sanbench.errors import InputError, unknown
from sanbench.evaluation.kinds import CorruptionOptions, Request
from sanbench.evaluation.loop import Identity, Perturbation
from sanbench.late import Late, functions

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from sanbench.evaluation import rng
    from sanbench.evaluation.distortions.blur import defocus_blur, glass_blur, motion_blur, zoom_blur
    from sanbench.evaluation.distortions.digital import contrast, elastic, jpeg, pixelate
    from sanbench.evaluation.distortions.noise import gaussian_noise, impulse_noise, shot_noise
    from sanbench.evaluation.distortions.weather import brightness, fog, frost, snow
    from sanbench.evaluation.kinds import Bind
else:
    torch, rng, DISTORTIONS = Late("torch"), Late("sanbench.evaluation.rng"), "sanbench.evaluation.distortions"
    defocus_blur, glass_blur = functions(f"{DISTORTIONS}.blur", "defocus_blur", "glass_blur")
    motion_blur, zoom_blur = functions(f"{DISTORTIONS}.blur", "motion_blur", "zoom_blur")
    contrast, elastic, jpeg, pixelate = functions(f"{DISTORTIONS}.digital", "contrast", "elastic", "jpeg", "pixelate")
    gaussian_noise, shot_noise = functions(f"{DISTORTIONS}.noise", "gaussian_noise", "shot_noise")
    (impulse_noise,) = functions(f"{DISTORTIONS}.noise", "impulse_noise")
    brightness, fog, frost, snow = functions(f"{DISTORTIONS}.weather", "brightness", "fog", "frost", "snow")

ORIGINAL = "as in the original benchmark"
SCALED = f"{ORIGINAL} at 224 pixels, lengths scaled with the image side."
ROUNDING = "down to 8 bits"
SEVERITIES = range(1, 6)

Strength = Any  # a number or a tuple of numbers
Corrupt = Callable[["Tensor", Strength, "torch.Generator"], "Tensor"]  # 3 x H x W in [0, 1] -> also beyond it, or uint8


@dataclass(frozen=True)
class Corruption:
    apply: Corrupt
    strengths: tuple[Strength, ...]  # of severity 1 to 5
    definition: str = ORIGINAL


MADE_FOR = 244  # pixels: the benchmark's elastic transform takes its lengths from this side, at 224
CORRUPTIONS: dict[str, Corruption] = {
    "gaussian-noise": Corruption(gaussian_noise, (0.08, 0.12, 0.18, 0.26, 0.38)),
    "shot-noise": Corruption(shot_noise, (60, 25, 12, 5, 3)),
    "impulse-noise": Corruption(impulse_noise, (0.03, 0.06, 0.09, 0.17, 0.27)),
    "defocus-blur": Corruption(defocus_blur, ((3, 0.1), (4, 0.5), (6, 0.5), (8, 0.5), (10, 0.5)), SCALED),
    "glass-blur": Corruption(glass_blur, ((0.7, 1, 2), (0.9, 2, 1), (1, 2, 3), (1.1, 3, 2), (1.5, 4, 2)), SCALED),
    "motion-blur": Corruption(motion_blur, ((10, 3), (15, 5), (15, 8), (15, 12), (20, 15)), SCALED),
    "zoom-blur": Corruption(zoom_blur, ((1.11, 0.01), (1.16, 0.01), (1.21, 0.02), (1.26, 0.02), (1.31, 0.03))),
    "snow": Corruption(
        snow,
        (
            (0.1, 0.3, 3, 0.5, 10, 4, 0.8),
            (0.2, 0.3, 2, 0.5, 12, 4, 0.7),
            (0.55, 0.3, 4, 0.9, 12, 8, 0.7),
            (0.55, 0.3, 4.5, 0.85, 12, 8, 0.65),
            (0.55, 0.3, 2.5, 0.85, 12, 12, 0.55),
        ),
        SCALED,
    ),
    "frost": Corruption(
        frost,
        ((1, 0.4), (0.8, 0.6), (0.7, 0.7), (0.65, 0.7), (0.6, 0.75)),
        "ridges of fractal noise, as bright and tinted as the original's photographs of frost, in their place.",
    ),
    "fog": Corruption(fog, ((1.5, 2), (2, 2), (2.5, 1.7), (2.5, 1.5), (3, 1.4)), SCALED),
    "brightness": Corruption(brightness, (0.1, 0.2, 0.3, 0.4, 0.5)),
    "contrast": Corruption(contrast, (0.4, 0.3, 0.2, 0.1, 0.05)),
    "elastic": Corruption(
        elastic,
        tuple(
            tuple(MADE_FOR * part for part in parts)
            for parts in ((2, 0.7, 0.1), (2, 0.08, 0.2), (0.05, 0.01, 0.02), (0.07, 0.01, 0.02), (0.12, 0.01, 0.02))
        ),
        SCALED,
    ),
    "pixelate": Corruption(pixelate, (0.6, 0.5, 0.4, 0.3, 0.25)),
    "jpeg": Corruption(jpeg, (25, 18, 15, 10, 7)),
}


def corrupt(image: Tensor, name: str, severity: int, seed: int, index: int) -> Tensor:
    """corrupt(image, "fog", 3, seed=0, index=17): with a corruption of CORRUPTIONS, the same bits wherever it is called.

    image     3 x H x W uint8 on the CPU; the outcome is one too
    severity  1 to 5
    seed      and the index of the image in its split: with name and severity they decide its random numbers

    Raises InputError for a name, a severity or an image that is not accepted.
    """
    if name not in CORRUPTIONS:
        raise unknown("kind of corruption", name, CORRUPTIONS)
    if severity not in SEVERITIES:
        raise InputError(f"severity {severity} is not accepted: accepted are 1 to 5.")
    if image.dtype != torch.uint8 or image.dim() != 3 or len(image) != 3 or image.device.type != "cpu":
        found = f"{image.dtype} {tuple(image.shape)} on {image.device}"
        raise InputError(f"An image of {found} is not accepted: accepted is uint8, 3 x height x width, on the CPU.")
    entry = CORRUPTIONS[name]
    draw = rng.seeded(rng.image_seed(seed, index, name, severity))
    made = entry.apply(image.to(torch.float32) / 255, entry.strengths[severity - 1], draw)
    if made.dtype == torch.uint8:
        return made
    return made.clamp(0, 1).mul_(255).add_(1e-3).to(torch.uint8)  # float32 may leave a whole level a little short


@dataclass(frozen=True)
class Corrupted(Perturbation):
    """Images with corruption `name` at `severity`, in 8 bits before and after: see `corrupt`. Small, and holds no tensor."""

    name: str
    severity: int
    seed: int = 0
    kind = "corruption"
    by_reader = True

    @property
    def setting(self) -> dict[str, Any]:
        entry = CORRUPTIONS[self.name]
        strength = entry.strengths[self.severity - 1]
        values = list(strength) if isinstance(strength, tuple) else strength
        return {
            "corruption": self.name,
            "severity": self.severity,
            "strength": values,
            "definition": entry.definition,
            "rounding": ROUNDING,
            "seed": self.seed,
        }

    def change(self, images: Tensor, indices: Tensor) -> Tensor:
        numbered = zip(images, indices.tolist(), strict=True)
        return torch.stack([corrupt(image, self.name, self.severity, self.seed, index) for image, index in numbered])


def parse(options: CorruptionOptions, request: Request) -> Bind:
    corrupted: list[Perturbation] = [Identity(), *parse_corruptions(options.kinds, options.severity, request.seed)]
    return lambda model, images: corrupted


def parse_corruptions(kinds: str, severities: str, seed: int) -> list[Perturbation]:
    """`fog,jpeg` or `all`, and `1:5` (both included) or `1,3`. Raises InputError that names the word."""
    names = ",".join(CORRUPTIONS) if kinds == "all" else kinds
    return [Corrupted(name, level, seed) for name, level in parse_conditions(names, severities, CORRUPTIONS)]


def parse_conditions(kinds: str, severities: str, known: Collection[str]) -> list[tuple[str, int]]:
    """Each kind of a list of `known` ones at each severity. Raises InputError that names the word."""
    names = list(dict.fromkeys(word.strip() for word in kinds.split(",")))
    if "all" in names:
        raise InputError(f"kinds {kinds!r} is not accepted: all stands alone, or name kinds.")
    for name in names:
        if name not in known:
            raise unknown("kind of corruption", name, [*known, "all"])
    ranges = [re.fullmatch(r"\s*(\d)(?::(\d))?\s*", word, re.ASCII) for word in severities.split(",")]
    levels = sorted({level for found in ranges if found for level in range(int(found[1]), int(found[2] or found[1]) + 1)})
    if not levels or not all(ranges) or not set(levels) <= set(SEVERITIES):
        raise InputError(f"severity {severities!r} is not accepted: accepted are 1 to 5, ranges (1:5) and lists.")
    return [(name, level) for name in names for level in levels]
