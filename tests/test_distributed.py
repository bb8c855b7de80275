"""Processes that train together: gloo on this machine, started by torch's elastic launcher."""

import socket
import subprocess
import sys

import pytest
import torch

from sanbench.errors import InputError
from sanbench.models.checkpoints import read_checkpoint
from sanbench.runs.run import Run
from sanbench.training.distributed import ProcessGroup
from sanbench.training.loop import SINGLE
from sanbench.training.state import TrainState
from tests.support import processes
from tests.support.commands import sanbench
from tests.support.narrow_networks import narrow
from tests.support.one_training_step import MODELS, learnt
from tests.support.processes import SANBENCH, started

ENVIRONMENT = processes.ENVIRONMENT | {"OMP_NUM_THREADS": "1"}  # two processes are not to fight for one machine


def training(model, folder, root, name, *more):
    """One step on all 48 images: further on, rounding grows in a network that is not trained yet."""
    command = ["train", model, "--data", f"folder:{folder}", "--image-size", "32", "--epochs", "1", "--lr", "0.001"]
    command += ["--batch-size", "48", "--set", "sync_bn=true", "--set", "warmup_epochs=0", "--runs", str(root), "--run", name]
    return [*command, *(f"--set={field}={value}" for field, value in narrow(model, width=0.5).items()), *more]


def ran(command):
    return subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=300)


def weights(root, name):
    return read_checkpoint(root / name / "last.pt")["state_dict"]


def assert_alike(one, other, tolerance, least):
    assert one.keys() == other.keys()
    for name, values in one.items():
        distance, norm = (values.double() - other[name].double()).norm(), values.double().norm()
        assert distance <= tolerance * norm + least, (name, float(distance), float(norm))


def parted(root, one, other):
    """How far apart two runs' weights and averages ended, as a share of how far `one` came from its fresh weights."""
    ended = weights(root, one)
    fresh = TrainState.build(Run(root / one).config(), torch.device("cpu"), SINGLE).model.state_dict()

    def distance(values):
        pairs = [(values[name].double(), value.double()) for name, value in ended.items() if value.is_floating_point()]
        return torch.cat([(a - b).flatten() for a, b in pairs]).norm()

    return float(distance(weights(root, other)) / distance(fresh))


@pytest.fixture(scope="module")
def steps(tmp_path_factory):
    """What one step taught each network: by one process, by two, and by two of which each normalises by its own images."""
    path = tmp_path_factory.mktemp("steps") / "learnt"
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    step = ran([sys.executable, *torchrun, "-m", "tests.support.one_training_step", str(path)])
    assert step.returncode == 0, step.stderr
    torch.set_default_dtype(torch.float64)
    try:
        one = learnt(SINGLE, torch.device("cpu"), True)
    finally:
        torch.set_default_dtype(torch.float32)
    return dict(zip(("one", "two", "apart"), (one, *torch.load(path)), strict=True))


@pytest.mark.parametrize("model", MODELS)
def test_two_processes_learn_what_one_learns(model, steps):
    """In float64, where rounding hides nothing: loss, weights and running averages after a step. Seen: 3e-10."""
    assert_alike(steps["one"][model], steps["two"][model], 1e-8, 1e-11)
    with pytest.raises(AssertionError):  # this test can fail: each process by its own moments is another network
        assert_alike(steps["one"][model], steps["apart"][model], 5e-3, 1e-6)


PLAIN = ["--set", "optimizer=sgd", "--set", "weight_decay=0.0001", "--lr", "0.001"]


@pytest.mark.parametrize("model", ["san10_pairwise", *(pytest.param(name, marks=pytest.mark.slow) for name in MODELS[1:])])
def test_nproc_trains_one_network_and_speaks_once(model, folder, tmp_path):
    """The command, in float32. Seen: 2e-4 of what was learnt, and 0.12 or more where each process has its own moments."""
    alone = sanbench(*training(model, folder, tmp_path, "one", *PLAIN))
    assert alone.exit_code == 0, alone.output
    both = ran([*SANBENCH, *training(model, folder, tmp_path, "two", *PLAIN, "--nproc", "2")])
    assert both.returncode == 0, both.stderr
    one, two = (Run(tmp_path / name).epochs()[0] for name in ("one", "two"))
    assert two["loss"] == pytest.approx(one["loss"], rel=1e-3)
    assert one["validation_images"] == two["validation_images"] == 18  # each once
    assert len(both.stdout.splitlines()) == len(alone.stdout.splitlines())  # one process speaks
    assert parted(tmp_path, "one", "two") < 1e-3


def test_two_nodes_train_as_one(folder, tmp_path):
    """torchrun's lines of docs/slurm.md, with two agents of one process each."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--nproc-per-node", "1", "--rdzv-id", "7"]
    torchrun += ["--rdzv-backend", "c10d", "--rdzv-endpoint", f"127.0.0.1:{port}", "-m", "--", "sanbench_cli"]
    command = [*torchrun, *training("resnet26", folder, tmp_path, "nodes", "--resume", "auto")]
    with started(command, env=ENVIRONMENT) as first, started(command, env=ENVIRONMENT) as second:
        outputs = [node.communicate(timeout=300) for node in (first, second)]
    assert [first.returncode, second.returncode] == [0, 0], outputs
    assert sum("Next:" in stdout for stdout, _ in outputs) == 1
    one = sanbench(*training("resnet26", folder, tmp_path, "one"))
    assert one.exit_code == 0, one.output
    assert parted(tmp_path, "one", "nodes") < 0.03  # where a gradient is rounding alone, AdamW's step goes either way


def test_a_batch_that_does_not_divide_names_the_numbers_that_do():
    with pytest.raises(InputError, match=r"batch of 10 images .* 4 processes x 1 .* one of 1, 2, 5, 10\."):
        ProcessGroup(0, 4).check(10, 1)
    ProcessGroup(0, 4).check(256, 2)


@pytest.mark.parametrize(("size", "parts"), [(1, 1), (2, 1), (3, 2), (8, 4)])
def test_every_image_of_a_batch_is_someones_once(size, parts):
    for count in (48, 50, 97):
        places = [image for rank in range(size) for part in ProcessGroup(rank, size).share(count, parts) for image in part]
        assert places == list(range(count))
