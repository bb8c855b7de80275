"""Triton's kernels without a GPU: numbers in the interpreter, and what the operators are on CUDA by fake tensors."""

import json
import os
from collections.abc import Callable
from functools import cache

import pytest
import torch
from filelock import FileLock
from torch._subclasses.fake_tensor import FakeTensorMode

from sanbench.errors import InputError, SanbenchError
from sanbench.models.san import SAN, SANConfig
from sanbench.ops import gpu
from sanbench.ops.closed_form import occurrences
from tests.support.interpreted_kernels import CASES, Case, identity, results
from tests.support.operator_cases import case, statistics_of, tensors

pytest.importorskip("triton", reason="the kernels need Triton")

# Of the norm: the output and the gradient of the values, which are smooth, and the other gradients. In these a relu whose
# argument is 0 within rounding takes another side than in float64: with a part r of all arguments, an error of about sqrt(r).
REDUCED = {torch.float16: (2e-3, 1e-2), torch.bfloat16: (1e-2, 0.1)}
PATCHWISE = {torch.float32: 2e-6, torch.float16: 4e-3, torch.bfloat16: 3e-2}  # of the norm of the output; of gradients 5 times
EVERY = [(name, case) for name, cases in CASES.items() for case in cases]


@pytest.fixture(scope="module")
def interpreted(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], dict[str, dict]]:
    """What was found for the CASES that are slow, or that are not: once, by whichever of the tests' processes comes first."""
    folder = tmp_path_factory.getbasetemp()
    folder = folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder

    @cache
    def answers(slow: str) -> dict[str, dict]:
        found = folder / f"interpreted{slow}.json"
        with FileLock(f"{found}.lock"):
            if not found.is_file():
                found.write_text(json.dumps(results(*(name for name in CASES if name.partition("-")[2] == slow))))
            answer: dict[str, dict] = json.loads(found.read_text())
        return answer

    return answers


@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("cases", "case"),
    [pytest.param(*each, id=identity(*each), marks=[pytest.mark.slow] * each[0].endswith("slow")) for each in EVERY],
)
def test_interpreted(cases: str, case: Case, interpreted: Callable[[str], dict[str, dict]]) -> None:
    kind, _, slow = cases.partition("-")
    answers = interpreted(slow)
    assert identity(cases, case) in answers, answers["process"]["stderr"][-3000:]
    found = answers[identity(cases, case)]
    assert found["kernels"] == ["triton", "triton"]
    for at, (nearly_all, largest, norm) in found["errors"].items():
        if kind == "patchwise":
            assert norm < PATCHWISE[case.dtype] * (1 if at == "out" else 5), (at, found)
        elif case.dtype == torch.float32:
            assert nearly_all < 2e-5 and largest < 0.05, (at, found)
        else:
            is_smooth = at == "out" or (at == "2" and case.task == "attention")
            assert norm < REDUCED[case.dtype][0 if is_smooth else 1], (at, found)


def test_every_case_has_a_name_of_its_own() -> None:
    assert len({identity(*each) for each in EVERY}) == len(EVERY)


@pytest.mark.parametrize(("size", "footprint"), [(1, 3), (2, 7), (3, 7), (4, 7), (5, 11), (9, 5)])
def test_gathering_meets_every_pair_as_often_as_reflection_makes_it(size: int, footprint: int) -> None:
    from sanbench.ops.gpu.blocks import multiplicities

    often, reach = multiplicities(size, footprint, torch.device("cpu")), footprint // 2
    expected = occurrences(size, footprint, torch.device("cpu")).sum(0).T.float()  # [j, i]
    gathered = torch.zeros(size, size)
    for j in range(size):
        for o in range(footprint):
            if 0 <= j + o - reach < size:
                gathered[j, j + o - reach] += often[j, o]
            else:
                assert often[j, o] == 0
    assert torch.equal(gathered, expected)


def test_launches_do_not_wait_for_the_device() -> None:
    """On torch's meta device there is nothing to wait for: a launcher that looked at a number would fail."""
    from sanbench.ops.gpu import pairwise
    from sanbench.ops.gpu.launch import recorded

    names = ("query", "key", "value", "position", "gamma", "relation", "footprint", "stride", "dilation")
    values = case(1, "pairwise", (2, 9, 6))
    meta = [
        v.to("meta") if isinstance(v, torch.Tensor) else [g.to("meta") for g in v] if isinstance(v, list) else v for v in values
    ]
    arguments = dict(zip(names, meta))
    with recorded() as launches:
        out = pairwise.forward(**arguments)
        pairwise.backward(out, True, **arguments)
    kernels = [found.kernel.__name__ for found in launches]
    assert kernels == ["attention", "attention", "query_pass", "key_pass"]
    assert out.shape == meta[2].shape


def on_cuda(values: list, dtype: torch.dtype = torch.float32) -> list:
    def move(v):
        return v.to("cuda", dtype) if isinstance(v, torch.Tensor) else [move(x) for x in v] if isinstance(v, list) else v

    return [move(v) for v in values]


