"""Triton kernels compiled without a GPU: what they need of the chip at the stages' shapes."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton", reason="Triton is not installed")

from sanbench import kernels
from sanbench.ops.gpu.launch import SHARED_MEMORY
from sanbench.ops.gpu.patchwise import KERNELS as PATCHWISE

ROOT = Path(__file__).parent.parent
SPILLS = 16  # bytes a thread
EVERY = [(kind, stage, dtype) for kind in kernels.KINDS for stage in range(5) for dtype in kernels.DTYPES]


def check(kind: str, stage: int, dtype: torch.dtype, capability: int) -> None:
    found = list(kernels.compile_kernels([stage], [dtype], [capability], [kind]))
    assert found
    for one in found:
        assert one.needs.shared <= SHARED_MEMORY[capability], one
        assert 0 < one.needs.registers <= 255, one
        assert one.needs.spills <= SPILLS, one


def test_every_patchwise_kernel_is_launched() -> None:
    launched = {launch.kernel.__name__ for launch in kernels.launches("patchwise", 1, torch.bfloat16, 80)}
    assert launched == {kernel.__name__ for kernel in PATCHWISE}


@pytest.mark.parametrize(("kind", "stage", "dtype"), [("patchwise", 0, torch.bfloat16), ("pairwise", 1, torch.bfloat16)])
def test_kernels_fit(kind: str, stage: int, dtype: torch.dtype) -> None:
    check(kind, stage, dtype, 80)


@pytest.mark.slow
@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize(("kind", "stage", "dtype"), EVERY)
def test_every_kernel_fits(kind: str, stage: int, dtype: torch.dtype, capability: int) -> None:
    check(kind, stage, dtype, capability)


def test_an_oversized_kernel_is_seen() -> None:
    """The compiler itself does not refuse what no chip can run: the check above has to."""
    from dataclasses import replace

    from sanbench.ops.gpu.launch import Tile, resources

    launch = next(x for x in kernels.launches("patchwise", 3, torch.float32, 80) if x.kernel.__name__ == "attention_forward")
    wide = replace(launch.arguments["LAYER"], narrow_block=64)
    launch.arguments["LAYER"] = wide
    needs = resources(launch, Tile.of(4, ROWS=0, COLUMNS=128, BLOCK=32), 80)
    assert needs.spills > SPILLS


def test_compiling_does_not_need_the_interpreter() -> None:
    """In the interpreter's process nothing is compiled: this one is not it."""
    code = "import os; from triton import knobs; assert not knobs.runtime.interpret"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
