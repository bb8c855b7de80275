"""Jobs of a study: by submitit's local executor, as batch scripts of Slurm, and a job that is told to save."""

import importlib.util
import os
import re
import signal
import threading
import time

import pytest

from sanbench.studies.job import Job
from tests.support.commands import sanbench
from tests.support.processes import ROOT
from tests.support.small_study import TEXT, places, write
from tests.test_studies_run import assert_same, rows

needs_submitit = pytest.mark.skipif(importlib.util.find_spec("submitit") is None, reason="submitit is not installed")


@pytest.fixture
def found_by_jobs(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


@needs_submitit
def test_the_local_executor_makes_the_same_rows(done, folder, tmp_path, found_by_jobs):
    write(tmp_path, folder)
    part = ["--networks", "resnet26", "--seeds", "0"]
    outcome = sanbench("study", "run", tmp_path / "small.toml", *part, "--cluster", "local", *places(tmp_path))
    assert outcome.exit_code == 0, outcome.output
    assert re.match(r"2 jobs: \d+, \d+\. Next: sanbench study status", outcome.output)
    ours, theirs = rows(tmp_path), rows(done)
    assert ours.keys() == {key for key in theirs if key[0] == "small-resnet26-s0"}
    for key, frame in ours.items():
        assert frame.equals(theirs[key])


@needs_submitit
@pytest.mark.slow
def test_the_local_executor_makes_all_rows(done, folder, tmp_path, found_by_jobs):
    write(tmp_path, folder)
    outcome = sanbench("study", "run", tmp_path / "small.toml", "--cluster", "local", "--jobs", "2", *places(tmp_path))
    assert outcome.exit_code == 0, outcome.output
    assert_same(tmp_path, done)


SBATCH = """#!/bin/sh
cat "$1" > "$SCRIPTS/$(ls "$SCRIPTS" | wc -l).sh"
echo "Submitted batch job $((11 + $(ls "$SCRIPTS" | wc -l)))"
"""


@needs_submitit
def test_slurm_is_given_an_array_of_trainings_and_workers_after_it(folder, tmp_path, monkeypatch):
    """Commands of Slurm that keep what they are given: nothing runs."""
    for name, text in (("sbatch", SBATCH), ("srun", "#!/bin/sh\n")):
        path = tmp_path / "bin" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
        path.chmod(0o755)
    (tmp_path / "scripts").mkdir()
    monkeypatch.setenv("SCRIPTS", str(tmp_path / "scripts"))
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")
    write(tmp_path, folder)
    options = [
        "--cluster",
        "slurm",
        "--partition",
        "gpu",
        "--gpus-per-node",
        "8",
        "--jobs",
        "3",
        "--hours",
        "12",
        "--seeds",
        "0,1",
    ]
    outcome = sanbench("study", "run", tmp_path / "small.toml", *options, *places(tmp_path))
    assert outcome.exit_code == 0, outcome.output
    ids = re.findall(r"\d+_\d", outcome.output)
    assert ids == ["12_0", "12_1", "12_2", "12_3", "13_0", "13_1", "13_2"]  # SLURM_ARRAY_JOB_ID_SLURM_ARRAY_TASK_ID
    trains, measures = ((tmp_path / "scripts" / f"{n}.sh").read_text() for n in (0, 1))
    for script in (trains, measures):
        assert {"--partition=gpu", "--time=720", "--signal=USR2@300"} <= set(re.findall(r"#SBATCH (\S+)", script))
    assert "--array=0-3" in trains and "--gpus-per-node=8" in trains and "--dependency" not in trains
    assert "--array=0-2" in measures and "--gpus-per-node=1" in measures and "--dependency=afterany:12" in measures


@needs_submitit
def test_a_job_that_is_told_saves_and_is_queued_again(folder, tmp_path, found_by_jobs):
    """As submitit's handler does: the signal, the job's checkpoint, and what it would queue."""
    write(tmp_path, folder, TEXT.replace("epochs = 1", "epochs = 1000").replace("seeds = [0, 1]", "seeds = [0]"))
    job = Job(["study", "work", str(tmp_path / "small.toml"), *map(str, places(tmp_path))])
    queued, metrics = [], tmp_path / "runs/small-resnet26/metrics.jsonl"

    def handler(number, frame):
        queued.append(job.checkpoint())
        raise InterruptedError

    def tell():
        while not (metrics.is_file() and '"validation_top1"' in metrics.read_text()):
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGUSR2)

    before = signal.signal(signal.SIGUSR2, handler)
    try:
        threading.Thread(target=tell, daemon=True).start()
        with pytest.raises(InterruptedError):
            job()
    finally:
        signal.signal(signal.SIGUSR2, before)
    assert job.process.wait() == 75
    assert (tmp_path / "runs/small-resnet26/resume.pt").is_file()
    (again,) = queued
    assert again.function.words == job.words and again.function.process is None
    assert not list((tmp_path / "results/work/claims").iterdir())
