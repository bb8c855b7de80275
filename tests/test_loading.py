"""Processes that read images: how many, for how long, and what is said of a dead one."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress

import pytest
import torch

from sanbench.data import Loader, ReadOptions, dead_workers_named, default_workers, load_dataset
from sanbench.data.loading import available_cpus
from sanbench.errors import SanbenchError, UnreadableImage
from sanbench.runs.config import configure
from sanbench.runs.run import Run
from tests.support.processes import ENVIRONMENT, is_alive, started


@pytest.fixture
def images(folder):
    return load_dataset(f"folder:{folder}", "train", ReadOptions(image_size=32))


def test_workers_stay_for_the_next_epoch(images):
    loader = Loader(images, workers=2)
    pids = []
    for _ in range(2):
        read = list(loader.read([[0, 1], [2]]))
        assert [batch.indices.tolist() for batch in read] == [[0, 1], [2]]
        assert all(batch.images.dtype == torch.uint8 for batch in read)
        pids.append(sorted(worker.pid for worker in loader.loader._iterator._workers))
    assert pids[0] == pids[1]
    assert os.getpid() not in pids[0]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_to_all_processes_leaves_those_that_read(images, number):
    """A terminal's Ctrl-C, a launcher's and Slurm's warning reach children too."""
    loader = Loader(images, workers=1)
    stream = loader.read([[n] for n in range(40)])
    next(stream)
    os.kill(loader.loader._iterator._workers[0].pid, number)
    assert len(list(stream)) == 39


def test_a_program_that_still_holds_a_loader_ends(folder):
    code = f"""
from sanbench.data import Loader, ReadOptions, load_dataset
loader = Loader(load_dataset("folder:{folder}", "train", ReadOptions(image_size=32)), workers=1)
next(loader.read([[0], [1]]))
import gc; gc.disable(); loader.itself = loader  # as a traceback may hold it
raise SystemExit(3)
"""
    with started([sys.executable, "-c", code]) as process:
        assert process.wait(timeout=30) == 3  # torch alone would wait for its process 5 s, then for ever


@pytest.fixture
def heeds_ctrl_c():
    """A shell's background processes ignore it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_a_started_process_that_fails_while_it_reads_ends(folder):
    """multiprocessing would wait for the processes that read, which wait for work."""
    program = f"""
import multiprocessing
from sanbench.data import Loader, ReadOptions, load_dataset

def fail():
    images = load_dataset("folder:{folder}", "train", ReadOptions(image_size=32))
    loader = Loader(images, workers=1)
    stream = loader.read([[0], [1], [2]])
    next(stream)
    kept.append((loader, stream))
    raise SystemExit(3)

kept = []
process = multiprocessing.get_context("fork").Process(target=fail)
process.start()
process.join()
print(process.exitcode)
"""
    with started([sys.executable, "-c", program]) as process:
        assert process.communicate(timeout=60)[0] == "3\n"


def test_ctrl_c_while_processes_start_is_not_lost(images, heeds_ctrl_c):
    """Python prints and forgets what is raised in the hooks of a fork: here the signal comes in such a hook."""
    armed = [True]
    os.register_at_fork(after_in_parent=lambda: armed and armed.pop() and signal.raise_signal(signal.SIGINT))
    with pytest.raises(KeyboardInterrupt):
        next(Loader(images, workers=1).read([[0], [1]]))
    assert not armed


def test_an_epoch_that_was_left_is_forgotten(images):
    loader = Loader(images, workers=2)
    next(loader.read([[n] for n in range(20)]))
    assert [batch.indices.tolist() for batch in loader.read([[30], [31, 32]])] == [[30], [31, 32]]


def test_a_killed_worker_is_said_to_be_one(images):
    """As the system kills a process for want of memory."""
    loader = Loader(images, workers=1)
    stream = loader.read([[n % len(images)] for n in range(2000)])
    next(stream)
    worker = loader.loader._iterator._workers[0]
    said = pytest.raises(SanbenchError, match=r"process that decodes images died.*memory.*--workers.*(Killed|exited)")
    with said, dead_workers_named():  # as around every command's work: torch may speak of it outside the loader
        os.kill(worker.pid, signal.SIGKILL)
        for _ in stream:
            pass
    loader.close()
    torch.utils.data._utils.signal_handling._error_if_any_worker_fails()  # torch speaks of it once


KILLED_EARLY = """
import os, signal, sys, time
from pathlib import Path
from sanbench.data import Loader, load_dataset, loading
begin, parent = loading.begin, os.getpid()
def late(worker):
    Path(sys.argv[1]).write_text(str(os.getpid()))
    os.kill(parent, signal.SIGKILL)
    while os.getppid() == parent:
        time.sleep(0.01)
    begin(worker)
