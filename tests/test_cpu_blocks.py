"""What surrounds attention in a block, fused: each kernel against float64, build by build, on awkward shapes."""

import pytest
import torch
from torch import Tensor

from sanbench.models.san import SAN, SANConfig
from sanbench.ops import cpu
from sanbench.ops.operator import BODIES
from tests.test_cpu_kernels import BUILDS, close, gradients, same, to

POOLED = [(1, 1, 2, 2), (2, 5, 3, 7), (3, 33, 9, 4), (2, 64, 40, 40)]


def pool_case(shape: tuple[int, ...], channels: int | None, layout: torch.memory_format = torch.channels_last) -> list:
    """Arguments of `normalised_pool`; with `channels` a weight from shape[1] inputs."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(shape, generator=generator).contiguous(memory_format=layout)
    weight = None if channels is None else torch.randn(channels, shape[1], generator=generator)
    return [x, weight, *(torch.randn(channels or shape[1], generator=generator) for _ in range(2))]


def check(operator: str, values: list, build: str, wanted: list[int], forward: str, backward: str) -> None:
    run = getattr(torch.ops.sanbench, operator)
    grad = torch.randn(run(*values).shape, generator=torch.Generator().manual_seed(2))
    expected_out, expected = gradients(BODIES[operator], to(values, torch.float64), grad, wanted)
    with cpu.use_kernel(build):
        out, grads = gradients(run, values, grad, wanted)
    assert (cpu.last_kernel(operator), cpu.last_kernel(f"{operator}_backward")) == (forward, backward)
    close(out, expected_out)
    for actual, wish in zip(grads, expected, strict=True):
        close(actual, wish)


@pytest.mark.parametrize("build", [*BUILDS, "tiled"])
@pytest.mark.parametrize("shape", POOLED, ids=str)
@pytest.mark.parametrize("wanted", [[0], [0, 1, 2], [2]], ids=str)
def test_normalised_pool(wanted: list[int], shape: tuple[int, ...], build: str) -> None:
    served = build if shape[1] > 1 else "tiled"  # one channel is as much channels-first
    check("normalised_pool", pool_case(shape, None), build, wanted, served, served)


@pytest.mark.parametrize("build", [*BUILDS, "tiled"])
@pytest.mark.parametrize(("inputs", "channels"), [(2, 1), (3, 5), (3, 64), (4, 33)])
@pytest.mark.parametrize("side", [(2, 2), (3, 7), (40, 40)], ids=str)
def test_normalised_pool_of_a_linear(side: tuple[int, int], inputs: int, channels: int, build: str) -> None:
    values = pool_case((3, inputs, *side), channels)
    check("normalised_pool", values, build, [0], build, build)
    check("normalised_pool", values, build, [0, 1, 2, 3], build, "tiled")  # gradients of weights come from the specification


def test_what_pooling_leaves_to_the_specification() -> None:
    for values in (pool_case((2, 5, 4, 4), None, torch.contiguous_format), pool_case((2, 5, 4, 4), 8)):
        out = torch.ops.sanbench.normalised_pool(*values)
        assert cpu.last_kernel("normalised_pool") == "tiled"
        torch.testing.assert_close(out, BODIES["normalised_pool"](*values))


def test_pooling_of_what_is_not_a_number_and_of_equals() -> None:
    values = pool_case((1, 16, 2, 2), None)
    values[1:] = [None, torch.ones(16), torch.zeros(16)]
    for place in range(4):
        x = torch.ones(1, 16, 2, 2).contiguous(memory_format=torch.channels_last)
        x[0, 3].view(-1)[place] = torch.nan
        assert torch.ops.sanbench.normalised_pool(x, *values[1:])[0, :, 0, 0].isnan().nonzero().tolist() == [[3]]
    x = torch.ones(1, 16, 2, 2).contiguous(memory_format=torch.channels_last).requires_grad_()
    torch.ops.sanbench.normalised_pool(x, *values[1:]).sum().backward()
    assert x.grad.flatten(2).tolist() == [[[1, 0, 0, 0]] * 16]


@pytest.mark.parametrize("channels", [None, 8])
def test_pooling_is_the_same_bits_for_any_number_of_threads(channels: int | None) -> None:
    values, results = pool_case((2, 3, 31, 30), channels), []
    grad = torch.randn(torch.ops.sanbench.normalised_pool(*values).shape)
    threads = torch.get_num_threads()
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            out, grads = gradients(torch.ops.sanbench.normalised_pool, values, grad, [0] if channels else [0, 1, 2])
            results.append([out, *grads])
    finally:
        torch.set_num_threads(threads)
    assert all(same(results[0], other) for other in results[1:])


def test_pool_opcheck() -> None:
    for channels in (None, 8):
        values = [v if v is None else v.requires_grad_() for v in pool_case((2, 3, 5, 4), channels)]
        torch.library.opcheck(torch.ops.sanbench.normalised_pool, values)


def logits_and_gradient(model: SAN, images: Tensor) -> tuple[Tensor, Tensor]:
    leaf = images.clone().requires_grad_()
    out = model(leaf)
    return out.detach(), torch.autograd.grad(out.square().sum(), leaf)[0]


@pytest.mark.parametrize("attention", ["pairwise", "patchwise"])
@pytest.mark.parametrize("side", [(40, 33), (64, 64)], ids=str)
def test_evaluation_by_kernels_is_that_of_the_specification(attention: str, side: tuple[int, int]) -> None:
    """Without gradients, with the images' and with all: each takes other kernels."""
    torch.manual_seed(0)
    model = SAN(SANConfig(blocks=(1, 2, 1, 1, 1), attention=attention, width=0.5), 10).eval()
    images = torch.randn(2, 3, *side)
    exact = logits_and_gradient(model.double(), images.double())
    model.float()
    with torch.no_grad():
        close(model(images), exact[0], 1e-4)
    for frozen in (False, True):
        for actual, wish in zip(logits_and_gradient(model.requires_grad_(not frozen), images), exact, strict=True):
            close(actual, wish, 2e-4)
