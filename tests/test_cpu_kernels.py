"""Attention's fused kernels against the float64 specification, build by build, on awkward shapes."""

import ctypes
import itertools
import subprocess
import sys

import pytest
import torch

from sanbench.errors import SanbenchError
from sanbench.ops import cpu
from sanbench.ops.cpu import kernels, structures
from sanbench.ops.operator import tile_size
from tests.support.operator_cases import (
    BUILDS,
    OPERATORS,
    RELATION,
    SIZES,
    case,
    compare,
    gradients,
    statistics_of,
    tensors,
    to,
)


@pytest.mark.parametrize("build", BUILDS)
@pytest.mark.parametrize("size", [*SIZES, *[None] * 8], ids=str)
@pytest.mark.parametrize("kind", ["pairwise", "patchwise"])
def test_attention(kind: str, size: tuple[int, int, int] | None, build: str, request: pytest.FixtureRequest) -> None:
    seed = sum(request.node.name.encode())
    compare(f"{kind}_attention", case(seed, kind, size, position=seed % 3 > 0), build)


@pytest.mark.parametrize("build", BUILDS)
@pytest.mark.parametrize("size", [*SIZES, *[None] * 4], ids=str)
@pytest.mark.parametrize("kind", ["pairwise", "patchwise"])
@pytest.mark.parametrize("depth", [0, 1])
def test_statistics(
    kind: str, depth: int, size: tuple[int, int, int] | None, build: str, request: pytest.FixtureRequest
) -> None:
    seed = sum(request.node.name.encode())
    compare(f"{kind}_statistics", statistics_of(case(seed, kind, size, position=seed % 3 > 0), depth), build)


@pytest.mark.parametrize("build", BUILDS)
@pytest.mark.parametrize("size", [(3, 1, 1), (2, 4, 4), (1, 9, 13), (5, 2, 17)], ids=str)
@pytest.mark.parametrize("footprint", [9, 11])
def test_wide_patchwise_footprints(footprint: int, size: tuple[int, int, int], build: str) -> None:
    values = case(footprint + sum(size), "patchwise", size, footprint=footprint)
    compare("patchwise_attention", values, build)
    compare("patchwise_statistics", statistics_of(values, 1), build)


@pytest.mark.parametrize("kind", ["pairwise", "patchwise"])
def test_any_pattern_of_gradients(kind: str) -> None:
    values = case(5, kind, (2, 6, 9))
    leaves = len(tensors(values))
    patterns = [[0], [1], [2], [leaves - 2], list(range(3, leaves)), [1, 4, leaves - 1], [0, 2]]
    for wanted in patterns:
        compare(f"{kind}_attention", values, BUILDS[0] if BUILDS else "tiled", wanted)


@pytest.mark.parametrize("operator", OPERATORS)
def test_opcheck(operator: str) -> None:
    kind, task = operator.split("_")
    for seed, size in ((4, (2, 5, 6)), (6, (1, 1, 1))):
        values = case(seed, kind, size)
        values = values if task == "attention" else statistics_of(values, 1)
        for x in tensors(values):
            x.requires_grad_(x.is_leaf)
        torch.library.opcheck(getattr(torch.ops.sanbench, operator), tuple(values))


def test_what_goes_to_the_specification() -> None:
    operator = torch.ops.sanbench.pairwise_attention
    values = case(4, "pairwise", (2, 5, 6))
    operator(*values)
    assert cpu.last_kernel("pairwise_attention") == cpu.kernel()
    others = [[*values[:5], "summation", *values[6:]], [*values[:7], 2, 1], [*values[:8], 2]]
    for other in (to(values, torch.float64), *others):
        operator(*other)
        assert cpu.last_kernel("pairwise_attention") == "tiled"


@pytest.mark.parametrize("name", ["tiled", "plain"])
@pytest.mark.parametrize("kind", ["pairwise", "patchwise"])
def test_forced_specification(kind: str, name: str) -> None:
    compare(f"{kind}_attention", case(8, kind, (3, 6, 5)), name)


