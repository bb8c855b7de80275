"""Every command of the README and of docs/ is one that the command line takes, and the Python in them runs."""

import re
import shlex
import shutil
from pathlib import Path

import pytest
import typer

from sanbench_cli.main import app
from tests.support import readme_files
from tests.support.commands import sanbench as run_sanbench
from tests.test_docs import PAGES

TEXTS = {path.name: path.read_text() for path in PAGES}
BLOCKS = {name: re.findall(r"^    (sanbench .*)$", text, re.M) for name, text in TEXTS.items()}
COMMANDS = [(name, shlex.split(line, comments=True)[1:]) for name, lines in BLOCKS.items() for line in lines]
INLINE = [
    (name, line) for name, text in TEXTS.items() for line in re.findall(r"`(sanbench [a-z][^`]*)`", " ".join(text.split()))
]
INLINE += [("slurm.md", line) for line in re.findall(r"sanbench_cli (train[^&]*)", TEXTS["slurm.md"].replace("\\\n", " "))]

LONG_WORK = {  # what a command does at its end: the library call that it is there for
    "train": ("sanbench.training.loop.train", "sanbench.training.launcher.launch"),
    **dict.fromkeys(("accuracy", "rotate", "spatial", "attack", "corrupt"), ("sanbench.evaluation.api.evaluate_conditions",)),
    "show": ("sanbench.explain.panels.explain",),
    "export": ("sanbench.models.export.export_model",),
    "reproduce": ("sanbench.studies.worker.Worker.work",),
    **dict.fromkeys(("study run", "study work"), ("sanbench.studies.worker.Worker.work", "sanbench.studies.cluster.submit")),
    "bench model": ("sanbench.bench.networks.time_pairs",),
    "bench ops": ("sanbench.bench.layers.time_layers",),
    "bench train": ("sanbench.bench.training.time_training",),
    "bench evaluate": ("sanbench.bench.evaluation.time_evaluation", "sanbench.bench.official.time_against_official"),
    "bench pipeline": ("sanbench.bench.pipeline.time_pipeline",),
    "bench corruptions": ("sanbench.bench.corruptions.time_corruptions",),
    "bench attacks": ("sanbench.bench.attacks.time_attacks",),
    "bench protocol": ("sanbench.bench.protocol.time_protocol",),
    "bench workers": ("sanbench.bench.workers.time_workers",),
    "bench startup": ("sanbench.bench.startup.time_commands",),
    "bench images": ("sanbench.bench.photographs.make_imagenet",),
    "bench data": ("sanbench.bench.reading.time_reading",),
    "bench kernels": ("sanbench.bench.gpu_kernels.compile_kernels",),
    "data check": ("sanbench.data.check.check",),
    "data prepare": ("sanbench.data.prepare.prepare",),
    "data shrink": ("sanbench.data.shrink.shrink",),
}


class Reached(BaseException):
    """The long work would begin now."""


def begin(*args, **named):
    raise Reached


@pytest.fixture(scope="session")
def results(runs, tmp_path_factory):
    """A results folder with a record of each network."""
    folder = tmp_path_factory.mktemp("measured") / "results"
    outcome = run_sanbench("accuracy", "--limit", 6, "--runs", runs, "--results", folder)
    assert outcome.exit_code == 0, outcome.output
    return folder


@pytest.mark.parametrize(("page", "command"), COMMANDS, ids=[f"{page} {' '.join(words)}" for page, words in COMMANDS])
def test_commands_reach_their_library_call(page, command, runs, results, tmp_path, monkeypatch):
    """Options are read, names resolved and networks loaded as in earnest; what takes long is not begun."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    shutil.copytree(results, tmp_path / "results")
    for name in ("resnet26", "baseline", "san10", "mine", "seed-0", "seed-1", "seed-2"):
        if "--run" not in command or name != command[command.index("--run") + 1]:
            (tmp_path / "runs" / name).symlink_to(runs / ("resnet26" if name in ("resnet26", "baseline") else "san10"))
    readme_files.provide(command, tmp_path)
    work = LONG_WORK.get(" ".join(command[:2])) or LONG_WORK.get(command[0])
    if work is None or "--dry-run" in command:
        outcome = run_sanbench(*command)
        assert outcome.exit_code == 0, outcome.output
        return
    for path in work:
        monkeypatch.setattr(path, begin)
    with pytest.raises(Reached):
        print(run_sanbench(*command).output)


@pytest.mark.parametrize(("page", "line"), INLINE, ids=[f"{page} {line}" for page, line in INLINE])
def test_commands_within_sentences_exist(page, line):
    """Their names and their options; what stands for a value need not be one."""
    command = typer.main.get_command(app)
    words = re.sub(r"[\[\]]", " ", line).split()
    words = words[1:] if words[0] == "sanbench" else words
    while hasattr(command, "commands") and words and words[0] in command.commands:
        command = command.commands[words.pop(0)]
    assert not hasattr(command, "commands") or not words or words[0].startswith("-"), line
    known = {flag for parameter in command.params for flag in (*parameter.opts, *parameter.secondary_opts)} | {"--help"}
    assert [word for word in words if word.startswith("-") and word.split("=")[0] not in known] == []


PYTHON = [(name, "\n".join(code)) for name, text in TEXTS.items() if (code := re.findall(r"```python\n(.*?)```", text, re.S))]


@pytest.mark.parametrize(("page", "code"), PYTHON, ids=[name for name, _ in PYTHON])
def test_python_runs(page, code, runs, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "mine").symlink_to(runs / "san10")
    scope: dict[str, object] = {"REPOSITORY": str(Path(__file__).parent.parent)}
    exec(code, scope)
