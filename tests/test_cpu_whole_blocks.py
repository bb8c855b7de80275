"""A block as one step: against the composition of operators in float64, build by build, on awkward shapes."""

from collections.abc import Callable
from copy import deepcopy
from unittest.mock import patch

import pytest
import torch
from torch import Tensor, nn

from sanbench.models import san
from sanbench.models.normalisation import synchronise
from sanbench.models.san import Block, SANConfig
from sanbench.ops import cpu
from tests.support.operator_cases import BUILDS, same

SHAPES = [
    (2, 64, 7, 5, 3),
    (3, 32, 4, 4, 7),
    (5, 96, 1, 1, 7),
    (1, 64, 20, 31, 5),
]  # images, channels, height, width, footprint
KINDS = [("pairwise", None), ("pairwise", "absolute"), ("pairwise", "none"), ("patchwise", None)]


def block_of(channels: int, footprint: int = 7, **fields) -> Block:
    torch.manual_seed(0)
    block = Block(SANConfig(blocks=(1, 1, 1, 1, 1), **fields), channels, footprint)
    for parameter in block.parameters():
        nn.init.normal_(parameter, std=0.3)
    return block.train()


def case(images: int, channels: int, height: int, width: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    x, grad = (torch.randn(images, channels, height, width, generator=generator) for _ in range(2))
    return x.contiguous(memory_format=torch.channels_last), grad


def step(block: nn.Module, x: Tensor, grad: Tensor) -> dict[str, Tensor]:
    """The output, the gradients and what the buffers hold after a step, by name."""
    x = x.clone(memory_format=torch.preserve_format).requires_grad_()
    out = block(x)
    out.backward(grad)
    found = {"out": out.detach(), "x": x.grad, **{name: buffer.clone() for name, buffer in block.named_buffers()}}
    return found | {name: parameter.grad for name, parameter in block.named_parameters()}


def composed(block: nn.Module, *values: Tensor) -> dict[str, Tensor]:
    """A step by the operators that a block composes."""
    with patch.object(san, "block_in_one_step", lambda *_: None):
        return step(block, *values)


@pytest.mark.parametrize("build", BUILDS)
@pytest.mark.parametrize(("kind", "position"), KINDS)
@pytest.mark.parametrize("size", SHAPES, ids=str)
def test_a_training_step_is_that_of_the_operators(size, kind, position, build):
    *shape, footprint = size
    block = block_of(shape[1], footprint, attention=kind, position=position)
    x, grad = case(*shape)
    exact = composed(deepcopy(block).double(), x.double(), grad.double())
    with cpu.use_kernel(build):
        found = step(block, x, grad)
    assert cpu.last_kernel("training_block") == build
    gradients = max(exact[name].abs().max() for name, _ in block.named_parameters())
    for name, expected in exact.items():
        size = max(expected.abs().max(), 1e-2 * gradients)  # some are 0 but for rounding: beta's bias before a normalisation
        assert (found[name] - expected).abs().max() < 1e-3 * size, name


@pytest.mark.parametrize("build", BUILDS)
@pytest.mark.parametrize(("kind", "position"), KINDS)
@pytest.mark.parametrize("size", SHAPES, ids=str)
def test_evaluation_and_the_gradient_of_its_images_are_those_of_the_operators(size, kind, position, build):
    *shape, footprint = size
    block = block_of(shape[1], footprint, attention=kind, position=position)
    x, grad = case(*shape)
    block(x)  # moves the running averages
    block.eval().requires_grad_(False)
    exact = composed(deepcopy(block).double(), x.double(), grad.double())
    with cpu.use_kernel(build):
        found = step(block, x, grad)
        with torch.no_grad():
            again = block(x)
    assert cpu.last_kernel("fixed_block") == build
    assert same(found["out"], again)
    for name, expected in exact.items():
        if expected is not None:
            assert (found[name] - expected).abs().max() <= 1e-4 * expected.abs().max(), name


@pytest.mark.parametrize("kind", ["pairwise", "patchwise"])
def test_the_layout_of_gradients_is_that_of_the_weights(kind):
    block = block_of(64, attention=kind).to(memory_format=torch.channels_last)
    step(block, *case(2, 64, 6, 6))
    for parameter in block.parameters():
        assert parameter.grad.shape == parameter.shape and parameter.grad.dtype == parameter.dtype


@pytest.mark.parametrize("kind", ["pairwise", "patchwise"])
def test_same_bits_for_any_number_of_threads(kind):
    found, threads = [], torch.get_num_threads()
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            found.append(list(step(block_of(64, attention=kind), *case(3, 64, 15, 14)).values()))
    finally:
        torch.set_num_threads(threads)
    assert all(same(found[0], other) for other in found[1:])


def unserved() -> dict[str, Callable[[], nn.Module]]:
    def synchronised() -> nn.Module:
        block = block_of(64)
        synchronise(block)
        return block

    def slanted() -> nn.Module:
        block = block_of(64)
        block.expand.weight.data = block.expand.weight.data.flatten(1).t().contiguous().t()[:, :, None, None]
        return block

    return {
        "weights with gaps": slanted,
        "evaluation of weights that need a gradient": lambda: block_of(64).eval(),
        "another relation": lambda: block_of(64, relation="summation"),
        "three linears in gamma": lambda: block_of(64, gamma_depth=3),
        "shared projections": lambda: block_of(64, shared="phi-psi"),
        "scalar attention": lambda: block_of(64, attention="scalar"),
        "footprint 13": lambda: block_of(64, 13),
        "float64": lambda: block_of(64).double(),
        "moments of all processes": synchronised,
    }


@pytest.mark.parametrize("name", unserved())
def test_what_is_left_to_the_operators(name, monkeypatch):
    monkeypatch.setattr("sanbench.ops.cpu.block.TrainingBlock.apply", None)
    monkeypatch.setattr("sanbench.ops.cpu.block.FixedBlock.apply", None)
    block = unserved()[name]()
    x, _ = case(2, 64, 6, 6)
    dtype = next(block.parameters()).dtype
    assert block(x.to(dtype)).isfinite().all()


def test_averages_of_another_precision_are_not_read_as_float32():
    block = block_of(64)
    block.after[0].running_mean = block.after[0].running_mean.double()
    with pytest.raises(RuntimeError, match="dtype double"):  # PyTorch's, as of the operators
        block(case(2, 64, 6, 6)[0])


def test_autocast_other_layouts_and_forced_specifications_are_left_to_the_operators(monkeypatch):
    monkeypatch.setattr("sanbench.ops.cpu.block.TrainingBlock.apply", None)
    monkeypatch.setattr("sanbench.ops.cpu.block.FixedBlock.apply", None)
    x, _ = case(2, 64, 6, 6)
    with torch.autocast("cpu", torch.bfloat16):
        assert block_of(64)(x).isfinite().all()
    assert block_of(64)(x.contiguous()).isfinite().all()
    with cpu.use_kernel("tiled"):
        assert block_of(64)(x).isfinite().all()


def test_no_map_is_kept_but_three():
    kept: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tensor)
        return tensor

    x, _ = case(4, 64, 16, 16)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        block_of(64)(x.requires_grad_())
    maps = [tensor.shape[1] for tensor in kept if tensor.dim() == 4 and tensor.shape[2:] == (16, 16) and len(tensor) == 4]
    assert sorted(maps) == [16, 24, 64]  # attended, projected, x
