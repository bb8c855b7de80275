"""Augmentation of a global batch's part, on the device. Random numbers are drawn for the whole batch and then cut, so that
an image is cropped and mirrored alike on one process and on eight."""

from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.transforms import v2

from sanbench.data import Batch
from sanbench.runs.config import Recipe


class Place(NamedTuple):
    """Where in the run a part of a batch belongs: all that its random numbers depend on."""

    seed: int
    epoch: int
    step: int
    images: range  # of the part, within the global batch
    total: int  # images in the global batch

    def generator(self) -> np.random.Generator:
        """The same for all parts of a global batch."""
        return np.random.default_rng((self.seed, self.epoch, self.step))

    def torch_seed(self) -> int:
        """Another for each part: what mixes images mixes those of one part."""
        return int(np.random.SeedSequence((self.seed, self.epoch, self.step, self.images.start)).generate_state(1)[0])


class Ready(NamedTuple):
    """A part of a batch that the network can learn from."""

    pixels: Tensor  # N x 3 x H x W in [0, 1]
    labels: Tensor  # N
    targets: Tensor  # N, or N x classes where images are mixed
    indices: Tensor  # N, within the split
    skipped: int  # images that could not be read


def prepare(batch: Batch, place: Place, padding: int, recipe: Recipe, classes: int, device: torch.device) -> Ready:
    """Crop, mirror, and what the recipe adds. Nothing here waits for the device."""
    images, labels = (values.to(device, non_blocking=True) for values in (batch.images, batch.labels))
    pixels, targets = augment(images, place, padding), labels
    if recipe.randaugment or recipe.mixup or recipe.cutmix:
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(place.torch_seed())
            if recipe.randaugment:
                pixels = torch.stack([v2.RandAugment(magnitude=recipe.randaugment)(image) for image in pixels])
            if recipe.mixup or recipe.cutmix:
                pixels, targets = mixing(recipe, classes)(pixels, targets)
    return Ready(pixels, labels, targets, batch.indices, len(batch.unreadable))


def mixing(recipe: Recipe, classes: int) -> Any:
    """torchvision's MixUp and CutMix; with both each batch draws one."""
    mixers: list[v2.Transform] = []
    if recipe.mixup:
        mixers.append(v2.MixUp(alpha=recipe.mixup, num_classes=classes))
    if recipe.cutmix:
        mixers.append(v2.CutMix(alpha=recipe.cutmix, num_classes=classes))
    return v2.RandomChoice(mixers)


def augment(images: Tensor, place: Place, padding: int) -> Tensor:
    """uint8 to float pixels in [0, 1], mirrored with probability 1/2 and, padded with black, cropped to their size."""
    count, _, height, width = images.shape
    generator, device = place.generator(), images.device
    own = slice(place.images.start, place.images.start + count)

    def cut(numbers: Any) -> Tensor:
        return torch.from_numpy(numbers[own]).to(device, non_blocking=True)

    mirrored = cut(generator.random(place.total) < 0.5)
    top, left = (cut(generator.integers(0, 2 * padding + 1, place.total)) for _ in range(2))
    if padding:
        images = F.pad(images, (padding,) * 4)
        rows = top[:, None] + torch.arange(height, device=device)
        columns = left[:, None] + torch.arange(width, device=device)
        numbers = torch.arange(count, device=device)[:, None, None]
        images = images.permute(0, 2, 3, 1)[numbers, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)
    return torch.where(mirrored[:, None, None, None], images.flip(3), images).float().div_(255)
