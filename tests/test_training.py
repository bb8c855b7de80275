"""Recipes, the training loop, runs and checkpoints."""

import json
import math
import pickle
import shutil

import pytest
import torch

import sanbench
from sanbench.data import load_dataset
from sanbench.errors import InputError, SanbenchError
from sanbench.models import MODELS
from sanbench.models.checkpoints import load_model, read_checkpoint, save_checkpoint, weights_hash, write_whole
from sanbench.models.resnet import Bottleneck
from sanbench.models.san import Block
from sanbench.runs.config import RECIPES, Recipe, configure
from sanbench.runs.evaluated import load_evaluated
from sanbench.runs.run import Run, free_name
from sanbench.training.augment import BatchSlice, augment
from sanbench.training.distributed import SINGLE
from sanbench.training.loop import train
from sanbench.training.state import TrainState

CPU = torch.device("cpu")


def test_the_papers_recipe():
    recipe = RECIPES["paper"]
    assert (recipe.epochs, recipe.batch_size, recipe.lr, recipe.momentum) == (100, 256, 0.1, 0.9)
    assert (recipe.weight_decay, recipe.label_smoothing, recipe.optimizer) == (1e-4, 0.1, "sgd")
    for epoch in (0, 1, 50, 99):
        rates = {recipe.learning_rate(epoch, step, 10) for step in range(10)}
        assert sorted(rates) == pytest.approx([0.05 * (1 + math.cos(math.pi * epoch / 100))])


def test_warm_up_rises_to_the_base_rate_and_steps_fall_to_zero():
    recipe = Recipe(epochs=3, batch_size=1, lr=0.4, warmup_epochs=1, cosine_steps=True)
    rates = [recipe.learning_rate(epoch, step, 4) for epoch in range(3) for step in range(4)]
    assert rates[:4] == pytest.approx([0.1, 0.2, 0.3, 0.4])
    assert rates[4] == pytest.approx(0.4)
    assert rates[4:] == sorted(rates[4:], reverse=True)
    assert 0 < rates[-1] < 0.02


@pytest.mark.parametrize("name", MODELS)
def test_with_zero_init_every_block_begins_as_the_identity(name):
    def branches(changes):
        """For each block, whether what it returns on noise is what it was given, for a ResNet behind its shortcut and ReLU."""
        found = []

        def look(block, inputs, output):
            x = inputs[0]
            if isinstance(block, Bottleneck):
                x = (x if block.downsample is None else block.downsample(x)).relu()
            found.append(torch.equal(x, output))

        model = TrainState.build(configure(name, changes={"width": 0.25, **changes}), CPU, SINGLE).model.eval()
        for module in model.modules():
            if isinstance(module, (Block, Bottleneck)):
                module.register_forward_hook(look)
        with torch.no_grad():
            model(torch.rand(2, 3, 32, 32))
        return found

    blocks = sum(MODELS[name].config.blocks)
    assert branches({"zero_init": True}) == [True] * blocks
    assert branches({}) == [False] * blocks


def test_a_run_holds_what_it_says(san_run, folder):
    config = san_run.config()
    assert config.model.label == "san10_pairwise width=0.5"
    assert config.model.num_classes == 3
    lines = san_run.epochs()
    assert [line["epoch"] for line in lines] == [1, 2]
    assert all(math.isfinite(line["loss"]) and 0 <= line["validation_top1"] <= 1 for line in lines)
    last, best = (read_checkpoint(san_run.folder / f"{name}.pt") for name in ("last", "best"))
    assert last["epoch"] == 2
    top1 = [line["validation_top1"] for line in lines]
    assert best["epoch"] == 1 + top1.index(max(top1))
    assert last["classes"] == ["bag", "sneaker", "trouser"]
    assert best["selection"] == "best epoch ON THE REPORTED IMAGES"  # the folder has no test/ of its own
    assert san_run.is_finished()
    assert sorted(path.name for path in san_run.folder.iterdir()) == ["best.pt", "config.json", "last.pt", "metrics.jsonl"]


