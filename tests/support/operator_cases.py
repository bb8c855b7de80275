"""Arguments of the operators on awkward shapes, drawn by a seed, and the float64 specification that results are held to."""

import random

import torch
from torch import Tensor

from sanbench.ops import cpu
from sanbench.ops.cpu.kernels import COMPILED
from sanbench.ops.operator import SPECIFICATIONS

BUILDS = [name for name in COMPILED if name in cpu.available()]
RELATION = {"pairwise": "subtraction", "patchwise": "concatenation"}


def case(
    seed: int, kind: str, size: tuple[int, int, int] | None = None, position: bool = True, footprint: int | None = None
) -> list:
    """Arguments of `<kind>_attention`: images, height and width are `size` or drawn, as is everything else."""
    draw = random.Random(seed)
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    footprint = footprint or draw.choice([3, 5, 7, 9, 11] if kind == "pairwise" else [3, 5, 7])
    widths = [1, 2, 3, 5, 7, 16, 17, 33, 70]
    images, height, width = size or (draw.choice([1, 3]), draw.randint(1, 14), draw.choice(widths))
    narrow, hidden, groups = draw.randint(1, 9), draw.randint(1, 9), draw.randint(1, 5)
    channels, extra = groups * draw.choice([1, 2, 8, 9]), draw.choice([1, 2]) if position and kind == "pairwise" else 0
    maps = [normal(images, c, height, width) for c in (narrow, narrow, channels)]
    style = draw.choice(["contiguous", "channels_last", "slices", "transposed"])
    if style == "channels_last":
        maps = [x.contiguous(memory_format=torch.channels_last) for x in maps]
    if style == "slices":
        wide = torch.cat(maps, 1).contiguous(memory_format=torch.channels_last)
        maps = list(wide.split([narrow, narrow, channels], 1))
    if style == "transposed":
        maps = [x.transpose(2, 3).contiguous().transpose(2, 3) for x in maps]
    delta = narrow * (footprint**2 + 1) if kind == "patchwise" else narrow + extra
    last = groups * (footprint**2 if kind == "patchwise" else 1)
    gamma = [normal(delta), normal(delta), normal(hidden, delta) / delta**0.5]
    gamma += [normal(hidden), normal(hidden), normal(last, hidden) / hidden**0.5, normal(last)]
    encoding = [normal(2, extra, height, width) if extra else None] if kind == "pairwise" else []
    return [*maps, *encoding, gamma, RELATION[kind], footprint, 1, 1]


def to(values: list, dtype: torch.dtype) -> list:
    def move(v: object) -> object:
        return v.to(dtype) if isinstance(v, Tensor) else [move(x) for x in v] if isinstance(v, list) else v

    return [move(v) for v in values]


def tensors(values: list) -> list[Tensor]:
    return [x for v in values for x in (v if isinstance(v, list) else [v]) if isinstance(x, Tensor)]


def statistics_of(values: list, depth: int) -> list:
    """Arguments of the statistics operator: no value, the first linears of gamma."""
    return [v[: 3 * depth] if isinstance(v, list) else v for at, v in enumerate(values) if at != 2]


def gradients(run, values: list, grad: Tensor, wanted: list[int] | None = None) -> tuple[Tensor, list[Tensor]]:
    leaves = tensors(values)
    wanted = list(range(len(leaves))) if wanted is None else wanted
    chosen = {id(leaves[i]): leaves[i].detach().requires_grad_() for i in wanted}

    def swap(v: object) -> object:
        return [swap(x) for x in v] if isinstance(v, list) else chosen.get(id(v), v)

    out = run(*[swap(v) for v in values])
    asked = [chosen[id(leaves[i])] for i in wanted]
    grads = torch.autograd.grad(out, asked, grad.to(out.dtype), allow_unused=True)
    return out.detach(), [torch.zeros_like(x) if g is None else g for x, g in zip(asked, grads, strict=True)]


def close(actual: Tensor, expected: Tensor, tolerance: float = 2e-5) -> None:
    """Nearly everywhere: where a relu's argument is 0 within rounding, float32 and float64 take different sides."""
    assert actual.shape == expected.shape
    scale = expected.abs().max().clamp_min(0.1)
    error = (actual.double() - expected).abs().flatten() / scale
    assert error.quantile(0.98, interpolation="lower") < tolerance, f"{error.sort().values[-9:]} of {scale}"
    assert error.max() < 0.05, f"{error.max()} of {scale}"


def same(one: list[Tensor], other: list[Tensor]) -> bool:
    return all(bool((a.detach().numpy() == b.detach().numpy()).all()) for a, b in zip(one, other, strict=True))


def compare(operator: str, values: list, build: str, wanted: list[int] | None = None) -> None:
    run = getattr(torch.ops.sanbench, operator)
    exact = to(values, torch.float64)
    grad = torch.randn(run(*values).shape, generator=torch.Generator().manual_seed(1))
    expected_out, expected = gradients(SPECIFICATIONS[operator], exact, grad, wanted)
    with cpu.use_kernel(build):
        out, grads = gradients(run, values, grad, wanted)
    assert cpu.last_kernel(operator) == build
    assert cpu.last_kernel(f"{operator}_backward") == build
    close(out, expected_out)
    for actual, wish in zip(grads, expected, strict=True):
        close(actual, wish)


SIZES = [(1, 1, 1), (3, 1, 1), (3, 2, 2), (2, 4, 4), (17, 2, 3), (3, 8, 8)]
SIZES += [(1, 5, 7), (4, 7, 7), (1, 9, 70), (9, 3, 16), (2, 13, 20)]
NORMALISING = ["normalised_relu", "channel_moments"]
OPERATORS = ["pairwise_attention", "pairwise_statistics", "patchwise_attention", "patchwise_statistics"]
EVERY = [*OPERATORS, *NORMALISING]  # each with its backward


def arguments_of(operator: str, size: tuple[int, int, int]) -> list:
    """Any operator's arguments on `size`: images, height and width."""
    if operator in NORMALISING:
        generator = torch.Generator().manual_seed(3)
        x = torch.randn(size[0], 70, *size[1:], generator=generator).contiguous(memory_format=torch.channels_last)
        return [x, *(torch.randn(70, generator=generator) for _ in range(2 if operator == "normalised_relu" else 0))]
    kind, task = operator.split("_")
    values = case(3, kind, size)
    return values if task == "attention" else statistics_of(values, 1)
