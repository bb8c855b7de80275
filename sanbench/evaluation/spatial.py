"""Rotations and translations that an adversary picks (Engstrom et al. 2019, Exploring the Landscape of Spatial Robustness).

The original's limits are 30 degrees and 3 pixels of 28 or 32, or 24 of 224, its grid has 5 x 5 shifts and 31 angles, and its
random search keeps the worst of 10 draws (config.json of MadryLab/adversarial_spatial, attack_steps.py of
MadryLab/spatial-pytorch). There an image of 32 pixels is turned and then moved on a larger canvas, with two interpolations;
here both are one, and the canvas is the image with the declared fill around it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import TYPE_CHECKING, Any

from sanbench.errors import InputError, unknown
from sanbench.evaluation.kinds import SPATIAL_METHODS, Request, SpatialOptions
from sanbench.evaluation.loop import Identity, Interruptible, Perturbation, Perturbed, Seen, predictions
from sanbench.evaluation.rotations import FILLS, Frame
from sanbench.late import Late

if TYPE_CHECKING:
    import numpy as np
    import torch
    import torch.nn.functional as F
    from numpy.typing import NDArray
    from torch import Tensor, nn

    from sanbench.data import Images
    from sanbench.evaluation import rng
    from sanbench.evaluation.kinds import Bind
    from sanbench.runs.evaluated import EvaluatedModel

    Points = NDArray[np.float64]  # P x 3: degrees clockwise, pixels to the right, pixels down
else:
    np, torch, F, rng = Late("numpy"), Late("torch"), Late("torch.nn.functional"), Late("sanbench.evaluation.rng")

SIDE, SHARE = 28, 3 / 28  # of the side: the original's 3 of 28, 3 of 32 and 24 of 224
MOST = 10**6  # points of a search
LIMITS = {"degrees": (0, 180), "pixels": (0, 10_000), "draws": (1, MOST), "step": (0.01, 180)}
CELLS = re.compile(r"\d{1,6}x\d{1,6}x\d{1,6}", re.ASCII)


@dataclass(frozen=True)
class SpatialConfig:
    """What is searched, for images of one size.

    degrees, pixels  limits of the rotation, and of the shift along each axis, either way
    draws   of random: uniform within the limits, each image its own
    cells   of grid: how many shifts to the right, shifts down and angles, from limit to limit
    step    of smallest: degrees between angles
    """

    method: str
    degrees: float = 30.0
    pixels: float = 3.0
    draws: int = 10
    cells: tuple[int, int, int] = (5, 5, 31)
    step: float = 5.0
    interpolation: str = "bilinear"
    fill: str = "black"
    seed: int = 0

    @property
    def setting(self) -> dict[str, Any]:
        pixels = short_number(self.pixels)
        own: dict[str, dict[str, Any]] = {
            "random": {"pixels": pixels, "draws": self.draws, "seed": self.seed},
            "grid": {"pixels": pixels, "grid": "x".join(map(str, self.cells)), "first": "the farthest"},
            "smallest": {"step": short_number(self.step), "first": "the nearest"},
        }
        searched = {"method": self.method, "degrees": short_number(self.degrees)} | own[self.method]
        shown = {"interpolation": self.interpolation, "fill": self.fill}
        return searched | shown | {"attacked": "images right before, until they fall"}

    @cached_property
    def points(self) -> Points:
        """Of grid the farthest from upright first, which fell most; of smallest the nearest first. Upright is left out."""
        if self.method == "smallest":
            sizes = self.step * np.arange(1, int(self.degrees / self.step * (1 + 1e-12)) + 1)
            both = np.stack([sizes, -sizes], 1).flatten()
            return np.stack([both[both > -180], *[np.zeros((both > -180).sum())] * 2], 1)
        right, down, angle = (
            np.linspace(-limit, limit, number) if number > 1 and limit else np.zeros(1)
            for limit, number in zip((self.pixels, self.pixels, self.degrees), self.cells, strict=True)
        )
        every = np.stack([axis.flatten() for axis in np.meshgrid(angle, right, down, indexing="ij")], 1)
        limits = np.array([self.degrees or 1, self.pixels or 1, self.pixels or 1])
        far = np.abs(every / limits).sum(1)
        return every[np.argsort(-far, kind="stable")][: (far > 0).sum()]

    @property
    def count(self) -> int:
        return self.draws if self.method == "random" else len(self.points)

    def at(self, number: int, indices: Tensor) -> Tensor:
        """Point `number` of the search for each image: N x 3, float64."""
        if self.method != "random":
            return torch.from_numpy(self.points[number]).expand(len(indices), 3)
        seeds = [rng.image_seed(self.seed, image, "spatial", number) for image in indices.tolist()]
        drawn = [np.random.default_rng(seed).uniform(-1, 1, 3) for seed in seeds]
        return torch.tensor(np.array(drawn) * (self.degrees, self.pixels, self.pixels))


def short_number(value: float) -> int | float:
    """30 for 30.0: one setting has one key, however it was typed."""
    return int(value) if value == int(value) else value


class Spatial(Perturbation):
    """Each image as the first point of the search shows it at which the network is wrong; upright where none is.

    Images that the network has wrong upright are not searched for. One that has fallen is not looked at again.
    """

    kind = "spatial"
    has_examples = True
    whole = True

    def __init__(self, model: nn.Module, config: SpatialConfig, batch_size: int = 64) -> None:
        self.model, self.config, self.batch_size = model, config, batch_size

    @property
    def setting(self) -> dict[str, Any]:
        return self.config.setting

    @property
    def passes(self) -> int:
        return self.config.count + 2  # upright before it, and what is scored after it

    def __call__(self, images: Tensor, labels: Tensor, indices: Tensor) -> Perturbed:
        clean = self.look(images)
        stands, passes = clean == labels, torch.full_like(labels, 2)
        worst = images.new_zeros(len(images), 3, dtype=torch.float64)
        search = Interruptible(self.keeper, {"stands": stands, "point": worst, "passes": passes}, indices)
        batches = search.where.get("batches", 2 * len(images.split(self.batch_size)))
        for number in range(search.where.get("number", 0), self.config.count):
            rows = stands.nonzero()[:, 0]
            if len(rows) == 0:
                break
            if search.is_due():
                search.keep(number=number, batches=batches)
            self.watch(Seen(number / self.config.count, self.config.method, len(rows)))
            points = self.config.at(number, indices[rows.cpu()]).to(images.device)
            wrong = self.look(self.moved(images[rows], points)) != labels[rows]
            passes[rows] += 1
            worst[rows[wrong]] = points[wrong]
            stands[rows[wrong]] = False
            batches += len(rows.split(self.batch_size))
        columns = {"clean_prediction": clean, "rotation": worst[:, 0], "right": worst[:, 1], "down": worst[:, 2]}
        columns["forward_passes"] = passes
        shown = self.moved(images, worst)
        rounded = (shown * 255).round() / 255
        return Perturbed(shown, columns, rounded, places=batches * self.batch_size, earlier=search.earlier)

    def moved(self, images: Tensor, points: Tensor) -> Tensor:
        return moved(images, points, self.config.interpolation, FILLS[self.config.fill])

    def look(self, images: Tensor) -> Tensor:
        with torch.no_grad():
            return torch.cat([predictions(self.model(chunk)) for chunk in images.split(self.batch_size)])


def moved(images: Tensor, points: Tensor, interpolation: str = "bilinear", fill: float = 0.0) -> Tensor:
    """Each image turned clockwise about its centre, then shifted: N x 3 x H x W.

    points  N x 3, float64: degrees, pixels to the right, pixels down

    A pixel shows the place that comes to lie on it, interpolated once, and filled as torchvision fills a rotated image. That is
    computed in float64, with cosines and pixels rounded to 12 digits, so that multiples of 90 degrees (of squares) and whole
    shifts move 8-bit pixels without changing any.
    """
    height, width = images.shape[2:]
    angle, right, down = (values[:, None, None] for values in points.unbind(1))
    cos, sin = angle.deg2rad().cos().round(decimals=12), angle.deg2rad().sin().round(decimals=12)
    rows, columns = (torch.arange(n, device=images.device, dtype=torch.float64) - (n - 1) / 2 for n in (height, width))
    x, y = columns - right, rows[:, None] - down
    places = torch.stack([2 / width * (cos * x + sin * y), 2 / height * (cos * y - sin * x)], 3)
    seen = F.pad(images.double(), (0, 0, 0, 0, 0, 1), value=1.0)  # a fourth channel: how much of the image is there
    shown, there = F.grid_sample(seen, places, interpolation, "zeros", align_corners=False).split((3, 1), 1)
    return torch.lerp(torch.full_like(shown, fill), shown, there).round(decimals=12).to(images.dtype)


def parse(options: SpatialOptions, request: Request) -> Bind:
    configs(options, request.seed, SIDE)

    def bind(model: EvaluatedModel, images: Images) -> list[Perturbation]:
        wanted = configs(options, request.seed, images.side)
        return [Identity(), *(Spatial(model.model, config, request.batch_size) for config in wanted)]

    return bind


def configs(options: SpatialOptions, seed: int, side: int) -> list[SpatialConfig]:
    """What is searched on images of `side` pixels. Raises InputError for what is unknown, out of range, or no search at all."""
    for name, (least, most) in LIMITS.items():
        value = getattr(options, name)
        if value is not None and not least <= value <= most:
            raise InputError(f"{name} {value} is not accepted: accepted are numbers from {least:g} to {most:,}.")
    Frame(options.interpolation, options.fill)  # raises for unknown words
    cells = tuple(map(int, options.grid.split("x"))) if CELLS.fullmatch(options.grid) else ()
    if not 0 < prod(cells) <= MOST or len(cells) != 3:
        raise InputError(f"grid {options.grid!r} is not accepted: accepted are shifts x shifts x angles, as in 5x5x31.")
    pixels = round(SHARE * side) if options.pixels is None else options.pixels
    if pixels >= side:
        raise InputError(f"pixels {pixels:g} is not accepted: nothing of an image of {side} pixels would be left.")
    chosen = []
    for method in dict.fromkeys(word.strip() for word in options.method.split(",")):
        if method not in SPATIAL_METHODS:
            raise unknown("method", method, SPATIAL_METHODS)
        degrees = options.degrees if options.degrees is not None else 180.0 if method == "smallest" else 30.0
        searched = (method, degrees, pixels, options.draws or 10, cells, options.step or 5.0)
        config = SpatialConfig(*searched, options.interpolation, options.fill, seed)
        if config.count == 0 or not (degrees or pixels):
            raise InputError(f"method {method!r} is not accepted here: within these limits there is only the upright image.")
        chosen.append(config)
    return chosen
