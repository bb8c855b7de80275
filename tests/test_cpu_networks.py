"""Networks on the fused kernels: compiled, exported, and trained beside the specification."""

import pytest
import torch
from torch import Tensor

from sanbench.data import load_dataset
from sanbench.models.san import SAN, SANConfig
from sanbench.ops import cpu
from sanbench.ops.operator import TILE, tile_size
from sanbench.training.config import RECIPES
from tests.operator_cases import BUILDS
from tests.unsettled import unsettle


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
