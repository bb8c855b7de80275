"""Studies that run: alone, interrupted, by several workers of which one is killed, on photographs, and what status tells."""

import json
import os
import random
import re
import shutil
import signal
import sys
import threading
import time
from contextlib import ExitStack
from pathlib import Path

import pandas as pd
import pytest
import torch

from sanbench import load_model
from sanbench.errors import Interrupted
from sanbench.evaluation.robust import Findings
from sanbench.evaluation.statistics import paired_difference
from sanbench.runs.run import Run
from sanbench.store.claims import Claims, start_of
from sanbench.store.files import Store
from sanbench.studies import beside
from sanbench.studies import worker as worker_module
from sanbench.studies.expand import Choice, expand
from sanbench.studies.status import TRAIN, look
from sanbench.studies.study import read
from sanbench.studies.tables import tables
from sanbench.studies.worker import Worker
from tests.support.commands import sanbench, snapshot
from tests.support.processes import ENVIRONMENT, SANBENCH, started
from tests.support.small_study import MEASURED, RUNS, TEXT, places, write

CPU = torch.device("cpu")


def rows(root: Path) -> dict[tuple[str, str, str], pd.DataFrame]:
    """By run, kind and setting; a measurement that stands there twice would be lost, so their number is compared."""
    store = Store(root / "results")
    records = store.records()
    found = {(r.run, r.kind, json.dumps(r.setting, sort_keys=True)): store.rows(r) for r in records}
    assert len(found) == len(records)
    return found


def assert_same(one: Path, two: Path) -> None:
    ours, theirs = rows(one), rows(two)
    assert ours.keys() == theirs.keys()
    for key in ours:
        pd.testing.assert_frame_equal(ours[key], theirs[key])


def test_a_study_trains_and_measures_what_it_names(done):
    assert sorted(path.name for path in (done / "runs").iterdir()) == RUNS
    found = [(r.run, r.kind, r.setting, r.data.images) for r in Store(done / "results").records()]
    assert len(found) == sum(map(len, MEASURED.values()))
    for run, wanted in MEASURED.items():
        own = [(kind, setting, images) for name, kind, setting, images in found if name == run]
        for kind, setting, images in wanted:
            assert [1 for k, s, n in own if (k, n) == (kind, images) and setting.items() <= s.items()] == [1]


def test_nothing_is_done_twice(done, monkeypatch):
    before = snapshot(done)
    monkeypatch.setattr(worker_module, "train", None)
    monkeypatch.setattr(worker_module, "evaluate", None)
    outcome = sanbench("study", "run", done / "small.toml", *places(done), columns=200)
    assert outcome.exit_code == 0
    assert (done / "output.txt").read_text().endswith(outcome.output)  # then there was progress before it
    assert snapshot(done) == before


def test_a_spatial_search_is_a_measurement_of_a_study(done, tmp_path, folder):
    """Its shifts are a share of an image's side, which is known before an image is read."""
    text = TEXT.replace('"rotate:90"]', '"rotate:90", "spatial:random"]').replace('"top5",', '"top5", "spatial:random",')
    found, store = expand(read(str(write(tmp_path, folder, text)))), Store(tmp_path / "results")
    assert Worker(found, store, done / "runs", CPU).work() == {}
    assert [record.setting["pixels"] for record in store.records() if record.kind == "spatial"] == [3] * len(RUNS)
    first, _ = tables(look(found, store, done / "runs"), Findings.of(store))
    (about,) = {w.about for own in found.wanted.values() for w in own if w.kind == "spatial"}
    (place,) = (at for at, heading in enumerate(first.headings) if about in heading)
    assert "—" not in {row[place].text for row in first.rows}


