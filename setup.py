"""The attention kernels for CPUs, compiled for several instruction sets; which one runs is chosen at run time.

They are optional: where no compiler is, installation succeeds and the operators run as tiled PyTorch.
"""

import platform

from setuptools import Extension, setup

SOURCES = ("pairwise", "patchwise", "normalise", "pool", "linear", "moments")
FLAGS = {"portable": []}
if platform.machine() in ("x86_64", "AMD64"):
    FLAGS["avx2"] = ["-mavx2", "-mfma"]
    FLAGS["avx512"] = ["-mavx512f", "-mavx512dq", "-mavx512bw", "-mavx512vl", "-mfma"]

COMMON = ["-std=c++17", "-O3", "-fno-math-errno", "-fopenmp", "-Wno-maybe-uninitialized", "-Wno-psabi"]

setup(
    ext_modules=[
        Extension(  # a plain shared library, loaded by sanbench.ops.cpu
            f"sanbench.ops.cpu.kernels_{name}",
            [f"sanbench/ops/cpu/{source}.cpp" for source in SOURCES],
            depends=[f"sanbench/ops/cpu/{header}.h" for header in ("passes", "weights", "tile", "vector")],
            extra_compile_args=[*COMMON, *flags],
            extra_link_args=["-fopenmp"],
            optional=True,
        )
        for name, flags in FLAGS.items()
    ]
)