FORCED = """
import os, sys
import torch
for name in sys.argv[1:]:
    if os.fork() == 0:  # torch is imported once, and sanbench for each
        os.environ["SANBENCH_KERNELS"] = name
        from sanbench.ops import cpu
        print(cpu.kernel(), flush=True)
        os._exit(0)
    os.wait()
"""


def test_forced_by_the_environment() -> None:
    command = [sys.executable, "-c", FORCED, *cpu.available(), "sse9"]
    found = subprocess.run(command, capture_output=True, text=True)
    assert found.stdout.split() == [*cpu.available()]
    assert "Known: avx2, avx512, plain, portable, tiled" in found.stderr


def test_forced_and_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sanbench.ops.cpu.kernels.build", lambda name: "it was not compiled")
    missing = "SANBENCH_KERNELS=avx2 is not available: it was not compiled"
    with pytest.raises(SanbenchError, match=missing), cpu.use_kernel("avx2"):
        pass
    assert cpu.kernel() == "tiled"


def longer(structure: type[ctypes.Structure]) -> type[ctypes.Structure]:
    """The structure with another field before its last."""
    *fields, last = structure._fields_
    return type(structure.__name__, (ctypes.Structure,), {"_fields_": (*fields, ("more", ctypes.c_void_p), last)})


@pytest.mark.parametrize("structure", structures.STRUCTURES, ids=lambda structure: structure.__name__)
@pytest.mark.parametrize("build", BUILDS)
def test_builds_from_other_structures_are_refused(
    build: str, structure: type[ctypes.Structure], monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong = longer(structure)
    monkeypatch.setattr(structures, "STRUCTURES", (wrong,))
    compiled, here = ctypes.sizeof(structure), ctypes.sizeof(wrong)
    message = rf"^{structure.__name__} has {compiled} bytes in kernels_{build}\S* and {here} here .*: reinstall sanbench\.$"
    with pytest.raises(SanbenchError, match=message):
        kernels.build.__wrapped__(build)


def test_builds_from_before_structures_were_compared_are_refused() -> None:
    with pytest.raises(SanbenchError, match=r"^kernels_old.so does not tell the size of StridedMap.*: reinstall sanbench\.$"):
        structures.check_layouts(object(), "kernels_old.so")


def test_not_a_number_stays_one() -> None:
    for kind, place in itertools.product(("pairwise", "patchwise"), (0, 1, 2)):
        values = case(4, kind, (2, 5, 6))
        values[place] = values[place].clone()
        values[place][0, 0, 2, 2] = torch.nan
        out = getattr(torch.ops.sanbench, f"{kind}_attention")(*values)
        assert out[0].isnan().any()
        assert not out[1].isnan().any()


@pytest.mark.parametrize("operator", [*OPERATORS, "aggregation", "scalar_attention"])
@pytest.mark.parametrize("stride", [1, 2])
def test_tiles_of_rows(operator: str, stride: int) -> None:
    """The specification in tiles of a few rows of one image is the specification."""
    kind, _, task = operator.partition("_")
    if kind in RELATION:
        values = case(11, kind, (2, 11, 6))
        values = values if task == "attention" else statistics_of(values, 1)
        values = [*values[:-2], stride, 1]
    else:
        maps = [torch.randn(2, 4, 11, 6) for _ in range(3)]
        grid = (6, 3) if stride == 2 else (11, 6)
        values = [*maps, 2, 3, stride, 1] if kind == "scalar" else [torch.randn(2, 2, 9, *grid), maps[0], 3, stride, 1]
    values = to(values, torch.float64)
    run = getattr(torch.ops.sanbench, operator)
    with cpu.use_kernel("plain"):
        out = run(*values)
        grad = torch.randn_like(out)
        expected = gradients(run, values, grad)
    with cpu.use_kernel("tiled"), tile_size(300):
        actual = gradients(run, values, grad)
    torch.testing.assert_close(actual, expected)
