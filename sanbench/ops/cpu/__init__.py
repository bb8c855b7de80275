"""Kernels for the CPU; importing registers them."""

from sanbench.ops.cpu import fused  # noqa: F401  registers its kernels
from sanbench.ops.cpu.kernels import KERNELS, available, kernel, last_kernel, serves, use_kernel

__all__ = ["KERNELS", "available", "kernel", "last_kernel", "serves", "use_kernel"]
