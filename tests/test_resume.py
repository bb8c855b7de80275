"""Interrupted runs go on as if there had been no interruption: the same weights, bit for bit."""

import os
import random
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch

from sanbench.errors import InputError, Interrupted, SanbenchError
from sanbench.models.checkpoints import read_checkpoint, weights_hash
from sanbench.runs.config import configure, reconfigure
from sanbench.runs.run import Run, differences, find_unfinished
from sanbench.training.loop import train
from tests.support.processes import ENVIRONMENT, SANBENCH, started

CPU = torch.device("cpu")
STEPS = 6  # an epoch


@pytest.fixture(scope="module")
def config(folder):
    """Three epochs of six steps, with all that has a state: momentum, EMA, warm-up, mixing."""
    changes = {"epochs": 3, "batch_size": 8, "width": 0.25, "footprint": 3, "ema": 0.9, "mixup": 0.2, "cutmix": 1.0, "clip": 5}
    changes |= {"randaugment": 5, "decay_norms": False, "warmup_epochs": 1, "cosine_steps": True, "lr": 0.01}
    return configure("san10", f"folder:{folder}", changes=changes, image_size=32, workers=0)


def weights(run):
    return {name: weights_hash(read_checkpoint(run.folder / name)["state_dict"]) for name in ("last.pt", "best.pt")}


@pytest.fixture(scope="module")
def straight(config, tmp_path_factory):
    return train(config, tmp_path_factory.mktemp("straight") / "run", CPU)


def logged(run):
    """What was logged, without times."""
    timed = {"seconds", "images_per_second", "data_wait", "memory_mib"}
    return [{name: value for name, value in line.items() if name not in timed} for line in run.lines() if "started" not in line]


class Kill(BaseException):
    """Nothing in the library catches it: what is on the disk is what a kill leaves."""


MOMENTS = [(1, True), (STEPS, True), (2 * STEPS + 3, True), (4, False), (STEPS + 1, False)]
AS_WELL = [(4, True), (STEPS + 1, True), (1, False), (STEPS, False), (2 * STEPS + 3, False)]


@pytest.mark.parametrize(("moment", "saved"), [*MOMENTS, *(pytest.param(*each, marks=pytest.mark.slow) for each in AS_WELL)])
def test_a_kill_changes_nothing(config, straight, tmp_path, monkeypatch, moment, saved):
    """After `moment` steps, with a checkpoint after each step (saved) or at epochs' ends only."""
    from sanbench.training.state import TrainState

    often = config.model_copy(update={"save_minutes": 1e-9 if saved else 30})
    learn, done = TrainState.train_step, []

    def killed(self, *arguments):
        if len(done) == moment:
            raise Kill
        done.append(self.step)
        return learn(self, *arguments)

    monkeypatch.setattr(TrainState, "train_step", killed)
    with pytest.raises(Kill):
        train(often, tmp_path / "run", CPU)
    monkeypatch.undo()
    repeated = []
    monkeypatch.setattr(TrainState, "train_step", lambda self, *rest: (repeated.append(self.step), learn(self, *rest))[1])
    run = train(often, tmp_path / "run", CPU, resume=True)
    assert len(repeated) == 3 * STEPS - (moment if saved else moment // STEPS * STEPS)
    assert weights(run) == weights(straight)
    assert logged(run) == logged(straight)
    assert sorted(path.name for path in run.folder.iterdir()) == ["best.pt", "config.json", "last.pt", "metrics.jsonl"]


@pytest.mark.parametrize("write", [2, 3, pytest.param(5, marks=pytest.mark.slow)])
def test_a_kill_during_a_write_leaves_the_checkpoint_before(config, straight, tmp_path, write):
    """last.pt, best.pt and resume.pt are written at each epoch's end: the process dies in the `write`-th of them."""
    code = f"""
import os, torch
from pathlib import Path
from sanbench.runs.config import TrainConfig
from sanbench.training.loop import train
save, count = torch.save, []
def dies(content, file):
    count.append(1)
    if len(count) == {write}:
        file.write(b"half a checkpoint"); file.flush()
        os.kill(os.getpid(), 9)
    save(content, file)
torch.save = dies
train(TrainConfig.model_validate_json(Path("config.json").read_text()), Path("run"), torch.device("cpu"))
"""
    (tmp_path / "config.json").write_text(config.model_dump_json())
    assert subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=ENVIRONMENT).returncode == -signal.SIGKILL
    run = train(config, tmp_path / "run", CPU, resume=True)
    assert weights(run) == weights(straight)
    assert not list(run.folder.glob(".*"))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_a_signal_saves_and_ends_with_75(config, straight, tmp_path, number):
    (tmp_path / "runs").mkdir()

    def interrupt(now):
        if now.done == STEPS + 6:
            os.kill(os.getpid(), number)

    with pytest.raises(Interrupted, match=rf"{number.name} stopped .*go on with --resume run") as caught:
        train(config, tmp_path / "runs" / "run", CPU, interrupt)
    assert caught.value.exit_code == 75
    assert Run(tmp_path / "runs" / "run").state() == "interrupted"
    found = find_unfinished(tmp_path / "runs", config)
    assert found is not None
    assert weights(train(config, found.folder, CPU, resume=True)) == weights(straight)
    assert found.state() == "finished"
    assert find_unfinished(tmp_path / "runs", config) is None


