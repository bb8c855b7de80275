"""Attention weights of one pixel of a SAN over its footprint, and their roll-out to the input over all layers."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sanbench.errors import InputError
from sanbench.models.normalisation import normalised
from sanbench.models.san import SAN, Block, SelfAttention
from sanbench.ops.attention import pairwise_weights, patchwise_weights, scalar_weights
from sanbench.ops.footprint import Footprint, neighbours

Pixel = tuple[int, int]  # row and column, from 0


@dataclass(frozen=True)
class Layer:
    """An attention layer with what it is given for one image: query and key 1 x R x H x W, value 1 x C x H x W."""

    attention: SelfAttention
    query: Tensor
    key: Tensor
    value: Tensor

    @property
    def size(self) -> tuple[int, int]:
        """Of its map: H, W."""
        height, width = self.value.shape[-2:]
        return height, width

    @torch.no_grad()
    def weights(self, row: int) -> Tensor:
        """The weights of the pixels in one row of the map over their footprints: G x K x W.

        They are what the operator aggregates value by: value channel c by weight channel c mod G. A row at a time
        bounds memory. Raises InputError for a network in training mode, whose gamma depends on all pixels.
        """
        attention, window = self.attention, Footprint(self.attention.footprint, rows=(row, row + 1))
        if attention.training:
            raise InputError("training mode is not accepted: attention weights are those of a network in evaluation mode.")
        if attention.attention == "scalar":
            return scalar_weights(self.query, self.key, attention.heads, window)[0]
        gamma = attention.mapping(lambda _: self.query, 0)  # asks for statistics in training only
        if attention.attention == "patchwise":
            return patchwise_weights(self.query, self.key, gamma, attention.relation, window)[0]
        position = attention.encode(self.value)
        return pairwise_weights(self.query, self.key, position, gamma, attention.relation, window)[0]

    def places(self, row: int) -> Tensor:
        """Which pixel of the map each neighbour is, y * W + x: K x W. Beyond a border it is the reflected one."""
        window = Footprint(self.attention.footprint, rows=(row, row + 1))
        return neighbours(window, *self.size).view(self.attention.footprint**2, -1).to(self.value.device)

    def at(self, pixel: Pixel) -> Tensor:
        """The weights of one pixel: G x K, K in row-major order of the footprint."""
        self.check(pixel)
        return self.weights(pixel[0])[..., pixel[1]]

    def on_map(self, pixel: Pixel) -> Tensor:
        """The weights of one pixel where they apply: G x H x W, NaN outside the footprint.

        At a border several neighbours are the same pixel by reflection: their weights are added.
        """
        weights, places = self.at(pixel), self.places(pixel[0])[:, pixel[1]]
        height, width = self.size
        added = weights.new_zeros(len(weights), height * width).index_add(1, places, weights)
        reached = torch.zeros(height * width, dtype=torch.bool, device=places.device).index_fill(0, places, True)
        return added.masked_fill(~reached, torch.nan).unflatten(1, (height, width))

    def check(self, pixel: Pixel) -> None:
        if not all(0 <= place < side for place, side in zip(pixel, self.size, strict=True)):
            height, width = self.size
            raise InputError(f"pixel {pixel[0]},{pixel[1]} is not accepted: the map has {height} x {width}.")


def find_san(model: nn.Module) -> SAN | None:
    """The SAN that `model` is or wraps; None where there is no such attention."""
    return next((module for module in model.modules() if isinstance(module, SAN)), None)


@torch.no_grad()
def attention_layers(model: nn.Module, images: Tensor) -> list[list[Layer]]:
    """The attention layers of each stage, in order, with what they are given for one image, 1 x 3 x H x W in [0, 1].

    Raises InputError for a model without attention, or in training mode.
    """
    san = find_san(model)
    if san is None:
        raise InputError("This network has no attention: accepted are networks of the family SAN.")
    if model.training:
        raise InputError("training mode is not accepted: attention weights are those of a network in evaluation mode.")
    stages: list[list[Block]] = [[m for m in stage.modules() if isinstance(m, Block)] for stage in san.stages]
    given: dict[nn.Module, Tensor] = {}
    hooks = [
        block.register_forward_pre_hook(lambda block, inputs: given.__setitem__(block, inputs[0]))
        for blocks in stages
        for block in blocks
    ]
    try:
        model(images)
    finally:
        for hook in hooks:
            hook.remove()
    return [
        [Layer(b.attention, *normalised(b.before[0], given[b], b.attention.project)) for b in blocks]  # as Block.forward
        for blocks in stages
    ]


def find_layer(stages: Sequence[Sequence[Layer]], stage: int, block: int = -1) -> Layer:
    """A stage's last attention layer, or that of another block. Raises InputError where there is none."""
    with_attention = [str(number) for number, layers in enumerate(stages) if layers]
    if not (0 <= stage < len(stages) and stages[stage]):
        raise InputError(f"stage {stage} is not accepted: stages with attention are {', '.join(with_attention) or 'none'}.")
    if not -len(stages[stage]) <= block < len(stages[stage]):
        raise InputError(f"block {block} is not accepted: stage {stage} has {len(stages[stage])}, numbered from 0.")
    return stages[stage][block]