NAMES = ("query", "key", "value", "position", "gamma", "relation", "footprint", "stride", "dilation")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_what_is_served(dtype: torch.dtype) -> None:
    values = case(4, "pairwise", (2, 5, 6))
    with FakeTensorMode(allow_non_fake_inputs=True):
        served = dict(zip(NAMES, on_cuda(values, dtype)))
        assert gpu.serves("pairwise_attention", **served) == (dtype != torch.float64)
        for other in ({"relation": "summation"}, {"stride": 2}, {"dilation": 2}, {"footprint": 13}):
            assert not gpu.serves("pairwise_attention", **served | other)
        narrow, gamma = (
            served["query"].new_empty(2, 128, 5, 6),
            [x.new_empty(128, 128) if x.dim() == 2 else x for x in served["gamma"]],
        )
        wide_layer = {"query": narrow, "key": narrow, "gamma": gamma[:3]}
        without_value = {k: v for k, v in (served | wide_layer).items() if k != "value"}
        assert gpu.serves("pairwise_statistics", **without_value) == (dtype != torch.float64)
        wide = torch.empty(2, 129, 5, 6, device="cuda", dtype=dtype)
        assert not gpu.serves("pairwise_attention", **served | {"query": wide, "key": wide})
    assert not gpu.serves("pairwise_attention", **dict(zip(NAMES, values)))


@pytest.mark.parametrize("task", ["attention", "statistics"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_fake_cuda_tensors(task: str, dtype: torch.dtype) -> None:
    values = case(4, "pairwise", (2, 5, 6))
    values = values if task == "attention" else statistics_of(values, 1)
    with FakeTensorMode(allow_non_fake_inputs=True):
        fake = on_cuda(values)
        at = [p for p, v in enumerate(fake) if isinstance(v, torch.Tensor)][: 3 if task == "attention" else 2]
        fake = [v.to(dtype) if p in at else v for p, v in enumerate(fake)]  # gamma and position stay float32
        out = getattr(torch.ops.sanbench, f"pairwise_{task}")(*fake)
        assert out.device.type == "cuda"
        assert out.dtype == (dtype if task == "attention" else torch.float32)
        leaves = tensors(fake)
        grads = getattr(torch.ops.sanbench, f"pairwise_{task}_backward")(out, *fake, [True] * len(leaves) + [False] * 4)
        assert [(x.dtype, x.shape, x.device) for x in grads] == [(x.dtype, x.shape, x.device) for x in leaves]


@pytest.mark.parametrize("attention", ["pairwise", "patchwise"])
def test_network_of_fake_cuda_tensors(attention: str) -> None:
    with FakeTensorMode(), torch.device("cuda"):
        model = SAN(SANConfig(blocks=(1, 1, 1, 1, 1), attention=attention, width=0.5), 10)
        logits = model(torch.empty(2, 3, 64, 64, device="cuda"))  # autograd's engine asks for a real device
        assert logits.device.type == "cuda" and logits.shape == (2, 10) and logits.requires_grad


@pytest.mark.parametrize("attention", ["pairwise", "patchwise", "scalar"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_ends_at_the_operator(attention: str, dtype: torch.dtype) -> None:
    """Training and evaluation under autocast are close to float32, compiled too."""
    torch.manual_seed(0)
    model = SAN(SANConfig(blocks=(1, 1, 1, 1, 1), attention=attention, width=0.5), 10)
    images = torch.randn(4, 3, 64, 64)
    with torch.autocast("cpu", dtype):
        model(images).sum().backward()
    assert all(p.grad is not None and p.grad.dtype == torch.float32 and p.grad.isfinite().all() for p in model.parameters())
    model.eval()
    with torch.no_grad():
        expected = model(images)
        with torch.autocast("cpu", dtype):
            out = model(images)
            compiled = torch.compile(model, backend="aot_eager", fullgraph=True)(images)
    assert out.dtype == dtype
    assert (out - expected).norm() < {torch.bfloat16: 2e-2, torch.float16: 2e-3}[dtype] * expected.norm()
    torch.testing.assert_close(compiled, out)


def test_statistics_are_float32_for_reduced_precision() -> None:
    values = statistics_of(case(4, "pairwise", (2, 5, 6)), 1)
    expected = torch.ops.sanbench.pairwise_statistics(*values)
    reduced = [v.bfloat16() if at < 2 else v for at, v in enumerate(values)]
    with torch.autocast("cpu", torch.bfloat16):
        found = torch.ops.sanbench.pairwise_statistics(*reduced)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, rtol=2e-2, atol=2e-2)


def test_why_there_is_no_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sanbench.ops.gpu.kernels.missing", lambda: "Triton is not installed")
    assert gpu.kernel() == "tiled" and gpu.available() == ("tiled", "plain")
    with pytest.raises(SanbenchError, match="triton is not available: Triton is not installed"), gpu.use_kernel("triton"):
        pass
    with pytest.raises(InputError, match="Known: plain, tiled, triton"), gpu.use_kernel("avx2"):
        pass
    with gpu.use_kernel("plain"):
        assert gpu.kernel() == "plain"
