"""Patchwise Triton kernels in Triton's interpreter against the float64 specification, in a process of its own."""

import os
import random
import subprocess
import sys

import pytest
import torch
from torch import Tensor

from sanbench.ops.operator import SPECIFICATIONS

pytest.importorskip("triton", reason="Triton is not installed")
GEOMETRY = {"relation": "concatenation", "stride": 1, "dilation": 1}
# images, height, width, R, M, G, C / G, footprint; then the five stages' channels on small maps
SHAPES = [(2, 5, 9, 5, 3, 3, 2, 3), (1, 1, 2, 3, 2, 1, 3, 5), (3, 4, 3, 20, 17, 5, 1, 3), (1, 1, 1, 2, 2, 2, 2, 7)]
STAGES = [(2, 4, 6, 4, 2, 2, 8, 3), (1, 4, 4, 16, 8, 8, 8, 7), (1, 3, 5, 32, 16, 16, 8, 3), (1, 3, 3, 64, 32, 32, 8, 3)]
STAGES += [(1, 2, 2, 128, 64, 64, 8, 3)]
TOLERANCE = {torch.float32: 2e-6, torch.float16: 4e-3, torch.bfloat16: 3e-2}  # of the root mean square
CASES = [(shape, torch.float32, True) for shape in [*SHAPES, *STAGES[:2], STAGES[4]]]
SLOW = [(shape, torch.float32, True) for shape in STAGES[2:4]]
CASES += [(SHAPES[0], dtype, False) for dtype in (torch.bfloat16, torch.float16, torch.float32)]


def arguments(shape: tuple[int, ...], dtype: torch.dtype, channels_last: bool, attention: bool) -> dict:
    """As SelfAttention makes them: slices of one map in `dtype`, gamma in float32."""
    images, height, width, narrow, hidden, groups, share, footprint = shape
    generator = torch.Generator().manual_seed(sum(shape))
    size = footprint**2
    maps = torch.randn(images, 2 * narrow + groups * share, height, width, generator=generator).to(dtype)
    maps = maps.contiguous(memory_format=torch.channels_last) if channels_last else maps
    query, key, value = maps.split([narrow, narrow, groups * share], 1)
    delta = narrow * (size + 1)
    sizes = [(delta,), (delta,), (hidden, delta), (hidden,), (hidden,), (groups * size, hidden), (groups * size,)]
    gamma = [torch.randn(s, generator=generator) / (s[1] ** 0.5 if len(s) == 2 else 1) for s in sizes]
    found = {"query": query, "key": key, "value": value, "gamma": gamma if attention else gamma[:3], **GEOMETRY}
    if not attention:
        del found["value"]
    return found | {"footprint": footprint}


def close(actual: Tensor, expected: Tensor, tolerance: float, name: str) -> None:
    """By norm: where a relu's argument is 0 within rounding, two precisions take different sides."""
    assert actual.shape == expected.shape, name
    error = (actual.double() - expected).norm() / expected.norm().clamp_min(1e-3)
    assert error < tolerance, f"{name}: {error:.2e} of its norm"


def compare(shape: tuple[int, ...], dtype: torch.dtype, channels_last: bool, attention: bool) -> None:
    from sanbench.ops.gpu import patchwise

    given = arguments(shape, dtype, channels_last, attention)
    tensors = [(name, x) for name, x in given.items() if isinstance(x, Tensor)]
    tensors += [(f"gamma[{at}]", x) for at, x in enumerate(given["gamma"])]
    operator = SPECIFICATIONS["patchwise_attention" if attention else "patchwise_statistics"]
    maps = len(tensors) - len(given["gamma"])

    def specification(*values: Tensor) -> Tensor:
        names = [name for name, _ in tensors[:maps]]
        return operator(**given | dict(zip(names, values[:maps])) | {"gamma": list(values[maps:])})

    expected, pullback = torch.func.vjp(specification, *(x.double() for _, x in tensors))
    out = patchwise.forward(**given)
    assert out.dtype == (dtype if attention else torch.float32)
    close(out, expected, TOLERANCE[dtype], "forward")
    grad = torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).to(out.dtype)
    found = patchwise.backward(grad, True, **given)
    flat = [x for name in ("query", "key", "value", "gamma") for x in found.get(name, [])]
    for (name, like), actual, wanted in zip(tensors, flat, pullback(grad.double()), strict=True):
        assert (actual.dtype, actual.is_contiguous()) == (like.dtype, actual.is_contiguous())
        close(actual, wanted, 5 * TOLERANCE[dtype], name)


@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") != "1", reason="runs in the interpreter's process, below")
@pytest.mark.parametrize("attention", [True, False], ids=["attention", "statistics"])
@pytest.mark.parametrize(
    ("shape", "dtype", "channels_last"), [*CASES, *(pytest.param(*case, marks=pytest.mark.slow) for case in SLOW)]
)
def test_kernels_follow_the_specification(shape, dtype, channels_last, attention) -> None:
    compare(shape, dtype, channels_last, attention)


@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") != "1", reason="runs in the interpreter's process, below")
def test_random_shapes() -> None:
    draw = random.Random(3)
    for _ in range(2):
        shape = (*(draw.randint(1, n) for n in (3, 4, 7, 9, 9, 4, 3)), 3)
        compare(shape, torch.float32, draw.random() < 0.5, True)


@pytest.mark.parametrize(
    ("chosen", "number"),
    [("not slow", 2 * len(CASES) + 1), pytest.param("slow", 2 * len(SLOW), marks=pytest.mark.slow)],
)
def test_in_the_interpreter(chosen: str, number: int) -> None:
    """The tests above, where TRITON_INTERPRET is set before Triton is imported."""
    if os.environ.get("TRITON_INTERPRET") == "1":
        pytest.skip("is the outer process")
    command = [sys.executable, "-m", "pytest", "-x", "-p", "no:cacheprovider", __file__, "-m", chosen]
    command += ["-k", "not in_the_interpreter"]
    done = subprocess.run(command, env=os.environ | {"TRITON_INTERPRET": "1"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:]
    assert f"{number} passed" in done.stdout
