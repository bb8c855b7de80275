"""The fused kernels against the float64 specification, build by build, on awkward shapes."""

import itertools
import os
import random
import subprocess
import sys
import threading

import pytest
import torch
from torch import Tensor

from sanbench.data import load_dataset
from sanbench.errors import SanbenchError
from sanbench.models.san import SAN, SANConfig
from sanbench.ops import cpu
from sanbench.ops.cpu.kernels import COMPILED
from sanbench.ops.operator import BODIES, SPECIFICATIONS, TILE, tile_size
from sanbench.training.config import RECIPES
from tests.test_models import unsettle

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


def arguments_of(operator: str, size: tuple[int, int, int]) -> list:
    """Any operator's arguments on `size`: images, height and width."""
    if operator in NORMALISING:
        generator = torch.Generator().manual_seed(3)
        x = torch.randn(size[0], 70, *size[1:], generator=generator).contiguous(memory_format=torch.channels_last)
        return [x, *(torch.randn(70, generator=generator) for _ in range(2 if operator == "normalised_relu" else 0))]
    kind, task = operator.split("_")
    values = case(3, kind, size)
    return values if task == "attention" else statistics_of(values, 1)


@pytest.mark.parametrize("operator", EVERY)
@pytest.mark.parametrize("size", [(1, 30, 11), (5, 7, 7), (40, 2, 2), (2, 60, 60)], ids=str)
def test_same_bits_for_any_number_of_threads(operator: str, size: tuple[int, int, int]) -> None:
    values = arguments_of(operator, size)
    run = getattr(torch.ops.sanbench, operator)
    grad = torch.randn(run(*values).shape)
    results = []
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 3, 7):
            torch.set_num_threads(threads)
            out, grads = gradients(run, values, grad)
            results.append([out, *grads])
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def results_of(operator: str) -> list[Tensor]:
    values = arguments_of(operator, (2, 9, 12))
    run = getattr(torch.ops.sanbench, operator)
    out, grads = gradients(run, values, torch.ones(run(*values).shape))
    return [out, *grads]


def same(one: list[Tensor], other: list[Tensor]) -> bool:
    return all(bool((a.detach().numpy() == b.detach().numpy()).all()) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("operator", EVERY)
def test_several_threads_at_once(operator: str) -> None:
    expected = results_of(operator)
    found: list[bool] = []

    def work() -> None:
        found.extend(same(results_of(operator), expected) for _ in range(8))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [True] * 32


class Attended(torch.utils.data.Dataset):
    """Runs the kernels, forward and backward, in the loader's workers."""

    def __len__(self) -> int:
        return len(EVERY)

    def __getitem__(self, index: int) -> list[Tensor]:
        with torch.enable_grad():
            return results_of(EVERY[index])


def test_workers_after_fork() -> None:
    expected = [results_of(operator) for operator in EVERY]  # the parent's threads exist by now
    loader = torch.utils.data.DataLoader(Attended(), batch_size=None, num_workers=2, multiprocessing_context="fork", timeout=60)
    assert [same(found, wish) for found, wish in zip(loader, expected, strict=True)] == [True] * len(EVERY)


@pytest.mark.timeout(60)
@pytest.mark.parametrize("operator", EVERY)
def test_plain_fork(operator: str) -> None:
    """A child of fork has none of its parent's threads, torch's autograd threads among them: the operators alone are called."""
    values = arguments_of(operator, (2, 9, 12))
    run = getattr(torch.ops.sanbench, operator)
    expected = run(*values)
    child = os.fork()
    if child == 0:
        os._exit(0 if same([run(*values)], [expected]) else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


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


def environment(kernels: str) -> subprocess.CompletedProcess:
    code = "from sanbench.ops import cpu; print(cpu.kernel())"
    env = os.environ | {"SANBENCH_KERNELS": kernels}
    return subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)


def test_forced_by_the_environment() -> None:
    for name in cpu.available():
        assert environment(name).stdout.strip() == name
    assert "Known: avx2, avx512, plain, portable, tiled" in environment("sse9").stderr


def test_forced_and_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sanbench.ops.cpu.kernels.build", lambda name: "it was not compiled")
    missing = "SANBENCH_KERNELS=avx2 is not available: it was not compiled"
    with pytest.raises(SanbenchError, match=missing), cpu.use_kernel("avx2"):
        pass
    assert cpu.kernel() == "tiled"


def test_not_a_number_stays_one() -> None:
    for kind, place in itertools.product(("pairwise", "patchwise"), (0, 1, 2)):
        values = case(4, kind, (2, 5, 6))
        values[place] = values[place].clone()
        values[place][0, 0, 2, 2] = torch.nan
        out = getattr(torch.ops.sanbench, f"{kind}_attention")(*values)
        assert out[0].isnan().any()
        assert not out[1].isnan().any()


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
        expected_out, expected = gradients(BODIES["normalised_relu"], to(values, torch.float64), grad, wanted)
        with cpu.use_kernel(build):
            out, grads = gradients(operator, values, grad, wanted)
        assert cpu.last_kernel("normalised_relu_backward") == build
        close(out, expected_out)
        for actual, wish in zip(grads, expected, strict=True):
            close(actual, wish)


@pytest.mark.parametrize("build", [*BUILDS, "tiled"])
@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (2, 5, 3, 7), (3, 33, 9, 4), (2, 64, 40, 40), (3, 20, 1, 1)], ids=str)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_channel_moments(shape: tuple[int, ...], layout: torch.memory_format, build: str) -> None:
    x = (torch.randn(shape, generator=torch.Generator().manual_seed(1)) + 3).contiguous(memory_format=layout)
    grad = torch.randn(len(x), 2, x.shape[1])
    expected_out, expected = gradients(BODIES["channel_moments"], to([x], torch.float64), grad)
    with cpu.use_kernel(build):
        out, grads = gradients(torch.ops.sanbench.channel_moments, [x], grad)
    assert (cpu.last_kernel("channel_moments"), cpu.last_kernel("channel_moments_backward")) == (build, build)
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


