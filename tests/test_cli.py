"""The command line: what it calls, what it prints, how it ends."""

import json
import re
import shutil
import subprocess
import time

import pytest
import torch

from tests.support.commands import sanbench, snapshot
from tests.support.processes import ENVIRONMENT, SANBENCH
from tests.support.report_pages import pages


@pytest.fixture
def places(runs, tmp_path):
    return ["--runs", runs, "--results", tmp_path / "results"]


def test_from_training_to_a_report(folder, tmp_path):
    places = ["--runs", tmp_path / "runs", "--results", tmp_path / "results"]
    data = ["--data", f"folder:{folder}", "--image-size", 32]
    settings = ["--set", "width=0.5", "--set", "footprint=5", "--epochs", 1, "--batch-size", 8]
    trained = sanbench("train", "san10", "--attention", "patchwise", *data, *settings, *places[:2])
    assert trained.exit_code == 0, trained.output
    (run,) = (tmp_path / "runs").iterdir()
    config = json.loads((run / "config.json").read_text())
    assert config["model"]["name"] == "san10_patchwise"
    assert config["model"]["variation"] == {"footprint": 5, "width": 0.5}
    assert config["recipe"]["epochs"] == 1
    for command in (["accuracy"], ["rotate", "--angles", "90,flip"], ["attack", "--eps", "8/255", "--steps", 2, "--limit", 9]):
        outcome = sanbench(*command, *places)
        assert outcome.exit_code == 0, outcome.output
    assert "9 of 18" in outcome.output.replace("\n", " ")
    assert sanbench("report", *places[2:]).exit_code == 0
    text = pages(tmp_path / "results")
    for words in ("san10_patchwise footprint=5 width=0.5", "90°", "flip", "| pgd-targeted |", "9 of 18"):
        assert words in text
    before = snapshot(tmp_path / "results" / "records")
    assert sanbench("accuracy", *places).exit_code == 0
    assert snapshot(tmp_path / "results" / "records") == before


def test_every_measurement_of_the_measure_section(places, tmp_path):
    """Restarts, several processes, examples, transfer, corruptions, any angle, and all formats of the report."""
    commands = [
        ["attack", "--attack", "pgd,pgd-l2", "--eps", "8/255", "--steps", 2, "--restarts", 2, "--save-images", 2],
        ["attack", "--attack", "pgd", "--eps", "8/255", "--steps", 2, "--surrogate", "resnet26"],
        ["rotate", "--angles", "0:90:30,mirror", "--crop", "inscribed"],
        ["corrupt", "--kinds", "fog,contrast", "--severity", "1:2"],
    ]
    for command in commands:
        outcome = sanbench(*command, *places)
        assert outcome.exit_code == 0, outcome.output
    results = tmp_path / "results"
    names = sorted(path.name for path in results.glob("images/san10*/attack-pgd-8_255-*/*.png"))
    classes = "(bag|sneaker|trouser)"
    views = (f"adversarial-as-{classes}", "clean", "difference")
    wanted = [f"{n:05d}-bag-{view}.png" for n in range(2) for view in views]  # the first images are bags
    assert [bool(re.fullmatch(pattern, name)) for pattern, name in zip(wanted, names, strict=True)] == [True] * 6, names
    assert sanbench("report", "--format", "md,csv,tex,html", *places[2:]).exit_code == 0
    text = pages(results)
    for words in (
        "Transferred attacks",
        "Corrupted images",
        "mCE",
        "crop inscribed",
        "Self-attention against ResNet",
        "by class",
    ):
        assert words in text
    assert "Defined otherwise than in the original benchmark. fog" in text
    for name in ("report.tex", "report.html", "transfer.csv", "corruption.csv"):
        assert (results / name).stat().st_size > 100
    assert sanbench("report", "--format", "pdf", *places[2:]).exit_code == 2


def test_the_benchmark_prints_both_ratios(tmp_path):
    options = ["-n", 1, "--batch-size", 4, "--width", 0.25, "--results", tmp_path]
    outcome = sanbench("bench", "evaluate", "--images", 8, *options)
    assert outcome.exit_code == 0, outcome.output
    assert "ratio [range]" in outcome.stdout and "n 1" in outcome.stdout
    assert len(re.findall(r"\d\.\d{3} \[\d\.\d{3}, \d\.\d{3}\]", outcome.stdout)) == 2


WRONG = [  # typed wrong: 2; what the sentence names
    (["rotate", "--angles", "45x"], "'45x'"),
    (["rotate", "--angles", "0:90"], "'0:90'"),
    (["attack", "--eps", "8/0"], "'8/0'"),
    (["attack", "--eps", "300"], "'300'"),
    (["attack", "--eps", "-1/255"], "'-1/255'"),
    (["attack", "--eps", "8/255", "--step-size", "x"], "step-size 'x'"),
    (["attack", "--attack", "standard"], "needs 4 classes"),
    (["attack", "--attack", "fab", "--surrogate", "san10"], "Accepted are fgsm"),
    (["attack", "--attack", "pgd", "--norm", "l2"], "accepted is linf"),
    (["rotate", "--angles", "45", "--fill", "blue"], "'blue'"),
    (["corrupt", "--kinds", "mist"], "'mist'"),
    (["corrupt", "--severity", "6"], "'6'"),
    (["attack", "--attack", "pdg"], "Did you mean 'pgd'"),
    (["attack", "--steps", "0"], "steps 0"),
    (["accuracy", "san1O"], "Did you mean 'san10'"),
    (["accuracy", "--data", "fashion10"], "Did you mean 'fashion10k'"),
    (["accuracy", "--data", "fashion10k"], "fashion10k has 10 classes, but resnet26 tells 3 apart"),
    (["accuracy", "--data", "folder:/nowhere"], "no folder /nowhere/val"),
    (["accuracy", "--limit", "0"], "limit 0"),
    (["accuracy", "--device", "gpu"], "'gpu'"),
]


