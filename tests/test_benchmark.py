"""Benchmarks count what they say they count."""

import pytest
import torch
from torch import nn

from sanbench.bench import networks as benchmark
from sanbench.bench.networks import Case, compare, kept_for_backward, peak_memory, time_layers
from sanbench.errors import InputError
from sanbench.ops import cpu
from sanbench.report import write_report
from sanbench.report.pictures import sweeps
from sanbench.store.files import Store
from tests.support.commands import sanbench

CPU = torch.device("cpu")
SMALL = (("width", 0.5),)


def test_kept_memory_is_counted_once_and_without_parameters():
    model = nn.Sequential(nn.Linear(8, 16, bias=False), nn.ReLU(), nn.Linear(16, 4))
    x = torch.randn(5, 8)
    # the first linear keeps its input, the ReLU its output, the second linear the same tensor
    assert kept_for_backward(lambda: model(x).sum(), model) == 4 * (5 * 8 + 5 * 16)
    with torch.no_grad():
        assert kept_for_backward(lambda: model(x).sum(), model) == 0


@pytest.mark.parametrize("attention", ["pairwise", "patchwise"])
def test_training_keeps_no_more_than_a_resnet(attention):
    """By what autograd says it keeps, and for the SAN by what the allocator says is left after the forward pass."""
    kept = {}
    for name in (f"san10_{attention}", "resnet26"):
        case = Case(name, "train", 4, 224)  # small maps are kept, see RECOMPUTED
        model = case.network(CPU)
        loss = benchmark.make_loss(case, model, CPU)
        kept[name] = kept_for_backward(loss, model)
        if name != "resnet26":
            loss().backward()  # gradients are there from now on
            with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
                held = loss()
            left = sum(event.self_cpu_memory_usage for event in profile.key_averages())
            assert left == pytest.approx(kept[name], rel=0.02)
            del held
    assert kept[f"san10_{attention}"] <= 1.05 * kept["resnet26"]


@pytest.mark.parametrize("mode", ["evaluate", "attack", "train"])
def test_both_sides_are_timed_in_turn(mode, monkeypatch):
    order = []
    original = benchmark.timed
    monkeypatch.setattr(benchmark, "timed", lambda action, device: order.append(id(action)) or original(action, device))
    monkeypatch.setattr(benchmark, "peak_memory", lambda case, device: 7)
    san = Case("san10_pairwise", mode, 2, 32, SMALL)
    found = compare(san, Case("resnet26", mode, 2, 32), 2, CPU)
    assert order == [order[0], order[1]] * (2 + benchmark.WARM_UP)
    assert found.ratio_low <= found.ratio <= found.ratio_high
    assert (found.n, found.peak, found.kernel) == (2, (7, 7), cpu.kernel())
    assert (found.kept[0] > 0) == (found.kept[1] > 0) == (mode != "evaluate")


def test_attack_steps_leave_parameters_without_gradients():
    case = Case("resnet26", "attack", 1, 32)
    model = case.network(CPU)
    benchmark.make_step(case, model, benchmark.make_loss(case, model, CPU))()
    assert all(parameter.grad is None for parameter in model.parameters())


def test_peak_memory_is_that_of_the_process_alone():
    """A parent that once had 2 GB must not show in the child."""
    torch.ones(2**29).sum()
    assert 10**8 < peak_memory(Case("san10_pairwise", "evaluate", 1, 32, SMALL), CPU) < 16 * 10**8


def test_layers_are_timed_with_each_kernel(monkeypatch):
    monkeypatch.setattr(benchmark, "STAGES", ((6, 64, 3), (3, 64, 5)))
    found = time_layers(2, 3, 1, ["tiled", "plain"])
    assert [(layer.attention, layer.stage, layer.direction) for layer in found[:3]] == [
        ("pairwise", 0, "forward"),
        ("pairwise", 0, "backward"),
        ("pairwise", 1, "forward"),
    ]
    assert len(found) == 8
    assert {layer.footprint for layer in found} == {3}
    assert all(set(layer.seconds) == {"tiled", "plain"} and min(layer.seconds.values()) > 0 for layer in found)


