"""The machine: which device computes, and what it is called."""

import platform
from importlib.metadata import version
from pathlib import Path

import torch

import sanbench
from sanbench.errors import InputError, SanbenchError

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
    return ", ".join(filter(None, ["cpu", f"{torch.get_num_threads()} threads", processor()]))


def processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.processor())


def versions() -> dict[str, str]:
    packages = ("torch", "torchvision", "torchattacks", "numpy")
    return {"sanbench": sanbench.__version__, "python": platform.python_version()} | {p: version(p) for p in packages}
