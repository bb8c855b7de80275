"""Benchmarks count what they say they count, and each is kept as a record."""

import pytest
import torch
from torch import nn

from sanbench.bench import BENCHMARKS, networks
from sanbench.bench.evaluation import time_perturbations
from sanbench.bench.layers import time_layers
from sanbench.bench.networks import Case, kept_for_backward, peak_memory, time_pair
from sanbench.bench.reading import make_photographs, photographs_here, time_reading
from sanbench.bench.timing import Timing, time_in_turn
from sanbench.bench.training import time_training
from sanbench.data import Batch, ReadOptions, load_dataset
from sanbench.evaluation.attacks.attack import Attack
from sanbench.evaluation.attacks.table import parse_attacks
from sanbench.evaluation.rotations import parse_angles
from sanbench.models.configurations import STAGES, SANConfig
from sanbench.ops import cpu
from sanbench.progress import Progress, silent
from sanbench.report import write_report
from sanbench.report.cost import sweeps
from sanbench.runs.config import configure
from sanbench.store.files import Store
from tests.support.commands import sanbench
from tests.support.photographs import PHOTOGRAPHS

CPU = torch.device("cpu")
SMALL = (("width", 0.5),)


@pytest.fixture
def no_peak(monkeypatch):
    """The largest memory takes a process of its own for each side."""
    monkeypatch.setattr(networks, "peak_memory", lambda case, device: 7)


def test_sides_are_timed_in_turn():
    calls, given, seen = [], iter(range(9)), []
    sides = {"a": lambda: calls.append("a"), "b": lambda number: calls.append(number)}
    timing = time_in_turn(sides, 3, CPU, seen.append, "task", warm_up=2, setup={"b": lambda: (next(given),)})
    assert calls == ["a", 0, "a", 1, "a", 2, "a", 3, "a", 4]
    assert [len(rounds) for rounds in timing.seconds.values()] == [3, 3]
    assert seen[0] == Progress("task", 1, 10) and seen[-1] == Progress("task", 10, 10)


def test_what_a_side_is_given_is_not_timed():
    now = [0.0]

    def passes(seconds):
        now[0] += seconds
        return (seconds,)

    timing = time_in_turn({"a": lambda _: passes(1.0)}, 2, CPU, setup={"a": lambda: passes(8.0)}, clock=lambda: now[0])
    assert timing.seconds == {"a": [1.0, 1.0]}


def test_ratios_are_of_the_same_round():
    timing = Timing({"a": [1.0, 6.0, 2.0], "b": [1.0, 2.0, 4.0], "c": [3.0, 3.0, 3.0]})
    assert timing.ratio() == (1.0, 0.5, 3.0)
    assert timing.of("c", "a").ratio() == (1.5, 0.5, 3.0)
    assert timing.of("a").ratio() is None
    benchmark = timing.benchmark("ops", {"stage": 1}, CPU, figures={"x": 1.0})
    assert benchmark.seconds == {"a": 2.0, "b": 2.0, "c": 3.0}
    assert benchmark.setting == {"stage": 1, "n": 3, "threads": torch.get_num_threads()}
    assert benchmark.figures == {"x": 1.0}


def test_stages_are_those_of_the_paper():
    assert STAGES == [(112, 64, 3), (56, 256, 7), (28, 512, 7), (14, 1024, 7), (7, 2048, 7)]
    assert SANConfig(blocks=(1, 1, 1, 1, 1), footprint=5, width=0.5).stages(32)[1] == (8, 128, 5)


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
        loss = networks.make_loss(case, model, CPU)
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
def test_a_pair_is_a_record(mode, no_peak):
    found = time_pair(Case("san10_pairwise", mode, 2, 32, SMALL), Case("resnet26", mode, 2, 32), 2, CPU)
    median, least, most = found.ratio
    assert least <= median <= most
    assert [*found.seconds] == [*found.bytes] == ["san", "resnet"]
    assert found.setting["san"] == {"model": "san10_pairwise", "width": 0.5}
    assert (found.setting["n"], found.setting["kernel"], found.setting["mode"]) == (2, cpu.kernel(), mode)
    assert all((kept > 0) == (mode != "evaluate") and peak == 7 for kept, peak in found.bytes.values())


def test_attack_steps_leave_parameters_without_gradients():
    case = Case("resnet26", "attack", 1, 32)
    model = case.network(CPU)
    networks.make_step(case, model, networks.make_loss(case, model, CPU))()
    assert all(parameter.grad is None for parameter in model.parameters())


def test_peak_memory_is_that_of_the_process_alone():
    """A parent that once had 2 GB must not show in the child."""
    torch.ones(2**29).sum()
    assert 10**8 < peak_memory(Case("san10_pairwise", "evaluate", 1, 32, SMALL), CPU) < 16 * 10**8


