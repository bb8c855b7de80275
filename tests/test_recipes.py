"""What each knob of a recipe does to a step, against the obvious computation in float64."""

import copy
import gzip
import json
import os
import signal

import pytest
import torch
import torch.nn.functional as F

from sanbench.data import Batch, load_dataset
from sanbench.errors import InputError, Interrupted
from sanbench.models.checkpoints import read_checkpoint, weights_hash
from sanbench.runs.config import Recipe, configure
from sanbench.runs.run import Run
from sanbench.training import loop
from sanbench.training.augment import BatchSlice, TrainBatch, prepare
from sanbench.training.interruption import Interruption
from sanbench.training.loop import train
from sanbench.training.profile import PARTS
from sanbench.training.state import TrainState, uncompiled
from tests.support.narrow_networks import narrow
from tests.support.unsettled_weights import unsettle

CPU = torch.device("cpu")
IMAGES = load_dataset("fashion10k", "train")


@pytest.fixture
def doubles():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def building(model="resnet26", precision="auto", **changes):
    """A network before its first step; plain SGD without momentum, decay and smoothing but for the `changes`."""
    plain = {"optimizer": "sgd", "momentum": 0, "weight_decay": 0, "label_smoothing": 0, "lr": 0.1}
    config = configure(model, changes={**plain, **narrow(model), **changes}, precision=precision)
    return TrainState.build(config, CPU, loop.SINGLE)


def part(images, dtype=None):
    pixels = IMAGES.read(list(images)).to(dtype or torch.get_default_dtype()) / 255
    labels = IMAGES.labels[list(images)]
    return TrainBatch(pixels, labels, labels, torch.tensor(list(images)), 0)


def gradients(model, parts):
    """Of the mean loss over all parts, each part normalised by itself."""
    count = sum(len(ready.labels) for ready in parts)
    for ready in parts:
        (F.cross_entropy(model.train()(ready.pixels), ready.labels, reduction="sum") / count).backward()
    return {name: parameter.grad for name, parameter in model.named_parameters()}


def assert_steps_by(before, training, expected, rate, tolerance=1e-9):
    """weights = before - rate * expected."""
    for name, parameter in training.model.named_parameters():
        step = before[name] - rate * expected[name]
        assert (parameter - step).norm() <= tolerance * (1 + step.norm()), name


@pytest.mark.parametrize("model", ["resnet26", "san10_pairwise"])
def test_accumulated_parts_are_one_step(doubles, model):
    training = building(model)
    unsettle(training.model)
    plain, before = copy.deepcopy(training.model), copy.deepcopy(training.model.state_dict())
    parts = [part(range(4)), part(range(4, 10))]
    training.train_step(parts, 10, 0.1)
    assert_steps_by(before, training, gradients(plain, parts), 0.1)
    assert training.totals[2] == 10


def test_clip_bounds_the_norm_of_all_gradients_together(doubles):
    training = building(clip=0.01)
    plain, before = copy.deepcopy(training.model), copy.deepcopy(training.model.state_dict())
    training.train_step([part(range(6))], 6, 0.1)
    found = gradients(plain, [part(range(6))])
    norm = sum(gradient.square().sum() for gradient in found.values()).sqrt()
    assert norm > 0.1
    assert_steps_by(before, training, {name: gradient * (0.01 / norm) for name, gradient in found.items()}, 0.1, 1e-7)


def test_the_average_of_weights_is_the_formulas(doubles):
    training = building(ema=0.8)
    average = copy.deepcopy(training.model.state_dict())
    for step in range(3):
        training.train_step([part(range(6 * step, 6 * step + 6))], 6, 0.1)
        now = copy.deepcopy(training.model.state_dict())  # the first of an average is the first there is
        average = {name: now[name] if step == 0 else 0.8 * average[name] + 0.2 * now[name] for name in now}
    for name, values in training.averaged.state_dict().items():
        assert torch.allclose(values.double(), average[name].double(), atol=1e-12) or not values.is_floating_point(), name


def test_norms_and_biases_are_not_decayed_where_the_recipe_says_so(doubles):
    for decays in (True, False):
        training = building(weight_decay=0.5, decay_norms=decays)
        plain, before = copy.deepcopy(training.model), copy.deepcopy(training.model.state_dict())
        training.train_step([part(range(6))], 6, 0.1)
        found = gradients(plain, [part(range(6))])
        decayed = {name: 0.5 * before[name] if decays or before[name].dim() > 1 else 0 for name in found}
        assert_steps_by(before, training, {name: found[name] + decayed[name] for name in found}, 0.1)


