"""Digital: contrast, elastic transform, pixels and JPEG."""

from io import BytesIO

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from sanbench.evaluation.distortions.filters import sampled, scale, smoothed


def contrast(image: Tensor, strength: float, draw: torch.Generator) -> Tensor:
    """Each channel's distance from its mean, `strength` times."""
    mean = torch.from_numpy(image.numpy().mean((1, 2), keepdims=True))
    return (image - mean) * strength + mean


def elastic(image: Tensor, strength: tuple[float, float, float], draw: torch.Generator) -> Tensor:
    """An affine map that moves three points by up to `affine` pixels, then a smooth field of displacements.

    A displacement is `amount` times uniform noise in [-1, 1], smoothed by `sigma`. `sigma` and `affine` follow the image's
    size, `amount` the square of it, because smoothed noise is proportional to 1 / sigma.
    """
    factor = scale(image)
    amount, sigma, affine = strength[0] * factor**2, max(0.5, strength[1] * factor), strength[2] * factor
    height, width = image.shape[1:]
    side = min(height, width) // 3
    centre = np.array([height // 2, width // 2], float)
    points = np.array([centre + side, [centre[0] + side, centre[1] - side], centre - side])
    shifted = points + affine * (2 * torch.rand((3, 2), generator=draw).double().numpy() - 1)
    back = np.linalg.solve(np.column_stack([shifted, np.ones(3)]), points)  # from the outcome's (x, y, 1) to the image's (x, y)
    ys, xs = np.arange(height, dtype=np.float32)[:, None], np.arange(width, dtype=np.float32)
    from_x, from_y = (xs * right + (ys * down + begin) for right, down, begin in back.T.astype(np.float32))
    mapped = sampled(image, from_y, from_x, "reflect")
    right, down = smoothed(2 * torch.rand((2, height, width), generator=draw) - 1, sigma).numpy() * np.float32(amount)
    return sampled(mapped, ys + down, xs + right, "repeat")


def pixelate(image: Tensor, strength: float, draw: torch.Generator) -> Tensor:
    """Shrunk by the mean of boxes and enlarged again, in 8 bits."""
    picture = to_picture(image)
    width, height = picture.size
    small = picture.resize((max(1, int(width * strength)), max(1, int(height * strength))), Image.Resampling.BOX)
    return to_tensor(small.resize((width, height), Image.Resampling.BOX))


def jpeg(image: Tensor, quality: int, draw: torch.Generator) -> Tensor:
    """By Pillow, with half the resolution of colour, as in the original: simplejpeg's levels are up to 60 off."""
    file = BytesIO()
    to_picture(image).save(file, "JPEG", quality=quality)
    return to_tensor(Image.open(file))


def to_picture(image: Tensor) -> Image.Image:
    levels = (image * 255).round().to(torch.uint8)
    return Image.merge("RGB", [Image.fromarray(channel) for channel in levels.numpy()])


def to_tensor(picture: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1)
