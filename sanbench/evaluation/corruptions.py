"""Common corruptions of images at five severities (Hendrycks and Dietterich, ICLR 2019), from formulas and torchvision.

Lengths are those of the benchmark at 224 pixels, scaled with the side of the image. What differs otherwise is said in
each entry's `definition`, in the record and in the report. The benchmark stored images as JPEG; these are rounded to 8 bits.
"""

import re
from collections.abc import Callable, Collection
from dataclasses import dataclass
from math import ceil, cos, pi, sin
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.transforms.v2 import functional as V

from sanbench.errors import InputError, unknown
from sanbench.evaluation.kinds import CorruptionOptions, Request
from sanbench.evaluation.loop import Identity, Perturbation
from sanbench.evaluation.rng import image_seed, seeded

if TYPE_CHECKING:
    from sanbench.evaluation.kinds import Bind

ORIGINAL = "as in the original benchmark"
SIDE = 224  # to which the benchmark's lengths refer
SEVERITIES = range(1, 6)

Strength = Any  # a number or a tuple of numbers
Corrupt = Callable[[Tensor, Strength, torch.Generator], Tensor]  # 3 x H x W in [0, 1] -> the same, perhaps beyond [0, 1]


def scale(image: Tensor) -> float:
    return min(image.shape[1:]) / SIDE


