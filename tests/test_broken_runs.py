"""One bad run stops nobody; names of runs; numbers that no recipe has; a resume on another machine."""

import json
import shutil

import pytest
import torch

from sanbench.errors import InputError, SanbenchError
from sanbench.runs.config import configure, reconfigure
from sanbench.runs.evaluated import load_evaluated
from sanbench.runs.run import Machine, Run, check_name, differences, find_unfinished, free_name
from sanbench.training.loop import train
from tests.support.commands import sanbench, snapshot

BREAKS = {
    "config.json": b'{"lr": NaN}',
    "metrics.jsonl": b'{"epoch": 1}\nnot json\n',
    "best.pt": b"PK\x03\x04 cut",
}


@pytest.fixture(params=BREAKS)
def broken(request, runs, tmp_path):
    """The runs, and one more of which a file is broken."""
    root = shutil.copytree(runs, tmp_path / "runs")
    shutil.copytree(root / "san10", root / "bad")
    (root / "bad" / request.param).write_bytes(BREAKS[request.param])
    return root, request.param


def test_a_broken_run_is_shown_and_left_out(broken, caplog):
    root, name = broken
    shown = sanbench("runs", "--runs", root, columns=200)
    assert shown.exit_code == 0, shown.output
    assert "'bad' is broken: " in shown.output and f"bad/{name}" in shown.output
    assert [evaluated.run for evaluated in load_evaluated([], root)] == ["resnet26", "san10"]
    (line,) = caplog.messages
    assert line.startswith("The run 'bad' is left out: ") and f"bad/{name}" in line
    with pytest.raises(SanbenchError, match=f"bad/{name}"):
        load_evaluated(["bad"], root)


def test_resume_auto_leaves_a_broken_run_out_and_says_so(broken, caplog):
    root, name = broken
    assert find_unfinished(root, Run(root / "san10").config()) is None
    assert [line for line in caplog.messages if f"bad/{name}" in line]


def test_a_broken_run_is_named_on_standard_error(broken, tmp_path):
    import subprocess

    from tests.support.processes import ENVIRONMENT, SANBENCH

    root, name = broken
    if name != "config.json":
        return  # one process start is enough
    command = [*SANBENCH, "accuracy", "--limit", "2", "--runs", str(root), "--results", str(tmp_path / "results")]
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stderr.startswith("The run 'bad' is left out: ") and done.stderr.count("\n") == 1


def test_without_any_readable_run_it_is_one_sentence(runs, tmp_path):
    shutil.copytree(runs / "san10", tmp_path / "bad")
    (tmp_path / "bad" / "best.pt").write_bytes(b"")
    with pytest.raises(InputError, match=r"no finished run under .* that can be read"):
        load_evaluated([], tmp_path)


NUMBERS = ["lr", "weight_decay", "warmup_epochs", "mixup", "cutmix", "clip", "momentum", "label_smoothing", "ema", "width"]


@pytest.mark.parametrize("value", ["inf", "-inf", "nan"])
@pytest.mark.parametrize("field", NUMBERS)
def test_numbers_that_are_not_finite_are_refused(field, value):
    with pytest.raises(InputError, match=rf"^{field}={value} is not accepted"):
        configure("san10", changes={field: float(value)})


TOO_LARGE = {
    "epochs": 10**6,
    "batch_size": 10**9,
    "blocks": (10**6,) * 5,
    "footprint": 99999,
    "width": 8.1,
    "heads": 10**6,
}


@pytest.mark.parametrize("field", TOO_LARGE)
def test_every_field_has_a_limit(field):
    from sanbench.models import model_config

    with pytest.raises(InputError, match=field):
        if field == "blocks":
            model_config("san10_pairwise", blocks=TOO_LARGE[field])
        configure("san10", changes={field: TOO_LARGE[field]})


@pytest.mark.parametrize(
    ("option", "value"), [("image_size", 100_000), ("workers", 10**6), ("seed", 2**63), ("save_minutes", float("inf"))]
)
def test_options_of_a_run_have_limits(option, value):
    with pytest.raises(InputError, match=f"^{option}="):
        configure("san10", **{option: value})


def test_lr_inf_writes_nothing(tmp_path):
    outcome = sanbench("train", "san10", "--lr", "inf", "--runs", tmp_path / "runs")
    assert outcome.exit_code == 2 and "--lr inf is not accepted" in outcome.stderr
    assert not snapshot(tmp_path)


BAD = [
    "../../x",
    "/absolute",
    "a/b",
    "",
    ".hidden",
    "..",
    "-x",
    "--x",
    "a\nb",
    "a\x1b[31m",
    "x" * 101,
    "é" * 60,
    "a\x00b",
    "\ud800",
]


@pytest.mark.parametrize("name", BAD)
def test_a_name_of_a_run_is_one_component_of_printable_characters(name, tmp_path):
    with pytest.raises(InputError, match=r"name .* is not accepted"):
        check_name(name)
    if "\x00" in name or not name.isascii():
        return
    for option in ("--run", "--resume"):
        outcome = sanbench("train", "san10", f"{option}={name}", "--runs", tmp_path / "a" / "b" / "runs")
        assert outcome.exit_code == 2 and len(outcome.stderr.splitlines()) == 1, outcome.output
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["exp[lr=0.1]", "[x]", "a b", "größe", "x" * 100])
def test_other_names_are_accepted(name):
    check_name(name)


@pytest.mark.parametrize("name", ["a\nb", ".x", "x" * 300, "é" * 200, "-"])
def test_names_that_are_made_are_accepted(name, tmp_path):
    check_name(free_name(tmp_path, name))
    (tmp_path / free_name(tmp_path, name)).mkdir()
    check_name(free_name(tmp_path, name))


def test_the_library_checks_names_too(folder, tmp_path):
    config = configure("resnet26", f"folder:{folder}", changes={"epochs": 1, "batch_size": 8}, image_size=32, workers=0)
    with pytest.raises(InputError, match="name '-x' is not accepted"):
        train(config, tmp_path / "-x", torch.device("cpu"))
    assert not list(tmp_path.iterdir())


def test_a_resume_with_another_number_of_threads_says_what_it_changes(san_run, tmp_path):
    run = Run(shutil.copytree(san_run.folder, tmp_path / "run"))
    (start,) = (line for line in run.lines() if "started" in line)
    machine = Machine(start["processes"], start["threads"], start["device"])
    assert machine.threads == torch.get_num_threads() and machine.device.startswith("cpu, ")
    assert differences(run, run.config(), machine) == []
    bits = ": the weights may differ in the last bits from those of a run that was not interrupted"
    assert differences(run, run.config(), machine._replace(threads=99)) == [f"threads {machine.threads} -> 99{bits}"]
    assert differences(run, run.config(), machine._replace(processes=2)) == [f"processes 1 -> 2{bits}"]
    assert differences(run, run.config(), machine._replace(device="cuda, X", threads=99)) == [
        f"device {machine.device} -> cuda, X{bits}"
    ]
    assert differences(run, reconfigure(run.config(), workers=3), machine) == ["workers 0 -> 3"]
    assert json.loads((run.folder / "metrics.jsonl").read_text().splitlines()[0])["threads"] == machine.threads
