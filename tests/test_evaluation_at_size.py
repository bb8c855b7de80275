"""Evaluation of many large images: who makes corruptions, what is waited for, short memory, flat memory, what it would take."""

import gc
import sys
import weakref
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import pandas as pd
import pytest
import torch
from torch import nn

from sanbench import device
from sanbench.bench.attacks import time_attacks
from sanbench.bench.photographs import make_imagenet
from sanbench.bench.pipeline import CASES, STUB, Stub, load, time_pipeline
from sanbench.bench.protocol import (
    BUDGETS,
    Steadfast,
    all_passes,
    own_predictions,
    read_sample,
    time_protocol,
    withstanding_seconds,
)
from sanbench.data import Batch, Changed, Images, ReadOptions, Request, load_dataset
from sanbench.device import keep_memory, resident_memory, trim_heap
from sanbench.errors import SanbenchError
from sanbench.evaluation import evaluate as evaluation
from sanbench.evaluation import loop, parts
from sanbench.evaluation.attacks import attack as attack_module
from sanbench.evaluation.attacks.attack import Attack
from sanbench.evaluation.attacks.options import bind
from sanbench.evaluation.attacks.table import ATTACKS, parse_attacks
from sanbench.evaluation.corruptions import parse_corruptions
from sanbench.evaluation.loop import Identity, Interruptible, measure
from sanbench.evaluation.parts import EvaluationOptions
from sanbench.evaluation.rotations import Rotation
from sanbench.store.files import Store
from tests.support.quick_measurements import measured

CPU = torch.device("cpu")


@pytest.mark.parametrize("options", [{"workers": 1}, {"workers": 2}, {}, pytest.param({"nproc": 2}, marks=pytest.mark.slow)])
def test_who_corrupts_decides_nothing(options, evaluated, images, tmp_path, monkeypatch):
    monkeypatch.setattr(evaluation, "PART", 5)
    settings = [Identity(), *parse_corruptions("gaussian-noise,fog", "1,5", 0), Rotation(90)]
    here, there = Store(tmp_path / "here"), Store(tmp_path / "there")
    one = measured(evaluated, images, here, settings, workers=0)
    two = measured(evaluated, images, there, settings, **options)
    for a, b in zip(one, two, strict=True):
        assert a.key == b.key
        pd.testing.assert_frame_equal(here.rows(a), there.rows(b), rtol=1e-4)
        assert b.waited is not None and 0 <= b.waited < 60


def test_processes_that_read_corrupt_in_memory_images_too(evaluated, tmp_path):
    small = load_dataset("fashion10k", "test")
    job = parts.Job(evaluated, small, [], {}, Store(tmp_path), EvaluationOptions())
    assert parts.readers(job) == 0
    (fog,) = parse_corruptions("fog", "1", 0)
    corrupting = parts.Job(evaluated, small, [parts.Condition(None, fog)], {}, Store(tmp_path), EvaluationOptions())
    assert parts.readers(corrupting) > 0