loading.begin = late
next(Loader(load_dataset("fashion10k", "test"), workers=1).read([[0]]))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="/proc tells who is alive")
def test_a_worker_whose_parent_is_killed_before_it_begins_ends(tmp_path):
    """torch compares its parent with that which it has when it begins."""
    subprocess.run([sys.executable, "-c", KILLED_EARLY, tmp_path / "pid"], env=ENVIRONMENT, check=False)
    worker, deadline = int((tmp_path / "pid").read_text()), time.monotonic() + 10
    while is_alive(worker) and time.monotonic() < deadline:
        time.sleep(0.05)
    stayed = is_alive(worker)
    with suppress(ProcessLookupError):  # a test that fails leaves none behind
        os.kill(worker, signal.SIGKILL)
    assert not stayed


def test_a_worker_may_be_killed_while_it_hands_over_a_batch(images, monkeypatch):
    loader = Loader(images, workers=1)
    stream = loader.read([[n] for n in range(9)])
    next(stream)
    iterator = loader.loader._iterator

    def cut_off(_):
        with suppress(RuntimeError):  # by torch, if the signal comes first
            os.kill(iterator._workers[0].pid, signal.SIGKILL)
            iterator._workers[0].join()
        raise EOFError

    monkeypatch.setattr(type(iterator), "_next_data", cut_off)
    with (
        pytest.raises(SanbenchError, match=r"process that decodes images died.*exited while it handed over"),
        dead_workers_named(),
    ):
        next(stream)
    torch.utils.data._utils.signal_handling._error_if_any_worker_fails()


def test_the_end_of_a_file_is_no_dead_worker(images, monkeypatch):
    loader = Loader(images, workers=1)
    stream = loader.read([[0], [1]])
    next(stream)

    def cut_off(_):
        raise EOFError

    monkeypatch.setattr(type(loader.loader._iterator), "_next_data", cut_off)
    with pytest.raises(EOFError):
        next(stream)


def test_other_runtime_errors_pass(images, monkeypatch):
    monkeypatch.setattr(type(images), "read", lambda self, draws: torch.zeros(1) @ torch.zeros(2))
    with pytest.raises(RuntimeError, match="size"):
        list(Loader(images, workers=0).read([[0]]))


@pytest.mark.parametrize("workers", [0, 1])
def test_a_batch_without_any_readable_image_is_one_sentence(images, workers, tmp_path, folder):
    import shutil

    copy = shutil.copytree(folder, tmp_path / "copy")
    (copy / "val" / "bag" / "00.png").write_bytes(b"")
    broken = load_dataset(f"folder:{copy}", "test", ReadOptions(image_size=32))
    for skip in (False, True):
        with pytest.raises(UnreadableImage, match=r"^\S+00\.png is not a readable image: [^\n]*$"):
            list(Loader(broken, workers, skip).read([[0]]))


def test_default_workers(images, monkeypatch):
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    for cpus, processes, expected in ((8, None, 8), (64, None, 16), (64, 8, 8), (2, 8, 1)):
        monkeypatch.setattr("sanbench.data.loading.available_cpus", lambda cpus=cpus: cpus)
        assert default_workers(images, processes) == expected
    assert default_workers(load_dataset("fashion10k", "test")) == 0
    monkeypatch.setattr("sanbench.data.loading.available_cpus", lambda: 8)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert default_workers(images) == 2


def test_cpus_are_those_that_the_process_may_use(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(6)), raising=False)
    assert available_cpus(tmp_path) == 6
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/cgroup").write_text("0::/jobs/mine\n")
    group = tmp_path / "sys/fs/cgroup/jobs"
    (group / "mine").mkdir(parents=True)
    (group / "mine/cpu.max").write_text("max 100000\n")
    assert available_cpus(tmp_path) == 6
    (group / "cpu.max").write_text("350000 100000\n")  # 3.5 CPUs for all jobs
    assert available_cpus(tmp_path) == 4
    (group / "mine/cpu.max").write_text("50000 100000\n")
    assert available_cpus(tmp_path) == 1


def test_a_forked_process_does_not_hold_the_lock_of_a_run(tmp_path, folder):
    run = Run(tmp_path / "run")
    run.create(configure("resnet26", f"folder:{folder}"))
    context = multiprocessing.get_context("fork")
    ready, end = context.Event(), context.Event()
    with run.locked():
        process = context.Process(target=lambda: ready.set() or end.wait(30), daemon=True)
        process.start()
        assert ready.wait(30)
        assert run.state() == "running"
    try:
        assert process.is_alive()
        with run.locked():
            pass
    finally:
        end.set()
        process.join()