def test_layers_are_timed_with_each_kernel():
    found = list(time_layers(2, 32, 3, ["tiled", "plain"], 1))
    assert [tuple(one.setting[name] for name in ("attention", "stage", "direction")) for one in found[:3]] == [
        ("pairwise", 0, "forward"),
        ("pairwise", 0, "backward"),
        ("pairwise", 1, "forward"),
    ]
    assert len(found) == 20
    assert {one.setting["footprint"] for one in found} == {3}
    assert all([*one.seconds] == ["tiled", "plain"] and min(one.seconds.values()) > 0 for one in found)


class Noting(nn.Module):
    """A linear network that notes its passes: images, and whether a gradient is asked for."""

    def __init__(self):
        super().__init__()
        self.linear, self.passes = nn.Linear(3 * 4 * 4, 10), []

    def forward(self, x):
        self.passes.append((len(x), x.requires_grad))
        return self.linear(x.flatten(1))


def test_evaluation_is_compared_with_the_passes_that_it_made():
    torch.manual_seed(0)
    model, images = Noting(), torch.randint(0, 256, (5, 3, 4, 4), dtype=torch.uint8)
    batch = Batch(images, model(images / 255).argmax(1), torch.arange(5))  # all right, so that all are attacked
    ((_, config),) = parse_attacks("pgd", "4/255")
    for perturbations in (parse_angles("0,90"), [Attack("pgd", model, config, 2)]):
        model.passes.clear()
        timing = time_perturbations(model, batch, perturbations, 2, 1, CPU, silent, "")
        assert [*timing.seconds] == ["evaluation", "passes"]
        quarter = len(model.passes) // 4  # a round that warms up and one that counts, two sides each
        evaluation, repeated = model.passes[:quarter], model.passes[quarter : 2 * quarter]
        assert evaluation == repeated == model.passes[3 * quarter :]
    assert (2, True) in evaluation and (1, False) in evaluation


def test_training_counts_all_of_a_step():
    """Images/s and shares of the real loop; what the network does not take is overhead."""
    configs = [configure(model, changes={"batch_size": 8}) for model in ("resnet26", "san10")]
    found = time_training(configs, 1, CPU, steps=2)
    assert [*found.seconds] == ["resnet26", "san10_pairwise"]
    assert found.ratio[0] == found.seconds["resnet26"] / found.seconds["san10_pairwise"]
    assert found.setting["networks"] == [{"model": "resnet26"}, {"model": "san10_pairwise"}]
    for label, seconds in found.seconds.items():
        own = {name.split()[0]: value for name, value in found.figures.items() if name.endswith(f" {label}")}
        assert own.pop("images_per_second") == 2 * 8 / seconds
        overhead = own.pop("overhead")
        assert 0 < overhead < 1
        assert overhead == pytest.approx(own["data"] + own["rest"])
        assert sum(own.values()) == pytest.approx(1)


def test_photographs_are_of_imagenets_frequent_size(tmp_path):
    size = make_photographs(photographs_here(), tmp_path, 3)
    images = load_dataset(f"folder:{tmp_path}", "train", ReadOptions())
    assert len(images) == 3
    assert images.decode.read(
        images.locate(0), lambda w, h: pytest.fail(f"{w} x {h}") if (w, h) != (500, 375) else images.whole_region(w, h)
    ).shape
    assert 5e4 < size < 2e5
    assert photographs_here() == next(iter(PHOTOGRAPHS)).parent


def test_every_decoder_is_measured_against_the_reference():
    found = time_reading(photographs_here(), ["pil", "turbo"], images=4, n=2)
    parts = [(one.setting["part"], one.setting["reader"]) for one in found]
    assert [part for part in parts if part[0] != "training + device"] == [
        ("decoding", "pil"),
        ("decoding", "turbo"),
        ("training", "ImageFolder, PIL"),
        ("training", "pil"),
        ("training", "turbo"),
        ("evaluation", "ImageFolder, PIL"),
        ("evaluation", "pil"),
        ("evaluation", "turbo"),
    ]
    references = {"decoding": "decoding: pil", "training": "training: ImageFolder, PIL"}
    references |= {"training + device": references["training"], "evaluation": "evaluation: ImageFolder, PIL"}
    for one in found:
        part, reader = one.setting["part"], one.setting["reader"]
        assert [*one.seconds] == list(dict.fromkeys([references[part], f"{part}: {reader}"]))
        assert one.figures["images_per_second"] == 4 / one.seconds[f"{part}: {reader}"]
        assert (one.ratio is None) == (len(one.seconds) == 1)
        assert (one.setting["images"], one.setting["n"], one.setting["threads"]) == (4, 2, 1)


RECORDED = {
    "model": ["san10", "--image-size", "32", "--batch-size", "1"],
    "ops": ["--kernels", "tiled", "--image-size", "32", "--batch-size", "1"],
    "evaluate": ["--images", "8", "--width", "0.25"],
    "train": ["resnet26", "--batch-size", "2"],
    "corruptions": ["--image-size", "32", "--against", "imagecorruptions"],
    "data": ["--decoders", "pil", "--images", "4"],
}


