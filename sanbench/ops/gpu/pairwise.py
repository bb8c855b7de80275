"""Pairwise attention in Triton: the launches of a forward and of a backward, and their tiles."""

from typing import Any

import torch
from torch import Tensor

from sanbench.ops.gpu.blocks import LOG2E, multiplicities, power_of_two
from sanbench.ops.gpu.launch import Tile, launch, precision, upcast
from sanbench.ops.gpu.pairwise_backward import key_pass, query_pass
from sanbench.ops.gpu.pairwise_forward import attention, statistics
from sanbench.ops.operator import memory_format

SLOTS = 8  # programs an image in statistics
PROGRAMS = 264  # of a query pass with gradients of weights: two for each multiprocessor of an H100

# Pixels and warps a program and, in a backward, whether its own values stay in registers; by task and the wider of phi and
# gamma's hidden layer. The first is best on paper.
Choices = tuple[tuple[int, ...], ...]
TILES: dict[str, dict[int, Choices]] = {
    "attention": {16: ((64, 4), (32, 4)), 32: ((32, 4), (16, 4)), 64: ((16, 4),), 128: ((16, 8),)},
    "statistics": {16: ((64, 4), (32, 4)), 32: ((32, 4), (16, 4)), 64: ((16, 4),), 128: ((16, 8),)},
    "query": {16: ((64, 4, 1),), 32: ((16, 4, 1), (16, 2, 1)), 64: ((16, 4, 1), (16, 8, 1)), 128: ((16, 8, 1),)},
    "key": {16: ((64, 4, 1),), 32: ((16, 4, 1),), 64: ((16, 8, 1),), 128: ((16, 8, 1),)},
    "query with weights": {16: ((32, 4, 1),), 32: ((16, 4, 1),), 64: ((16, 8, 1),), 128: ((16, 8, 0),)},
    "key with weights": {16: ((32, 4, 1),), 32: ((16, 4, 1),), 64: ((16, 8, 1),), 128: ((16, 8, 1),)},
}
FLOAT32: dict[tuple[str, int], Choices] = {("query with weights", 16): ((16, 4, 1),)}  # where the tile above would spill
SAME = {"first": "query with weights", "second": "query with weights", "key of statistics": "key"}
# In float32 at 128 channels tf32x3 would keep 208 KB of weights in a forward, 400 KB in a backward. They are read in blocks
# instead, of 64 channels of the hidden layer and of 64 channels of phi, or of 32 where 64 would spill.
STREAMED = 64
NARROW = ("attention", "statistics", "query", "second", "key of statistics")


def tiles(task: str, narrow: int, hidden: int, groups: int, dtype: torch.dtype) -> list[Tile]:
    """Tiles of a task of TILES, the one that is best on paper first.

    Register pressure decides, alike for every capability: 32 registers a thread for each of the S sums of a pixel's groups and
    sixteen pixels at least for the tensor cores. Square tiles meet their halo most often in the cache; small ones are a run of
    pixels, which no map size wastes.
    """
    width, is_float32 = power_of_two(max(narrow, hidden), 16), dtype == torch.float32
    is_streamed = is_float32 and width > STREAMED
    block = STREAMED // (2 if task in NARROW else 1) if is_streamed else width
    task = SAME.get(task, task)
    choices = TILES[task][width]
    if is_float32:
        choices = FLOAT32.get((task, width), choices)
    sizes = {"RB": min(power_of_two(narrow, 16), block)}
    sizes["MB"] = min(power_of_two(hidden, 16), STREAMED if is_streamed else width)
    found = []
    for pixels, warps, *kept in choices:
        more = {"GB": power_of_two(groups)} if task == "attention" else {}
        more |= {"KEEP": 0 if is_streamed else kept[0]} if kept else {}
        found.append(Tile.of(warps, PIXELS=pixels, COLUMNS=8 if pixels > 16 else 0, **sizes, **more))
    return found


def forward(**arguments: Any) -> Tensor:
    """The output of pairwise_attention, or of pairwise_statistics where there is no value."""
    if "value" in arguments:
        value: Tensor = arguments["value"]
        out = torch.empty(value.shape, dtype=value.dtype, device=value.device, memory_format=memory_format(value))
        attend(PairwiseCall(**arguments), out=out)
        return out
    count, mean, squares = parts_of_moments(PairwiseCall(**arguments)).unbind(2)  # N x slots x M
    every = count.sum(1)
    centre = (count * mean).sum(1) / every
    return torch.stack([centre, (squares + count * (mean - centre[:, None]).square()).sum(1) / every], 1)