def test_images_are_decoded_once_for_all_changes(images):
    read: list[int] = []

    class Counted(Images):
        labels, border = images.labels, 0

        def read(self, draws):
            read.extend(draws)
            return images.read(draws)

    changed = Changed(Counted(), {"dark": lambda pixels, indices: pixels // 2})
    upright, dark, other = (
        changed.__getitems__(request) for request in (Request(None, [0, 1]), Request("dark", [0, 1]), Request("dark", [2]))
    )
    assert read == [0, 1, 2]
    assert torch.equal(dark.images, upright.images // 2)
    assert other.indices.tolist() == [2]


def test_what_a_round_held_is_let_go_without_the_collector(evaluated, images, monkeypatch):
    """An attack's pool, and through what is told of it the part's images, are in circles of references."""
    held = list[weakref.ref[Interruptible]]()

    class Watched(Interruptible):
        def __init__(self, *values):
            super().__init__(*values)
            held.append(weakref.ref(self))

    monkeypatch.setattr(attack_module, "Interruptible", Watched)
    batch = images.__getitems__(list(range(8)))
    gc.collect()
    gc.disable()
    try:
        for name in ("pgd", "apgd", "square"):
            ((_, config),) = parse_attacks(name, "8/255", 2)
            Attack(name, evaluated.model, config)(batch.images / 255, batch.labels, batch.indices)
            assert held.pop()() is None, name
    finally:
        gc.enable()


class Narrow(nn.Module):
    """A network on a device that has memory for `room` images."""

    def __init__(self, model: nn.Module, room: int) -> None:
        super().__init__()
        self.model, self.room, self.seen = model, room, list[int]()

    def forward(self, images):
        if len(images) > self.room:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")
        self.seen.append(len(images))
        return self.model(images)


def test_short_memory_halves_the_batch_and_changes_no_row(evaluated, images):
    batch = images.__getitems__(list(range(len(images))))
    steps = parse_attacks("pgd", "8/255", 3)
    found, told = {}, []
    for room in (3, 100):
        narrow = Narrow(evaluated.model, room)
        settings = [Identity(), *bind(narrow, steps), Rotation(90)]
        (outcome,) = measure(narrow, [(batch, settings)], CPU, 16, told.append)
        found[room] = [pd.DataFrame(scored.rows) for scored in outcome]
        assert max(narrow.seen) <= room
    for short, wide in zip(found[3], found[100], strict=True):
        pd.testing.assert_frame_equal(short, wide, rtol=1e-4, atol=1e-6)
    assert [sentence.rsplit(" ", 4)[1] for sentence in told] == ["8", "4", "2"]  # from there on 2


@pytest.mark.parametrize("border", [0, 3])
def test_a_network_on_a_cpu_is_shown_so_many_pixels(border, monkeypatch):
    monkeypatch.setattr(loop, "AT_ONCE", 5 * 40 * 60)
    torch.manual_seed(0)
    network = nn.Sequential(nn.AvgPool2d(4), nn.Flatten(), nn.Linear(450, 6))
    height, width = (side + 2 * border for side in (40, 60))
    batch = Batch(torch.rand(12, 3, height, width), torch.arange(12) % 6, torch.arange(12), border=border)
    narrow = Narrow(network, 5)
    settings = [Identity(), *bind(narrow, parse_attacks("pgd", "8/255", 3))]
    (outcome,) = measure(narrow, [(batch, settings)], CPU, 64)
    assert max(narrow.seen) == 5
    few = Narrow(network, 100)
    ((upright, _),) = measure(few, [(batch, settings)], CPU, 2)
    assert max(few.seen) == 2
    pd.testing.assert_frame_equal(pd.DataFrame(outcome[0].rows), pd.DataFrame(upright.rows), rtol=1e-4, atol=1e-6)


def test_what_changes_each_image_alone_is_given_as_many_as_the_network_sees(evaluated, images):
    batch, given, shares = images.__getitems__(list(range(len(images)))), list[int](), list[float]()

    class Counted(Identity):
        def __call__(self, images, labels, indices):
            given.append(len(images))
            return super().__call__(images, labels, indices)

    class Together(Counted):
        whole = True

    outcomes = {}
    for kind in (Counted, Together):
        setting = kind().with_options(watch=lambda seen: shares.append(seen.share))
        ((scored,),) = measure(evaluated.model, [(batch, [setting])], CPU, 4)
        assert len(scored.perturbed.images) == 0
        outcomes[kind] = pd.DataFrame(scored.rows)
    pd.testing.assert_frame_equal(outcomes[Counted], outcomes[Together])
    fours = [min(4, len(images) - start) for start in range(0, len(images), 4)]
    assert given == [*fours, len(images)] and len(fours) > 2
    assert shares == [*(sum(fours[: n + 1]) / len(images) for n in range(len(fours))), 1.0]


def test_memory_for_not_even_one_image_is_a_sentence(evaluated, images):
    batch = images.__getitems__([0, 1, 2])
    with pytest.raises(SanbenchError, match="One image at a time is too much for the memory of cpu"):
        list(measure(Narrow(evaluated.model, 0), [(batch, [Identity()])], CPU, 16))


def test_other_errors_of_a_network_are_not_taken_for_short_memory(evaluated, images):
    class Broken(nn.Module):
        def forward(self, images):
            raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    with pytest.raises(RuntimeError, match="mat1"):
        list(measure(Broken(), [(images.__getitems__([0]), [Identity()])], CPU))


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    root = tmp_path_factory.mktemp("made")
    make_imagenet(root, 12)
    return root


def test_a_made_set_has_the_names_of_imagenet(made):
    files = sorted(path.relative_to(made).as_posix() for path in made.rglob("*.JPEG"))
    assert files[0] == "val/n01440764/ILSVRC2012_val_00000001.JPEG"
    assert len(files) == 12
    images = load_dataset(f"folder:{made}", "test", ReadOptions())
    batch = images.__getitems__([0, 5])
    assert batch.images.shape == (2, 3, 224, 224)
    assert not torch.equal(batch.images[0], batch.images[1])


def test_a_network_that_never_falls_spends_every_pass():
    network, label = Steadfast(5), torch.tensor([4])
    config = parse_attacks("apgd", "4/255", 20)[0][1]
    columns = Attack("apgd", network, config)(torch.full((1, 3, 32, 32), 0.5), label, torch.tensor([0])).columns
    assert not columns["prediction_8bit"].ne(4).any()
    assert int(columns["backward_passes"]) == 21  # of the start and of each step
    few, many = all_passes(5), all_passes(12)
    assert many["backward_passes"] > few["backward_passes"] > 100  # four targets, then nine
    assert few["forward_passes"] > 5000  # square's queries


def test_the_protocol_says_what_each_command_would_take(evaluated):
    lines, benchmark = time_protocol(evaluated, 1000, 0.5, 4, CPU)
    seconds = {line.command: line.seconds for line in lines}
    assert [line.images for line in lines] == [1000] * 5
    assert [line.conditions for line in lines] == [1, 4, 20, 75, 4]
    assert all(value > 0 for value in seconds.values())
    assert benchmark.kind == "protocol"
    assert seconds["corrupt"] > 5 * seconds["accuracy"]
    assert benchmark.seconds == seconds


def test_what_an_attack_costs_is_told(san_run, runs):
    (one,) = time_attacks(str(san_run.checkpoint), runs, ["fgsm"], "4/255", 3, 2, CPU)
    assert one.seconds["attack"] > 0 and one.figures["peak"] > 1e8
    assert one.figures["backward_passes"] == 3  # its own predictions are right: each image is attacked


def test_the_time_of_a_pass_is_that_of_what_was_measured():
    figures = {"upright": 1.0, **{f"pgd {eps}": 10.0 for eps in BUDGETS.split(",")}}
    rows = pd.DataFrame({"forward_passes": [6, 6], "backward_passes": [2, 2]})  # 20 s: a backward pass takes 2 s
    every = all_passes(10)
    cost = withstanding_seconds(figures, dict.fromkeys(BUDGETS.split(","), rows), 10)
    assert cost == pytest.approx(every["forward_passes"] + 2 * every["backward_passes"])


def test_standard_is_timed_on_what_falls_to_it():
    lines, benchmark = time_protocol(load(STUB, Path()), 1000, 1, 8, CPU)
    assert lines[-1].command == "attack --attack standard --eps 4/255" and lines[-1].images == 100
    assert benchmark.figures["falling to standard"] > 0  # nothing stands in the way of pgd at 4/255
    assert benchmark.figures["standard"] >= benchmark.figures["falling to standard"]


@pytest.mark.slow
@pytest.mark.parametrize("name", ATTACKS)
def test_each_attack_works_on_photographs_of_a_thousand_classes(name):
    evaluated = load(STUB, Path())
    batch, _ = read_sample(224, 8)
    batch = batch._replace(labels=own_predictions(evaluated.model, batch, CPU))
    config = parse_attacks(name, "4/255" if "linf" in ATTACKS[name].norms else "2")[0][1]
    ((scored,),) = measure(evaluated.model, [(batch, [Attack(name, evaluated.model, config)])], CPU, 8)
    assert batch.images.shape == (8, 3, 224, 224)
    assert scored.rows["success"].any() and scored.rows["finite"].all()
    fell = scored.rows["success"]
    made = scored.perturbed.images
    with torch.no_grad():
        assert (evaluated.model(made).argmax(1) != batch.labels)[torch.from_numpy(fell)].all()
    away = (made.double() - batch.images.double() / 255).flatten(1)
    norm, eps = config.norm, float(config.eps)
    assert (away.abs().amax(1) if norm == "linf" else away.norm(dim=1)).max() <= eps + 1e-6
    wrong = scored.rows["prediction_8bit"][fell] != batch.labels.numpy()[fell]
    assert wrong.all() or not ATTACKS[name].bounded  # the nearest example lies on the boundary, and rounding may take it back
    assert wrong.any()


def test_the_stub_is_right_about_colours_it_was_fitted_to():
    colours = torch.rand(50, 3, generator=torch.Generator().manual_seed(0))
    stub = Stub(50)
    stub.fit(colours)
    noise = 1e-3 * torch.randn(50, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    assert stub(colours[:, :, None, None] + noise).argmax(1).tolist() == list(range(50))


def test_the_heap_is_trimmed_when_it_has_grown(evaluated, images, monkeypatch):
    """By more than a twentieth over what was resident after the first part, and after the first since the last trim."""
    resident = [1000, 1049, 1051, 1200, 1259, 1261, 900, 944, 946]
    trimmed, told = list[int](), iter(resident)
    monkeypatch.setattr(device, "resident_memory", lambda: next(told))
    monkeypatch.setattr(device, "trim_heap", lambda: trimmed.append(1))
    batch = images.__getitems__(list(range(len(images))))
    before = [len(trimmed) for _ in measure(evaluated.model, [(batch, [Identity()])] * len(resident), CPU)]
    assert [*before, len(trimmed)] == [0, 0, 0, 1, 1, 1, 2, 2, 2, 3]


def spread_and_trimmed() -> tuple[int, int, int]:
    """Resident bytes when 400 MB were written, freed below what stays, and trimmed."""
    assert keep_memory()
    blocks = [torch.ones(4_000_000) for _ in range(25)]
    found = [resident_memory()]
    del blocks[:-1]
    found.append(resident_memory())
    trim_heap()
    return found[0], found[1], resident_memory()


@pytest.mark.skipif(sys.platform != "linux", reason="mallopt and malloc_trim are glibc's")
def test_a_trimmed_heap_is_given_back():
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        full, kept, trimmed = pool.submit(spread_and_trimmed).result()
    assert kept > full - 5e7
    assert trimmed < full - 3.5e8


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_memory_is_flat(tmp_path):
    """At the end of 50,000 images within 5% of that of the first 5,000. After 1,000 the heap has not settled yet."""
    make_imagenet(tmp_path / "made", 50_000)
    for one in time_pipeline("stub", tmp_path, tmp_path / "made", 50_000, [2], CPU):
        early, late = one.figures["resident_early"], one.figures["resident_late"]
        print(f"{one.setting['case']}: {early / 2**20:.0f} -> {late / 2**20:.0f} MiB")
        assert late < 1.05 * early


@pytest.mark.slow
def test_the_pipeline_tells_speed_waiting_and_memory(tmp_path):
    make_imagenet(tmp_path / "made", 1000)
    found = list(time_pipeline("stub", tmp_path, tmp_path / "made", 6, [1], CPU))
    assert [one.setting["case"] for one in found] == list(CASES)
    for one in found:
        assert 0 < one.figures["waiting"] < 1
        assert one.figures["images_per_second"] > 0
        assert one.figures["resident_late"] > 1e8
