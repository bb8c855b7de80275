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
from tests.support.without_modules import TORCH, without
from tests.test_wrong_options import commands

ROOT = Path(__file__).parent.parent
ANSWERED = {  # what a line of the answer holds
    "--version": "sanbench",
    "--help": "Usage: root",
    "models": "san19_scalar",
    "runs --runs {runs}": "san10",
    "results check --results {results}": "3 records agree with their rows",
    "compare {results} {results}": "top-1 of",
    "compare san10_pairwise resnet26 --results {results}": "Upright: top-1 of san10_pairwise minus resnet26",
    **{f"{name} --help": f"Usage: root {name}" for name, _ in commands()},
}
REPORT = "report --format md,csv,html,tex --results {results} --output {written}"  # by pandas
ONE = "--limit 1 --force --runs {runs} --results {written}/computed"
COMPUTED = {
    "train san10 --dry-run": "8,503,338 parameters",
    "train resnet26 --data folder:{folder} --decoder pil --image-size 32 --workers 0 --set width=0.125 --epochs 1 "
    "--batch-size 8 --runs {written}/trained": "best validation top-1",
    f"accuracy san10 {ONE}": "upright",
    f"rotate san10 --angles 45 {ONE}": "45°",
    f"attack resnet26 --attack fgsm,pgd {ONE}": "pgd, L∞",
}
COMPILER = (
    "torch._dynamo",
    "torch.fx.experimental.symbolic_shapes",
    "sympy",
)  # torch's, which takes as long as the rest of torch


@pytest.fixture(scope="module")
def places(runs, folder, tmp_path_factory) -> dict[str, Path]:
    written = tmp_path_factory.mktemp("startup")
    store_with(written / "results", record(), record("resnet26", correct=70), attacked("san10_pairwise", "2/255", 40))
    return {"runs": runs, "folder": folder, "results": written / "results", "written": written}


@pytest.fixture(scope="module")
def answers(places) -> dict[str, tuple[int, str]]:
    """Of every command of ANSWERED, from one process without torch and pandas."""
    typed = [command.format(**places).split() for command in ANSWERED]
    return dict(zip(ANSWERED, without((*TORCH, "pandas"), typed)))


@pytest.fixture(scope="module")
def computed(places) -> dict[str, tuple[int, str]]:
    """Of every command of COMPUTED, from one process without what none of them needs."""
    modules = (*COMPILER, "pandas", "scipy", "torchvision", "torchattacks", "matplotlib")
    typed = [command.format(**places).split() for command in COMPUTED]
    return dict(zip(COMPUTED, without(modules, typed)))


@pytest.mark.parametrize("command", ANSWERED)
def test_a_command_that_computes_nothing_does_not_import_torch(command, answers):
    code, output = answers[command]
    assert code == 0, output
    assert ANSWERED[command] in " ".join(output.split())


def test_a_report_does_not_import_torch(places):
    ((code, output),) = without(TORCH, [REPORT.format(**places).split()])
    assert code == 0 and "report.html" in output, output


@pytest.mark.parametrize("command", COMPUTED)
def test_a_command_that_computes_imports_torch_alone(command, computed):
    """Neither torch's compiler, nor pandas, SciPy or torchvision."""
    code, output = computed[command]
    assert code == 0, output
    assert COMPUTED[command] in " ".join(output.split())


@pytest.mark.parametrize(
    ("module", "words"), [("torch", ["info"]), ("torch._dynamo", ["export", "{checkpoint}", "--output", "{written}/x.pt2"])]
)
def test_what_needs_a_module_is_not_answered_without_it(module, words, places, san_run):
    """It is blocked in the processes of the tests above."""
    ((code, output),) = without([module], [[word.format(checkpoint=san_run.checkpoint, **places) for word in words]])
    assert code == 1 and f"{module} is blocked" in output, output


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
        assert one.figures["cpu"] > 0 and 0.002 < seconds < 600


def test_a_command_that_ends_otherwise_is_no_measurement():
    with pytest.raises(SanbenchError, match="has ended with 2"):
        startup.run([sys.executable, "-m", "sanbench_cli", "rotate", "--fill", "x"], [])