def test_training_learns_and_the_same_seed_repeats_it(folder, resnet_run, tmp_path):
    first = resnet_run.epochs()
    longer = {"epochs": 10, "batch_size": 8, "lr": 0.001, "optimizer": "adamw", "width": 0.5}
    learnt = train(configure("resnet26", f"folder:{folder}", changes=longer, image_size=32), tmp_path / "longer", CPU).epochs()
    assert max(line["validation_top1"] for line in learnt) >= 0.7  # of three classes
    again = train(resnet_run.config(), tmp_path / "again", CPU)
    assert [line["loss"] for line in again.epochs()] == [line["loss"] for line in first]
    hashes = {weights_hash(load_model(run.folder / "last.pt").state_dict()) for run in (resnet_run, again)}
    assert len(hashes) == 1
    other = train(resnet_run.config().model_copy(update={"seed": 1}), tmp_path / "other", CPU)
    assert other.epochs()[0]["loss"] != first[0]["loss"]


def test_a_checkpoint_alone_rebuilds_its_network(san_run):
    model = sanbench.load_model(san_run.folder / "last.pt")
    assert model.spec == san_run.config().model
    assert not model.training
    assert model(torch.rand(1, 3, 32, 32)).shape == (1, 3)


def test_a_run_is_not_trained_over(resnet_run):
    before = (resnet_run.folder / "last.pt").read_bytes()
    with pytest.raises(InputError, match="there already"):
        train(resnet_run.config(), resnet_run.folder, CPU)
    assert (resnet_run.folder / "last.pt").read_bytes() == before
    assert free_name(resnet_run.folder.parent, "resnet26") == "resnet26-2"
    assert free_name(resnet_run.folder.parent, "other") == "other"


def test_a_loss_that_is_not_finite_stops_the_run(folder, tmp_path):
    changes = {"lr": 1e30, "epochs": 3, "warmup_epochs": 0, "width": 0.25}
    config = configure("resnet26", f"folder:{folder}", changes=changes, image_size=32)
    with pytest.raises(SanbenchError, match=r"not finite at epoch \d, step"):
        train(config, tmp_path / "run", CPU)
    assert not Run(tmp_path / "run").is_finished()


def test_augmentation_mirrors_and_shifts_within_the_padding():
    images = load_dataset("fashion10k", "train").read(range(64))
    place = BatchSlice(seed=1, epoch=0, step=0, images=range(64), total=64)
    plain = augment(images, place, 0)
    upright, mirrored = images.float() / 255, images.flip(3).float() / 255
    is_upright = (plain == upright).flatten(1).all(1)
    assert (is_upright | (plain == mirrored).flatten(1).all(1)).all()
    assert 16 < is_upright.sum() < 48
    cropped = augment(images, place, 2)
    assert cropped.shape == images.shape
    padded = torch.nn.functional.pad(torch.where(is_upright.view(-1, 1, 1, 1), upright, mirrored), (2, 2, 2, 2))
    windows = [padded[:, :, y : y + 32, x : x + 32] for y in range(5) for x in range(5)]
    flipped = [
        torch.nn.functional.pad(upright, (2, 2, 2, 2))[:, :, y : y + 32, x : x + 32].flip(3) for y in range(5) for x in range(5)
    ]
    matches = torch.stack([(cropped == window).flatten(1).all(1) for window in windows + flipped])
    assert matches.any(0).all()
    assert len(matches.float().argmax(0).unique()) > 5
    parts = [augment(images[i : i + 16], place._replace(images=range(i, i + 16)), 2) for i in range(0, 64, 16)]
    assert torch.equal(cropped, torch.cat(parts))  # whoever computes an image, it is cropped alike


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"footprnt": "5"}, "Did you mean 'footprint'"),
        ({"lr": "fast"}, "lr=fast"),
        ({"epochs": 0}, "epochs=0"),
        ({"select": "worst"}, "select=worst"),
        ({"relation": "star"}, "'star'"),
    ],
)
def test_wrong_settings_are_named(changes, named):
    with pytest.raises(InputError, match=named):
        configure("san10", changes=changes)


