"""Full and read-only disks: the sentence says so, what was there is whole, and nothing is left over."""

import errno
import os
import subprocess
from pathlib import Path

import pytest
import torch

from sanbench.errors import SanbenchError
from sanbench.models.checkpoints import read_checkpoint, write_file, write_whole
from sanbench.runs.run import Run
from tests.support.commands import sanbench
from tests.support.processes import ENVIRONMENT, SANBENCH


@pytest.fixture
def disk(tmp_path):
    """A file system of 1 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", folder], capture_output=True).returncode:
        pytest.skip("a file system can be mounted by root alone")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


def test_a_checkpoint_does_not_fit(disk):
    path = disk / "best.pt"
    write_whole(path, {"format": "f", "w": torch.zeros(1000)})
    with pytest.raises(
        SanbenchError, match=r"Cannot write \S+best\.pt: No space left on device\. What was there before is whole\."
    ):
        write_whole(path, {"format": "f", "w": torch.zeros(10**6)})
    assert len(read_checkpoint(path, "f")["w"]) == 1000
    assert [entry.name for entry in disk.iterdir()] == ["best.pt"]


def training(folder, runs, *run):
    command = ["train", "resnet26", "--data", f"folder:{folder}", "--image-size", "32", "--epochs", "1", "--batch-size", "8"]
    return [*command, "--set", "width=0.25", "--workers", "0", *(run or ("--run", "run")), "--runs", str(runs)]


def test_a_training_on_a_full_and_on_a_read_only_disk_is_one_sentence(disk, folder):
    outcome = sanbench(*training(folder, disk), columns=400)
    assert outcome.exit_code == 1
    assert outcome.stderr.startswith("Error: Cannot write ") and "No space left on device" in outcome.stderr
    assert len(outcome.stderr.splitlines()) == 1
    assert not list((disk / "run").glob(".*"))
    subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
    for more in (["--resume", "run"], ["--run", "other"]):
        outcome = sanbench(*training(folder, disk, *more), columns=400)
        assert outcome.exit_code == 1, outcome.stderr
        assert "Read-only file system" in outcome.stderr and len(outcome.stderr.splitlines()) == 1, outcome.stderr
    with pytest.raises(SanbenchError, match="Read-only"):
        Run(disk / "run").append({"epoch": 1})


def test_a_limit_on_files_is_told_too(folder, tmp_path):
    """Written over what a file may be long; the system's signal for that is not heeded by Python."""
    command = f"ulimit -f 100; exec {' '.join([*SANBENCH, *training(folder, tmp_path)])}"
    done = subprocess.run(["bash", "-c", command], env=ENVIRONMENT, capture_output=True, text=True)
    assert done.returncode == 1, done.stderr
    assert done.stderr.startswith("Error: Cannot write ") and "File too large" in done.stderr, done.stderr


@pytest.mark.parametrize("kind", [OSError, RuntimeError])
def test_where_cleaning_up_fails_too_the_first_reason_is_told(tmp_path, monkeypatch, kind):
    def full(file):
        try:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError:
            if kind is OSError:
                raise
            raise RuntimeError("unexpected pos 1088 vs 982\nand more")  # noqa: B904  as torch.save does

    def read_only(path, missing_ok=False):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(Path, "unlink", read_only)
    with pytest.raises(SanbenchError, match="No space left on device"):
        write_file(tmp_path / "a.pt", full)
