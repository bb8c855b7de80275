"""Triton kernels in Triton's interpreter, in a process of its own.

`python -m tests.support.interpreted_kernels pairwise` runs the CASES of that name
through torch.ops.sanbench on the CPU and prints for each a line of JSON: the errors against the float64 specification."""

import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from sanbench.ops.dispatch import OPERATORS, RELATION, Backend, takes
from sanbench.ops.operator import SPECIFICATIONS
from tests.support.operator_cases import gradients, statistics_of, tensors, to


@dataclass(frozen=True)
class Case:
    size: tuple[int, int, int]  # images, height, width
    channels: tuple[int, int, int, int]  # phi's, gamma's hidden layer's, weights, value channels that share one
    footprint: int = 3
    dtype: torch.dtype = torch.float32
    style: str = "contiguous"
    extra: int = 2  # channels of position
    task: str = "attention"
    wanted: tuple[int, ...] | None = None  # gradients of these tensors; None: all

    def arguments(self, kind: str) -> list:
        generator = torch.Generator().manual_seed(sum(map(ord, str(self))))

        def normal(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator)

        images, height, width = self.size
        narrow, hidden, groups, share = self.channels
        maps = [normal(images, c, height, width).to(self.dtype) for c in (narrow, narrow, groups * share)]
        if self.style == "channels_last":
            maps = [x.contiguous(memory_format=torch.channels_last) for x in maps]
        if self.style == "slices":
            wide = torch.cat(maps, 1).contiguous(memory_format=torch.channels_last)
            maps = list(wide.split([narrow, narrow, groups * share], 1))
        if self.style == "transposed":
            maps = [x.transpose(2, 3).contiguous().transpose(2, 3) for x in maps]
        extra = self.extra if kind == "pairwise" else 0
        delta = narrow + extra if kind == "pairwise" else narrow * (self.footprint**2 + 1)
        last = groups * (1 if kind == "pairwise" else self.footprint**2)
        gamma = [normal(delta), normal(delta), normal(hidden, delta) / delta**0.5]
        gamma += [normal(hidden), normal(hidden), normal(last, hidden) / hidden**0.5, normal(last)]
        position = [normal(2, extra, height, width) if extra else None] if kind == "pairwise" else []
        values = [*maps, *position, gamma, RELATION[kind], self.footprint, 1, 1]
        return values if self.task == "attention" else statistics_of(values, 1)


def both(cases: Iterable[Case]) -> list[Case]:
    """As attention and as statistics."""
    return [replace(case, task=task) for case in cases for task in ("attention", "statistics")]


def drawn(count: int) -> list[Case]:
    """Patchwise cases of any sizes."""
    draw = random.Random(3)
    found = []
    for _ in range(count):
        images, height, width, *channels = (draw.randint(1, most) for most in (3, 4, 7, 9, 9, 4, 3))
        found.append(Case((images, height, width), tuple(channels), style=draw.choice(["contiguous", "slices"])))
    return found


STAGES = [(4, 4, 2, 8), (16, 16, 8, 8), (32, 32, 16, 8), (64, 64, 32, 8), (128, 128, 64, 8)]
PATCHWISE = [(4, 2, 2, 8), (16, 8, 8, 8), (32, 16, 16, 8), (64, 32, 32, 8), (128, 64, 64, 8)]  # the same of patchwise layers
STREAMED = [
    (100, 70, 33, 3),
    (128, 9, 64, 1),
    (16, 128, 5, 2),
]  # float32 reads weights in blocks: more than 64 of phi or hidden
BF16, FP16 = torch.bfloat16, torch.float16
# The interpreter takes its time by program, neighbour and block, hardly by pixel: a map has the fewest tiles of which the last
# is not full, and a wider footprint than 3 is where it reaches to the far end of the map or beyond it.
CASES = {
    "pairwise": [
        *(Case((1, 3, 4), stage, footprint, style="slices") for stage, footprint in zip(STAGES, (3, 5, 3, 3, 3))),
        *(Case((1, 4, 4), stage, footprint, task="statistics") for stage, footprint in zip(STAGES, (3, 7, 3, 3, 3))),
        *(Case((1, 5, 4), STAGES[at], 3, dtype, "channels_last") for at, dtype in ((1, BF16), (2, FP16), (3, BF16))),
        Case((1, 3, 4), STAGES[4], 3, BF16, "channels_last"),
        *(Case((1, 3, 3), wide, 3, style="channels_last") for wide in STREAMED),
        *(Case((images, 2, 5), wide, 3, task="statistics") for images, wide in zip((2, 1, 1), STREAMED)),
        *(Case((1, 5, 4), STAGES[at], 3, dtype, task="statistics") for at, dtype in ((1, BF16), (2, FP16))),
        Case((1, 1, 1), (3, 2, 1, 1)),
        Case((2, 1, 2), (5, 7, 3, 2), extra=0),
        Case((1, 2, 5), (17, 9, 5, 3), 5, style="transposed"),
        Case((2, 2, 9), (1, 1, 2, 9), style="channels_last", extra=1),
        Case((1, 5, 9), (6, 20, 12, 4), style="slices"),
        Case((1, 9, 9), (16, 16, 8, 8), style="slices", wanted=(0, 1, 2)),
        Case((1, 3, 11), (20, 33, 3, 8), style="channels_last", wanted=(2,)),
        Case((1, 2, 3), (5, 7, 3, 2), 7, BF16, "transposed"),
        Case((2, 1, 1), (5, 7, 3, 2), extra=0, task="statistics"),
        Case((2, 2, 9), (17, 9, 5, 3), style="transposed", task="statistics"),
        Case((1, 9, 9), (4, 6, 5, 3), style="slices", task="statistics", wanted=(0, 1)),
    ],
    "pairwise-slow": [  # the later stages with as many neighbours as there is time for
        *(Case((1, 4, 4), stage, footprint, style="slices") for stage, footprint in zip(STAGES[1:], (7, 7, 7, 5))),
        *(Case((1, 4, 4), stage, footprint, task="statistics") for stage, footprint in zip(STAGES[2:], (7, 7, 5))),
    ],
    "patchwise": [
        *both(
            [
                Case((2, 5, 9), (5, 3, 3, 2), style="slices"),
                Case((1, 1, 2), (3, 2, 1, 3), 5, style="slices"),
                Case((3, 4, 3), (20, 17, 5, 1), style="slices"),
                Case((1, 1, 1), (2, 2, 2, 2), style="slices"),
                Case((1, 4, 6), PATCHWISE[0], style="slices"),
                Case((1, 3, 4), PATCHWISE[1], 5, style="slices"),
                Case((1, 2, 2), (70, 20, 20, 3), style="slices"),  # more of each than a block, and the last not full
                *(Case((2, 2, 3), (5, 3, 3, 2), dtype=dtype) for dtype in (BF16, FP16, torch.float32)),
            ]
        ),
        *drawn(2),
    ],
    "patchwise-slow": both(
        [
            Case((1, 1, 1), (2, 2, 2, 2), 7, style="slices"),
            Case((1, 4, 4), PATCHWISE[1], 7, style="slices"),
            *(Case((1, 3, side), stage, style="slices") for side, stage in zip((5, 3, 2), PATCHWISE[2:])),
        ]
    ),
}


