"""The README stays true: every command in it is one that the command line takes, every field one that exists."""

import re
import shlex
from pathlib import Path

import pytest

import sanbench
import sanbench.studies.presets  # before a test exchanges what it imports
from sanbench.models.san import SANConfig
from sanbench.runs.run import Run
from tests.support import commands, elsewhere

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "README.md").read_text()
COMMANDS = [shlex.split(line, comments=True)[1:] for line in re.findall(r"^    (sanbench .*)$", TEXT, re.M)]


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_commands_reach_their_library_call(command, runs, tmp_path, monkeypatch):
    """Options are read, names resolved and networks loaded as in earnest; only the long work at the end is left out."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    seeds = {f"seed-{seed}": "san10" for seed in range(3)}
    for name, own in {"resnet26": "resnet26", "san10": "san10", "mine": "san10", **seeds}.items():
        if "--run" not in command or name not in ("mine", "seed-0"):
            (tmp_path / "runs" / name).symlink_to(runs / own)
    elsewhere.provide(command, tmp_path)
    called = []
    trained = Run(runs / "san10")
    monkeypatch.setattr("sanbench.training.loop.train", lambda *args, **named: called.append("train") or trained)
    monkeypatch.setattr("sanbench.training.distributed.launch", lambda *args, **named: called.append("train"))
    monkeypatch.setattr("sanbench.evaluation.evaluate.evaluate", lambda *args: called.append(command[0]) or [])
    monkeypatch.setattr("sanbench.models.export.export_model", lambda *args: called.append("export"))
    monkeypatch.setattr("sanbench.bench.networks.time_pairs", lambda *args, **named: called.append("bench") or exit(0))
    monkeypatch.setattr("sanbench.bench.layers.time_layers", lambda *args: called.append("bench") or exit(0))
    monkeypatch.setattr("sanbench.bench.training.time_training", lambda *args: called.append("bench") or exit(0))
    monkeypatch.setattr("sanbench.bench.evaluation.time_evaluation", lambda *args: called.append("bench") or exit(0))
    monkeypatch.setattr("sanbench.bench.reading.time_reading", lambda *args: called.append("bench") or exit(0))
    monkeypatch.setattr("sanbench.data.check.check", lambda *args, **named: called.append("data") or [])
    monkeypatch.setattr("sanbench.data.prepare.prepare", lambda *args: None)
    monkeypatch.setattr("sanbench.data.shrink.shrink", lambda *args: called.append("data") or 0)
    monkeypatch.setattr("sanbench.studies.presets.reproduce", lambda *args: called.append("reproduce") or ([], []))
    outcome = commands.sanbench(*command)
    assert outcome.exit_code == 0, outcome.output
    if command[0] not in ("models", "report", "info", "import"):
        assert command[0] in called


def test_make_targets_exist():
    makefile = (ROOT / "Makefile").read_text()
    targets = re.findall(r"^    make (\S+)", TEXT, re.M)
    assert targets
    assert all(f"\n{target}: " in makefile for target in targets)


def test_the_table_of_fields_is_complete():
    table = TEXT.split("| field | values |")[1].split("\n\n")[0]
    fields = set(re.findall(r"^\| `(\w+)` \|", table, re.M))
    assert fields | {"blocks", "heads"} == set(SANConfig.model_fields)


def test_the_library_example_runs(runs, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "mine").symlink_to(runs / "san10")
    (code,) = re.findall(r"```python\n(.*?)```", TEXT, re.S)
    scope: dict[str, object] = {}
    exec(code, scope)
    assert isinstance(scope["model"], sanbench.models.Classifier)


def test_pictures_and_links_are_there():
    for target in re.findall(r"\]\(([^)#]+)\)", TEXT):
        assert target.startswith("http") or (ROOT / target).exists(), target
