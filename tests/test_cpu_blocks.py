"""What surrounds attention in a block, fused: each kernel against float64, build by build, on awkward shapes."""

import copy

import pytest
import torch
from torch import Tensor, nn

from sanbench.models.san import SAN, SANConfig, pooled_linear
from sanbench.ops import cpu
from sanbench.ops.cpu.fused import compiled
from sanbench.ops.operator import SPECIFICATIONS
from tests.support.operator_cases import BUILDS, close, gradients, same, to
from tests.support.unsettled_weights import unsettle

POOLED = [(1, 1, 2, 2), (2, 5, 3, 7), (3, 33, 9, 4), (2, 64, 40, 40)]


def pool_case(shape: tuple[int, ...], channels: int | None, layout: torch.memory_format = torch.channels_last) -> list:
    """Arguments of `normalised_pool`; with `channels` a weight from shape[1] inputs."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(shape, generator=generator).contiguous(memory_format=layout)
    weight = None if channels is None else torch.randn(channels, shape[1], generator=generator)
    return [x, *(torch.randn(channels or shape[1], generator=generator) for _ in range(2)), weight]


def check(operator: str, values: list, build: str, wanted: list[int], forward: str, backward: str) -> None:
    run = getattr(torch.ops.sanbench, operator)
    grad = torch.randn(run(*values).shape, generator=torch.Generator().manual_seed(2))
    expected_out, expected = gradients(SPECIFICATIONS[operator], to(values, torch.float64), grad, wanted)
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
        torch.testing.assert_close(out, SPECIFICATIONS["normalised_pool"](*values))


def test_pooling_of_what_is_not_a_number_and_of_equals() -> None:
    values = pool_case((1, 16, 2, 2), None)
    values[1:] = [torch.ones(16), torch.zeros(16), None]
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


def linear_case(size: tuple[int, int, int, int], parts: list[int], residual: bool) -> list:
    """Arguments of `normalised_linear`; size is that of x."""
    generator = torch.Generator().manual_seed(1)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    x, scale, shift = normal(*size).contiguous(memory_format=torch.channels_last), normal(size[1]), normal(size[1])
    weights = [normal(part, size[1]) / size[1] ** 0.5 for part in parts]
    summed = normal(size[0], sum(parts), *size[2:]).contiguous(memory_format=torch.channels_last)
    return [x, scale, shift, weights, [normal(part) for part in parts], summed if residual else None]


LINEARS = [((1, 3, 2, 2), [5], True), ((3, 33, 9, 4), [7, 1, 40], False), ((2, 64, 15, 17), [24], True)]
LINEARS += [((1, 300, 7, 7), [16, 64], True), ((4, 5, 1, 1), [3], True), ((2, 520, 14, 15), [40, 290], False)]


@pytest.mark.parametrize("build", [*BUILDS, "tiled"])
@pytest.mark.parametrize("values", LINEARS, ids=str)
def test_normalised_linear(values: tuple, build: str) -> None:
    arguments = linear_case(*values)
    last = 3 + 2 * len(arguments[3])  # the residual's place among the tensors
    of_maps = [0, last] if values[2] else [0]
    check("normalised_linear", arguments, build, of_maps, build, build)
    everything = list(range(last + values[2]))
    check("normalised_linear", arguments, build, everything, build, "tiled")  # gradients of weights: the specification


@pytest.mark.parametrize("build", BUILDS)
def test_the_linear_behind_a_pool(build: str) -> None:
    """Of frozen weights; a pooled map that is 0 gives no gradient to what is before it."""
    generator = torch.Generator().manual_seed(1)
    linear = nn.Conv2d(35, 70, 1, bias=False).eval().requires_grad_(False)
    x, grad = (torch.randn(2, channels, 7, 5, generator=generator) for channels in (35, 70))
    x = x.relu().contiguous(memory_format=torch.channels_last)
    expected_out, (expected,) = gradients(copy.deepcopy(linear).double(), [x.double()], grad)
    with cpu.use_kernel(build):
        out, (found,) = gradients(lambda x: pooled_linear(linear, x), [x], grad)
    assert (cpu.last_kernel("normalised_linear"), cpu.last_kernel("normalised_linear_backward")) == (build, build)
    close(out, expected_out)
    close(found, torch.where(x > 0, expected, 0))
    assert torch.equal(pooled_linear(linear.requires_grad_(), x), linear(x))


@pytest.mark.parametrize("build", BUILDS)
@pytest.mark.parametrize(
    ("outputs", "size"), [(5, (1, 3, 1, 1)), (24, (2, 64, 9, 7)), (70, (3, 33, 11, 13)), (400, (2, 17, 12, 12))], ids=str
)
def test_the_products_of_a_linear_s_backward(outputs: int, size: tuple[int, int, int, int], build: str) -> None:
    """Those that a block in one step calls, beyond the rows and columns that are worked on at once."""
    generator = torch.Generator().manual_seed(1)
    x, grad = (
        torch.randn(shape, generator=generator).contiguous(memory_format=torch.channels_last)
        for shape in (size, (size[0], outputs, *size[2:]))
    )
    scale, shift, weight = (torch.randn(*shape, generator=generator) for shape in ([size[1]], [size[1]], [outputs, size[1]]))
    normalised = (x.double() * scale[:, None, None] + shift[:, None, None]).relu()
    of_weight = compiled(build, "normalised_linear_weights", grad, x, scale, shift)
    close(of_weight, torch.einsum("nohw,nihw->oi", grad.double(), normalised))
    (of_x,) = compiled(build, "normalised_linear_backward", grad, x, None, None, [weight[:2], weight[2:]], [], False)
    close(of_x, torch.einsum("nohw,oi->nihw", grad.double(), weight.double()))


def test_what_the_product_leaves_to_the_specification() -> None:
    first, wide, many = linear_case((2, 5, 4, 4), [3], True), linear_case((2, 5, 4, 4), [3], True), [1, 1, 1, 1]
    first[0], wide[-1] = first[0].contiguous(), wide[-1].contiguous()
    for values in (
        first,
        wide,
        linear_case((2, 5, 4, 4), many, False),
        to(linear_case((1, 5, 4, 4), [3], False), torch.float64),
    ):
        out = torch.ops.sanbench.normalised_linear(*values)
        assert cpu.last_kernel("normalised_linear") == "tiled"
        torch.testing.assert_close(out, SPECIFICATIONS["normalised_linear"](*values))


@pytest.mark.parametrize("size", [(1, 64, 9, 7), (3, 300, 14, 15)], ids=str)
def test_products_are_the_same_bits_for_any_number_of_threads(size: tuple[int, int, int, int]) -> None:
    values, results = linear_case(size, [40, 33], True), []
    grad = torch.randn(torch.ops.sanbench.normalised_linear(*values).shape)
    threads = torch.get_num_threads()
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            out, grads = gradients(torch.ops.sanbench.normalised_linear, values, grad, [0])
            results.append([out, *grads])
    finally:
        torch.set_num_threads(threads)
    assert all(same(results[0], other) for other in results[1:])


def test_linear_opcheck() -> None:
    for residual in (False, True):
        x, scale, shift, weights, biases, summed = linear_case((2, 3, 5, 4), [2, 4], residual)
        for tensor in (x, scale, shift, *weights, *biases, *([summed] if residual else [])):
            tensor.requires_grad_()
        torch.library.opcheck(torch.ops.sanbench.normalised_linear, (x, scale, shift, weights, biases, summed))


def logits_and_gradient(model: SAN, images: Tensor) -> tuple[Tensor, Tensor]:
    leaf = images.clone().requires_grad_()
    out = model(leaf)
    return out.detach(), torch.autograd.grad(out.square().sum(), leaf)[0]


@pytest.mark.parametrize("attention", ["pairwise", "patchwise"])
@pytest.mark.parametrize("shared", ["none", "phi-psi", "phi-psi-beta"])
@pytest.mark.parametrize("side", [(40, 33), (64, 64)], ids=str)
def test_evaluation_by_kernels_is_that_of_the_specification(attention: str, shared: str, side: tuple[int, int]) -> None:
    """Without gradients, with the images' and with all: each takes other kernels."""
    torch.manual_seed(1)  # with 0 one relu's argument is 0 within rounding, and float32 and float64 take different sides
    config = SANConfig(blocks=(1, 2, 1, 1, 1), attention=attention, width=0.5, shared=shared)
    model = SAN(config, 10).eval()
    unsettle(model)
    images = torch.randn(2, 3, *side)
    exact = logits_and_gradient(model.double(), images.double())
    model.float()
    cpu.kernels._backend.ran.clear()
    with torch.no_grad():
        close(model(images), exact[0], 1e-4)
    linear = "fixed_block" if shared == "none" else "normalised_linear"  # a block as a whole, or the operators that it composes
    assert cpu.last_kernel(linear) == cpu.last_kernel("normalised_pool") == cpu.kernel()
    for frozen in (False, True):
        cpu.kernels._backend.ran.clear()
        for actual, wish in zip(logits_and_gradient(model.requires_grad_(not frozen), images), exact, strict=True):
            size = wish.abs().max()
            close(actual / size, wish / size, 2e-4)
        ran = "fixed_block" if shared == "none" else "normalised_linear_backward"
        assert cpu.last_kernel(ran) == (cpu.kernel() if frozen else None)
