"""The original benchmark's corruptions with our random numbers: imagecorruptions, and the original where that changed it."""

from contextlib import contextmanager
from unittest.mock import patch

import cv2
import numpy as np
import torch
from imagecorruptions import corruptions as original
from PIL import Image
from scipy.ndimage import gaussian_filter, map_coordinates

from sanbench.evaluation.corruptions import CORRUPTIONS
from sanbench.evaluation.distortions.noise import photon_counts
from sanbench.evaluation.rng import image_seed, seeded

NAMES = {name: name.replace("-", "_") for name in CORRUPTIONS} | {"jpeg": "jpeg_compression"}
del NAMES["elastic"]  # another one in imagecorruptions, see `elastic` below


def corrupt_as_originally(image, name, severity, seed, index):
    """The outcome, 3 x H x W uint8, of the original's function on 3 x H x W uint8, as it was cut to 8 bits before JPEG."""
    draw = seeded(image_seed(seed, index, name, severity))
    with DRAWS.get(name, nothing)(image, CORRUPTIONS[name].strengths[severity - 1], draw):
        picture = Image.fromarray(image.permute(1, 2, 0).contiguous().numpy())
        made = elastic(picture, severity, draw) if name == "elastic" else getattr(original, NAMES[name])(picture, severity)
        return torch.from_numpy(np.array(made).astype(np.uint8)).permute(2, 0, 1)


@contextmanager
def nothing(image, strength, draw):
    yield


def by_pixel(values):
    return values.permute(1, 2, 0).numpy()


def angle(low, high, draw):
    return low + (high - low) * torch.rand((), generator=draw).item()


@contextmanager
def gaussian_noise(image, strength, draw):
    with patch.object(np.random, "normal", lambda size, scale: scale * by_pixel(torch.randn(image.shape, generator=draw))):
        yield


@contextmanager
def shot_noise(image, strength, draw):
    with patch.object(np.random, "poisson", lambda mean: by_pixel(photon_counts(image.long(), strength, draw))):
        yield


@contextmanager
def impulse_noise(image, strength, draw):
    """scikit-image draws where to put noise, then where it is white; here one draw tells both."""
    hit = by_pixel(torch.rand(image.shape, generator=draw))
    answers = iter([np.where(hit < strength, 0, 1), np.where(hit < strength / 2, 0, 1)])
    with patch.object(np.random, "default_rng", lambda seed: type("", (), {"random": lambda self, shape: next(answers)})()):
        yield


@contextmanager
def glass_blur(image, strength, draw):
    def shuffle(height, width, pixels, strength, seed):
        _, reach, rounds = strength
        for _ in range(rounds):
            shape = (height - 2 * reach, width - 2 * reach)
            down, right = np.divmod(torch.randint(4 * reach**2, shape, generator=draw).numpy(), 2 * reach) - np.int64(reach)
            for y in range(height - reach, reach, -1):
                for x in range(width - reach, reach, -1):
                    there = y + down[y - reach - 1, x - reach - 1], x + right[y - reach - 1, x - reach - 1]
                    pixels[y, x], pixels[there] = pixels[there], pixels[y, x]  # views: no swap
        return pixels

    with patch.object(original, "_shuffle_pixels_njit_glass_blur", shuffle):
        yield


@contextmanager
def motion_blur(image, strength, draw):
    """The original had ImageMagick blur, which rounds to 8 bits."""
    blur = original._motion_blur
    with (
        patch.object(np.random, "uniform", lambda low, high: angle(low, high, draw)),
        patch.object(original, "_motion_blur", lambda *arguments, **named: np.round(blur(*arguments, **named))),
    ):
        yield


@contextmanager
def snow(image, strength, draw):
    """The original cut the flakes to the image and to 8 bits before it had ImageMagick blur them."""
    blur, zoom = original._motion_blur, original.clipped_zoom
    height, width = image.shape[1:]

    def blur_levels(flakes, radius, sigma, angle):
        return blur(np.floor(flakes * 255).astype(np.float32), radius, sigma, angle) / 255

    def noise(size, loc, scale):
        return loc + scale * torch.randn((1, *size), generator=draw)[0].double().numpy()

    with (
        patch.object(np.random, "normal", noise),
        patch.object(np.random, "uniform", lambda low, high: angle(low, high, draw)),
        patch.object(original, "clipped_zoom", lambda flakes, factor: zoom(flakes, factor)[:height, :width]),
        patch.object(original, "_motion_blur", blur_levels),
    ):
        yield


@contextmanager
def fog(image, strength, draw):
    def uniform(low, high, shape):
        return low + (high - low) * torch.rand(shape, generator=draw).double().numpy()

    with patch.object(np.random, "uniform", uniform):
        yield


def elastic(picture, severity, draw):
    """As `make_imagenet_c.py` defines it: cv2's affine map of three points, then scipy's displacement."""
    image = np.float32(picture) / 255
    amount, sigma, affine = CORRUPTIONS["elastic"].strengths[severity - 1]
    height, width, _ = image.shape
    middle, side = np.float32([height // 2, width // 2]), min(height, width) // 3
    points = np.float32([middle + side, middle + np.float32([side, -side]), middle - side])
    moved = points + affine * (2 * torch.rand((3, 2), generator=draw).numpy() - 1)
    image = cv2.warpAffine(image, cv2.getAffineTransform(points, moved), (width, height), borderMode=cv2.BORDER_REFLECT_101)
    noise = 2 * torch.rand((2, height, width), generator=draw).double().numpy() - 1
    right, down = (gaussian_filter(each, sigma, mode="reflect", truncate=3) * amount for each in noise)
    ys, xs = np.mgrid[:height, :width]
    channels = [
        map_coordinates(channel, (ys + down, xs + right), order=1, mode="reflect") for channel in np.moveaxis(image, -1, 0)
    ]
    return np.clip(np.stack(channels, -1), 0, 1) * 255


DRAWS = {
    "gaussian-noise": gaussian_noise,
    "shot-noise": shot_noise,
    "impulse-noise": impulse_noise,
    "glass-blur": glass_blur,
    "motion-blur": motion_blur,
    "snow": snow,
    "fog": fog,
}
