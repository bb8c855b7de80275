"""The machine: which device computes, what it is called, and how its memory is handled."""

from __future__ import annotations

import ctypes
import gc
import os
import platform
import resource
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

import sanbench
from sanbench.errors import InputError, SanbenchError
from sanbench.late import Late

if TYPE_CHECKING:
    import torch
else:
    torch = Late("torch")

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD = -1, -2, -3  # malloc.h
KEEP = 2**30
GROWTH = 1.05  # times what was resident: blocks of other sizes do not fit into each other's holes, so a heap spreads
DEVICES = ("auto", "cpu", "cuda")


def select_device(name: str) -> torch.device:
    """`auto` is CUDA where there is one. Raises InputError for another word, SanbenchError for a device that is not there."""
    if name not in DEVICES:
        raise InputError(f"device {name!r} is not accepted: accepted are {', '.join(DEVICES)}.")
    available = torch.cuda.is_available()
    if name == "cuda" and not available:
        raise SanbenchError("device cuda is not available: torch sees no GPU. Use --device cpu.")
    return torch.device("cuda" if available and name != "cpu" else "cpu")


def describe(device: torch.device) -> str:
    """`cpu, 2 threads, AMD EPYC` or the GPU's name."""
    if device.type == "cuda":
        return f"cuda, {torch.cuda.get_device_name(device)}"
    threads = torch.get_num_threads()
    return ", ".join(filter(None, ["cpu", f"{threads} thread{'s' * (threads > 1)}", processor()]))


def processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.processor())


def versions() -> dict[str, str]:
    packages = ("torch", "torchvision", "torchattacks", "numpy")
    return {"sanbench": sanbench.__version__, "python": platform.python_version()} | {p: version(p) for p in packages}


def keep_memory() -> bool:
    """Keep freed memory in the process, until `trim_heap`; False where the C library has no `mallopt`.

    glibc gives large blocks back to the system, and then page faults dominate. Called once, for the whole process.
    """
    mallopt = of_libc("mallopt")
    settings = ((M_MMAP_THRESHOLD, KEEP), (M_TRIM_THRESHOLD, 2**31 - 1), (M_TOP_PAD, 2**26))
    return mallopt is not None and all(mallopt(option, value) == 1 for option, value in settings)


def trim_heap() -> None:
    """Give freed memory back to the system; nothing where the C library has no `malloc_trim`."""
    if trim := of_libc("malloc_trim"):
        trim(0)


class Heap:
    """Keeps a process that does one piece of like work after the other from growing.

    Trimming after every piece would cost page faults of all that it needs: only what has grown is trimmed.
    """

    def __init__(self) -> None:
        self.usual = 0

    def trim_if_grown(self) -> None:
        """After each piece of work: trim if GROWTH times as much is resident as after the first piece since the last trim."""
        resident = resident_memory()
        if self.usual == 0:
            self.usual = resident
        elif resident > GROWTH * self.usual:
            trim_heap()
            self.usual = 0


def of_libc(name: str) -> Callable[..., int] | None:
    """A function of Linux's C library, if it has one of this name."""
    return getattr(ctypes.CDLL(None), name, None) if sys.platform.startswith("linux") else None


def release_memory(device: torch.device) -> None:
    """Give back what nothing uses, before less is asked for."""
    gc.collect()
    trim_heap()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def resident_memory() -> int:
    """Bytes of this process that are in memory; where the system does not tell, the most that ever were."""
    status = Path("/proc/self/status")
    if status.is_file():
        return next(1024 * int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith("VmRSS"))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def total_memory(device: torch.device) -> int:
    """Bytes that the device, or this machine, has in all."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
