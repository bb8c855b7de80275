"""build_model: from a name and a variation to a network that takes pixels."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from sanbench.errors import validated
from sanbench.models import model_config, resolve
from sanbench.models.classifier import Classifier
from sanbench.models.families import family_of
from sanbench.store.schema import IMAGENET_MEAN, IMAGENET_STD, ModelSpec


def build_model(
    name: str,
    num_classes: int = 1000,
    *,
    mean: tuple[float, float, float] = IMAGENET_MEAN,
    std: tuple[float, float, float] = IMAGENET_STD,
    **variation: Any,
) -> Classifier:
    """`build_model("san15_patchwise", num_classes=10, footprint=5)`: a network with fresh weights.

    `variation` holds fields of the family's configuration. Raises InputError for an unknown name, field or value.
    """
    name, variation = resolve(name, **variation)
    spec = validated(ModelSpec, "model", name=name, num_classes=num_classes, mean=mean, std=std, variation=variation)
    return Classifier(spec, family_of(name).build(model_config(name, **variation), num_classes))


def zero_residuals(model: Classifier) -> None:
    """Set the last layer of every residual branch to zero, in place: each block begins as the identity.

    A block of patchwise attention multiplies values with weights that depend on the same pixels, so that gradients grow from
    block to block: with the usual weights those of SAN10's first stage are a hundred times those of its last.
    """
    for layer in family_of(model.spec.name).residual_ends(model.network):
        for parameter in layer.parameters():
            nn.init.zeros_(parameter)


def counted_size(name: str, image_size: int = 224, num_classes: int = 1000, **variation: Any) -> tuple[int, float]:
    """What `sanbench.models.size` gives, by torch's counter on the network itself, which is built without memory."""
    with torch.device("meta"):
        model = build_model(name, num_classes, **variation).eval()
        with FlopCounterMode(display=False) as counter:
            model(torch.empty(1, 3, image_size, image_size))
    return sum(parameter.numel() for parameter in model.parameters()), counter.get_total_flops() / 2e9


def counted_kept(name: str, image_size: int, num_classes: int, images: int, **variation: Any) -> int:
    """What `sanbench.models.kept_bytes` gives, of the network itself: what autograd saves of it on torch's meta device."""
    kept: dict[int, int] = {}
    held: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage._cdata] = storage.nbytes()
        held.append(tensor)
        return tensor

    with torch.device("meta"):
        model = build_model(name, num_classes, **variation)
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            held.append(model(torch.empty(images, 3, image_size, image_size)))
    weights = {parameter.untyped_storage()._cdata for parameter in model.parameters()}
    return sum(size for storage, size in kept.items() if storage not in weights)