class PairwiseCall:
    """One call's arguments as the kernels name and read them, and their launches."""

    def __init__(
        self,
        query: Tensor,
        key: Tensor,
        position: Tensor | None,
        gamma: list[Tensor],
        footprint: int,
        value: Tensor | None = None,
        **_: Any,
    ) -> None:
        self.query, self.key, self.value, self.gamma, self.footprint = query, key, value, gamma, footprint
        self.images, self.narrow, self.height, self.width = query.shape
        self.hidden, self.extra = len(gamma[2]), 0 if position is None else position.shape[1]
        self.groups = len(gamma[5]) if value is not None else 1
        scale, shift, weight = (x.float() for x in gamma[:3])
        bias = gamma[4].float() if value is not None else torch.zeros_like(weight[:, 0])
        first = weight * gamma[3].float()[:, None] if value is not None else weight
        first, first_at = first[:, : self.narrow].to(query.dtype), first[:, self.narrow :].T
        at_i, at_j = (None, None) if position is None else position.float().contiguous()
        self.arguments = strided(query=query, key=key, value=value) | {
            "at_i": at_i,
            "at_j": at_j,
            "scale": scale.contiguous(),
            "shift": shift.contiguous(),
            "first": first.contiguous(),
            "first_at": first_at.contiguous() if self.extra else None,
            "bias": bias.contiguous(),
            "second": (gamma[5].float() * LOG2E).to(query.dtype).contiguous() if value is not None else None,
            "height": self.height,
            "width": self.width,
            "R": self.narrow,
            "E": self.extra,
            "M": self.hidden,
            "G": self.groups,
            "S": value.shape[1] // self.groups if value is not None else 1,
            "K": footprint,
            "SMALL": min(self.height, self.width) <= footprint // 2,
            "PRECISION": precision(),
            "UPCAST": upcast() and query.dtype != torch.float32,
        }

    def tiles(self, task: str) -> list[Tile]:
        return tiles(task, self.narrow, self.hidden, self.groups, self.query.dtype)

    def tiles_of_map(self, constants: dict[str, int]) -> int:
        if not constants["COLUMNS"]:
            return -(-self.height * self.width // constants["PIXELS"])
        rows = constants["PIXELS"] // constants["COLUMNS"]
        return -(-self.height // rows) * -(-self.width // constants["COLUMNS"])

    def run(self, kernel: Any, task: str, grid: Any, **more: Any) -> None:
        every = self.arguments | more
        launch(kernel, grid, self.tiles(task), {p: every[p] for p in kernel.arg_names if p in every})


def strided(**maps: Tensor | None) -> dict[str, Any]:
    """Pointer and strides of each map by name."""
    found: dict[str, Any] = dict(maps)
    for name, x in maps.items():
        found |= {f"{name}_{axis}": None if x is None else x.stride(at) for at, axis in enumerate("ncyx")}
    return found


def attend(call: PairwiseCall, out: Tensor | None = None, grad: Tensor | None = None) -> tuple[Tensor, Tensor] | None:
    """Fill `out`, or return lse and delta of the backward of `grad`."""
    lse = delta = None
    if grad is not None:
        lse, delta = grad.new_empty(2, call.images, call.height, call.width, call.groups, dtype=torch.float32)

    def grid(constants: dict[str, int]) -> tuple[int, ...]:
        return call.tiles_of_map(constants), -(-call.groups // constants["GB"]), call.images

    more = strided(out=out, grad=grad) | {"lse": lse, "delta": delta, "BACKWARD": grad is not None}
    call.run(attention, "attention", grid, **more)
    return None if lse is None or delta is None else (lse, delta)


def parts_of_moments(call: PairwiseCall) -> Tensor:
    parts = call.query.new_empty(call.images, SLOTS, 3, call.hidden, dtype=torch.float32)
    call.run(statistics, "statistics", lambda constants: (SLOTS, call.images), parts=parts)
    return parts


def backward(grad: Tensor, weights: bool, **arguments: Any) -> dict[str, list[Tensor]]:
    """Gradients by argument; those of gamma and position only where `weights`."""
    call = PairwiseCall(**arguments)
    query, key, value, device = call.query, call.key, call.value, call.query.device
    grads = {name: x.new_empty(0) for name, x in {"query": query, "key": key}.items()}
    shared: dict[str, Any] = {"STATISTICS": value is None, "images": call.images}
    shared |= {"GB": power_of_two(call.groups), "GW": power_of_two(call.groups, 16)}
    if value is None:
        forward_mean = forward(**arguments)[:, 0]
        count = call.height * call.width * call.footprint**2
        at_mean, slope = grad[:, 0] / count, 2 * grad[:, 1] / count
        shared |= {"moments": torch.stack([at_mean, slope, forward_mean], 1), "lse": None, "delta": None}
        shared |= strided(grad=None) | strided(to_value=None)
    else:
        saved = attend(call, grad=grad)
        assert saved is not None
        grads["value"] = torch.empty_like(value, memory_format=memory_format(value))
        shared |= strided(grad=grad) | {"lse": saved[0], "delta": saved[1], "moments": None} | strided(to_value=grads["value"])
    for name, x in (("query", query), ("key", key)):
        grads[name] = torch.empty_like(x, memory_format=memory_format(x))
    sizes = [call.hidden * call.narrow, call.extra * call.hidden, call.hidden]
    sizes += [call.groups * call.hidden] if value is not None else []
    smallest = min(dict(tile.constants)["PIXELS"] for tile in call.tiles("query with weights"))
    programs = min(PROGRAMS, call.images * -(-call.height * call.width // smallest))
    parts = to_delta = None
    if weights:
        parts = torch.empty(programs, sum(sizes), device=device)
        width = call.narrow + call.extra
        to_delta = torch.empty(2, call.images, call.height, call.width, width, device=device)

    def run(kernel: Any, task: str, **more: Any) -> None:
        def grid(constants: dict[str, int]) -> tuple[int, ...]:
            return (programs if weights and kernel is query_pass else call.images * call.tiles_of_map(constants),)

        call.run(kernel, task, grid, **shared, **more)

    with_weights = " with weights" if weights else ""
    to_delta_query, to_delta_key = (None, None) if to_delta is None else to_delta
    for finds in query_passes(call, weights):
        task = f"query{with_weights}" if finds["OWN"] else "first" if finds["FIRST"] else "second"
        run(query_pass, task, parts=parts, to_delta=to_delta_query, **finds, **strided(to_query=grads["query"]))
    often = {
        "down": multiplicities(call.height, call.footprint, device),
        "across": multiplicities(call.width, call.footprint, device),
    }
    of_statistics = " of statistics" if value is None and not weights else ""
    run(
        key_pass,
        f"key{with_weights}{of_statistics}",
        to_delta=to_delta_key,
        WEIGHTS=weights,
        **often,
        **strided(to_key=grads["key"]),
    )
    found = {name: [x] for name, x in grads.items()}
    if parts is not None and to_delta is not None:
        position = arguments["position"]
        found["gamma"] = gradients_of_gamma(call, parts.sum(0).split(sizes), to_delta, position)
        if position is not None:
            to_position = (to_delta[..., call.narrow :].sum(1) * call.gamma[0][call.narrow :].float()).permute(0, 3, 1, 2)
            found["position"] = [to_position.to(position.dtype).contiguous(memory_format=memory_format(position))]
    return found


def query_passes(call: PairwiseCall, weights: bool) -> list[dict[str, bool]]:
    """What each query pass of a backward finds: all at once, or a matrix of weights in a pass of its own where its gradient
    would spill beside the rest: W1' (M x R) at 128 channels, in float32 at 64, W2 (G x M) in float32 at 128. Such a pass
    recomputes h and e, and for W1' the gradient of z: 1.45 times the multiply-adds of one pass, 1.8 with both."""
    second = weights and call.value is not None
    bytes_a_pixel = max(call.narrow, call.hidden) * call.query.itemsize
    first_alone, second_alone = weights and bytes_a_pixel > 128, second and bytes_a_pixel > 256
    nothing = {"OWN": False, "WEIGHTS": False, "FIRST": False, "SECOND": False}
    together = {"OWN": True, "WEIGHTS": weights, "FIRST": weights and not first_alone, "SECOND": second and not second_alone}
    return [together] + [nothing | {"FIRST": True}] * first_alone + [nothing | {"SECOND": True}] * second_alone


def gradients_of_gamma(call: PairwiseCall, parts: Any, to_delta: Tensor, position: Tensor | None) -> list[Tensor]:
    """From those of what the kernels use (W1' = s2 W1, W2 log2(e), s1 q + t1 and s1 k) to those of gamma."""
    to_first, to_first_at, to_bias, *to_second = parts
    of_query, of_key = to_delta
    query, key = (x.permute(0, 2, 3, 1) for x in (call.query, call.key))
    to_scale = (of_query[..., : call.narrow] * query + of_key[..., : call.narrow] * key).sum((0, 1, 2))
    if position is not None:
        to_positions = to_delta[..., call.narrow :].sum(1) * position.permute(0, 2, 3, 1)
        to_scale = torch.cat([to_scale, to_positions.sum((0, 1, 2))])
    folded = torch.cat([to_first.view(call.hidden, call.narrow), to_first_at.view(call.extra, call.hidden).T], 1)  # of s2 W1
    weight = call.gamma[2].float()
    found = [to_scale, of_query.sum((0, 1, 2)), folded]
    if to_second:
        found[2] = folded * call.gamma[3].float()[:, None]
        found += [(folded * weight).sum(1), to_bias, to_second[0].view(call.groups, -1) * LOG2E]
        found += [torch.zeros_like(call.gamma[6])]  # it cancels in the softmax
    return [x.to(like.dtype, copy=True) for x, like in zip(found, call.gamma, strict=True)]  # no parts of one sum
