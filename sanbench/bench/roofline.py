"""What attention costs on a GPU, from shapes alone: bytes, multiply-adds and the time that each unit of the chip needs.

A time is a floor: the slowest unit's, as if the others were hidden behind it. Nothing here is measured.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from sanbench.bench.gpu_kernels import launches
from sanbench.bench.shapes import FUSED, POSITION, AttentionShape
from sanbench.errors import InputError, unknown
from sanbench.models import MODELS, resolve
from sanbench.models.configurations import STAGES
from sanbench.ops.footprint import Footprint, neighbours

L2_WIDTH = 5120  # bytes a clock
EXPONENTIALS = 16  # a clock and SM
LANES = 4 * 32  # a clock and SM: four warps issue


@dataclass(frozen=True)
class Chip:
    """Peaks a second. Multiply-adds on tensor cores by dtype; lanes: instructions of single lanes that can be issued.

    A100 SXM 40 GB: 108 SMs at 1.41 GHz (NVIDIA A100 Tensor Core GPU Architecture, 2020; its L2 gives 5120 bytes a clock).
    H100 SXM5 80 GB: 132 SMs at 1.83 GHz, the clock of the printed peaks (NVIDIA H100 Tensor Core GPU Architecture, 2022).
    Its L2's width is not published: the A100's is taken. A clock and SM take 16 exponentials and issue 4 warps (CUDA C++
    Programming Guide, arithmetic instructions, compute capability 8.0 and 9.0). float32 products are three of tf32.
    """

    sms: int
    clock: float  # Hz
    fmas: int  # float32 multiply-adds outside the tensor cores, a clock and SM
    half: float  # multiply-adds on tensor cores in bfloat16 or float16
    tf32: float
    dram: float  # bytes
    l2_size: int  # bytes

    @property
    def tensor(self) -> dict[torch.dtype, float]:
        return {torch.bfloat16: self.half, torch.float16: self.half, torch.float32: self.tf32 / 3}

    @property
    def l2(self) -> float:
        return L2_WIDTH * self.clock

    @property
    def fma(self) -> float:
        return self.sms * self.clock * self.fmas

    @property
    def exponentials(self) -> float:
        return self.sms * self.clock * EXPONENTIALS

    @property
    def lanes(self) -> float:
        return self.sms * self.clock * LANES


CHIPS = {
    "A100": Chip(sms=108, clock=1.41e9, fmas=64, half=156e12, tf32=78e12, dram=1555e9, l2_size=40 * 2**20),
    "H100": Chip(sms=132, clock=1.83e9, fmas=128, half=494.5e12, tf32=247e12, dram=3350e9, l2_size=50 * 2**20),
}

PACK = 1  # gamma's parameters, in float32, are written once more as the kernels read them; the L2 still has them then


@dataclass(frozen=True)
class Pixel:
    """What a kernel does for one pixel: channels of maps, multiply-adds and other instructions of single lanes."""

    reads: int  # channels read at the pixel itself
    near: int  # channels read at all K neighbours
    writes: int
    tensor: int  # multiply-adds of gamma
    fma: int
    other: int  # comparisons, and changes of dtype beside what `widened` counts
    exponentials: int = 0
    widened: int = 0  # values that become float32 if they are not
    narrowed: int = 0  # values that return to the maps' dtype, two an instruction


def pairwise_forward(x: AttentionShape) -> Pixel:
    """relu(a_i - s1 b_j), the positions' two channels in float32, W1, relu, W2, softmax, weighted sum."""
    pair_fma = x.R + POSITION * (1 + x.M) + 2 * x.G + x.C
    return Pixel(
        reads=x.R,
        near=x.R + x.C,
        writes=x.C,
        tensor=x.K * (x.R * x.M + x.M * x.G),
        fma=x.K * pair_fma,
        other=x.K * (x.R + POSITION + x.M + x.G),
        exponentials=x.K * x.G,
        widened=x.K * (x.R + x.C),
        narrowed=x.K * (x.R + x.M),
    )


def patchwise_forward(x: AttentionShape) -> Pixel:
    """relu(s1 b_j + t1), W1, normalisation and relu of M channels, W2, weighted sum."""
    slices = (1 + x.K) * x.R
    return Pixel(
        reads=x.R,
        near=x.R + x.C,
        writes=x.C,
        tensor=slices * x.M + x.K * x.M * x.G,
        fma=slices + x.M + x.K * x.C,
        other=slices + x.M,
        widened=slices + x.K * x.C,
        narrowed=slices + x.M,
    )


def pairwise_statistics(x: AttentionShape) -> Pixel:
    """W1 relu(a_i - s1 b_j) for every pair, and its first two moments."""
    return Pixel(
        reads=x.R,
        near=x.R,
        writes=0,
        tensor=x.K * x.R * x.M,
        fma=x.K * (x.R + POSITION * (1 + x.M) + 3 * x.M),
        other=x.K * (x.R + POSITION),
        widened=x.K * x.R,
        narrowed=x.K * x.R,
    )


def patchwise_statistics(x: AttentionShape) -> Pixel:
    """W1 relu(s1 b_j + t1) for every pixel, and its first two moments."""
    slices = (1 + x.K) * x.R
    return Pixel(
        reads=x.R, near=x.R, writes=0, tensor=slices * x.M, fma=slices + 3 * x.M, other=slices, widened=slices, narrowed=slices
    )


PASSES: dict[str, dict[str, Callable[[AttentionShape], Pixel]]] = {
    "pairwise": {"attention": pairwise_forward, "statistics": pairwise_statistics},
    "patchwise": {"attention_forward": patchwise_forward, "statistics_forward": patchwise_statistics},
}


