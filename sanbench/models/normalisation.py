"""Batch normalisation from per-image moments, of one process or of all."""

from collections.abc import Callable
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from sanbench.errors import InputError
from sanbench.models.configurations import NO_VARIANCE, RECOMPUTED
from sanbench.ops.fused import channel_moments, normalised_relu

Out = TypeVar("Out")


class SumOverProcesses(torch.autograd.Function):
    """x -> the sum of every process's x. A loss of any process depends on all of them: gradients are summed too."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        total = x.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        total = gradient.clone()
        dist.all_reduce(total)
        return total


class SyncBatchNorm(nn.BatchNorm2d):
    """Normalises by the moments of the images of all processes, on any device; `nn.SyncBatchNorm` needs a GPU."""

    def average(self, values: Tensor) -> Tensor:
        """N x D -> D: the mean over the images of all processes, which may have different N."""
        if not dist.is_initialized():
            return values.mean(0)
        total: Tensor = SumOverProcesses.apply(torch.cat([values.sum(0), values.new_tensor([len(values)])]))
        return total[:-1] / total[-1]

    def forward(self, x: Tensor) -> Tensor:
        """N x C x H x W -> the same."""
        if not self.training or not dist.is_initialized():
            return super().forward(x)
        wide = x.to(torch.promote_types(x.dtype, torch.float32))  # under autocast x is half as wide
        moments = torch.stack([wide.mean((2, 3)), wide.var((2, 3), correction=0)], 1)
        scale, shift = normalisation(self, moments, x[0, 0].numel())
        return (wide * scale[:, None, None] + shift[:, None, None]).to(x.dtype)


def mean_of_images(values: Tensor) -> Tensor:
    """N x D -> D."""
    return values.mean(0)


def normalisation(norm: nn.BatchNorm2d, moments: Tensor | None = None, count: int = 0) -> tuple[Tensor, Tensor]:
    """Batch normalisation as x -> scale * x + shift, from the batch's moments or, without, the running averages.

    moments is N x 2 x D: mean and biased variance of each image, each over `count` values. The running averages are
    updated as `nn.BatchNorm2d` does, with the batch's unbiased variance. The batch of a `SyncBatchNorm` is every process's.
    Raises InputError if the batch has one value a channel: it has no variance.
    """
    assert norm.running_mean is not None and norm.running_var is not None and norm.num_batches_tracked is not None
    if moments is None:
        mean, variance = norm.running_mean, norm.running_var
    else:
        processes = dist.get_world_size() if isinstance(norm, SyncBatchNorm) and dist.is_initialized() else 1
        values = len(moments) * count * processes
        if values < 2:
            raise InputError(NO_VARIANCE)
        means, variances = moments.unbind(1)
        average = norm.average if isinstance(norm, SyncBatchNorm) else mean_of_images
        mean = average(means)
        variance = average(variances + (means - mean).square())
        with torch.no_grad():
            assert norm.momentum is not None
            norm.num_batches_tracked += 1
            norm.running_mean.lerp_(mean, norm.momentum)
            norm.running_var.lerp_(variance * (values / (values - 1)), norm.momentum)
    scale = norm.weight * (variance + norm.eps).rsqrt()
    return scale, norm.bias - mean * scale


def normalised(
    norm: nn.Module,
    x: Tensor,
    function: Callable[[Tensor], Out],
    activation: Callable[[Tensor, Tensor, Tensor], Tensor] = normalised_relu,
) -> Out:
    """function(relu(norm(x))). Of a large map only x is kept in training: the backward pass recomputes what `function` keeps.

    `activation` takes x, scale and shift; one that pools too saves a pass over the map. The moments are
    not computed again, so that the running averages are updated once and processes communicate once.
    """
    assert isinstance(norm, nn.BatchNorm2d)
    moments = channel_moments(x) if norm.training else None
    scale, shift = normalisation(norm, moments, x.shape[-2] * x.shape[-1])

    def apply(x: Tensor, scale: Tensor, shift: Tensor) -> Out:
        return function(activation(x, scale, shift))

    if not norm.training or not torch.is_grad_enabled() or x.numel() < RECOMPUTED * x.shape[0]:
        return apply(x, scale, shift)
    out: Out = checkpoint(apply, x, scale, shift, use_reentrant=False, preserve_rng_state=False)
    return out


def is_fixed(module: nn.Module, x: Tensor) -> bool:
    """Whether `module` maps x by constants: nothing normalises by the batch and no parameter requires a gradient.

    Then `normalised_linear` can be used, which has a kernel for CPUs, outside autocast.
    """
    if module.training or x.device.type != "cpu" or torch.is_autocast_enabled("cpu"):
        return False
    return not (torch.is_grad_enabled() and any(parameter.requires_grad for parameter in module.parameters()))


def synchronise(model: nn.Module) -> None:
    """Make every batch normalisation of `model` a `SyncBatchNorm`, in place; names and weights stay."""
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is nn.BatchNorm2d:
                norm = SyncBatchNorm(child.num_features, child.eps, child.momentum)
                norm.load_state_dict(child.state_dict())
                setattr(parent, name, norm)