def identity(cases: str, case: Case) -> str:
    sizes = "-".join("x".join(map(str, numbers)) for numbers in (case.size, case.channels))
    dtype = str(case.dtype).removeprefix("torch.")
    return f"{cases}-{case.task}-{sizes}-{case.footprint}-{dtype}-{case.style}-{case.wanted or 'all'}"


def run(kind: str, case: Case) -> dict[str, list[float]]:
    """For the output and each gradient asked for: the error that 98% of the entries keep to and the largest, both as a part of
    the largest entry, and the error's norm as a part of the norm."""
    operator, values = f"{kind}_{case.task}", case.arguments(kind)
    exact = to(values, torch.float64)
    grad = torch.randn(SPECIFICATIONS[operator](*exact).shape, generator=torch.Generator().manual_seed(1))
    grad = grad.to(case.dtype).float() if case.task == "attention" else grad
    wanted = list(case.wanted or range(len(tensors(values))))
    expected = gradients(SPECIFICATIONS[operator], exact, grad, wanted)
    actual = gradients(getattr(torch.ops.sanbench, operator), values, grad, wanted)
    assert actual[0].dtype == (case.dtype if case.task == "attention" else torch.float32)
    assert [x.dtype for x in actual[1]] == [tensors(values)[at].dtype for at in wanted]
    errors = {}
    for name, found, wish in zip(["out", *map(str, wanted)], [actual[0], *actual[1]], [expected[0], *expected[1]], strict=True):
        assert found.shape == wish.shape
        error = (found.double() - wish).abs().flatten() / wish.abs().max().clamp_min(0.1)
        norm = (found.double() - wish).norm() / wish.norm().clamp_min(1e-3)
        errors[name] = [error.quantile(0.98, interpolation="lower").item(), error.max().item(), norm.item()]
    return errors


def results(*cases: str) -> dict[str, dict]:
    """What the interpreter's processes found, by the case's identity: one for each of CASES that is named, at once."""
    environment = os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "tests.support.interpreted_kernels"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    root = Path(__file__).parents[2]
    running = [subprocess.Popen([*command, name], env=environment, cwd=root, **pipes) for name in cases]
    try:
        ended = [process.communicate() for process in running]
    finally:  # none outlives a test that was stopped
        for process in running:
            process.kill()
    found = {line["case"]: line for out, _ in ended for line in map(json.loads, out.splitlines())}
    return found | {"process": {"stderr": "".join(error for _, error in ended)}}


def main(cases: str, only: str = "") -> None:
    from sanbench.ops.gpu.kernels import run_backward, run_forward

    backend = Backend("cpu", lambda: "triton", takes, run_forward, run_backward)
    for operator in OPERATORS:
        backend.register(operator)
    kind = cases.partition("-")[0]
    for case in [case for case in CASES[cases] if only in identity(cases, case)]:
        start = time.perf_counter()
        errors = run(kind, case)
        operator = f"{kind}_{case.task}"
        kernels = [backend.last_kernel(operator), backend.last_kernel(f"{operator}_backward")]
        line = {"case": identity(cases, case), "errors": errors, "kernels": kernels, "seconds": time.perf_counter() - start}
        print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
