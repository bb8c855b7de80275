"""Trainings that are told to end, at any moment and more than once, and processes whose parent or fellow is killed."""

import os
import re
import signal
import subprocess
import time
from pathlib import Path

import pytest
import torch

from sanbench.runs.run import Run
from sanbench.training.distributed import LOST
from tests.support import processes
from tests.support.processes import SANBENCH, is_alive, started

ENVIRONMENT = processes.ENVIRONMENT | {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
INSTALLED = 0.3  # seconds until Python runs and signals are heeded, on a machine that is busy


@pytest.fixture
def command(folder, tmp_path):
    command = [*SANBENCH, "train", "resnet26", "--data", f"folder:{folder}", "--image-size", "32", "--epochs", "100000"]
    command += ["--batch-size", "8", "--set", "width=0.125", "--workers", "0", "--runs", str(tmp_path), "--run", "run"]
    return [*command, "--resume", "auto"]


def begun(run, process):
    """Wait until a step is logged."""
    deadline = time.monotonic() + 120
    while not (run.folder / "metrics.jsonl").is_file() or not any("loss" in line for line in run.lines()):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)


def ended(process):
    _, stderr = process.communicate(timeout=120)
    return process.returncode, stderr.splitlines()


@pytest.mark.parametrize("after", [0, *(pytest.param(after, marks=pytest.mark.slow) for after in (0.3, 0.7, 2.2)), 1.2])
def test_a_signal_before_anything_is_trained_ends_with_75(command, tmp_path, after):
    with started(command, env=ENVIRONMENT) as process:
        time.sleep(INSTALLED + after)
        process.send_signal(signal.SIGTERM)
        code, lines = ended(process)
    assert code == 75, lines
    assert len(lines) == 1 and lines[0].startswith("Error: SIGTERM "), lines


def starts(run):
    return [line for line in run.lines() if "started" in line]


@pytest.mark.parametrize("nproc", [pytest.param("1", marks=pytest.mark.slow), "2"])
def test_a_second_signal_changes_nothing_and_one_process_goes_on(command, tmp_path, nproc):
    """The second and third come while the state is saved and the interpreter ends."""
    run = Run(tmp_path / "run")
    with started([*command, "--nproc", nproc], env=ENVIRONMENT, stdout=subprocess.DEVNULL) as process:
        begun(run, process)
        process.send_signal(signal.SIGTERM)
        while process.poll() is None:
            time.sleep(0.1)
            process.send_signal(signal.SIGTERM)
        code, lines = ended(process)
    assert code == 75, lines
    assert len(lines) == 1 and "SIGTERM stopped the run" in lines[0], lines
    assert run.resume.is_file() and run.state() == "interrupted"
    assert not list(run.folder.glob(".*"))
    with started(command, env=ENVIRONMENT) as process:
        assert ("processes 2 -> 1" in process.stdout.readline()) == (nproc == "2")
        while len(starts(run)) == 1:  # before that nobody waits for signals
            assert process.poll() is None
            time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        code, lines = ended(process)
    assert code == 75, lines
    assert [line["processes"] for line in starts(run)] == [int(nproc), 1]


def ranks_of(parent):
    """The processes that `parent` started."""
    return [int(word) for word in Path(f"/proc/{parent}/task/{parent}/children").read_text().split()]


def test_ranks_end_with_a_launcher_that_is_killed(command, tmp_path):
    with started([*command, "--nproc", "2"], env=ENVIRONMENT, stdout=subprocess.DEVNULL) as process:
        begun(Run(tmp_path / "run"), process)
        ranks = ranks_of(process.pid)
        assert len(ranks) == 2
        process.kill()
        killed = time.monotonic()
        while any(map(is_alive, ranks)):
            assert time.monotonic() - killed < 2
            time.sleep(0.01)


@pytest.mark.parametrize("rank", [pytest.param(0, marks=pytest.mark.slow), 1])
def test_a_process_that_is_killed_is_one_sentence(command, tmp_path, rank):
    with started([*command, "--nproc", "2"], env=ENVIRONMENT, stdout=subprocess.DEVNULL) as process:
        begun(Run(tmp_path / "run"), process)
        os.kill(ranks_of(process.pid)[rank], signal.SIGKILL)
        code, lines = ended(process)
    assert code == 1
    (line,) = lines
    assert line.startswith(f"Error: Process {rank} of 2 was ended by SIGKILL") and "--resume" in line


def test_under_torchrun_the_other_process_says_one_sentence(command, tmp_path):
    """That the other is lost; or that all is saved, if torchrun's signal comes while it validates, which it does alone."""
    torchrun = [SANBENCH[0], "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "--", "sanbench_cli"]
    environment = ENVIRONMENT | {"LOGLEVEL": "CRITICAL"}
    with started([*torchrun, *command[3:]], env=environment, stdout=subprocess.DEVNULL) as process:
        run = Run(tmp_path / "run")
        begun(run, process)
        os.kill(ranks_of(process.pid)[1], signal.SIGKILL)
        code, lines = ended(process)
    assert code != 0
    errors = [line for line in lines if line.startswith("Error: ")]
    assert len(errors) <= 1, lines
    for line in errors:
        if saved := re.search(r"SIGTERM stopped the run after (\d+) steps of epoch (\d+), and all is saved", line):
            found = torch.load(run.resume)
            assert [found["step"], found["epoch"] + 1] == [int(number) for number in saved.groups()]
        else:
            assert "Another process of the training has ended" in line


@pytest.mark.parametrize(
    "message", ["[/gloo/transport/tcp/pair.cc:534] Connection closed by peer [127.0.0.1]:1", "NCCL error", "Broken pipe"]
)
def test_messages_of_lost_processes_are_known(message):
    assert LOST.search(message)
    assert not LOST.search("The size of tensor a (3) must match the size of tensor b (4)")