def test_settings_reach_recipe_and_network():
    config = configure("san10", changes={"attention": "patchwise", "footprint": "5", "epochs": "3", "lr": "0.2"}, seed=4)
    assert (config.model.label, config.recipe.epochs, config.recipe.lr, config.seed) == (
        "san10_patchwise footprint=5",
        3,
        0.2,
        4,
    )
    assert configure("san10", "imagenet").recipe == RECIPES["paper"]


def damaged(path, content):
    path.write_bytes(content)
    return path


def test_checkpoints_that_cannot_be_used_are_named(san_run, tmp_path):
    whole = (san_run.folder / "last.pt").read_bytes()
    with pytest.raises(InputError, match="no checkpoint"):
        load_model(tmp_path / "missing.pt")
    for name, content in (
        ("cut", whole[: len(whole) // 2]),
        ("empty", b""),
        ("text", b"not weights"),
        ("picture", b"\x89PNG\r\n"),
    ):
        with pytest.raises(SanbenchError, match=rf"{name}\.pt is (not a readable checkpoint|damaged)"):
            load_model(damaged(tmp_path / f"{name}.pt", content))
    torch.save({"state_dict": {}, "epoch": 3}, tmp_path / "other.pt")
    with pytest.raises(SanbenchError, match=r"another program or version \('keys epoch, state_dict'\)"):
        load_model(tmp_path / "other.pt")
    content = read_checkpoint(san_run.folder / "last.pt")
    write_whole(tmp_path / "wide.pt", {**content, "model": {**content["model"], "variation": {}}})
    with pytest.raises(SanbenchError, match="does not hold the weights of a san10_pairwise"):
        load_model(tmp_path / "wide.pt")


def test_nothing_is_unpickled_but_plain_values(tmp_path):
    class Trap:
        def __reduce__(self):
            return (open, (str(tmp_path / "sprung"), "w"))

    (tmp_path / "trap.pt").write_bytes(pickle.dumps(Trap()))
    torch.save({"format": Trap()}, tmp_path / "zip.pt")
    for name in ("trap.pt", "zip.pt"):
        with pytest.raises(SanbenchError):
            load_model(tmp_path / name)
    assert not (tmp_path / "sprung").exists()


def test_a_checkpoint_is_written_whole_or_not_at_all(san_run, tmp_path, monkeypatch):
    path = shutil.copy(san_run.folder / "last.pt", tmp_path / "last.pt")
    before = path.read_bytes()

    def full_disk(content, file):
        file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full_disk)
    with pytest.raises(SanbenchError, match=r"last\.pt: No space left on device\. What was there before is whole"):
        save_checkpoint(path, sanbench.build_model("resnet26", 3))
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_evaluated_models_are_runs_files_or_every_finished_run(runs, tmp_path):
    assert [evaluated.run for evaluated in load_evaluated([], runs)] == ["resnet26", "san10"]
    by_name, by_file = load_evaluated(["san10", str(runs / "san10" / "best.pt")], runs)
    assert by_name.weights == by_file.weights
    assert by_name.training["seed"] == 0
    network = by_name.network
    assert (network.name, network.variation, network.weights) == ("san10_pairwise", {"width": 0.5}, by_name.weights)
    assert network.num_classes == 3
    with pytest.raises(InputError, match="Did you mean 'san10'"):
        load_evaluated(["san1O"], runs)
    unfinished = shutil.copytree(runs / "san10", tmp_path / "san10")
    lines = (unfinished / "metrics.jsonl").read_text().splitlines()
    (unfinished / "metrics.jsonl").write_text(json.dumps(json.loads(lines[0])) + "\n")
    with pytest.raises(InputError, match="no finished run"):
        load_evaluated([], tmp_path)
