"""The machine: which device computes, what it is called, and how memory is kept."""

import ctypes
import platform
import sys
from pathlib import Path

import torch

from sanbench.errors import InputError, SanbenchError

DEVICES = ("auto", "cpu", "cuda")
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD = -1, -2, -3  # glibc's malloc.h


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
    return ", ".join(filter(None, ["cpu", f"{torch.get_num_threads()} threads", processor()]))


def processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.processor())


def keep_freed_memory() -> None:
    """Tell glibc to keep big blocks that are freed, for the whole process; elsewhere do nothing.

    By default it gives each of torch's big tensors back to the system, and faulting the pages in again takes longer than
    computing on them.
    """
    if sys.platform != "linux" or platform.libc_ver()[0] != "glibc":
        return
    libc = ctypes.CDLL("libc.so.6")
    libc.mallopt(M_MMAP_THRESHOLD, 1 << 30)
    libc.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
    libc.mallopt(M_TOP_PAD, 64 << 20)