def stage_pixel(pixel: Pixel, stage: int, size: tuple[int, int]) -> Pixel:
    """The pixel of a stage's map, H x W, whose square of 2^(stage + 1) x 2^(stage + 1) image pixels `pixel` is in.

    Pooling drops the last row or column of an odd map; their pixels count to the square beside them.
    """
    row, column = (min(place >> (stage + 1), side - 1) for place, side in zip(pixel, size, strict=True))
    return row, column


def rollout(stages: Sequence[Sequence[Layer]], size: tuple[int, int], start: Tensor | None = None) -> Tensor:
    """r = s * A_L * ... * A_1 with A_l = (I + W_l) / 2: attention rolled out to the image, H x W, at least 0, 1 in sum.

    W_l[i, j] is the sum over weight channels of |w_ij|, divided by its sum over the footprint of i: for softmax weights
    their mean. I is the residual connection. Between stages, pixel i of the smaller map is 1/4 of each of the four that
    are pooled to it. `start` is s, on the last stage's map and 1 in sum; by default uniform, as the network averages the
    map before it classifies. `size` is that of the image. No matrix is formed: r is carried back layer by layer.

    Abnar and Zuidema, Quantifying Attention Flow in Transformers, 2020 (arXiv 2005.00928), with heads averaged, for
    local attention, signed weights and pooling. It tells where attention could have carried something from, not what:
    it knows neither signs, nor values, nor which pixel wins a maximum, nor any class.
    """
    sizes = [size]  # of the image, then of each stage's map
    for _ in stages:
        sizes.append((sizes[-1][0] // 2, sizes[-1][1] // 2))
    height, width = sizes[-1]
    device = next((layer.value.device for layers in stages for layer in layers), None)
    share = torch.full((height, width), 1 / (height * width), device=device) if start is None else start
    if share.shape != (height, width):
        raise InputError(f"start of {tuple(share.shape)} is not accepted: the last stage's map has {height} x {width}.")
    for layers, larger in zip(reversed(stages), reversed(sizes[:-1]), strict=True):
        for layer in reversed(layers):
            share = (share + carried_back(layer, share)) / 2
        spread = share.repeat_interleave(2, 0).repeat_interleave(2, 1) / 4
        share = spread.new_zeros(larger)
        share[: spread.shape[0], : spread.shape[1]] = spread  # what pooling drops has no share
    return share


def carried_back(layer: Layer, share: Tensor) -> Tensor:
    """share * W of a layer: H x W -> H x W, with W as in `rollout`. Where all weights are 0, a pixel keeps its share."""
    back = torch.zeros_like(share).flatten()
    for row in range(len(share)):
        magnitude = layer.weights(row).abs().sum(0)  # K x W
        total = magnitude.sum(0)
        magnitude[len(magnitude) // 2] += total == 0
        portion = magnitude / magnitude.sum(0) * share[row]
        back.index_add_(0, layer.places(row).flatten(), portion.flatten())
    return back.view_as(share)