def test_what_single_commands_made_is_not_repeated(done, tmp_path, monkeypatch):
    """A run of another name but of the same configuration, measured by `sanbench accuracy` and `sanbench rotate`."""
    shutil.copytree(done / "runs" / "small-san10-s0", tmp_path / "runs" / "mine")
    for command in (["accuracy"], ["rotate", "--angles", "90"], ["attack", "--attack", "pgd", "--steps", 2, "--limit", 6]):
        assert sanbench(*command, "mine", *places(tmp_path)).exit_code == 0
    found = expand(read(str(done / "small.toml")), Choice(networks=["san10"], seeds=[0]))
    standing = look(found, Store(tmp_path / "results"), tmp_path / "runs")
    assert (standing.runs["small-san10-s0"].name, standing.states["small-san10-s0"].word) == ("mine", "done")
    monkeypatch.setattr(worker_module, "train", None)
    monkeypatch.setattr(worker_module, "evaluate", None)
    assert Worker(found, Store(tmp_path / "results"), tmp_path / "runs", CPU).work() == {}


def test_tables_have_the_papers_layout(done):
    page = (done / "results/studies/small.md").read_text()
    one = [line for line in page.splitlines() if line.startswith("|")]
    heading = ["", "top-1, n 18", "difference", "top-5, n 18", "drop 90°, n 18", "parameters, M", "GMACs"]
    assert [cell.strip() for cell in one[0].strip("|").split("|")] == heading
    assert [line.split("|")[1].strip() for line in one[2:4]] == ["ResNet", "SAN"]
    standing = look(expand(read(str(done / "small.toml"))), Store(done / "results"), done / "runs")
    findings = Findings.of(Store(done / "results"))
    (first, second) = tables(standing, findings)
    values = [100 * findings.top1(r).value for r in findings.records if r.network.name == "resnet26" and r.kind == "accuracy"]
    mean, spread = sum(values) / 2, abs(values[0] - values[1]) / 2**0.5
    assert first.rows[0][1].text == f"{mean:.1f} ± {spread:.1f}"
    assert (first.rows[0][2].text, first.rows[1][2].text[-12:]) == ("reference", "within noise")
    assert not first.notes and not second.notes
    parameters = sum(p.numel() for p in load_model(done / "runs/small-resnet26-s0/last.pt").parameters())
    assert first.rows[0][5].text == f"{parameters / 1e6:.3f}"


def test_a_drop_of_one_seed_has_the_interval_of_a_paired_difference(done):
    store = Store(done / "results")
    findings = Findings.of(store)
    standing = look(expand(read(str(done / "small.toml")), Choice(seeds=[0])), store, done / "runs")
    shown = tables(standing, findings)[0]
    cell = shown.rows[0][shown.headings.index("drop 90°, n 18")].text
    own = [record for record in findings.records if record.run == "small-resnet26-s0"]
    upright, turned = (next(record for record in own if record.kind == kind) for kind in ("accuracy", "rotation"))
    expected = paired_difference(findings.right(upright), findings.right(turned))
    assert cell == f"{100 * expected.value:.1f} [{100 * expected.low:.1f}, {100 * expected.high:.1f}]"
    assert expected.value == findings.top1(upright).value - findings.top1(turned).value


def test_a_missing_cell_is_a_dash_with_the_command_that_fills_it(done, tmp_path):
    root = Path(shutil.copytree(done, tmp_path / "copy"))
    for path in (root / "results/records").glob("san10*"):
        path.unlink()
    shutil.rmtree(root / "runs/small-san10-s1")
    study, store = read(str(root / "small.toml")), Store(root / "results")
    first, second = tables(look(expand(study), store, root / "runs"), Findings.of(store))
    assert [cell.text for cell in first.rows[1]][1:5] == ["—"] * 4
    assert [cell.text for cell in second.rows[0]][1:] == ["—"] * 2
    (note,) = first.notes
    label, _, command = note.partition(": ")
    assert label == "SAN"
    outcome = sanbench(*command.split()[1:], *places(root))
    assert outcome.exit_code == 0, outcome.output
    left = look(expand(study), store, root / "runs")
    assert {run: [w.kind for w in left.missing(t)] for t in left.expansion.trainings if (run := t.name)} == {
        "small-resnet26-s0": [],
        "small-resnet26-s1": [],
        "small-san10-s0": ["attack"],
        "small-san10-s1": ["attack"],
    }  # of table 1 alone
    assert sanbench("study", "run", root / "small.toml", *places(root)).exit_code == 0
    assert_same(root, done)  # the same seed gives the same weights


