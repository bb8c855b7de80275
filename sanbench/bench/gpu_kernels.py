"""What every Triton kernel needs on a GPU, compiled without one: registers, spills and shared memory at the stages' shapes."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from importlib import import_module
from itertools import product
from typing import Any

import torch
from torch import Tensor

from sanbench.bench.shapes import FUSED, POSITION, AttentionShape
from sanbench.errors import InputError
from sanbench.models.configurations import STAGES
from sanbench.ops.attention import statistics_shape
from sanbench.ops.dispatch import RELATION
from sanbench.ops.gpu.launch import SHARED_MEMORY, Launch, Resources, Tile, recorded, resources


@dataclass(frozen=True)
class Compiled:
    """One kernel at one stage's shapes with one of its tiles, of which the first is the preferred one."""

    attention: str
    kernel: str
    stage: int
    dtype: torch.dtype
    capability: int
    tile: Tile
    needs: Resources


def parse_stages(text: str) -> list[int]:
    """`0,4`: numbers of stages. Raises InputError for anything else."""
    if not set(text.split(",")) <= set(map(str, range(len(STAGES)))):
        raise InputError(f"stages {text} is not accepted: numbers of 0 to {len(STAGES) - 1}, comma-separated.")
    return [int(stage) for stage in text.split(",")]


def layer_arguments(attention: str, stage: int, dtype: torch.dtype, images: int) -> dict[str, Any]:
    """An attention operator's arguments by name at a stage's shapes for 224 x 224 images, on the meta device.

    Maps are slices of one channels-last map in `dtype`, as `SelfAttention.project` makes them; gamma and position are float32.
    """
    shape = AttentionShape.of(attention, stage)
    parts = [shape.R, shape.R, shape.C]
    whole = torch.empty(images, sum(parts), shape.side, shape.side, dtype=dtype, device="meta")
    query, key, value = whole.contiguous(memory_format=torch.channels_last).split(parts, 1)
    encoded = torch.empty(2, POSITION, shape.side, shape.side, device="meta")
    position = {"position": encoded} if attention == "pairwise" else {}
    gamma = [torch.empty(size, device="meta") for size in shape.gamma]
    geometry = {"relation": RELATION[attention], "footprint": shape.footprint, "stride": 1, "dilation": 1}
    return {"query": query, "key": key, "value": value, **position, "gamma": gamma, **geometry}


def launches(attention: str, stage: int, dtype: torch.dtype, images: int = 32) -> list[Launch]:
    """Every launch of an attack's and a training step's attention and statistics, in order, each kernel once with each of its
    tasks."""
    kernels = import_module(f"sanbench.ops.gpu.{attention}")
    whole = layer_arguments(attention, stage, dtype, images)
    first = whole | {"gamma": whole["gamma"][:3]}
    del first["value"]
    shapes: dict[str, Any] = {name: value.shape if isinstance(value, Tensor) else value for name, value in first.items()}
    shapes["gamma"] = [x.shape for x in first["gamma"]]
    moments = torch.empty(tuple(statistics_shape(attention, **shapes)), device="meta")
    with recorded() as found:
        for arguments, grad in ((whole, torch.empty_like(whole["value"])), (first, moments)):
            kernels.forward(**arguments)
            for weights in (False, True):
                kernels.backward(grad, weights, **arguments)
    return list({name_of(one): one for one in found}.values())


def name_of(launch: Launch) -> str:
    """The kernel and what it is asked for: "query_pass own weights"."""
    return " ".join([launch.kernel.__name__, *(name.lower() for name, value in launch.arguments.items() if value is True)])


def compile_kernels(
    stages: Sequence[int], dtypes: Sequence[torch.dtype], capabilities: Sequence[int], attentions: Sequence[str]
) -> Iterator[Compiled]:
    """Every kernel at those stages, with every tile that it may run with.

    Raises InputError for an attention without kernels, and a compute capability whose shared memory is not known.
    """
    for what, values, known in (("attention", attentions, FUSED), ("capability", capabilities, tuple(SHARED_MEMORY))):
        for value in values:
            if value not in known:
                raise InputError(f"{what} {value} is not accepted: accepted are {', '.join(map(str, known))}.")
    for attention, stage, dtype, capability in product(attentions, stages, dtypes, capabilities):
        for launch in launches(attention, stage, dtype):
            for tile in launch.tiles:
                needs = resources(launch, tile, capability)
                yield Compiled(attention, name_of(launch), stage, dtype, capability, tile, needs)


def markdown(found: Iterable[Compiled]) -> str:
    """A table of kernels of one attention and dtype: by stage the registers of the preferred tile, +n where n bytes spill, one
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
