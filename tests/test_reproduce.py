"""`sanbench reproduce`: trains, measures, reports, and repeats nothing."""

import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from sanbench.store.files import Store
from sanbench.studies import presets as reproduce
from tests.support.commands import sanbench, snapshot


@pytest.fixture
def small_presets(monkeypatch):
    """`reproduce` as it is, on narrow networks, few images and one budget."""

    images = reproduce.load_dataset("fashion10k", "test")
    narrow = {"width": 0.5, "epochs": 1}
    attacks = (reproduce.Attacks("pgd,pgd-targeted", "4/255", 4, 1),)
    preset = reproduce.Preset(attacks, angles="90", changes={"san": narrow, "resnet": {"epochs": 1}})
    monkeypatch.setitem(reproduce.PRESETS, "quick", preset)
    import sanbench.training.loop as loop

    original = loop.load_dataset

    def few(name, split, options=None):
        found = original(name, split)
        found.images, found.labels = found.images[::100], found.labels[::100]
        return found

    monkeypatch.setattr(loop, "load_dataset", few)
    images.images, images.labels = images.images[::100], images.labels[::100]
    monkeypatch.setattr(reproduce, "load_dataset", lambda *_: images)
    return reproduce


def test_reproduce_trains_measures_reports_and_repeats_nothing(small_presets, tmp_path):
    places = ["--runs", tmp_path / "runs", "--results", tmp_path / "results"]
    first = sanbench("reproduce", *places)
    assert first.exit_code == 0, first.output
    assert sorted(path.name for path in (tmp_path / "runs").iterdir()) == [
        f"quick-{name}" for name in sorted(small_presets.NETWORKS)
    ]
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