@pytest.mark.parametrize("attention", ["pairwise", "patchwise"])
def test_network_compiles_and_exports(attention: str) -> None:
    torch.manual_seed(0)
    model = SAN(SANConfig(blocks=(1, 1, 1, 1, 1), attention=attention, width=0.5), 10).eval()
    images = torch.randn(2, 3, 40, 32)
    with torch.no_grad():
        expected = model(images)
        compiled = torch.compile(model, backend="aot_eager", fullgraph=True)(images)
        exported = torch.export.export(model, (images,)).module()(images)
        with cpu.use_kernel("plain"):
            plain = model(images)
    torch.testing.assert_close(compiled, expected)
    torch.testing.assert_close(exported, expected)
    torch.testing.assert_close(plain, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("attention", ["pairwise", "patchwise"])
def test_training_follows_the_specification(attention: str) -> None:
    images, labels = torch.randn(16, 3, 32, 32, generator=torch.Generator().manual_seed(1)), torch.arange(16) % 10

    def losses(kernel: str) -> tuple[list[float], dict[str, Tensor]]:
        torch.manual_seed(0)
        model = SAN(SANConfig(blocks=(1, 1, 1, 1, 1), attention=attention, width=0.5), 10)
        unsettle(model)
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-4)
        found = []
        with cpu.use_kernel(kernel):
            for _ in range(4):
                loss = torch.nn.functional.cross_entropy(model(images), labels)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                found.append(loss.item())
        return found, model.state_dict()

    fused, plain = losses(cpu.kernel()), losses("tiled")
    assert fused[0] == pytest.approx(plain[0], rel=1e-3)
    for name, value in fused[1].items():
        expected = plain[1][name].double()
        assert (value - expected).norm() <= 1e-2 * expected.norm() + 1e-4, name


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("attention", ["pairwise", "patchwise"])
def test_fifty_steps_part_no_sooner_than_two_tilings_of_the_specification(attention: str) -> None:
    """On fashion10k by the short recipe. Training amplifies rounding: the specification parts from itself when it adds up in
    tiles of another size. What the kernels add must not show beside that, in losses as in running averages."""
    data, recipe, size = load_dataset("fashion10k", "train"), RECIPES["short"], RECIPES["short"].batch_size
    images, labels = data.read(range(50 * size)).float() / 127.5 - 1, data.labels[: 50 * size].long()

    def trained(kernel: str, tile: int = TILE) -> tuple[Tensor, dict[str, Tensor]]:
        torch.manual_seed(0)
        model = SAN(SANConfig(blocks=(1, 1, 1, 1, 1), attention=attention, width=0.5), 10)
        unsettle(model)
        optimizer = torch.optim.AdamW(model.parameters(), weight_decay=recipe.weight_decay)
        losses = []
        with cpu.use_kernel(kernel), tile_size(tile):
            for step in range(50):
                optimizer.param_groups[0]["lr"] = recipe.learning_rate(0, step, len(data.labels) // size)
                part = slice(size * step, size * (step + 1))
                loss = torch.nn.functional.cross_entropy(model(images[part]), labels[part])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                losses.append(loss.item())
        return torch.tensor(losses), {name: value for name, value in model.named_buffers() if "running" in name}

    fused, plain, control = trained(BUILDS[0] if BUILDS else "tiled"), trained("tiled"), trained("tiled", TILE // 4)
    gaps = [((losses - plain[0]).abs() / plain[0]).cummax(0).values for losses, _ in (fused, control)]
    assert gaps[0][0] < 1e-5
    for step in (5, 10, 20, 50):
        assert gaps[0][step - 1] <= 5 * gaps[1][step - 1], (step, gaps[0][step - 1], gaps[1][step - 1])
    apart = [max(((s[n] - plain[1][n]).norm() / plain[1][n].norm()).item() for n in s) for _, s in (fused, control)]
    assert apart[0] <= 5 * apart[1], apart


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
