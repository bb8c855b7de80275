"""What a reader of a benchmark asks about the machine: `sanbench info`, and the kernels that a record names."""

import torch

from sanbench.device import processor, versions
from sanbench.ops import cpu, gpu


def kernel(device: torch.device) -> str:
    """The kernels that attention runs on, such as avx512 or triton."""
    return (cpu if device.type == "cpu" else gpu).kernel()


def machine() -> dict[str, str]:
    """Versions, devices, threads, and the kernels that attention runs on."""
    gpus = [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]
    return versions() | {
        "processor": processor(),
        "threads": str(torch.get_num_threads()),
        "gpu": ", ".join(gpus) or "none",
        "kernels": f"{cpu.kernel()} (available: {', '.join(cpu.available())})",
        "kernels on cuda": f"{gpu.kernel()} ({gpu.missing() or 'available: ' + ', '.join(gpu.available())})",
    }