@pytest.fixture(scope="module")
def measured(runs, tmp_path_factory):
    """Results of both networks."""
    folder = tmp_path_factory.mktemp("measured") / "results"
    assert sanbench("accuracy", "--runs", runs, "--results", folder).exit_code == 0
    return folder


@pytest.mark.parametrize(("arguments", "named"), WRONG, ids=lambda value: " ".join(value) if isinstance(value, list) else "")
def test_what_is_typed_wrong_ends_with_2_and_one_sentence(arguments, named, measured, places, tmp_path):
    shutil.copytree(measured, tmp_path / "results")
    before = snapshot(tmp_path)
    outcome = sanbench(*arguments, *places)
    assert outcome.exit_code == 2, outcome.output
    assert named in " ".join(outcome.stderr.split())
    assert outcome.stderr.count("\n") == 1
    assert "Traceback" not in outcome.output
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["san16"], "'san16'"),
        (["san10", "--data", "cifar"], "Did you mean 'cifar10'"),
        (["san10", "--set", "footprnt=3"], "Did you mean 'footprint'"),
        (["san10", "--set", "footprint"], "--set 'footprint'"),
        (["san10", "--set", "footprint=4"], "footprint 4"),
        (["san10", "--attention", "patch"], "attention 'patch'"),
        (["san10", "--epochs", "0"], "--epochs 0"),
        (["san10", "--recipe", "papers"], "Did you mean 'paper'"),
        (["san10", "--data", "folder:/nowhere"], "no folder /nowhere/train"),
        (["san10", "--data", "cifar10", "--data-root", "/nowhere"], "cifar10 is not under /nowhere"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_training_that_cannot_start_leaves_no_run(arguments, named, tmp_path):
    outcome = sanbench("train", *arguments, "--runs", tmp_path / "runs")
    assert outcome.exit_code == 2, outcome.output
    assert named in " ".join(outcome.stderr.split())
    assert not (tmp_path / "runs").exists()


def test_no_runs_yet_say_how_to_make_one(tmp_path):
    outcome = sanbench("accuracy", "--runs", tmp_path, "--results", tmp_path / "results")
    assert outcome.exit_code == 2
    assert "sanbench train" in outcome.stderr


def truncated(path, whole):
    path.write_bytes(whole[: len(whole) // 3])


def no_checkpoint(path, whole):
    path.write_text("weights")


def another_program(path, whole):
    torch.save({"state_dict": {}}, path)


@pytest.mark.parametrize("damage", [truncated, no_checkpoint, another_program])
def test_checkpoints_that_fail_end_with_1(damage, runs, places, tmp_path):
    path = tmp_path / "broken.pt"
    damage(path, (runs / "san10" / "last.pt").read_bytes())
    outcome = sanbench("accuracy", path, *places)
    assert outcome.exit_code == 1
    assert "broken.pt" in outcome.stderr
    assert outcome.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("command", "name"),
    [("study show", "STUDY"), ("compare", "RUN|NETWORK|FOLDER"), ("bench images", "FOLDER"), ("data shrink", "--data-root")],
)
def test_a_missing_argument_is_named(command, name):
    outcome = sanbench(*command.split())
    assert outcome.exit_code == 2
    assert outcome.stderr.startswith(f"Error: {name} is missing: `")
    assert outcome.stderr.endswith(f" {command} --help` tells what it is.\n")


def test_results_that_are_no_folder_are_refused(runs, tmp_path):
    (tmp_path / "results").write_text("a file, not a folder")
    for command in (["accuracy"], ["rotate", "--angles", "90"], ["attack", "--eps", "8/255"]):
        outcome = sanbench(*command, "--runs", runs, "--results", tmp_path / "results")
        assert outcome.exit_code == 2
        assert f"--results {tmp_path / 'results'} is not accepted: it is no folder" in outcome.stderr
    assert sanbench("report", "--results", tmp_path / "results").exit_code == 2
    assert (tmp_path / "results").read_text() == "a file, not a folder"


def test_a_fault_of_ours_is_one_sentence_unless_debugging(places, monkeypatch):
    def fails(*_, **__):
        raise RuntimeError("out of luck")

    monkeypatch.setattr("sanbench.evaluation.api.evaluate", fails)
    outcome = sanbench("accuracy", *places)
    assert outcome.exit_code == 1
    assert outcome.stderr == (
        "Error: A fault of sanbench, please report it: out of luck (RuntimeError). "
        "`sanbench --debug ...` with the same words shows where.\n"
    )
    assert isinstance(sanbench("--debug", "accuracy", *places).exception, RuntimeError)


def test_a_taken_run_is_not_touched(runs, folder):
    before = snapshot(runs)
    outcome = sanbench("train", "san10", "--data", f"folder:{folder}", "--image-size", 32, "--run", "san10", "--runs", runs)
    assert outcome.exit_code == 2
    assert "--run" in outcome.stderr
    assert snapshot(runs) == before


def test_models_lists_sizes_and_published_figures():
    text = sanbench("models").stdout
    for words in ("san15_patchwise", "16,181,310", "2.478", "78.0", "25,557,032"):
        assert words in text


@pytest.mark.slow
def test_help_answers_at_once():
    seconds = []
    for _ in range(5):
        started = time.perf_counter()
        subprocess.run([*SANBENCH, "--help"], check=True, capture_output=True, env=ENVIRONMENT)
        seconds.append(time.perf_counter() - started)
    assert sorted(seconds)[2] < 0.5
