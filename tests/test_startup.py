"""What a command waits for before it answers: torch only where something is computed, and other programs never."""

import subprocess
import sys
from pathlib import Path

import pytest

from sanbench.bench import startup
from sanbench.errors import SanbenchError
from sanbench.late import Late, functions
from sanbench.store.files import Store
from tests.support.commands import sanbench
from tests.support.made_records import attacked, record, store_with
from tests.support.without_torch import without_torch
from tests.test_wrong_options import commands

ROOT = Path(__file__).parent.parent
ANSWERED = {  # what a line of the answer holds
    "--version": "sanbench",
    "models": "san19_scalar",
    "runs --runs {runs}": "san10",
    "results check --results {results}": "3 records agree with their rows",
    "compare {results} {results}": "top-1 of",
    "compare san10_pairwise resnet26 --results {results}": "Upright: top-1 of san10_pairwise minus resnet26",
    "report --format md,csv,html,tex --results {results} --output {written}": "report.html",
    **{f"{name} --help": f"Usage: root {name}" for name, _ in commands()},
}


@pytest.fixture(scope="module")
def answers(runs, tmp_path_factory) -> dict[str, tuple[int, str]]:
    """Of every command of ANSWERED, from one process without torch."""
    folder = tmp_path_factory.mktemp("startup")
    store_with(folder / "results", record(), record("resnet26", correct=70), attacked("san10_pairwise", "2/255", 40))
    places = {"runs": runs, "results": folder / "results", "written": folder}
    typed = [command.format(**places).split() for command in ANSWERED]
    return dict(zip(ANSWERED, without_torch(typed)))


@pytest.mark.parametrize("command", ANSWERED)
def test_a_command_that_computes_nothing_does_not_import_torch(command, answers):
    code, output = answers[command]
    assert code == 0, output
    assert ANSWERED[command] in " ".join(output.split())


def test_what_computes_needs_torch():
    """Torch is blocked in the process of the test above."""
    ((code, output),) = without_torch([["info"]])
    assert code == 1 and "torch is blocked" in output


def test_a_late_module_is_imported_when_it_is_used():
    code = "import sys\nfrom sanbench.late import Late, functions\n"
    code += "colours, (hue,) = Late('colorsys'), functions('colorsys', 'rgb_to_hsv')\nassert 'colorsys' not in sys.modules\n"
    code += "assert hue(1, 0, 0) == colours.rgb_to_hsv(1, 0, 0)\nassert 'colorsys' in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
    with pytest.raises(AttributeError, match="nonsense"):
        Late("colorsys").nonsense  # noqa: B018
    with pytest.raises(ModuleNotFoundError, match="sanbench_nowhere"):
        functions("sanbench_nowhere", "f")[0]()


CHILD = """
import os, subprocess, sys
import sanbench_cli.main
sanbench_cli.main.app = lambda: print(os.environ.get("OMP_WAIT_POLICY"), flush=True)
from sanbench_cli.__main__ import main
main()
"""


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({}, "PASSIVE"),
        ({"OMP_WAIT_POLICY": "ACTIVE"}, "ACTIVE"),
        ({"GOMP_SPINCOUNT": "1000"}, "None"),
        ({"KMP_BLOCKTIME": "200"}, "None"),
    ],
)
def test_threads_sleep_while_they_wait_unless_the_user_says_otherwise(settings, told):
    """As libgomp would read it in this process, or in one that it starts."""
    ended = subprocess.run(
        [sys.executable, "-c", CHILD], env={"PATH": "", **settings}, capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert ended.stdout.strip() == told


def test_whole_commands_are_timed(monkeypatch, tmp_path):
    few = {"--version": ("--version",), "wrong": ("rotate", "--angles", "nonsense")}
    monkeypatch.setattr(startup, "COMMANDS", few)
    monkeypatch.setattr(startup, "BESIDE", {"nothing": "pass"})
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    outcome = sanbench("bench", "startup", "-n", 1, "--results", tmp_path, columns=120)
    assert outcome.exit_code == 0, outcome.output
    found = {one.setting["command"]: one for one in Store(tmp_path).benchmarks()}
    assert list(found) == [*few, "nothing"]
    for one in found.values():
        (seconds,) = one.seconds.values()
        assert one.figures["cpu"] > 0 and 0.02 < seconds < 600


def test_a_command_that_ends_otherwise_is_no_measurement():
    with pytest.raises(SanbenchError, match="has ended with 2"):
        startup.run([sys.executable, "-m", "sanbench_cli", "rotate", "--fill", "x"], [])