def expanded(x: AttentionShape, attends: bool) -> int:
    """What the specification cannot avoid to expand for a pixel: the key, relation and hidden channels, and
    where it attends neighbours of the value and the weights (pairwise before and after the softmax)."""
    if x.attention == "pairwise":
        return x.K * (2 * x.R + POSITION + x.M + (2 * x.G + x.C if attends else 0))
    return (1 + 2 * x.K) * x.R + (x.K * (x.G + x.C) if attends else 0)


@dataclass(frozen=True)
class Cost:
    """One launch of a kernel for one image of a batch. Bytes; `fewest` counts each input and each output once."""

    kernel: str
    shape: AttentionShape
    stage: int
    dram: float
    fewest: float
    l2: float
    halo: float  # neighbours that a tile reads from the L2, in pixels of the tile
    multiply_adds: int
    seconds: dict[str, dict[str, float]]  # by chip and by unit
    expanded: float  # bytes written and read again by the specification

    def time(self, chip: str) -> float:
        return max(self.seconds[chip].values())

    def bound(self, chip: str) -> str:
        return max(self.seconds[chip], key=lambda unit: self.seconds[chip][unit])

    def expanded_time(self, chip: str) -> float:
        return (self.expanded + self.fewest) / CHIPS[chip].dram


def halo(x: AttentionShape, tile: dict[str, int]) -> tuple[float, float]:
    """Neighbours that programs read, each once a program, and programs, both a pixel of the map, counted program by program."""
    side = x.side
    pixels = torch.arange(side * side)
    columns = tile["COLUMNS"]
    rows = tile["ROWS"] if "ROWS" in tile else tile["PIXELS"] // columns if columns else 0
    run = tile.get("PIXELS", columns)  # without rows, a program has consecutive pixels
    owner = pixels // side // rows * side + pixels % side // columns if rows else pixels // run
    near = neighbours(Footprint(x.footprint), side, side).view(-1, side * side)
    read = torch.unique(owner * side * side + near)  # program and pixel
    return len(read) / len(pixels), len(torch.unique(owner)) / len(pixels)


def is_streamed(x: AttentionShape, tile: dict[str, int]) -> bool:
    """Whether a program reads the weights again for each neighbour: counted as if the L1 had none of them."""
    return x.attention == "pairwise" and (tile["RB"] < x.R or tile["MB"] < x.M)


def cost(attention: str, stage: int, kernel: str, dtype: torch.dtype, batch_size: int) -> Cost:
    """What `kernel` costs an image of a batch, with the tile that it prefers."""
    x, size = AttentionShape.of(attention, stage), dtype.itemsize
    pixel, pixels = PASSES[attention][kernel](x), x.side**2
    maps = pixels * size * (pixel.reads + pixel.near + pixel.writes)
    parameters = 4 * x.parameters / batch_size
    found = next(launch for launch in launches(attention, stage, dtype) if launch.kernel.__name__ == kernel)
    tile = dict(found.tiles[0].constants)
    read, programs = halo(x, tile)
    dram = maps + parameters * (1 + PACK * size / 4)
    weights = x.parameters * (x.K if is_streamed(x, tile) else 1)
    l2 = pixels * size * (pixel.reads + read * pixel.near + pixel.writes + programs * weights)
    other = pixel.other + (pixel.widened + pixel.narrowed / 2 if size < 4 else 0)
    loads = x.K * pixel.near * size / 16
    products = pixel.tensor / (16 * 8 * 16 / 32 if size < 4 else 16 * 8 * 8 / 32 / 3)  # a warp's instruction, by lane
    issued = pixel.fma + other + pixel.exponentials + loads + products
    seconds = {}
    for name, chip in CHIPS.items():
        seconds[name] = {
            "DRAM": dram / chip.dram,
            "L2": l2 / chip.l2,
            "tensor cores": pixels * pixel.tensor / chip.tensor[dtype],
            "multiply-adds": pixels * pixel.fma / chip.fma,
            "exponentials": pixels * pixel.exponentials / chip.exponentials,
            "issue": pixels * issued / chip.lanes,
        }
    aggregated = x.K * x.C if pixel.writes else 0
    return Cost(
        kernel=kernel,
        shape=x,
        stage=stage,
        dram=dram,
        fewest=maps + parameters,
        l2=l2,
        halo=read,
        multiply_adds=pixels * (pixel.tensor + aggregated),
        seconds=seconds,
        expanded=2 * pixels * size * expanded(x, attends=pixel.writes > 0),
    )


@dataclass(frozen=True)
class Roofline:
    """A SAN's attention and statistics by stage; seconds an image of all blocks in evaluation by chip."""

    model: str
    blocks: tuple[int, ...]
    stages: list[Cost]
    statistics: list[Cost]
    fused: dict[str, float]
    expanded: dict[str, float]


def roofline(name: str, dtype: torch.dtype, batch_size: int) -> Roofline:
    """Raises InputError for a name that is no pairwise or patchwise SAN, or a batch size below 1."""
    name = resolve(name)[0]
    configs: dict[str, Any] = {name: entry.config for name, entry in MODELS.items()}
    known = [name for name, config in configs.items() if getattr(config, "attention", None) in FUSED]
    if name not in known:
        raise unknown("fused SAN", name, known)
    config = configs[name]
    if batch_size < 1:
        raise InputError(f"batch size {batch_size} is not accepted: it must be at least 1.")
    forward, statistics = (
        [cost(config.attention, stage, kernel, dtype, batch_size) for stage in range(len(STAGES))]
        for kernel in PASSES[config.attention]
    )
    totals = [
        {chip: sum(n * time(found, chip) for n, found in zip(config.blocks, forward, strict=True)) for chip in CHIPS}
        for time in (Cost.time, Cost.expanded_time)
    ]
    return Roofline(name, config.blocks, forward, statistics, *totals)
