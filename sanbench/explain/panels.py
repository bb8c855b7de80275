"""`explain`: one image as one network looks at it, upright, rotated and attacked: rows of panels as arrays."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sanbench.data import Images
from sanbench.data.images import pixels
from sanbench.errors import InputError
from sanbench.evaluation.api import attack as attacked
from sanbench.evaluation.loop import evaluating, predictions
from sanbench.evaluation.rotations import Rotation
from sanbench.explain.asked import Asked
from sanbench.explain.attention import Layer, Pixel, attention_layers, find_layer, find_san, rollout, stage_pixel
from sanbench.explain.saliency import input_gradient, occlusion
from sanbench.progress import Progress, Report, silent
from sanbench.runs.evaluated import EvaluatedModel

Values = NDArray[np.float32]


class Panel(NamedTuple):
    """`values` is h x w, NaN where there is nothing, and may be negative where `signed`.

    `over_image` is whether they cover the image; `marked` is the pixel's square in it: top, left and side, in pixels.
    """

    values: Values
    signed: bool = False
    over_image: bool = True
    marked: tuple[int, int, int] | None = None


@dataclass(frozen=True)
class Row:
    """One view of an image by one network. `panels` stand by their title; titles are the same for every view."""

    network: str
    view: str  # upright, rotated 90°, pgd:8/255
    image: Values  # H x W x 3 in [0, 1]
    told: str  # what the network makes of it
    panels: dict[str, Panel] = field(default_factory=dict)


class View(NamedTuple):
    name: str
    image: Tensor  # 1 x 3 x H x W in [0, 1]
    pixel: Pixel


def explain(
    evaluated: EvaluatedModel, images: Images, index: int, asked: Asked = Asked(), progress: Report = silent
) -> list[Row]:
    """A row of panels for image `index`, and for the same image after rotation and attack, on the network's device.

    "input gradient" is the largest |d logit / d pixel| of the three colours and "occlusion" how far the logit falls, both
    of the class that the network predicts for this view: of every network. Of a SAN also "attention, stage S", the mean
    over weight channels of the weights by which the stage's last layer aggregates the footprint of the pixel; "spread,
    stage S", their standard deviation over weight channels; "channels, stage S", the footprint of every weight channel,
    side by side; and "roll-out", see `rollout`. Weights of patchwise attention have either sign; those of pairwise and of
    scalar attention are softmax. The pixel turns with the image.

    An attack leaves an image unchanged that the network has wrong already: the view says so.

    Raises InputError for an index or a pixel outside, a stage without attention, and an attack that cannot be made.
    """
    if not 0 <= index < len(images):
        raise InputError(f"image {index} is not accepted: {images.name} has {len(images):,} {images.split} images, from 0.")
    evaluated = evaluated.telling(images)
    model = evaluated.model
    batch = images.__getitems__([index])
    if batch.unreadable:
        raise InputError(batch.unreadable[0])
    with evaluating(model):
        views = list(seen(evaluated, pixels(batch.images.to(model.mean.device)), batch.labels, asked))
        rows = []
        for done, view in enumerate(views, start=1):
            rows.append(look(evaluated, images, int(batch.labels[0]), view, asked))
            progress(Progress(f"show image {index} to {evaluated.run}", done, len(views)))
        return rows


def seen(evaluated: EvaluatedModel, image: Tensor, label: Tensor, asked: Asked) -> Iterator[View]:
    """The image, 1 x 3 x H x W, as the rows show it, each with its pixel."""
    height, width = image.shape[-2:]
    pixel = asked.pixel or (height // 2, width // 2)
    if not (0 <= pixel[0] < height and 0 <= pixel[1] < width):
        raise InputError(
            f"pixel {pixel[0]},{pixel[1]} is not accepted: the image has {height} rows and {width} columns, from 0."
        )
    yield View("upright", image, pixel)
    if asked.rotate is not None:
        turned = Rotation(asked.rotate)(image, label, label).images
        yield View(f"rotated {asked.rotate:g}°", turned, rotated(pixel, (height, width), asked.rotate))
    if asked.attack is not None:
        found = attacked(evaluated, image.cpu(), label, asked.attack, device=image.device.type).to(image.device)
        yield View(asked.attack + (", unchanged" if found.equal(image) else ""), found, pixel)


def rotated(pixel: Pixel, size: tuple[int, int], angle: float) -> Pixel:
    """Where a pixel is after the image was turned clockwise about its centre. Raises InputError if it left the image."""
    height, width = size
    new_height, new_width = (width, height) if angle % 180 == 90 else size
    down, right = pixel[0] - (height - 1) / 2, pixel[1] - (width - 1) / 2
    cosine, sine = math.cos(math.radians(angle)), math.sin(math.radians(angle))
    row = math.floor(down * cosine + right * sine + new_height / 2)  # the nearest: + (side - 1) / 2 + 1 / 2
    column = math.floor(right * cosine - down * sine + new_width / 2)
    if not (0 <= row < new_height and 0 <= column < new_width):
        raise InputError(
            f"pixel {pixel[0]},{pixel[1]} is not accepted with a rotation by {angle:g} degrees: it leaves the image."
        )
    return row, column


def look(evaluated: EvaluatedModel, images: Images, label: int, view: View, asked: Asked) -> Row:
    model, image = evaluated.model, view.image
    with torch.no_grad():
        logits = model(image)
    predicted = int(predictions(logits)[0])
    if predicted < 0:
        raise InputError(f"{evaluated.run} cannot be explained on this image ({view.name}): its logits are not finite.")
    gradient = input_gradient(model, image, torch.tensor([predicted], device=image.device))
    fall = occlusion(model, image[0], predicted, model.mean.flatten())  # what the network sees as 0
    panels = {
        "input gradient": Panel(array(gradient[0].abs().amax(0))),
        "occlusion": Panel(array(fall), signed=True),
    }
    if find_san(model) is not None:
        panels |= attention_panels(attention_layers(model, image), view, asked)
    name = partial(class_name, images.classes)
    told = name(predicted) if predicted == label else f"{name(predicted)} (is {name(label)})"
    return Row(
        evaluated.run, view.name, array(image[0].permute(1, 2, 0)), f"{told} {logits.softmax(1)[0, predicted]:.0%}", panels
    )


def class_name(classes: list[str], number: int) -> str:
    return classes[number] if number < len(classes) else str(number)


def attention_panels(stages: list[list[Layer]], view: View, asked: Asked) -> dict[str, Panel]:
    size = view.image.shape[-2], view.image.shape[-1]
    panels = {"roll-out": Panel(array(rollout(stages, size)))}
    shown = [stage for stage, layers in enumerate(stages) if layers] if asked.stage is None else [asked.stage]
    for stage in shown:
        layer = find_layer(stages, stage)
        pixel = stage_pixel(view.pixel, stage, layer.size)
        square = 2 ** (stage + 1)
        marked = (pixel[0] * square, pixel[1] * square, square)
        on_map, signed = layer.on_map(pixel), layer.attention.attention == "patchwise"
        panels[f"attention, stage {stage}"] = Panel(on_image(on_map.mean(0), square, size), signed, marked=marked)
        if asked.stage is not None:
            spread = on_map.std(0, correction=0)
            panels[f"spread, stage {stage}"] = Panel(on_image(spread, square, size), marked=marked)
        if asked.channels:
            panels[f"channels, stage {stage}"] = Panel(side_by_side(layer.at(pixel)), signed, over_image=False)
    return panels


def on_image(values: Tensor, square: int, size: tuple[int, int]) -> Values:
    """Each pixel of a map as the square of the image that it was pooled from; NaN for what pooling drops."""
    large = values.repeat_interleave(square, 0).repeat_interleave(square, 1)
    whole = values.new_full(size, torch.nan)
    whole[: large.shape[0], : large.shape[1]] = large
    return array(whole)


def side_by_side(weights: Tensor) -> Values:
    """Footprints of G weight channels, G x K, on a grid with a gap of one: channel 0 top left, then row by row."""
    side = math.isqrt(weights.shape[1])
    columns = math.ceil(math.sqrt(len(weights)))
    rows = -(-len(weights) // columns)
    grid = weights.new_full((rows * (side + 1) - 1, columns * (side + 1) - 1), torch.nan)
    for channel, footprint in enumerate(weights.unflatten(1, (side, side))):
        top, left = channel // columns * (side + 1), channel % columns * (side + 1)
        grid[top : top + side, left : left + side] = footprint
    return array(grid)


def array(values: Tensor) -> Values:
    found: Values = values.float().cpu().numpy()
    return found
