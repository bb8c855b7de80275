"""Kernels for CUDA, in Triton; importing registers them. Triton itself is imported by the first call that needs it."""

from sanbench.ops.gpu.kernels import KERNELS, available, kernel, last_kernel, missing, serves, use_kernel

__all__ = ["KERNELS", "available", "kernel", "last_kernel", "missing", "serves", "use_kernel"]
