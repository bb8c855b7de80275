"""Classifier: the module that every network of this toolkit is wrapped in."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from sanbench.errors import InputError
from sanbench.models.configurations import SMALLEST_IMAGE
from sanbench.store.schema import ModelSpec


class Classifier(nn.Module):
    """Images in [0, 1], N x 3 x H x W with H and W from `smallest` up -> logits N x num_classes.

    Normalisation is inside, so that a perturbation is measured in pixels. `spec` is what `build_model` needs to rebuild it.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, spec: ModelSpec, network: nn.Module, smallest: int = SMALLEST_IMAGE) -> None:
        super().__init__()
        self.spec = spec
        self.network = network
        self.smallest = smallest  # pixels a side
        for name in ("mean", "std"):
            self.register_buffer(name, torch.tensor(getattr(spec, name))[:, None, None], persistent=False)

    @property
    def outputs(self) -> int:
        """How many logits it gives."""
        return self.spec.num_classes

    def forward(self, images: Tensor) -> Tensor:
        if images.dim() != 4 or images.shape[1] != 3 or min(images.shape[2:]) < self.smallest:
            raise InputError(
                f"images of shape {tuple(images.shape)} are not accepted: N x 3 x H x W, H and W from {self.smallest} up."
            )
        logits: Tensor = self.network((images - self.mean).div_(self.std))
        return logits


class ClassesAmong(Classifier):
    """The logits of the classes `among` of a whole network alone, N x len(among): no other class can be predicted or attacked.

    `spec` stays that of the whole network, which records name.
    """

    among: Tensor

    def __init__(self, whole: Classifier, among: Sequence[int]) -> None:
        super().__init__(whole.spec, whole)
        self.register_buffer("among", torch.tensor(among, device=whole.mean.device), persistent=False)

    @property
    def outputs(self) -> int:
        return len(self.among)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.network(images)
        return logits.index_select(1, self.among)