def test_info_tells_what_runs():
    text = sanbench("info").stdout
    for words in (torch.__version__.split("+")[0], cpu.kernel(), "tiled", "threads", "allocator", "keeps freed memory"):
        assert words in text


@pytest.mark.parametrize(
    ("arguments", "named"),
    [(["resnet26"], "resnet26"), (["san10", "--train", "--attack"], "--train"), (["san10", "-n", "0"], "n 0"), (["s"], "'s'")],
)
def test_benchmarks_that_cannot_run_say_why(arguments, named, tmp_path):
    outcome = sanbench("bench", "model", "--image-size", "32", "--results", str(tmp_path), *arguments)
    assert outcome.exit_code == 2, outcome.output
    assert named in outcome.stderr


def test_no_steps_are_refused():
    with pytest.raises(InputError, match="n 0"):
        compare(Case("san10_pairwise"), Case("resnet26"), 0, CPU)


def test_benchmarks_are_kept_and_drawn(tmp_path, monkeypatch):
    monkeypatch.setattr(benchmark, "peak_memory", lambda case, device: 7)
    command = ["bench", "model", "san10", "--image-size", "32", "--batch-size", "1", "-n", "1", "--results", str(tmp_path)]
    command += ["--footprint", "3", "--footprint", "5"]
    for _ in range(2):  # the second replaces the first
        outcome = sanbench(*command)
        assert outcome.exit_code == 0, outcome.output
    found = Store(tmp_path).benchmarks()
    assert [one.setting["footprint"] for one in found] == [3, 5]
    assert found[0].setting["san"] == {"model": "san10_pairwise", "footprint": 3}
    assert found[0].setting["kernel"] == cpu.kernel()
    assert found[0].ratio[0] == found[0].seconds["san"] / found[0].seconds["resnet"]
    paths = write_report(Store(tmp_path))
    assert str(tmp_path / "cost.png") in paths
    assert "| san10_pairwise | resnet26 | evaluate | float32 | 1 | 32 | 5 |" in (tmp_path / "report.md").read_text()


def test_what_a_benchmark_ran_is_recorded(tmp_path, monkeypatch):
    """Each dtype, eager and compiled, is a record and a line of its own, and none takes another's place."""
    monkeypatch.setattr(benchmark, "peak_memory", lambda case, device: 7)
    monkeypatch.setattr(torch, "compile", lambda model: model)  # minutes
    command = ["bench", "model", "san10", "--batch-size", "1", "-n", "1", "--results", str(tmp_path)]
    command += ["--image-size", "32", "--image-size", "33"]
    for more in ([], ["--dtype", "bfloat16"], ["--compile"]):
        outcome = sanbench(*command, *more)
        assert outcome.exit_code == 0, outcome.output
    found = Store(tmp_path).benchmarks()
    ran = [(one.setting["dtype"], one.setting["compiled"]) for one in found]
    assert sorted(ran) == [("bfloat16", False)] * 2 + [("float32", False)] * 2 + [("float32", True)] * 2
    assert [len(points) for points in sweeps(found, "image_size").values()] == [2, 2, 2]
    write_report(Store(tmp_path))
    report = (tmp_path / "report.md").read_text()
    assert "| evaluate | bfloat16 | 1 | 33 |" in report and "| evaluate | float32, compiled | 1 | 33 |" in report


def test_layer_times_are_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(benchmark, "STAGES", ((3, 64, 3),))
    outcome = sanbench("bench", "ops", "--kernels", "tiled", "-n", "1", "--results", str(tmp_path))
    assert outcome.exit_code == 0, outcome.output
    found = Store(tmp_path).benchmarks()
    assert {(one.setting["attention"], one.setting["direction"]) for one in found} == {
        (kind, way) for kind in ("pairwise", "patchwise") for way in ("forward", "backward")
    }
    assert all(one.seconds["tiled"] > 0 for one in found)