def test_a_run_that_fails_does_not_stop_the_others(done, folder, tmp_path, monkeypatch):
    root = tmp_path
    write(root, folder)
    shutil.copytree(done / "runs/small-san10-s0", root / "runs/small-resnet26-s1")  # another network by that name
    outcome = sanbench("study", "run", root / "small.toml", *places(root))
    told = " ".join(outcome.output.split())
    assert outcome.exit_code == 1
    assert "small-resnet26-s1 failed: The run small-resnet26-s1 has" in told and "1 of the study's runs failed" in told
    assert {run for run, *_ in rows(root)} == {*RUNS} - {"small-resnet26-s1"}
    status = " ".join(sanbench("study", "status", root / "small.toml", *places(root), columns=300).output.split())
    assert "small-resnet26-s1 failed: The run small-resnet26-s1 has" in status
    command = re.search(r"To go on: (sanbench study run \S+ --networks resnet26 --runs \S+ --results \S+)", status)
    shutil.rmtree(root / "runs/small-resnet26-s1")
    assert command and sanbench(*command[1].split()[1:]).exit_code == 0
    assert Store(root / "results").failures() == {}
    assert_same(root, done)


def test_a_damaged_run_does_not_stop_the_others(done, tmp_path):
    root = Path(shutil.copytree(done, tmp_path / "copy"))
    shutil.rmtree(root / "results")
    (root / "runs/small-resnet26-s0/config.json").write_text("{")
    told = sanbench("study", "status", root / "small.toml", *places(root), columns=300).output
    assert "small-resnet26-s0 failed:" in told and "is not a run's configuration" in told
    outcome = sanbench("study", "run", root / "small.toml", *places(root), columns=300)
    assert outcome.exit_code == 1 and "1 of the study's runs failed" in outcome.output
    assert {run for run, *_ in rows(root)} == {*RUNS} - {"small-resnet26-s0"}


def test_lost_rows_are_measured_again(done, tmp_path):
    root = Path(shutil.copytree(done, tmp_path / "copy"))
    lost = sorted((root / "results/rows").glob("*/rotation.parquet"))
    assert len(lost) == 4
    lost[0].unlink()
    outcome = sanbench("study", "run", root / "small.toml", *places(root), columns=300)
    assert outcome.exit_code == 0 and outcome.output.count("Now it is measured again.") == 1
    assert_same(root, done)


def test_status_names_who_works_on_what(done, tmp_path):
    root = Path(shutil.copytree(done, tmp_path / "copy"))
    shutil.rmtree(root / "runs/small-san10-s1")
    for path in (root / "results/records").glob("san10*"):
        path.unlink()
    with Store(root / "results").claims() as claims:
        assert claims.take([f"{TRAIN}small-san10-s1"])
        told = sanbench("study", "status", root / "small.toml", *places(root), columns=300).output
    assert re.search(r"small-san10-s1: training, \S+, process \d+", told)
    assert "2 of 4" in told.split("1 Upright and turned")[1].splitlines()[0]


@pytest.mark.parametrize("while_measuring", [False, True])
def test_a_signal_saves_and_the_same_command_goes_on(done, folder, tmp_path, monkeypatch, while_measuring):
    write(tmp_path, folder)
    found = expand(read(str(tmp_path / "small.toml")))
    work = Worker(found, Store(tmp_path / "results"), tmp_path / "runs", CPU)
    told = []

    def stop(progress):
        told.append(progress)
        if ("train" in progress.task) != while_measuring and len(told) > 3:
            told.clear()
            signal.raise_signal(signal.SIGTERM)

    work.progress = stop
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Interrupted, match="SIGTERM"):
        work.work()
    assert signal.getsignal(signal.SIGTERM) == before
    work.progress = worker_module.silent
    assert work.work() == {}
    assert_same(tmp_path, done)


