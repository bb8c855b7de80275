"""Benchmarks count what they say they count."""

import pytest
import torch
from torch import nn
from typer.testing import CliRunner

from sanbench import benchmark
from sanbench.benchmark import Case, compare, kept_for_backward, peak_memory, time_layers
from sanbench.errors import InputError
from sanbench.ops import cpu
from sanbench_cli.main import app

CPU = torch.device("cpu")
SMALL = (("width", 0.5),)


def test_kept_memory_is_counted_once_and_without_parameters():
    model = nn.Sequential(nn.Linear(8, 16, bias=False), nn.ReLU(), nn.Linear(16, 4))
    x = torch.randn(5, 8)
    # the first linear keeps its input, the ReLU its output, the second linear the same tensor
    assert kept_for_backward(lambda: model(x).sum(), model) == 4 * (5 * 8 + 5 * 16)
    with torch.no_grad():
        assert kept_for_backward(lambda: model(x).sum(), model) == 0


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
    text = CliRunner().invoke(app, ["info"]).stdout
    for words in (torch.__version__.split("+")[0], cpu.kernel(), "tiled", "threads", "allocator", "keeps freed memory"):
        assert words in text


@pytest.mark.parametrize(
    ("arguments", "named"),
    [(["resnet26"], "resnet26"), (["san10", "--train", "--attack"], "--train"), (["san10", "-n", "0"], "n 0"), (["s"], "'s'")],
)
def test_benchmarks_that_cannot_run_say_why(arguments, named):
    outcome = CliRunner().invoke(app, ["bench", "model", "--image-size", "32", *arguments])
    assert outcome.exit_code == 2, outcome.output
    assert named in outcome.stderr


def test_no_steps_are_refused():
    with pytest.raises(InputError, match="n 0"):
        compare(Case("san10_pairwise"), Case("resnet26"), 0, CPU)
