"""`sanbench reproduce`: trains, measures, reports, and repeats nothing."""

import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from sanbench.data import ReadOptions, load_dataset
from sanbench.runs import evaluated
from sanbench.store.files import Store
from sanbench.studies import shape, study
from sanbench.training import loop
from tests.support.commands import sanbench, snapshot

NETWORKS = ("resnet26", "san10_pairwise", "san10_patchwise")
SMALL = """version = 1
title = "small"

[set.san]
width = 0.25
epochs = 1

[set.resnet]
width = 0.25
epochs = 1

[networks.resnet26]
[networks.san10_pairwise]
[networks.san10_patchwise]

[[measure]]
what = ["accuracy", "rotate:90"]

[[measure]]
what = ["attack:pgd,pgd-targeted:4/255"]
set = { steps = 1 }
limit = 4
"""


@pytest.fixture
def small_studies(monkeypatch, tmp_path):
    """`reproduce` as it is, on narrow networks, few images and one budget."""
    (tmp_path / "shipped").mkdir()
    (tmp_path / "shipped" / "quick.toml").write_text(SMALL)
    monkeypatch.setattr(study, "SHIPPED", tmp_path / "shipped")
    original = load_dataset

    def few(name, split, options=None, corruption=None):
        found = original(name, split, options or ReadOptions(), corruption)
        found.images, found.labels = found.images[::100], found.labels[::100]
        return found

    for module in (loop, evaluated, shape):
        monkeypatch.setattr(module, "load_dataset", few)
    shape.shape.cache_clear()
    yield
    shape.shape.cache_clear()


def test_reproduce_trains_measures_reports_and_repeats_nothing(small_studies, tmp_path):
    places = ["--runs", tmp_path / "runs", "--results", tmp_path / "results", "--workers", 1]  # others know no small study
    first = sanbench("reproduce", *places)
    assert first.exit_code == 0, first.output
    assert sorted(path.name for path in (tmp_path / "runs").iterdir()) == [f"quick-{name}" for name in sorted(NETWORKS)]
    keys = {record.key for record in Store(tmp_path / "results").records()}
    assert len(keys) == 3 * (2 + 2)
    before = snapshot(tmp_path)
    second = sanbench("reproduce", *places)
    assert second.exit_code == 0
    assert snapshot(tmp_path) == before

    shutil.rmtree(tmp_path / "runs" / "quick-resnet26")  # an interruption: one run is gone, one has no end, records are lost
    (tmp_path / "runs" / "quick-san10_pairwise" / "metrics.jsonl").unlink()
    for path in (tmp_path / "results/records").glob("resnet26*"):
        path.unlink()
    third = sanbench("reproduce", *places)
    assert third.exit_code == 0, third.output
    # the same seed gives the same weights, hence the same keys
    assert {record.key for record in Store(tmp_path / "results").records()} == keys
    assert set(snapshot(tmp_path / "results/records")) == {path for path in before if path.parent.name == "records"}


ROOT = Path(__file__).parents[1]


def made(target: str) -> list[str]:
    """The words of the `sanbench` command that a target of the Makefile runs."""
    command = ["make", "--dry-run", "--always-make", target]
    text = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    (line,) = [line for line in text.splitlines() if "/sanbench " in line]
    return shlex.split(line)[1:]


@pytest.mark.parametrize("target", ["reproduce", "reproduce-all", "reproduce-full"])
def test_make_writes_where_git_does_not_look(target, tmp_path):
    words = made(target)
    places = [words[words.index(option) + 1] for option in ("--runs", "--results")]
    shutil.copy(ROOT / ".gitignore", tmp_path)
    subprocess.run(["git", "init", "--quiet"], cwd=tmp_path, check=True)
    for place in places:
        (tmp_path / place).mkdir(parents=True)
        (tmp_path / place / "file").touch()
    told = subprocess.run(["git", "status", "--porcelain", "-uall"], cwd=tmp_path, check=True, capture_output=True, text=True)
    assert told.stdout.split() == ["??", ".gitignore"]
    assert "results" not in places  # those are committed
