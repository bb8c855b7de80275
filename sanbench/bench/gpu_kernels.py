"""What every Triton kernel needs on a GPU, compiled without one: registers, spills and shared memory at the stages' shapes."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from importlib import import_module
from itertools import product
from typing import Any

import torch
from torch import Tensor

from sanbench.bench.networks import STAGES
from sanbench.models.san import SHARE
from sanbench.ops.attention import statistics_shape
from sanbench.ops.dispatch import RELATION
from sanbench.ops.gpu.launch import Launch, Resources, Tile, recorded, resources

KINDS = ("pairwise", "patchwise")
DTYPES = (torch.bfloat16, torch.float32)


@dataclass(frozen=True)
class Compiled:
    """One kernel at one stage's shapes with one of its tiles, of which the first is the preferred one."""

    kind: str
    kernel: str
    stage: int
    dtype: torch.dtype
    capability: int
    tile: Tile
    needs: Resources


def layer_arguments(kind: str, stage: int, dtype: torch.dtype, images: int) -> dict[str, Any]:
    """An attention operator's arguments by name at a stage's shapes for 224 x 224 images, on the meta device.

    Maps are slices of one channels-last map in `dtype`, as `SelfAttention.project` makes them; gamma and position are float32.
    """
    side, channels, footprint = STAGES[stage]
    narrow, wide, neighbours = channels // 16, channels // 4, footprint**2
    groups = wide // SHARE
    whole = torch.empty(images, 2 * narrow + wide, side, side, dtype=dtype, device="meta")
    query, key, value = whole.contiguous(memory_format=torch.channels_last).split([narrow, narrow, wide], 1)
    is_pairwise = kind == "pairwise"
    hidden, last = (narrow, groups) if is_pairwise else (groups, groups * neighbours)
    width = narrow + 2 if is_pairwise else narrow * (1 + neighbours)
    sizes: list[tuple[int, ...]] = [(width,), (width,), (hidden, width), (hidden,), (hidden,), (last, hidden), (last,)]
    position = {"position": torch.empty(2, 2, side, side, device="meta")} if is_pairwise else {}
    gamma = [torch.empty(size, device="meta") for size in sizes]
    geometry = {"relation": RELATION[kind], "footprint": footprint, "stride": 1, "dilation": 1}
    return {"query": query, "key": key, "value": value, **position, "gamma": gamma, **geometry}


def launches(kind: str, stage: int, dtype: torch.dtype, images: int = 32) -> list[Launch]:
    """Every launch of an attack's and a training step's attention and statistics, in order, each kernel once with each of its
    tasks."""
    room = import_module(f"sanbench.ops.gpu.{kind}")
    attention = layer_arguments(kind, stage, dtype, images)
    first = attention | {"gamma": attention["gamma"][:3]}
    del first["value"]
    shapes: dict[str, Any] = {name: value.shape if isinstance(value, Tensor) else value for name, value in first.items()}
    shapes["gamma"] = [x.shape for x in first["gamma"]]
    moments = torch.empty(tuple(statistics_shape(kind, **shapes)), device="meta")
    with recorded() as found:
        for arguments, grad in ((attention, torch.empty_like(attention["value"])), (first, moments)):
            room.forward(**arguments)
            for weights in (False, True):
                room.backward(grad, weights, **arguments)
    return list({name_of(one): one for one in found}.values())


def name_of(launch: Launch) -> str:
    """The kernel and what it is asked for: "query_pass own weights"."""
    return " ".join([launch.kernel.__name__, *(name.lower() for name, value in launch.arguments.items() if value is True)])


def compile_kernels(
    stages: list[int], dtypes: list[torch.dtype], capabilities: list[int], kinds: list[str]
) -> Iterator[Compiled]:
    """Every kernel at those stages, with every tile that it may run with."""
    for kind, stage, dtype, capability in product(kinds, stages, dtypes, capabilities):
        for launch in launches(kind, stage, dtype):
            for tile in launch.tiles:
                yield Compiled(kind, name_of(launch), stage, dtype, capability, tile, resources(launch, tile, capability))


def markdown(found: Iterable[Compiled]) -> str:
    """A table of kernels of one kind and dtype: by stage the registers of the preferred tile, +n where n bytes spill, one
    capability after the other; then the most that any tile spills and any program takes of shared memory."""
    cells: dict[str, dict[int, dict[int, str]]] = {}
    most: dict[str, list[Resources]] = {}
    for one in found:
        cell = f"{one.needs.registers}" + (f"+{one.needs.spills}" if one.needs.spills else "")
        cells.setdefault(one.kernel, {}).setdefault(one.stage, {}).setdefault(one.capability, cell)
        most.setdefault(one.kernel, []).append(one.needs)
    stages = sorted({stage for row in cells.values() for stage in row})
    lines = [["kernel", *map(str, stages), "spills, bytes", "shared, KB"]]
    lines += [["---"] * len(lines[0])]
    for kernel, row in cells.items():
        needs = most[kernel]
        largest = [str(max(one.spills for one in needs)), f"{max(one.shared for one in needs) / 1024:.0f}"]
        lines += [[kernel, *(" / ".join(row.get(stage, {}).values()) for stage in stages), *largest]]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"
