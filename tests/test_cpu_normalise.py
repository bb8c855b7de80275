"""Normalisation's fused kernels against the float64 specification, build by build."""

import pytest
import torch

from sanbench.ops import cpu
from sanbench.ops.operator import SPECIFICATIONS
from tests.support.operator_cases import BUILDS, close, gradients, to


def ran(x: torch.Tensor, build: str) -> str:
    """The kernel that serves x: the compiled ones want channels last."""
    return build if x.stride(1) == 1 else "tiled"


@pytest.mark.parametrize("build", [*BUILDS, "tiled"])
@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (2, 5, 3, 7), (3, 33, 9, 4), (2, 64, 40, 40)], ids=str)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_normalised_relu(shape: tuple[int, ...], layout: torch.memory_format, build: str) -> None:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(shape, generator=generator).contiguous(memory_format=layout)
    values = [x, torch.randn(shape[1], generator=generator), torch.randn(shape[1], generator=generator)]
    grad = torch.randn(shape, generator=generator)
    operator = torch.ops.sanbench.normalised_relu
    for wanted in ([0], [0, 1, 2], [1]):
        expected_out, expected = gradients(SPECIFICATIONS["normalised_relu"], to(values, torch.float64), grad, wanted)
        with cpu.use_kernel(build):
            out, grads = gradients(operator, values, grad, wanted)
        assert cpu.last_kernel("normalised_relu_backward") == ran(x, build)
        close(out, expected_out)
        for actual, wish in zip(grads, expected, strict=True):
            close(actual, wish)


@pytest.mark.parametrize("build", [*BUILDS, "tiled"])
@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (2, 5, 3, 7), (3, 33, 9, 4), (2, 64, 40, 40), (3, 20, 1, 1)], ids=str)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_channel_moments(shape: tuple[int, ...], layout: torch.memory_format, build: str) -> None:
    x = (torch.randn(shape, generator=torch.Generator().manual_seed(1)) + 3).contiguous(memory_format=layout)
    grad = torch.randn(len(x), 2, x.shape[1])
    expected_out, expected = gradients(SPECIFICATIONS["channel_moments"], to([x], torch.float64), grad)
    with cpu.use_kernel(build):
        out, grads = gradients(torch.ops.sanbench.channel_moments, [x], grad)
    ran_backward = cpu.last_kernel("channel_moments_backward")
    assert (cpu.last_kernel("channel_moments"), ran_backward) == (ran(x, build), ran(x, build))
    close(out, expected_out)
    close(grads[0], expected[0])


def test_normalise_opcheck() -> None:
    for layout in (torch.contiguous_format, torch.channels_last):
        x = torch.randn(2, 5, 3, 4).contiguous(memory_format=layout).requires_grad_()
        scale, shift = torch.randn(5, requires_grad=True), torch.randn(5, requires_grad=True)
        torch.library.opcheck(torch.ops.sanbench.normalised_relu, (x, scale, shift))
        torch.library.opcheck(torch.ops.sanbench.channel_moments, (x,))


@pytest.mark.parametrize("kernel", [cpu.kernel(), "tiled"])
def test_normalise_keeps_bfloat16(kernel: str) -> None:
    """Under autocast maps are narrow and the normalisation's own tensors are not."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(2, 8, 5, 6, generator=generator).bfloat16().requires_grad_()
    scale, shift = (torch.randn(8, generator=generator).requires_grad_() for _ in range(2))
    with cpu.use_kernel(kernel):
        moments, out = torch.ops.sanbench.channel_moments(x), torch.ops.sanbench.normalised_relu(x, scale, shift)
        (out.float().sum() + moments.sum()).backward()
    assert (moments.dtype, out.dtype, x.grad.dtype, scale.grad.dtype) == (torch.float32, *[torch.bfloat16] * 2, torch.float32)
    torch.testing.assert_close(moments[:, 0], x.float().mean((2, 3)))