def test_a_resume_with_other_settings_works_or_refuses_by_name(config, straight):
    assert differences(straight, reconfigure(config, workers=2, accumulate=2)) == [
        "accumulate 1 -> 2",
        "workers 0 -> 2",
    ]
    for changes, name in (({"lr": 0.5}, "lr"), ({"width": 1.0}, "width"), ({"batch_size": 4}, "batch_size")):
        with pytest.raises(InputError, match=rf"has {name} \S+ and cannot go on with"):
            differences(straight, reconfigure(config, changes=changes))
    with pytest.raises(InputError, match="has seed 0 and cannot go on with 3"):
        differences(straight, reconfigure(config, seed=3))


def test_two_processes_do_not_train_one_run(config, straight):
    code = f"""
from pathlib import Path
from sanbench.runs.run import Run
with Run(Path({str(straight.folder)!r})).locked():
    print("locked", flush=True)
    input()
"""
    with started([sys.executable, "-c", code]) as other:
        assert other.stdout.readline() == "locked\n"
        with pytest.raises(SanbenchError, match="Another process trains"):
            train(config, straight.folder, CPU, resume=True)
        other.communicate("\n")


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_twenty_kills_at_random_moments_lose_nothing(config, straight, folder, tmp_path):
    """SIGKILL; each time the same command goes on. A checkpoint after every step, so that writes are hit too."""
    settings = [f"{name}={value}" for name, value in {**config.recipe.model_dump(), **config.model.variation}.items()]
    command = [*SANBENCH, "train", "san10", "--data", f"folder:{folder}", "--image-size", "32"]
    for setting in settings:
        command += ["--set", setting]
    command += ["--run", "soak", "--resume", "auto", "--save-minutes", "0.000001", "--runs", str(tmp_path)]
    generator, run, kills = random.Random(0), Run(tmp_path / "soak"), 0
    while kills < 20:
        with started(command, stdout=subprocess.DEVNULL) as process:
            began = len([line for line in run.lines() if "started" in line])
            while process.poll() is None and len([line for line in run.lines() if "started" in line]) == began:
                time.sleep(0.02)
            time.sleep(generator.uniform(0, 1.5))
            process.kill()
            stderr = process.communicate()[1]
        assert process.returncode in (0, -signal.SIGKILL), stderr
        if process.returncode == 0:  # it was faster: begin again, and go on killing
            assert weights(run) == weights(straight)
            shutil.rmtree(run.folder)
        else:
            kills += 1
    subprocess.run(command, check=True, env=ENVIRONMENT, capture_output=True)
    assert weights(run) == weights(straight)