AT_SIZE = {"pipeline", "protocol", "attacks"}  # tests/test_evaluation_at_size.py tries them
ELSEWHERE = {"standard", "workers", "startup"}  # test_official.py, test_studies_run.py and test_startup.py try them


def test_every_kind_of_benchmark_is_tried():
    assert RECORDED.keys() | AT_SIZE | ELSEWHERE == BENCHMARKS.keys()


@pytest.mark.parametrize("kind", RECORDED)
def test_what_was_measured_is_recorded(kind, tmp_path, no_peak):
    outcome = sanbench("bench", kind, *RECORDED[kind], "-n", "1", "--results", tmp_path, columns=200)
    assert outcome.exit_code == 0, outcome.output
    found = Store(tmp_path).benchmarks()
    assert found and {one.kind for one in found} == {kind}
    assert all(min(one.seconds.values()) > 0 and one.setting["n"] == 1 for one in found)
    assert found[0].device in outcome.output.replace("\n", " ")
    assert len((tmp_path / "benchmarks.jsonl").read_text().splitlines()) == len(found)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ("model resnet26 --image-size 32", "resnet26 is not accepted: name a SAN"),
        ("model san10 --train --attack", "--train and --attack are not accepted together"),
        ("model san10 -n 0", "-n 0 is not accepted: it should be greater than or equal to 1"),
        ("model s", "Unknown model 's'"),
        ("model san10 --dtype float16", "Unknown dtype 'float16'. Did you mean 'bfloat16'? Known: bfloat16, float32"),
        ("ops --kernels fast", "'fast'. Known: avx2, avx512, plain, portable, tiled"),
        ("ops --footprint 4", "footprint 4 is not accepted"),
        ("ops -n 0", "n 0 is not accepted"),
        ("evaluate -n 0", "n 0 is not accepted"),
        ("train -n 0", "n 0 is not accepted"),
        ("data FOLDER", "holds no photographs of at least 375 pixels"),
        ("data -n 0", "-n 0 is not accepted"),
        ("data --images 0", "--images 0 is not accepted"),
        ("corruptions FOLDER", "holds no photographs"),
        ("corruptions -n 0", "-n 0 is not accepted"),
        ("corruptions --against augly", "Unknown against 'augly'. Known: imagecorruptions"),
        ("data --decoders gif", "Unknown decoder 'gif'"),
    ],
)
def test_a_benchmark_that_cannot_run_says_why(arguments, named, tmp_path):
    typed = arguments.replace("FOLDER", str(tmp_path)).split()
    outcome = sanbench("bench", *typed, "--results", tmp_path / "results", columns=400)
    assert outcome.exit_code == 2, outcome.output
    assert named in outcome.stderr
    assert not (tmp_path / "results" / "benchmarks.jsonl").exists()


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ("roofline --dtype float16", "Unknown dtype 'float16'. Did you mean 'bfloat16'? Known: bfloat16, float32"),
        ("kernels scalar", "Unknown attention 'scalar'. Known: pairwise, patchwise"),
        ("kernels --stages 0,5", "Unknown stage '5'. Known: 0, 1, 2, 3, 4"),
        ("kernels --capability 70", "Unknown capability '70'. Did you mean '80'? Known: 80, 90"),
    ],
)
def test_a_model_that_cannot_be_made_says_why(arguments, named):
    pytest.importorskip("triton")
    outcome = sanbench("bench", *arguments.split(), columns=400)
    assert outcome.exit_code == 2, outcome.output
    assert named in outcome.stderr


def test_benchmarks_are_kept_and_drawn(tmp_path, no_peak):
    command = ["bench", "model", "san10", "--image-size", "32", "--batch-size", "1", "-n", "1", "--results", str(tmp_path)]
    command += ["--footprint", "3", "--footprint", "5"]
    for _ in range(2):  # the second replaces the first
        outcome = sanbench(*command)
        assert outcome.exit_code == 0, outcome.output
    found = Store(tmp_path).benchmarks()
    assert [one.setting["footprint"] for one in found] == [3, 5]
    assert found[0].setting["san"] == {"model": "san10_pairwise", "footprint": 3}
    assert found[0].ratio[0] == found[0].seconds["san"] / found[0].seconds["resnet"]
    paths = write_report(Store(tmp_path)).paths
    assert str(tmp_path / "report" / "cost.svg") in paths
    assert "| san10_pairwise | resnet26 | evaluate | float32 | 1 | 32 | 5 |" in (tmp_path / "report" / "cost.md").read_text()


def test_what_a_benchmark_ran_is_recorded(tmp_path, monkeypatch, no_peak):
    """Each dtype, eager and compiled, is a record and a line of its own, and none takes another's place."""
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
    report = (tmp_path / "report" / "cost.md").read_text()
    assert "| evaluate | bfloat16 | 1 | 33 |" in report and "| evaluate | float32, compiled | 1 | 33 |" in report


def test_info_tells_what_runs():
    text = sanbench("info").stdout
    for words in (torch.__version__.split("+")[0], cpu.kernel(), "tiled", "threads", "allocator", "keeps freed memory"):
        assert words in text
