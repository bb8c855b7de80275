"""Augmentation of one process's part of a global batch, on the device.

Random numbers are drawn for the whole batch, so that an image is cropped and mirrored alike by one process and by eight.
"""

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from sanbench.data import Batch
from sanbench.late import Late
from sanbench.runs.config import Recipe

if TYPE_CHECKING:
    from torchvision.transforms import v2
else:
    v2 = Late("torchvision.transforms.v2")


class BatchSlice(NamedTuple):
    """A part of a global batch: everything that its random numbers depend on."""

    seed: int
    epoch: int
    step: int
    images: range  # positions within the global batch
    total: int  # images in the global batch

    def generator(self) -> np.random.Generator:
        """Random numbers of the global batch, the same for all its slices."""
        return np.random.default_rng((self.seed, self.epoch, self.step))

    def torch_seed(self) -> int:
        """A seed of this slice: RandAugment, MixUp and CutMix are applied slice by slice."""
        return int(np.random.SeedSequence((self.seed, self.epoch, self.step, self.images.start)).generate_state(1)[0])


class TrainBatch(NamedTuple):
    """A slice of a global batch after augmentation, on the device."""

    pixels: Tensor  # N x 3 x H x W in [0, 1]
    labels: Tensor  # N
    targets: Tensor  # N, or N x classes where images are mixed
    indices: Tensor  # N, within the split
    skipped: int  # images that could not be read


def prepare(
    batch: Batch, batch_slice: BatchSlice, padding: int, recipe: Recipe, classes: int, device: torch.device
) -> TrainBatch:
    """Crop, mirror, and what the recipe adds. The host does not wait for the device."""
    images, labels = (values.to(device, non_blocking=True) for values in (batch.images, batch.labels))
    pixels, targets = augment(images, batch_slice, padding), labels
    if recipe.randaugment or recipe.mixup or recipe.cutmix:
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(batch_slice.torch_seed())
            if recipe.randaugment:
                pixels = torch.stack([v2.RandAugment(magnitude=recipe.randaugment)(image) for image in pixels])
            if recipe.mixup or recipe.cutmix:
                pixels, targets = mixing(recipe, classes)(pixels, targets)
    return TrainBatch(pixels, labels, targets, batch.indices, len(batch.unreadable))


def mixing(recipe: Recipe, classes: int) -> Any:
    """torchvision's MixUp or CutMix; where the recipe has both, one of them is drawn for each slice."""
    mixers: list[Any] = []
    if recipe.mixup:
        mixers.append(v2.MixUp(alpha=recipe.mixup, num_classes=classes))
    if recipe.cutmix:
        mixers.append(v2.CutMix(alpha=recipe.cutmix, num_classes=classes))
    return v2.RandomChoice(mixers)


def augment(images: Tensor, batch_slice: BatchSlice, padding: int) -> Tensor:
    """uint8 to float pixels in [0, 1], mirrored with probability 1/2 and, padded with black, cropped to their size."""
    count, _, height, width = images.shape
    generator, device = batch_slice.generator(), images.device
    start, total = batch_slice.images.start, batch_slice.total

    def of_slice(numbers: Any) -> Tensor:
        return torch.from_numpy(numbers[start : start + count]).to(device, non_blocking=True)

    mirrored = of_slice(generator.random(total) < 0.5)
    top, left = (of_slice(generator.integers(0, 2 * padding + 1, total)) for _ in range(2))
    if padding:
        images = F.pad(images, (padding,) * 4)
        rows = top[:, None] + torch.arange(height, device=device)
        columns = left[:, None] + torch.arange(width, device=device)
        numbers = torch.arange(count, device=device)[:, None, None]
        images = images.permute(0, 2, 3, 1)[numbers, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)
    return torch.where(mirrored[:, None, None, None], images.flip(3), images).float().div_(255)
