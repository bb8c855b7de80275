"""What only a GPU can show: Triton kernels on CUDA against float64, whole networks, two GPUs. Skipped where there is none."""

import subprocess
import sys

import pytest
import torch
from torch import Tensor

from sanbench.bench import networks as benchmark
from sanbench.models.san import SAN, SANConfig
from sanbench.ops import gpu
from sanbench.ops.operator import SPECIFICATIONS
from tests.support.interpreted_kernels import STAGES, STREAMED, Case
from tests.support.operator_cases import case, gradients, statistics_of, to

OPERATORS = ["pairwise_attention", "pairwise_statistics", "patchwise_attention", "patchwise_statistics"]
TOLERANCE = {torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 1e-1}  # of the norm
WHY = gpu.missing()  # the kernels cannot run here
needs_gpu = pytest.mark.skipif(WHY is not None, reason=f"the Triton kernels cannot run here: {WHY}")
needs_none = pytest.mark.skipif(WHY is None, reason="the Triton kernels run here: no other test is skipped for want of a GPU")
needs_two = pytest.mark.skipif(torch.cuda.device_count() < 2, reason=f"needs two GPUs, torch sees {torch.cuda.device_count()}")


def moved(values: list, dtype: torch.dtype) -> list:
    """Maps in `dtype`, everything else in float32, on the GPU."""
    position = len(values) == 9 and isinstance(values[3], Tensor)
    maps = [v.cuda().to(dtype) if isinstance(v, Tensor) and not (at == 3 and position) else v for at, v in enumerate(values)]
    return [[x.cuda() for x in v] if isinstance(v, list) else v.cuda() if isinstance(v, Tensor) else v for v in maps]


def check(operator: str, values: list, dtype: torch.dtype) -> None:
    values = moved(values, dtype)
    run = getattr(torch.ops.sanbench, operator)
    grad = torch.randn(run(*values).shape, device="cuda").to(dtype if operator.endswith("attention") else torch.float32)
    out, grads = gradients(run, values, grad)
    assert gpu.last_kernel(operator) == gpu.last_kernel(f"{operator}_backward") == "triton"
    expected_out, expected = gradients(SPECIFICATIONS[operator], to(values, torch.float64), grad.double())
    for actual, wanted in zip([out, *grads], [expected_out, *expected], strict=True):
        assert (actual.double() - wanted).norm() <= TOLERANCE[dtype] * wanted.norm().clamp_min(1e-2)


@needs_gpu
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("size", [(2, 7, 7), (3, 1, 5), (2, 33, 20), (4, 14, 14)], ids=str)
@pytest.mark.parametrize("operator", OPERATORS)
def test_kernels_follow_the_specification(operator: str, size: tuple[int, int, int], dtype: torch.dtype) -> None:
    kind, task = operator.split("_")
    values = case(7, kind, size)
    check(operator, values if task == "attention" else statistics_of(values, 1), dtype)


@needs_gpu
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("channels", [*STAGES, *STREAMED], ids=str)
@pytest.mark.parametrize("operator", OPERATORS)
def test_kernels_at_the_stages_channels(operator: str, channels: tuple[int, int, int, int], dtype: torch.dtype) -> None:
    kind, task = operator.split("_")
    check(operator, Case((2, 7, 9), channels, 7, task=task).arguments(kind), dtype)


@needs_gpu
@pytest.mark.parametrize("attention", ["pairwise", "patchwise"])
def test_networks_compile_and_train(attention: str) -> None:
    """In bfloat16, through torch.compile without a graph break, and as a CUDA graph: no operator waits for the device."""
    torch.manual_seed(0)
    model = SAN(SANConfig(blocks=(1, 1, 1, 1, 1), attention=attention, width=0.5), 10).cuda()
    images = torch.randn(4, 3, 64, 64, device="cuda")
    with torch.autocast("cuda", torch.bfloat16):
        torch.nn.functional.cross_entropy(model(images), torch.arange(4, device="cuda")).backward()
    assert all(p.grad is None or bool(p.grad.isfinite().all()) for p in model.parameters())
    model.eval()
    with torch.no_grad():
        expected = model(images)
        torch.testing.assert_close(torch.compile(model, fullgraph=True)(images), expected, rtol=1e-2, atol=1e-2)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            captured = model(images)
        graph.replay()
        torch.testing.assert_close(captured, expected)


@needs_gpu
@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("mode", ["evaluate", "attack", "train"])
def test_benchmark_runs(mode: str, compiled: bool) -> None:
    san = benchmark.Case("san10_pairwise", mode, 4, 64, (), "bfloat16", compiled)
    found = benchmark.compare(san, benchmark.Case("resnet26", mode, 4, 64, (), "bfloat16", compiled), 2, torch.device("cuda"))
    assert found.kernel == "triton"
    assert min(found.seconds) > 0 and min(found.peak) > 0


@needs_two
@pytest.mark.parametrize("model", ["san10_pairwise", "san10_patchwise"])
def test_two_gpus_train_as_one(model: str, folder, tmp_path) -> None:
    losses = []
    for processes in (1, 2):
        command = [sys.executable, "-m", "sanbench_cli", "train", model, "--data", f"folder:{folder}", "--image-size", "32"]
        command += ["--epochs", "1", "--batch-size", "48", "--lr", "0.001", "--set", "sync_bn=true", "--set", "width=0.5"]
        command += ["--set", "warmup_epochs=0", "--device", "cuda", "--nproc", str(processes)]
        command += ["--runs", str(tmp_path), "--run", f"on{processes}"]
        subprocess.run(command, check=True, capture_output=True, timeout=500)
        from sanbench.runs.run import Run

        losses.append(Run(tmp_path / f"on{processes}").epochs()[-1]["loss"])
    assert losses[1] == pytest.approx(losses[0], rel=1e-2)


@needs_none
def test_they_are_skipped_with_a_reason() -> None:
    assert WHY in ("torch sees no GPU", "Triton is not installed") or "capability" in str(WHY)
