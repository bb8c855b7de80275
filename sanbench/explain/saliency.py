"""What any network's logit depends on: the gradient by the pixels, and what covering a square takes away."""

import torch
from torch import Tensor, nn

from sanbench.errors import InputError

AT_ONCE = 2**20  # pixels of the covered images that a network is shown together: 20 images of 224 x 224


def input_gradient(model: nn.Module, images: Tensor, classes: Tensor) -> Tensor:
    """d logit_c / d x for each image and its class c: N x 3 x H x W in [0, 1] -> N x 3 x H x W, logits per unit of brightness.

    Simonyan et al., Deep Inside Convolutional Networks, 2013 (arXiv 1312.6034); they draw the largest magnitude of the
    three colours. It tells about infinitely small changes only. Raises InputError where no gradient reaches the pixels.
    """
    with torch.enable_grad():
        shown = images.detach().requires_grad_()
        chosen = model(shown).gather(1, classes[:, None]).sum()
        if not chosen.requires_grad:
            raise InputError("An input gradient is not accepted for this network: no gradient reaches its pixels.")
        (gradient,) = torch.autograd.grad(chosen, shown)
    return gradient


@torch.no_grad()
def occlusion(
    model: nn.Module,
    image: Tensor,
    class_: int,
    fill: Tensor,
    side: int | None = None,
    stride: int | None = None,
    batch_size: int | None = None,
) -> Tensor:
    """How much the class's logit falls when a square is covered: 3 x H x W in [0, 1] -> H x W, in logits.

    A square of `side` pixels (by default an eighth of the image's) is filled with the colour `fill`, 3, and moved by
    `stride` (by default half of it); a last one ends at the border. A pixel's value is the mean of logit(image) -
    logit(covered) over the squares that cover it: positive where what was covered spoke for the class. Raises InputError
    for a side that does not fit in the image, and for a stride that leaves pixels out.

    Zeiler and Fergus, Visualizing and Understanding Convolutional Networks, 2014 (arXiv 1311.2901).
    """
    height, width = image.shape[-2:]
    side = max(1, min(height, width) // 8) if side is None else side
    stride = max(1, side // 2) if stride is None else stride
    if not 1 <= side <= min(height, width):
        raise InputError(f"side {side} is not accepted: a square lies in the image, from 1 to {min(height, width)} pixels.")
    if not 1 <= stride <= side:
        raise InputError(f"stride {stride} is not accepted: squares of {side} pixels leave none out up to {side}.")
    batch_size = batch_size or max(1, AT_ONCE // (height * width))
    corners = [(top, left) for top in steps(height, side, stride) for left in steps(width, side, stride)]
    whole = model(image[None])[0, class_]
    fall, covered = torch.zeros_like(image[0]), torch.zeros_like(image[0])
    for first in range(0, len(corners), batch_size):
        chunk = corners[first : first + batch_size]
        images = image.repeat(len(chunk), 1, 1, 1)
        for each, (top, left) in zip(images, chunk, strict=True):
            each[:, top : top + side, left : left + side] = fill[:, None, None]
        for lost, (top, left) in zip(whole - model(images)[:, class_], chunk, strict=True):
            fall[top : top + side, left : left + side] += lost
            covered[top : top + side, left : left + side] += 1
    return fall / covered


def steps(length: int, side: int, stride: int) -> list[int]:
    """Where squares begin in one direction; the last ends with the image."""
    return sorted({*range(0, length - side + 1, stride), length - side})