@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.AdamW])
def test_an_optimiser_steps_alike_without_the_compiler(optimizer):
    """Also after its state was saved and loaded; test_startup blocks the compiler."""
    found = []
    for kind in (optimizer, uncompiled(optimizer)):
        torch.manual_seed(0)
        layer = torch.nn.Linear(5, 3)
        stepping = kind(layer.parameters(), 0.1, weight_decay=0.05, fused=True)
        for _ in range(3):
            stepping.zero_grad(set_to_none=True)
            layer(torch.ones(2, 5)).square().sum().backward()
            stepping.step()
            stepping.load_state_dict(copy.deepcopy(stepping.state_dict()))
        found.append(torch.cat([parameter.flatten() for parameter in layer.parameters()]))
        assert isinstance(stepping, optimizer) and type(stepping).__name__ == optimizer.__name__
    assert torch.equal(*found)


@pytest.mark.parametrize("mixing", [{"mixup": 0.4}, {"cutmix": 1.0}, {"mixup": 0.4, "cutmix": 1.0}])
def test_targets_are_mixed_as_the_images_are(mixing):
    """Images of one grey each, class k of grey 20 k: the mean of a mixed image is the mean of its targets."""
    labels = torch.arange(10).repeat(2)
    images = (20 * labels).to(torch.uint8)[:, None, None, None].expand(-1, 3, 32, 32)
    recipe = Recipe(epochs=1, batch_size=20, lr=0.1, **mixing)
    mixed = 0
    for step in range(8):
        place = BatchSlice(0, 0, step, range(20), 20)
        ready = prepare(Batch(images, labels, torch.arange(20)), place, 0, recipe, 10, CPU)
        greys = ready.targets @ (20 * torch.arange(10.0)) / 255
        assert torch.allclose(ready.pixels.mean((1, 2, 3)), greys, atol=1e-5)
        assert torch.allclose(ready.targets.sum(1), torch.ones(20))
        mixed += int((ready.targets.max(1).values < 0.999).sum())
    assert mixed > 20


def test_randaugment_changes_each_image_by_its_own_draw_within_the_box():
    recipe = Recipe(epochs=1, batch_size=16, lr=0.1, randaugment=15)
    batch = Batch(IMAGES.read([3] * 16), IMAGES.labels[[3] * 16], torch.full((16,), 3))
    place = BatchSlice(0, 0, 0, range(16), 16)
    ready = prepare(batch, place, 0, recipe, 10, CPU)
    assert ready.pixels.min() >= 0 and ready.pixels.max() <= 1
    assert len({pixels.numpy().tobytes() for pixels in ready.pixels}) > 8
    assert torch.equal(ready.pixels, prepare(batch, place, 0, recipe, 10, CPU).pixels)


REDUCED = [(model, "bf16", 3) for model in ("resnet26", "san10_pairwise", "san10_patchwise")]
REDUCED += [(model, "fp16", 16) for model in ("resnet26", "san10_pairwise")]  # the scale falls until nothing overflows


@pytest.mark.parametrize(
    ("model", "precision", "steps"), [*REDUCED, pytest.param("san10_patchwise", "fp16", 16, marks=pytest.mark.slow)]
)
def test_reduced_precision_learns_nearly_the_same(model, precision, steps):
    """Weights and statistics stay float32; the loss is that of float32 up to the narrow type's rounding."""
    losses = {}
    for name in ("fp32", precision):
        training = building(model, name, lr=0.01, width=0.25)  # fp16 is slow on a CPU
        losses[name] = [float(training.train_step([part(range(16))], 16, 0.01)) / 16 for _ in range(steps)]
        assert {p.dtype for p in training.model.state_dict().values()} <= {torch.float32, torch.int64}
        assert all(parameter.isfinite().all() for parameter in training.model.parameters())  # what overflows is not learnt
        assert losses[name][-1] < losses[name][0]
    assert losses[precision][0] != losses["fp32"][0]
    same = slice(0, steps if precision == "bf16" else 1)
    assert losses[precision][same] == pytest.approx(losses["fp32"][same], rel=0.05)


