"""Measurements that are interrupted go on: nothing is lost, nothing is there twice."""

import shutil
import signal
import subprocess
import time

import pytest

from sanbench.store.files import Store
from tests.support.processes import ENVIRONMENT, SANBENCH, started


def test_ctrl_c_ends_with_one_sentence_and_the_same_command_goes_on(runs, folder, tmp_path):
    results = tmp_path / "results"
    command = [*SANBENCH, "attack", "san10", "--eps", "1/255", "--batch-size", "4", "--runs", str(runs)]
    command += ["--results", str(results), "--steps"]
    with started([*command, "5000"]) as process:
        deadline = time.monotonic() + 120
        while not results.exists():  # evaluating has begun
            assert time.monotonic() < deadline
            assert process.poll() is None
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        _, stderr = process.communicate(timeout=120)
    assert process.returncode == 130
    assert stderr.startswith("Interrupted.")
    assert "Traceback" not in stderr
    subprocess.run([*command, "2"], env=ENVIRONMENT, check=True, capture_output=True)
    assert len(Store(results).records()) == 2


@pytest.mark.slow
def test_kill_9_loses_and_doubles_nothing(runs, folder, tmp_path):
    """Two processes, killed at two moments with the one that started them; the same command ends with the rows of one process.

    306 images are a part of 256 and one of 50: when the small one is written the other is under way.
    """
    data = tmp_path / "many"  # the 18 images 17 times
    for path in folder.glob("val/*/*.png"):
        for copy in range(17):
            place = data / "val" / path.parent.name / f"{path.stem}-{copy}.png"
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, place)
    command = ["attack", "san10", "--data", f"folder:{data}", "--runs", runs, "--eps", "1/255", "--attack", "pgd"]
    command = list(map(str, [*command, "--steps", 40]))
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    again = [*SANBENCH, *command, "--nproc", "2", "--results", str(killed)]
    for parts in (0, 1):
        with started(again) as process:
            deadline = time.monotonic() + 300
            while len(list(killed.glob("work/parts/*/0*.parquet"))) < parts or not killed.exists():
                assert process.poll() is None and time.monotonic() < deadline
                time.sleep(0.01)
        assert not Store(killed).records()
    assert len(list(killed.glob("work/parts/*/0*.parquet"))) == 1
    time.sleep(1)  # its processes end with it
    straight = [*SANBENCH, *command, "--results", str(whole)]
    for each in (straight, again):
        subprocess.run(each, env=ENVIRONMENT, check=True, capture_output=True)
    rows = []
    for results in (whole, killed):
        (record,) = Store(results).records()
        rows.append(Store(results).rows(record))
        assert not list(results.glob("work/parts/*"))
    assert rows[0]["index"].tolist() == rows[1]["index"].tolist() == list(range(306))
    assert (rows[0]["prediction"] != rows[1]["prediction"]).sum() <= 1