def blurred(image: Tensor, kernel: Tensor) -> Tensor:
    """Each channel with an odd-sided kernel, edges reflected (repeated where the kernel is larger than the image)."""
    height, width = (side // 2 for side in kernel.shape)
    mode = "reflect" if max(height, width) < min(image.shape[1:]) else "replicate"
    padded = F.pad(image[None], (width, width, height, height), mode)[0]
    return F.conv2d(padded[:, None], (kernel / kernel.sum())[None, None].to(image.dtype))[:, 0]


def gaussian(image: Tensor, sigma: float) -> Tensor:
    places = torch.arange(-ceil(4 * sigma), ceil(4 * sigma) + 1.0)
    line = (-(places**2) / (2 * sigma**2)).exp()
    return blurred(image, line[:, None] * line[None, :])


def line_kernel(length: float, degrees: float) -> Tensor:
    """A segment of `length` pixels through the centre, its ends soft."""
    reach = ceil(length / 2)
    ys, xs = torch.meshgrid(*[torch.arange(-reach, reach + 1.0)] * 2, indexing="ij")
    along = xs * cos(degrees * pi / 180) + ys * sin(degrees * pi / 180)
    across = -xs * sin(degrees * pi / 180) + ys * cos(degrees * pi / 180)
    return (1 - across.abs()).clamp(min=0) * (length / 2 + 0.5 - along.abs()).clamp(0, 1)


def random(image: Tensor, draw: torch.Generator, channels: int = 3) -> Tensor:
    return torch.rand((channels, *image.shape[1:]), generator=draw)


def normal(image: Tensor, draw: torch.Generator, channels: int = 3) -> Tensor:
    return torch.randn((channels, *image.shape[1:]), generator=draw)


def clouds(image: Tensor, decay: float, draw: torch.Generator) -> Tensor:
    """Noise of all scales, each half as wide as the one before and `decay` times weaker, from 0 to 1: H x W."""
    total, weight, cells = torch.zeros(image.shape[1:]), 1.0, 2
    while cells <= max(image.shape[1:]):
        noise = torch.rand((1, 1, cells, cells), generator=draw)
        total += weight * F.interpolate(noise, image.shape[1:], mode="bilinear", align_corners=True)[0, 0]
        weight, cells = weight / decay, cells * 2
    return (total - total.min()) / (total.max() - total.min())


def gaussian_noise(image: Tensor, strength: Strength, draw: torch.Generator) -> Tensor:
    return image + strength * normal(image, draw)


def shot_noise(image: Tensor, strength: Strength, draw: torch.Generator) -> Tensor:
    return torch.poisson(image * strength, draw) / strength


def impulse_noise(image: Tensor, strength: Strength, draw: torch.Generator) -> Tensor:
    hit, salt = random(image, draw) < strength, random(image, draw) < 0.5
    return torch.where(hit, salt.to(image.dtype), image)


def defocus_blur(image: Tensor, strength: Strength, draw: torch.Generator) -> Tensor:
    radius, alias = max(strength[0] * scale(image), 0.75), strength[1]  # a smaller disc is one pixel
    reach = max(1, ceil(radius))
    ys, xs = torch.meshgrid(*[torch.arange(-reach, reach + 1.0)] * 2, indexing="ij")
    disc = (radius + 0.5 - (xs**2 + ys**2).sqrt()).clamp(0, 1)
    return gaussian(blurred(image, disc), alias)


def glass_blur(image: Tensor, strength: Strength, draw: torch.Generator) -> Tensor:
    sigma, reach, rounds = strength
    reach = max(1, round(reach * scale(image)))
    image = gaussian(image, max(sigma * scale(image), 0.3))
    height, width = image.shape[1:]
    ys, xs = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    for _ in range(rounds):
        dy, dx = (torch.randint(-reach, reach + 1, (height, width), generator=draw) for _ in range(2))
        image = image[:, (ys + dy).clamp(0, height - 1), (xs + dx).clamp(0, width - 1)]
    return gaussian(image, max(sigma * scale(image), 0.3))


def motion_blur(image: Tensor, strength: Strength, draw: torch.Generator) -> Tensor:
    degrees = 90 * torch.rand((), generator=draw).item() - 45
    return blurred(image, line_kernel(2 * strength * scale(image) + 1, degrees))


def zoom_blur(image: Tensor, strength: Strength, draw: torch.Generator) -> Tensor:
    largest, step = strength
    zooms = torch.arange(1, largest, step).tolist()
    views = []
    for zoom in zooms:
        grid = F.affine_grid(torch.tensor([[[1 / zoom, 0, 0], [0, 1 / zoom, 0]]]), [1, *image.shape], align_corners=False)
        views.append(F.grid_sample(image[None], grid, padding_mode="border", align_corners=False)[0])
    return (image + torch.stack(views).sum(0)) / (len(zooms) + 1)


def snow(image: Tensor, strength: Strength, draw: torch.Generator) -> Tensor:
    mean, spread, zoom, threshold, length, keep = strength
    flakes = F.interpolate((mean + spread * normal(image, draw, 1))[None], scale_factor=zoom, mode="bilinear")
    flakes = V.center_crop(flakes, list(image.shape[1:]))[0]
    flakes = torch.where(flakes < threshold, 0, flakes).clamp(0, 1)
    degrees = -135 + 90 * torch.rand((), generator=draw).item()
    flakes = blurred(flakes, line_kernel(max(1.0, 2 * length * scale(image)), degrees))
    whiter = torch.maximum(image, V.rgb_to_grayscale(image) * 1.5 + 0.5)
    return keep * image + (1 - keep) * whiter + flakes + flakes.flip(1, 2)


def frost(image: Tensor, strength: Strength, draw: torch.Generator) -> Tensor:
    keep, ice = strength
    ridges = 1 - (2 * clouds(image, 1.6, draw) - 1).abs()
    return keep * image + ice * ridges**3


def fog(image: Tensor, strength: Strength, draw: torch.Generator) -> Tensor:
    thickness, decay = strength
    brightest = image.max()
    return (image + thickness * clouds(image, decay, draw)) * brightest / (brightest + thickness)


def brightness(image: Tensor, strength: Strength, draw: torch.Generator) -> Tensor:
    """Raises the largest channel (the value of HSV), which scales all three; black becomes grey."""
    value = image.amax(0, keepdim=True)
    raised = (value + strength).clamp(max=1)
    return torch.where(value > 0, image * raised / value.clamp(min=1e-8), raised)


def contrast(image: Tensor, strength: Strength, draw: torch.Generator) -> Tensor:
    mean = image.mean((1, 2), keepdim=True)
    return (image - mean) * strength + mean


def elastic(image: Tensor, strength: Strength, draw: torch.Generator) -> Tensor:
    amount, sigma, affine = (value * min(image.shape[1:]) for value in strength)
    side = min(image.shape[1:])
    shifts = gaussian(2 * random(image, draw, 2) - 1, max(sigma, 0.5)) * amount * 2 / side
    moved = affine / side * 2 * (2 * torch.rand((2, 3), generator=draw) - 1)
    grid = F.affine_grid((torch.eye(2, 3) + moved)[None], [1, *image.shape], align_corners=False)
    return F.grid_sample(image[None], grid + shifts.permute(1, 2, 0), padding_mode="reflection", align_corners=False)[0]


def pixelate(image: Tensor, strength: Strength, draw: torch.Generator) -> Tensor:
    height, width = (max(1, int(side * strength)) for side in image.shape[1:])
    return F.interpolate(F.adaptive_avg_pool2d(image, (height, width))[None], image.shape[1:], mode="nearest")[0]


def jpeg(image: Tensor, strength: Strength, draw: torch.Generator) -> Tensor:
    return V.jpeg((image * 255).round().to(torch.uint8).cpu(), strength).float() / 255


@dataclass(frozen=True)
class Corruption:
    apply: Corrupt
    strengths: tuple[Strength, ...]  # of severity 1 to 5
    definition: str = ORIGINAL


SCALED = "lengths scaled with the image side"
CORRUPTIONS: dict[str, Corruption] = {
    "gaussian-noise": Corruption(gaussian_noise, (0.08, 0.12, 0.18, 0.26, 0.38)),
    "shot-noise": Corruption(shot_noise, (60, 25, 12, 5, 3)),
    "impulse-noise": Corruption(impulse_noise, (0.03, 0.06, 0.09, 0.17, 0.27)),
    "defocus-blur": Corruption(defocus_blur, ((3, 0.1), (4, 0.5), (6, 0.5), (8, 0.5), (10, 0.5)), f"{SCALED}."),
    "glass-blur": Corruption(
        glass_blur,
        ((0.7, 1, 2), (0.9, 2, 1), (1, 2, 3), (1.1, 3, 2), (1.5, 4, 2)),
        f"{SCALED}; all pixels are displaced at once, not swapped one after the other.",
    ),
    "motion-blur": Corruption(motion_blur, (3, 5, 8, 12, 15), f"{SCALED}; an even line, not one that fades to one side."),
    "zoom-blur": Corruption(zoom_blur, ((1.11, 0.01), (1.16, 0.01), (1.21, 0.02), (1.26, 0.02), (1.31, 0.03))),
    "snow": Corruption(
        snow,
        (
            (0.1, 0.3, 3, 0.5, 4, 0.8),
            (0.2, 0.3, 2, 0.5, 4, 0.7),
            (0.55, 0.3, 4, 0.9, 4, 0.7),
            (0.55, 0.3, 4.5, 0.85, 4, 0.65),
            (0.55, 0.3, 2.5, 0.85, 4, 0.55),
        ),
        f"{SCALED}; flakes of one length, an even line of motion.",
    ),
    "frost": Corruption(
        frost, ((1, 0.4), (0.8, 0.6), (0.7, 0.7), (0.65, 0.7), (0.6, 0.75)), "ridges of noise in place of photographs of frost."
    ),
    "fog": Corruption(
        fog, ((1.5, 2), (2, 2), (2.5, 1.7), (2.5, 1.5), (3, 1.4)), "noise of all scales, not midpoint displacement."
    ),
    "brightness": Corruption(brightness, (0.1, 0.2, 0.3, 0.4, 0.5)),
    "contrast": Corruption(contrast, (0.4, 0.3, 0.2, 0.1, 0.05)),
    "elastic": Corruption(
        elastic,
        ((2, 0.7, 0.1), (2, 0.08, 0.2), (0.05, 0.01, 0.02), (0.07, 0.01, 0.02), (0.12, 0.01, 0.02)),
        "the affine part is drawn on its matrix, not on three points.",
    ),
    "pixelate": Corruption(pixelate, (0.6, 0.5, 0.4, 0.3, 0.25)),
    "jpeg": Corruption(jpeg, (25, 18, 15, 10, 7)),
}


@dataclass(frozen=True)
class Corrupted(Perturbation):
    """Images with corruption `name` at `severity`, rounded to 8 bits; random numbers from (seed, image, name, severity)."""

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
            "seed": self.seed,
        }

    def change(self, images: Tensor, indices: Tensor) -> Tensor:
        entry = CORRUPTIONS[self.name]
        made = []
        for image, index in zip(images.float() / 255, indices.tolist(), strict=True):
            draw = seeded(image_seed(self.seed, index, self.name, self.severity))
            made.append(entry.apply(image, entry.strengths[self.severity - 1], draw).clamp(0, 1))
        return (torch.stack(made) * 255).round().to(torch.uint8)


def parse(options: CorruptionOptions, request: Request) -> "Bind":
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
