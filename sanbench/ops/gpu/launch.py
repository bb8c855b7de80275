"""Launches of Triton kernels: with the tile that autotune finds, in Triton's interpreter, or on paper.

`recorded()` collects launches instead of running them, from arguments on torch's meta device; `resources()` compiles one for
a compute capability without a GPU and says what it needs.
"""

import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
import triton
from torch import Tensor
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

TYPES = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16", torch.float64: "fp64"}
SHARED_MEMORY = {80: 163 * 1024, 90: 227 * 1024}  # bytes a program may use, by capability


@dataclass(frozen=True)
class Tile:
    """What a launch may choose: warps a program and the kernel's compile-time constants that do not change its results."""

    warps: int
    constants: tuple[tuple[str, int], ...]

    @classmethod
    def of(cls, warps: int, **constants: int) -> "Tile":
        return cls(warps, tuple(constants.items()))


@dataclass(frozen=True)
class Launch:
    kernel: Any
    grid: Callable[[dict[str, int]], tuple[int, ...]]  # from a tile's constants
    tiles: tuple[Tile, ...]  # the first is the one that modelling prefers
    arguments: dict[str, Any]  # tensors, integers and the other compile-time constants


@dataclass(frozen=True)
class Resources:
    """Of one compiled program: registers a thread, bytes spilled a thread, bytes of shared memory."""

    registers: int
    spills: int
    shared: int


_records: ContextVar[list[Launch] | None] = ContextVar("records", default=None)


@contextmanager
def recorded() -> Iterator[list[Launch]]:
    """Launches within are not run but collected."""
    launches: list[Launch] = []
    token = _records.set(launches)
    try:
        yield launches
    finally:
        _records.reset(token)


def upcast() -> bool:
    """Whether reduced precision is to be widened first: the interpreter computes with its bit patterns."""
    return bool(knobs.runtime.interpret)


def precision() -> str:
    """Of float32 products: one of TF32 where torch is allowed it for its own, else three, which nearly make up for it."""
    return "tf32" if torch.backends.cuda.matmul.fp32_precision == "tf32" else "tf32x3"


def launch(
    kernel: Any, grid: Callable[[dict[str, int]], tuple[int, ...]], tiles: Sequence[Tile], arguments: dict[str, Any]
) -> None:
    """Run `kernel`, a function under triton.jit, on the device of its arguments, without waiting for it."""
    if (records := _records.get()) is not None:
        records.append(Launch(kernel, grid, tuple(tiles), arguments))
    elif knobs.runtime.interpret:
        constants = dict(tiles[0].constants)
        kernel[grid(constants)](**arguments, **constants)
    else:
        with torch.cuda.device_of(next(x for x in arguments.values() if isinstance(x, Tensor))):
            tuned(kernel, tuple(tiles))[grid](**arguments)


@cache
def tuned(kernel: Any, tiles: tuple[Tile, ...]) -> Any:
    """The kernel with its tile found by measurement, once for each size of map and kept on disk."""
    constants = {name for tile in tiles for name, _ in tile.constants}
    key = [p.name for p in kernel.params if p.name in ("height", "width") or (p.is_constexpr and p.name not in constants)]
    configs = [triton.Config(dict(tile.constants), num_warps=tile.warps, num_stages=1) for tile in tiles]
    return triton.autotune(configs, key=key, cache_results=True)(kernel)


def source(found: Launch, tile: Tile) -> Any:
    """What Triton's compiler takes, with integers and addresses specialised as a launch would."""
    values = found.arguments | dict(tile.constants)
    signature, constants, attributes = {}, {}, {}
    for at, parameter in enumerate(found.kernel.params):
        name, value = parameter.name, values[parameter.name]
        if parameter.is_constexpr or value is None or (isinstance(value, int) and value == 1):
            signature[name], constants[name] = "constexpr", value
            continue
        aligned = value % 16 == 0 if isinstance(value, int) else value.storage_offset() * value.itemsize % 16 == 0
        signature[name] = "i32" if isinstance(value, int) else f"*{TYPES[value.dtype]}"
        if aligned:
            attributes[(at,)] = [["tt.divisibility", 16]]
    return ASTSource(found.kernel, signature, constants, attributes)


def resources(found: Launch, tile: Tile, capability: int) -> Resources:
    """Compile for NVIDIA `capability` (80, 90) without a GPU. Not in the interpreter's process."""
    options = {"num_warps": tile.warps, "num_stages": 1}
    compiled = triton.compile(source(found, tile), target=GPUTarget("cuda", capability, 32), options=options)
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        Path(file.name).write_bytes(compiled.asm["cubin"])
        command = [knobs.nvidia.cuobjdump.path, "--dump-resource-usage", file.name]
        text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    usage = dict(field.split(":") for field in text.splitlines()[-1].split() if ":" in field)
    return Resources(int(usage["REG"]), int(usage["STACK"]), compiled.metadata.shared)