@pytest.mark.slow
def test_a_network_may_be_trained_by_several_processes(folder, tmp_path):
    part = ["--networks", "resnet26", "--seeds", "0", "--nproc", "2", "--train-only"]
    command = [*SANBENCH, "study", "work", str(write(tmp_path, folder)), *part, *map(str, places(tmp_path))]
    with started(command) as process:
        assert process.wait(timeout=300) == 0, process.communicate()
    run = Run(tmp_path / "runs/small-resnet26-s0")
    assert run.is_finished() and next(iter(run.lines()))["processes"] == 2
    assert not Store(tmp_path / "results").records()


def test_a_look_at_a_run_does_not_keep_a_training_from_it(done, tmp_path):
    """`status` locks a run for a moment."""
    run = Run(shutil.copytree(done / "runs/small-san10-s0", tmp_path / "run"))
    taken = threading.Event()

    def look_once():
        with run.locked():
            taken.set()
            time.sleep(0.1)

    looking = threading.Thread(target=look_once)
    looking.start()
    assert taken.wait(5)
    with ExitStack() as stack:
        run.open(run.config(), True, stack)
    looking.join()


def workers(root: Path, count: int, stack: ExitStack):
    command = [*SANBENCH, "study", "work", str(root / "small.toml"), *map(str, places(root))]
    quiet = {"env": {**ENVIRONMENT, "OMP_NUM_THREADS": "1"}}
    return [stack.enter_context(started(command, **quiet)) for _ in range(count)]


def test_a_command_with_two_workers_ends_both_after_a_signal_and_goes_on(done, folder, tmp_path):
    command = [*SANBENCH, "study", "run", str(write(tmp_path, folder)), *map(str, places(tmp_path)), "--workers", "2"]
    alone = {"env": {**ENVIRONMENT, "OMP_NUM_THREADS": "1"}}
    with started(command, **alone) as process:
        while process.poll() is None and process.pid not in holding(tmp_path):  # it is looked at while it stands still
            process.send_signal(signal.SIGCONT)
            time.sleep(0.02)
            process.send_signal(signal.SIGSTOP)
        while process.poll() is None and len(both := holding(tmp_path)) < 2:  # alone it is done before the other begins
            time.sleep(0.02)
        process.terminate()
        process.send_signal(signal.SIGCONT)
        outcome = process.communicate(timeout=200)
    assert process.returncode == Interrupted.exit_code, outcome
    assert process.pid in both and [start_of(pid) for pid in both] == [None, None]
    with started(command, **alone) as process:
        outcome = process.communicate(timeout=200)
    assert process.returncode == 0, outcome
    assert_same(tmp_path, done)


def test_a_worker_that_dies_is_told(monkeypatch):
    kill = "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"
    monkeypatch.setattr(beside, "command_of", lambda words: [sys.executable, "-c", kill])
    told: list[str] = []
    with beside.workers_beside(1, [], 1, told.append):
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOWAIT)
    assert told == ["One of the workers died (exit code -9): what it worked on was left to the others."]


@pytest.mark.parametrize("others", [0, 1])
def test_the_last_trainings_are_begun_before_others_are_measured(others, done, tmp_path, monkeypatch):
    root, did = tmp_path, list[tuple[str, str]]()
    shutil.copytree(done / "runs/small-resnet26-s0", root / "runs/small-resnet26-s0")
    for what in ("train", "measure"):
        monkeypatch.setattr(Worker, what, lambda self, training, told, what=what: did.append((what, training.name)))
    store = Store(root / "results")
    worker = Worker(expand(read(str(done / "small.toml")), Choice(networks=["resnet26"])), store, root / "runs", CPU)
    with store.claims() as own, store.claims() as another:
        another.take(["train-another"][:others])
        assert worker.step(own)
    assert did == [("train", "small-resnet26-s1") if others else ("measure", "small-resnet26-s0")]


def test_three_workers_of_which_one_is_killed_make_the_same_rows(done, folder, tmp_path):
    killed_once(done, folder, tmp_path, seed=0)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1, 11))