def trained(folder, place, **options):
    changes = {"epochs": 2, "batch_size": 8, "lr": 0.01, **narrow("san10")}
    config = configure("san10", f"folder:{folder}", changes=changes, image_size=32, **options)
    return config, place / "run"


def test_tensorboard_holds_what_was_logged(folder, tmp_path):
    event_accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    run = train(*trained(folder, tmp_path, tensorboard=True), CPU)
    events = event_accumulator.EventAccumulator(str(run.folder / "tensorboard")).Reload()
    top1 = [(event.step, event.value) for event in events.Scalars("epoch/validation_top1")]
    assert top1 == [(6 * line["epoch"], pytest.approx(line["validation_top1"])) for line in run.epochs()]
    assert len(events.Scalars("step/loss")) == 2


def test_a_profile_tells_where_the_time_goes_and_leaves_a_trace(folder, tmp_path):
    run = train(*trained(folder, tmp_path), CPU, profile=2)
    shares = run.profile()
    assert [*shares] == [*PARTS, "rest"]
    assert sum(shares.values()) == pytest.approx(1)
    assert all(0 < share < 1 for share in shares.values())
    assert shares["backward"] > shares["data"]
    with gzip.open(run.trace) as file:
        names = [event.get("name") for event in json.load(file)["traceEvents"] if event.get("cat") == "user_annotation"]
    assert [names.count(part) for part in ("data", "forward", "backward")] == [2, 2, 2]
    straight = train(trained(folder, tmp_path)[0], tmp_path / "straight", CPU)
    assert straight.profile() is None
    hashes = {weights_hash(read_checkpoint(path / "last.pt")["state_dict"]) for path in (run.folder, straight.folder)}
    assert len(hashes) == 1  # looking changes nothing


def test_a_signal_during_validation_repeats_it_from_its_start(folder, tmp_path, monkeypatch):
    config, place = trained(folder, tmp_path)
    measure = loop.measure

    def interrupted(*arguments):
        for outcome in measure(*arguments):
            os.kill(os.getpid(), signal.SIGTERM)
            yield outcome

    monkeypatch.setattr(loop, "measure", interrupted)
    with pytest.raises(Interrupted, match="SIGTERM stopped the run after 6 steps of epoch 1"):
        train(config, place, CPU)
    monkeypatch.undo()
    assert Run(place).epochs() == []
    resumed, straight = train(config, place, CPU, resume=True), train(config, tmp_path / "straight", CPU)
    hashes = {weights_hash(read_checkpoint(run.folder / "last.pt")["state_dict"]) for run in (resumed, straight)}
    assert len(hashes) == 1
    assert [line["validation_top1"] for line in resumed.epochs()] == [line["validation_top1"] for line in straight.epochs()]


def test_a_second_ctrl_c_leaves_at_once():
    with Interruption() as asked:
        os.kill(os.getpid(), signal.SIGINT)
        assert asked.signal == signal.SIGINT
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    with Interruption() as asked:  # a scheduler that says it twice is not impatient
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)
    assert asked.signal == signal.SIGTERM


def test_a_run_left_at_once_goes_on_from_its_last_checkpoint(folder, tmp_path):
    config, place = trained(folder, tmp_path)

    def impatient(now):
        if now.done == 12:
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        train(config, place, CPU, impatient)
    assert Run(place).state() == "interrupted"
    assert train(config, place, CPU, resume=True).is_finished()


@pytest.mark.slow
@pytest.mark.parametrize("model", ["san10_pairwise", "san10_patchwise", "resnet26"])
def test_a_compiled_network_learns_the_same(doubles, model):
    """In float64: in float32 the third step of a fresh patchwise network differs by 2%, as rounding alone makes it differ."""
    losses = {}
    for compiled in (False, True):
        config = configure(model, changes={"lr": 0.001, **narrow(model)}, compile=compiled)
        training = TrainState.build(config, CPU, loop.SINGLE)
        losses[compiled] = [float(training.train_step([part(range(16))], 16, 0.001)) for _ in range(3)]
    assert losses[True] == pytest.approx(losses[False], rel=1e-6)


def test_tensorboard_is_named_where_it_is_missing(folder, tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    config, place = trained(folder, tmp_path, tensorboard=True)
    with pytest.raises(InputError, match="tensorboard is missing"):
        train(config, place, CPU)
    assert not place.exists()
