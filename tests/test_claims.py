"""Claims: one owner a piece of work, told dead when it is; many processes measure into one store and none is lost."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pandas as pd
import pytest
import torch

from sanbench.evaluation import evaluate as evaluation
from sanbench.store import claims as module
from sanbench.store.claims import Claims, this_process
from sanbench.store.files import Store
from tests.support.commands import sanbench
from tests.support.processes import ENVIRONMENT, ROOT


def test_a_claim_has_one_owner(tmp_path):
    with Claims(tmp_path) as first, Claims(tmp_path) as second:
        assert first.take(["a", "b"]) == ["a", "b"]
        assert second.take(["b", "c"]) == ["c"]
        assert first.living("c") == [second.owner]
        first.release(["b"])
        assert second.take(["a", "b"]) == ["b"]
    assert not list((tmp_path / "claims").iterdir()) and not list((tmp_path / "owners").iterdir())


def test_threads_never_share_a_claim(tmp_path):
    def taken(_):
        with Claims(tmp_path) as own:
            found = own.take([str(n) for n in range(20)])
            time.sleep(0.2)
            return found

    with ThreadPoolExecutor(4) as pool:
        found = [name for names in pool.map(taken, range(4)) for name in names]
    assert sorted(found) == sorted({*found})


CLAIMING = """
import sys, time
from pathlib import Path
from sanbench.store.claims import Claims
claims = Claims(Path(sys.argv[1])).__enter__()
print(claims.take(["work"]), flush=True)
(Path(sys.argv[1]) / "partial" / f"{claims.owner.rsplit('-', 1)[0]}-half.parquet").touch()
print("ready", flush=True)
time.sleep(60)
"""


def test_the_work_of_a_killed_process_is_free_at_once_and_its_leftovers_go(tmp_path):
    with subprocess.Popen([sys.executable, "-c", CLAIMING, str(tmp_path)], stdout=subprocess.PIPE, env=ENVIRONMENT) as other:
        assert [other.stdout.readline(), other.stdout.readline()] == [b"['work']\n", b"ready\n"]
        (tmp_path / "partial" / f"{this_process()}-mine.parquet").touch()
        with Claims(tmp_path) as own:
            assert own.take(["work"]) == []
            assert len(list((tmp_path / "partial").iterdir())) == 2
            other.kill()
            other.wait()
            assert own.take(["work"]) == ["work"]
            own.clean()
            assert [path.name for path in (tmp_path / "partial").iterdir()] == [f"{this_process()}-mine.parquet"]


def test_an_owner_on_another_machine_is_dead_when_its_heartbeat_stops(tmp_path, monkeypatch):
    with Claims(tmp_path) as own:
        other = "elsewhere-1-2-0"
        (tmp_path / "claims" / "work").write_text(json.dumps(other))
        (tmp_path / "owners" / other).touch()
        assert own.take(["work"]) == []
        past = time.time() - module.STALE - 1
        os.utime(tmp_path / "owners" / other, (past, past))
        assert own.take(["work"]) == ["work"]


def test_a_number_that_was_used_again_is_another_process(tmp_path):
    with Claims(tmp_path) as own:
        machine, pid, _ = this_process().split("-")
        other = f"{machine}-{pid}-12345-0"
        (tmp_path / "claims" / "work").write_text(json.dumps(other))
        (tmp_path / "owners" / other).touch()
        assert own.take(["work"]) == ["work"]


COMMANDS = (
    ("accuracy",),
    ("rotate", "--angles", "90,30"),
    ("rotate", "--angles", "90,180"),
    ("corrupt", "--kinds", "fog,jpeg"),
)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("seed", range(20))
def test_four_processes_two_of_them_killed_leave_the_rows_of_one(seed, runs, alone, tmp_path):
    killed_at_random(seed, runs, alone, tmp_path)


def test_four_processes_two_of_them_killed_leave_the_rows_of_one_once(runs, alone, tmp_path):
    killed_at_random(100, runs, alone, tmp_path)


IN_SMALL_PARTS = "import sys; from sanbench.evaluation import evaluate; evaluate.PART = 3; from sanbench_cli.main import app\n"
SINGLE_THREAD = ENVIRONMENT | {"OMP_NUM_THREADS": "1", "COLUMNS": "200"}


@pytest.fixture(scope="module")
def alone(runs, tmp_path_factory) -> Store:
    """What one process measures by the same commands, on one thread as those."""
    folder, threads = tmp_path_factory.mktemp("alone"), torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(evaluation, "PART", 3)
            for words in COMMANDS:
                outcome = sanbench(*words, "san10", "--runs", runs, "--results", folder)
                assert outcome.exit_code == 0, outcome.output
    finally:
        torch.set_num_threads(threads)
    return Store(folder)


def killed_at_random(seed: int, runs: Path, one: Store, folder: Path) -> None:
    """Overlapping work for four processes; two are killed at random and their commands repeated."""
    draw = random.Random(seed)

    def started(words):
        command = [sys.executable, "-c", IN_SMALL_PARTS + "app()", *words, "san10", "--runs", str(runs)]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        return subprocess.Popen([*command, "--results", str(folder)], env=SINGLE_THREAD, cwd=ROOT, **pipes)

    processes = [started(words) for words in COMMANDS]
    try:
        for victim in draw.sample(range(4), 2):
            time.sleep(draw.uniform(0.5, 4))
            processes[victim].send_signal(signal.SIGKILL)
            processes[victim].wait()
            processes.append(started(COMMANDS[victim]))
        for process in processes:
            output, error = process.communicate(timeout=300)
            assert process.returncode in (0, -signal.SIGKILL), error
            assert process.returncode != 0 or not error, error
            assert "Error" not in output
    finally:
        for process in processes:
            process.kill()
    many = Store(folder)
    found, wanted = ({record.key: record for record in store.records()} for store in (many, one))
    assert found.keys() == wanted.keys() and not many.problems
    for key, record in wanted.items():
        assert found[key].rows == record.rows and found[key].counts == record.counts
        pd.testing.assert_frame_equal(many.rows(found[key]), one.rows(record), check_exact=True)
    with many.claims():
        left = {path.name for path in (folder / "work").rglob("*") if path.is_file()}
    assert not [name for name in left if name.endswith(".parquet")]
