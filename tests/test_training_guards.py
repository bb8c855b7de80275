"""What stops a run, what it says, and what a run tells about itself."""

import json
import shutil

import pytest
import torch

from sanbench.errors import InputError, SanbenchError
from sanbench.runs.config import configure
from sanbench.runs.run import Run
from sanbench.training import guards, plan
from sanbench.training.loop import train
from tests.support.commands import sanbench

CPU = torch.device("cpu")
CHANGES = {"epochs": 2, "batch_size": 8, "lr": 0.01, "width": 0.25}


@pytest.fixture
def broken(folder, tmp_path):
    """A training and a validation image that are cut off."""
    copy = shutil.copytree(folder, tmp_path / "copy")
    for name in ("train/bag/03.png", "val/sneaker/02.png"):
        path = copy / name
        path.write_bytes(path.read_bytes()[:60])
    return copy


@pytest.mark.parametrize("workers", [0, 2])
def test_a_broken_image_stops_the_run_and_is_named(broken, tmp_path, workers):
    config = configure("resnet26", f"folder:{broken}", changes=CHANGES, image_size=32, workers=workers)
    with pytest.raises(SanbenchError, match=r"03\.png is not a readable image") as caught:
        train(config, tmp_path / "run", CPU)
    assert "\n" not in str(caught.value)


def test_skipped_images_are_counted_and_few(broken, tmp_path, monkeypatch):
    config = configure("resnet26", f"folder:{broken}", changes=CHANGES, image_size=32, skip_bad_images=True)
    with pytest.raises(SanbenchError, match=r"1 of 48 images cannot be read .* up to 0\.1%"):
        train(config, tmp_path / "few", CPU)
    monkeypatch.setattr(guards, "MAY_SKIP", 0.05)
    lines = train(config, tmp_path / "run", CPU).epochs()
    assert [line["skipped_images"] for line in lines] == [1, 1]
    assert [line["validation_images"] for line in lines] == [17, 17]


def test_a_loss_that_is_not_finite_names_its_batch_and_the_last_good_checkpoint(folder, tmp_path, monkeypatch):
    from sanbench.training.state import TrainState

    learn = TrainState.train_step

    def poisoned(self, parts, *rest):
        if (self.epoch, self.step) == (1, 2):
            parts = [part._replace(pixels=part.pixels * torch.nan) for part in parts]
            seen.extend(parts[0].indices.tolist())
        return learn(self, parts, *rest)

    seen = []
    monkeypatch.setattr(TrainState, "train_step", poisoned)
    config = configure("resnet26", f"folder:{folder}", changes=CHANGES, image_size=32, workers=0)
    with pytest.raises(SanbenchError, match=r"not finite at epoch 2, step 3: .*last good checkpoint is .*resume\.pt") as caught:
        train(config, tmp_path / "run", CPU)
    files = sorted((folder / "train").glob("*/*.png"))
    assert len(seen) == 8
    assert all(str(files[index]) in str(caught.value) for index in seen)
    monkeypatch.undo()
    run = train(config, tmp_path / "run", CPU, resume=True)  # from the checkpoint it named
    assert run.is_finished()


def test_a_full_disk_leaves_the_checkpoint_before(folder, tmp_path, monkeypatch):
    save, count = torch.save, []

    def full(content, file):
        count.append(1)
        if len(count) > 3:
            file.write(b"half")
            raise OSError(28, "No space left on device")
        save(content, file)

    monkeypatch.setattr(torch, "save", full)
    config = configure("resnet26", f"folder:{folder}", changes=CHANGES, image_size=32, workers=0)
    with pytest.raises(SanbenchError, match=r"No space left on device\. What was there before is whole"):
        train(config, tmp_path / "run", CPU)
    monkeypatch.undo()
    assert train(config, tmp_path / "run", CPU, resume=True).is_finished()


def test_runs_and_a_dry_run(folder, tmp_path):
    data = ["--data", f"folder:{folder}", "--image-size", "32", "--set", "width=0.5", "--epochs", "2", "--batch-size", "8"]
    command = ["train", "san10", *data, "--runs", str(tmp_path / "runs")]
    planned = sanbench(*command, "--dry-run")
    assert planned.exit_code == 0, planned.output
    assert "48 images, 6 steps an epoch, 12 in all" in planned.stdout
    assert json.loads(planned.stdout[: planned.stdout.rindex("}") + 1])["recipe"]["epochs"] == 2
    assert not (tmp_path / "runs").exists()
    trained = sanbench(*command, "--run", "mine")
    assert trained.exit_code == 0, trained.output
    assert "epoch 1 of 2 training loss" in trained.stdout
    steps = [line for line in Run(tmp_path / "runs" / "mine").lines() if "data_wait" in line and "step" in line]
    assert [(line["epoch"], line["step"]) for line in steps] == [(1, 6), (2, 6)]
    listed = sanbench("runs", "--runs", str(tmp_path / "runs"))
    assert "finished" in listed.stdout
    assert "2 of 2" in listed.stdout


def test_a_batch_beyond_the_memory_is_refused_before_anything_is_written(folder, tmp_path, monkeypatch):
    changes = {"batch_size": 64, "width": 0.25}
    config = configure("resnet26", f"folder:{folder}", changes=changes, image_size=64, workers=0)
    monkeypatch.setattr(plan, "total_memory", lambda device: 2**22)
    with pytest.raises(InputError, match="batch_size 64 is not accepted: a step of 48 images at once takes at least"):
        train(config, tmp_path / "new", torch.device("cpu"))
    assert not (tmp_path / "new").exists()
