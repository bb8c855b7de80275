"""Triton kernels compiled without a GPU: what they need of the chip at the stages' shapes.

`python -m tests.test_gpu_compile` compiles all of them and prints the tables of docs/gpu-registers.md.
"""

from dataclasses import replace
from functools import cache
from importlib.metadata import version
from itertools import product
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton", reason="Triton is not installed")

from sanbench.bench import gpu_kernels as kernels
from sanbench.bench.shapes import DTYPES, FUSED
from sanbench.ops.gpu.kernels import fits
from sanbench.ops.gpu.launch import SHARED_MEMORY, Tile, resources
from sanbench.ops.gpu.patchwise import KERNELS as PATCHWISE

ROOT = Path(__file__).parent.parent
SPILLS = 16  # bytes a thread
STAGES = range(5)
EVERY = list(product(FUSED, STAGES, DTYPES.values()))


@cache
def compiled(attention: str, stage: int, dtype: torch.dtype, capability: int) -> list[kernels.Compiled]:
    """Each case once in this process; Triton keeps its own results on disk."""
    return list(kernels.compile_kernels([stage], [dtype], [capability], [attention]))


def check(attention: str, stage: int, dtype: torch.dtype, capability: int) -> None:
    found = compiled(attention, stage, dtype, capability)
    assert found
    for one in found:
        assert one.needs.shared <= SHARED_MEMORY[capability], one
        assert 0 < one.needs.registers <= 255, one
        assert one.needs.spills <= SPILLS, one


def table(attention: str, dtype: torch.dtype) -> str:
    found = [one for stage in STAGES for capability in SHARED_MEMORY for one in compiled(attention, stage, dtype, capability)]
    return f"{attention.capitalize()}, {str(dtype).removeprefix('torch.')}:\n\n{kernels.markdown(found)}"


def test_every_patchwise_kernel_is_launched() -> None:
    launched = {launch.kernel.__name__ for launch in kernels.launches("patchwise", 1, torch.bfloat16)}
    assert launched == {kernel.__name__ for kernel in PATCHWISE}


@pytest.mark.parametrize(("attention", "stage", "dtype"), EVERY)
def test_every_stage_is_served(attention: str, stage: int, dtype: torch.dtype) -> None:
    assert fits(f"{attention}_attention", **kernels.layer_arguments(attention, stage, dtype, 1))


@pytest.mark.parametrize(
    ("attention", "stage", "dtype"),
    [("patchwise", 0, torch.bfloat16), ("pairwise", 4, torch.bfloat16), ("pairwise", 4, torch.float32)],
)
def test_kernels_fit(attention: str, stage: int, dtype: torch.dtype) -> None:
    check(attention, stage, dtype, 80)


@pytest.mark.slow
@pytest.mark.parametrize("capability", list(SHARED_MEMORY))
@pytest.mark.parametrize(("attention", "stage", "dtype"), EVERY)
def test_every_kernel_fits(attention: str, stage: int, dtype: torch.dtype, capability: int) -> None:
    check(attention, stage, dtype, capability)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize(("attention", "dtype"), list(product(FUSED, DTYPES.values())))
def test_the_docs_have_what_was_compiled(attention: str, dtype: torch.dtype) -> None:
    docs = (ROOT / "docs" / "gpu-registers.md").read_text()
    if f"Triton {version('triton')}" not in docs:
        pytest.skip(f"docs/gpu-registers.md is of another Triton than {version('triton')}")
    assert table(attention, dtype) in docs


@pytest.mark.parametrize("attention", FUSED)
def test_products_are_as_precise_as_torchs(attention: str) -> None:
    """TF32 once where torch was told to use it, else three times."""
    products = torch.backends.cuda.matmul
    before = products.fp32_precision
    try:
        for allowed, wanted in (("ieee", "tf32x3"), ("tf32", "tf32")):
            products.fp32_precision = allowed
            for launch in kernels.launches(attention, 1, torch.float32):
                found = launch.arguments.get("PRECISION") or launch.arguments["SHAPES"].precision
                assert found == wanted, launch.kernel
    finally:
        products.fp32_precision = before


def test_an_oversized_kernel_is_seen() -> None:
    """The compiler itself does not refuse what no chip can run: the check above has to."""
    launch = next(x for x in kernels.launches("patchwise", 3, torch.float32) if x.kernel.__name__ == "attention_forward")
    launch.arguments["SHAPES"] = replace(launch.arguments["SHAPES"], narrow_block=64)
    needs = resources(launch, Tile.of(4, ROWS=0, COLUMNS=128, BLOCK=32), 80)
    assert needs.spills > SPILLS


if __name__ == "__main__":
    for case in product(FUSED, DTYPES.values()):
        print(table(*case), flush=True)
