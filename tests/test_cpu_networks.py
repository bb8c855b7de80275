"""Networks on the fused kernels: compiled, exported, and trained beside the specification."""

import pytest
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from sanbench.data import load_dataset
from sanbench.models import normalisation
from sanbench.models.san import SAN, SANConfig, residual_ends
from sanbench.ops import cpu
from tests.support.operator_cases import BUILDS
from tests.support.unsettled_weights import unsettle


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


@pytest.mark.parametrize("attention", ["pairwise", pytest.param("patchwise", marks=pytest.mark.slow)])
def test_fifty_steps_follow_the_specification(attention: str) -> None:
    """On fashion10k, by AdamW in a warm-up. Noise on the pixels, because a black background makes thousands of equal pixels:
    where one lies within rounding of a relu's kink or of another one in a pool, all do, and the two ways part by 1e-2."""
    batch, steps, rate = 64, 50, 1e-4
    data = load_dataset("fashion10k", "train")
    images, labels = data.read(range(batch * steps)).float() / 127.5 - 1, data.labels[: batch * steps].long()
    images += 0.3 * torch.randn(images.shape, generator=torch.Generator().manual_seed(0))

    def trained(kernel: str) -> tuple[Tensor, dict[str, Tensor]]:
        torch.manual_seed(0)
        model = SAN(SANConfig(blocks=(1, 1, 1, 1, 1), attention=attention, width=0.25), 10)
        for layer in residual_ends(model):
            torch.nn.init.zeros_(layer.weight)
            torch.nn.init.zeros_(layer.bias)
        optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.05)
        losses = []
        with cpu.use_kernel(kernel):
            for step in range(steps):
                optimizer.param_groups[0]["lr"] = rate * (step + 1) / steps
                part = slice(batch * step, batch * (step + 1))
                loss = torch.nn.functional.cross_entropy(model(images[part]), labels[part])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                losses.append(loss.item())
        return torch.tensor(losses), {name: value for name, value in model.named_buffers() if "running" in name}

    fused, plain = trained(BUILDS[0] if BUILDS else "plain"), trained("tiled")
    gap = ((fused[0] - plain[0]).abs() / plain[0]).max()
    apart = {name: ((fused[1][name] - value).norm() / value.norm()).item() for name, value in plain[1].items()}
    assert plain[0][-1] < 0.9 * plain[0][0], "it learns"
    assert gap <= 1e-3
    assert max(apart.values()) <= 0.05, apart


@pytest.mark.parametrize("attention", ["pairwise", "patchwise"])
def test_maps_computed_again_change_nothing(attention: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor are averages updated twice."""
    images = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    again = []
    monkeypatch.setattr(normalisation, "checkpoint", lambda *a, **k: again.append(a) or checkpoint(*a, **k))

    def step(recomputed: int) -> list[Tensor]:
        monkeypatch.setattr(normalisation, "RECOMPUTED", recomputed)
        torch.manual_seed(0)
        model = SAN(SANConfig(blocks=(1, 1, 1, 1, 1), attention=attention, width=0.25), 10)
        model(images).square().sum().backward()
        return [*model.buffers(), *(parameter.grad for parameter in model.parameters())]

    kept = step(2**30)
    assert not again
    for one, other in zip(step(0), kept, strict=True):
        assert torch.equal(one, other)
    assert again
