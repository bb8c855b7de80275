"""Weather: snow, frost, fog and brightness."""

import torch
from torch import Tensor

from sanbench.evaluation.distortions.filters import clouds, magnified, moved, scale

FROST_LEVEL, FROST_SPREAD = (0.41, 0.88), 0.095  # of crops of the benchmark's photographs: mean of green, and its spread within
FROST_TINT = (-0.08, 0.0, 0.05)  # what red, green and blue differ by from green


def snow(image: Tensor, strength: tuple[float, float, float, float, int, float, float], draw: torch.Generator) -> Tensor:
    """Flakes: noise magnified, what is below a threshold left out, blurred by motion; laid on twice, once turned by 180°."""
    mean, spread, zoom, threshold, radius, sigma, keep = strength
    factor = scale(image)
    noise = mean + spread * torch.randn((1, *image.shape[1:]), generator=draw).double()
    flakes = magnified(noise, [max(1.0, zoom * factor)])  # in float64, as the original compares it with the threshold
    flakes = (torch.where(flakes < threshold, 0, flakes).clamp(0, 1).mul(255).floor() / 255).float()
    degrees = -135 + 90 * torch.rand((), generator=draw).item()
    flakes = moved(flakes, radius, sigma, degrees, factor)
    red, green, blue = image
    whiter = torch.maximum(image, (0.299 * red + 0.587 * green + 0.114 * blue) * 1.5 + 0.5)
    return keep * image + (1 - keep) * whiter + flakes + flakes.flip(1, 2)


def frost(image: Tensor, strength: tuple[float, float], draw: torch.Generator) -> Tensor:
    """Ridges of fractal noise in place of the photographs of frost, with their brightness, spread and tint."""
    keep, ice = strength
    least, most = FROST_LEVEL
    level = least + (most - least) * torch.rand((), generator=draw)
    ridges = 1 - abs(2 * clouds(image, 1.2, draw).numpy() - 1)
    ridges = FROST_SPREAD * (ridges - ridges.mean()) / ridges.std()  # by NumPy: torch's sums depend on the number of threads
    return keep * image + ice * (level + torch.tensor(FROST_TINT)[:, None, None] + torch.from_numpy(ridges)).clamp(0, 1)


def fog(image: Tensor, strength: tuple[float, float], draw: torch.Generator) -> Tensor:
    thickness, decay = strength
    brightest = image.max()
    return (image + thickness * clouds(image, decay, draw)) * brightest / (brightest + thickness)


def brightness(image: Tensor, strength: float, draw: torch.Generator) -> Tensor:
    """Raises the largest channel (the value of HSV), which scales all three; black becomes grey."""
    value = image.amax(0, keepdim=True)
    raised = (value + strength).clamp(max=1)
    return torch.where(value > 0, image * (raised / value.clamp(min=1e-8)), raised)