def test_a_kill_at_any_moment_changes_no_row(done, folder, tmp_path, seed):
    killed_once(done, folder, tmp_path, seed)


def killed_once(done: Path, folder: Path, root: Path, seed: int) -> None:
    """Three workers; when so many of the study's files are there, that which has claimed something is killed."""
    write(root, folder)
    moment = random.Random(seed).randrange(1, 12)  # of files that records, parts and checkpoints make
    with ExitStack() as stack:
        three = workers(root, 3, stack)
        while made(root) < moment and any(process.poll() is None for process in three):
            time.sleep(0.02)
        victim = next((process for process in three if process.pid in holding(root)), three[0])
        victim.kill()
        others = [process for process in three if process is not victim]
        outcomes = [process.communicate(timeout=200) for process in others]
        assert [process.returncode for process in others] == [0, 0], outcomes
    assert_same(root, done)
    assert [path for path in (root / "results/work/claims").iterdir() if path.name.startswith(("train", "measure"))] == []


def made(root: Path) -> int:
    patterns = ("runs/*/last.pt", "results/work/claims/*", "results/work/parts/*/*.parquet", "results/records/*")
    return sum(1 for pattern in patterns for _ in root.glob(pattern))


def holding(root: Path) -> set[int]:
    """The processes that have claims."""
    claims = root / "results/work/claims"
    if not claims.is_dir():
        return set()
    return {int(owner.split("-")[1]) for owner in Claims(root / "results/work").holders().values()}


def test_a_study_on_photographs_with_a_limit(small, tmp_path):
    """A set laid out like ImageNet's classes, in folders by WNID: `paper` itself, of which one table."""
    names = ["--tables", "8", "--networks", "no_position,san10_pairwise", "--data", f"folder:{small}", "--limit", "5"]
    text = (Path(worker_module.__file__).parent / "paper.toml").read_text()
    short = text.replace('recipe = "paper"', 'recipe = "short"\nimage_size = 32').replace(
        "[networks.resnet26]", "[set.san]\nwidth = 0.25\nepochs = 1\nbatch_size = 4\n\n[networks.resnet26]"
    )
    (tmp_path / "paper.toml").write_text(short)
    outcome = sanbench("study", "run", tmp_path / "paper.toml", *names, *places(tmp_path), columns=200)
    assert outcome.exit_code == 0, outcome.output
    found = Store(tmp_path / "results").records()
    assert {record.run for record in found} == {"paper-small-no_position", "paper-small-san10_pairwise"}
    assert [(r.data.images, r.data.of, r.data.subset_seed) for r in found] == [(5, 20, 0)] * 2
    pages = [path.name for path in (tmp_path / "results/studies").iterdir()]
    assert pages == ["paper-small-limit-5.md"]  # the whole study's is another
    assert "absolute: sanbench study run" in outcome.output and f"--data folder:{small} --limit 5" in outcome.output


@pytest.mark.slow
def test_workers_are_timed_on_the_same_study(done, tmp_path):
    options = ["--limit", 2, "-n", 1, "--runs", done / "runs", "--results", tmp_path / "results"]
    outcome = sanbench("bench", "workers", done / "small.toml", *options)
    assert outcome.exit_code == 0, outcome.output
    (one,) = Store(tmp_path / "results").benchmarks()
    assert (one.kind, one.setting["measurements"], one.setting["networks"], one.setting["n"]) == ("workers", 10, 4, 1)
    assert one.ratio is not None and one.ratio[0] == one.figures["speedup"] == one.seconds["one"] / one.seconds["two"]
    assert one.figures["apart"] == 2 * one.seconds["one"] / one.seconds["two apart"]
    assert 0 < one.figures["claiming"] < one.figures["start"]


def test_untrained_networks_are_not_timed(folder, tmp_path):
    outcome = sanbench("bench", "workers", write(tmp_path, folder), "--runs", tmp_path, "--results", tmp_path / "results")
    assert (
        outcome.exit_code == 2
        and "small-resnet26-s0" in outcome.output
        and not (tmp_path / "results/benchmarks.jsonl").exists()
    )
