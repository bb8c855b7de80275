"""`sanbench data check`: what is wrong with a tree of images is named."""

import json
import re
import shutil
import time
from functools import partial

import pytest
from PIL import Image

from sanbench.data import ReadOptions, load_dataset
from sanbench.data.check import JOURNAL, check
from sanbench.data.imagenet import Layout
from sanbench.data.threads import in_threads
from sanbench.errors import SanbenchError
from tests.support import commands
from tests.support.photographs import LABELS, PHOTOGRAPHS, SMALL, one_file, thousand, wnid

sanbench = partial(commands.sanbench, columns=200)  # paths fit a line


def test_a_complete_set_has_no_problems(small):
    found = check(small, SMALL)
    assert [(s.subfolder, s.classes, s.images, s.problems) for s in found] == [
        (p, len(LABELS), 20, ()) for p in ("train", "val")
    ]
    for split, result in zip(("train", "test"), found, strict=True):
        images = load_dataset(f"folder:{small}", split, ReadOptions(image_size=32))
        assert result.fingerprint == images.fingerprint  # what records carry
    assert found[0].bytes == sum(path.stat().st_size for path in (small / "train").rglob("*.jpg"))


def flat(root):
    shutil.rmtree(root / "val")
    (root / "val").mkdir()
    for path, _ in PHOTOGRAPHS.items():
        shutil.copyfile(path, root / "val" / path.name)


def dangling(root):
    path = one_file(root)
    path.unlink()
    path.symlink_to("nowhere.jpg")


BROKEN = {
    "flat": (flat, [r"val/ holds 20 images outside of class folders: .* unpacked flat.*sanbench data prepare"]),
    "missing split": (lambda root: shutil.rmtree(root / "val"), [r"val is missing"]),
    "missing class": (
        lambda root: shutil.rmtree(root / "val" / wnid(LABELS[0])),
        [rf"val/ lacks 1 class folders: {wnid(LABELS[0])}", "val/ holds 19 images: there should be 20"],
    ),
    "strange class": (lambda root: (root / "val" / "cats").mkdir(), [r"val/ has unexpected 1 class folders: cats"]),
    "empty class": (lambda root: one_file(root).unlink(), ["val/ has 1 class folders without images", "holds 19 images"]),
    "empty file": (lambda root: one_file(root).write_bytes(b""), [rf"val/{wnid(LABELS[0])}/\S+jpg is empty"]),
    "unreadable": (dangling, [rf"val/{wnid(LABELS[0])}/\S+jpg cannot be opened"]),
    "no image": (lambda root: (one_file(root).parent / "x.txt").touch(), [r"1 files that are no images .*/x\.txt"]),
}


@pytest.mark.parametrize("name", BROKEN)
def test_what_is_wrong_is_named(name, small):
    make, patterns = BROKEN[name]
    make(small)
    train, val = check(small, SMALL)
    assert train.problems == ()
    assert len(val.problems) == len(patterns)
    for problem, pattern in zip(val.problems, patterns, strict=True):
        assert re.search(pattern, problem), problem


def test_the_whole_of_imagenets_folders(tmp_path):
    """1000 folders as they should be, but for the numbers of images."""
    root = thousand(tmp_path, 2, 1)
    train, val = check(root)
    assert (train.classes, train.images, val.classes, val.images) == (1000, 2000, 1000, 1000)
    assert train.problems == ("train/ holds 2,000 images: there should be 1,281,167.",)
    assert val.problems == ("val/ holds 1,000 images: there should be 50,000.",)
    outcome = sanbench("data", "check", "imagenet", "--data-root", root, columns=400)
    assert outcome.exit_code == 1
    assert "1,281,167" in outcome.output
    assert train.fingerprint in outcome.output
    enough = check(root, Layout(images={"train": 2000, "val": 1000}))
    assert [split.problems for split in enough] == [(), ()]


def test_decoding_finds_what_sizes_do_not_tell(small):
    path = one_file(small)
    path.write_bytes(path.read_bytes()[:-500])
    assert check(small, SMALL)[1].problems == ()
    told = []
    (problem,) = check(small, SMALL, decode=True, progress=told.append)[1].problems
    assert problem.startswith(f"val/{wnid(LABELS[0])}/{path.name} cannot be decoded: ")
    assert told[-1][1:3] == (2 * len(LABELS), 2 * len(LABELS))
    assert not (small / JOURNAL).exists()


class Stop(Exception):
    pass


def test_decoding_goes_on_where_it_was_interrupted(small, monkeypatch):
    broken = one_file(small, "train")
    broken.write_bytes(b"x" * 10)
    monkeypatch.setattr("sanbench.data.threads.available_cpus", lambda: 1)

    def stop(progress):
        if progress.task.startswith("decode") and progress.done == 12:
            raise Stop

    with pytest.raises(Stop):
        check(small, SMALL, decode=True, progress=stop)
    done = [json.loads(line) for line in (small / JOURNAL).read_text().splitlines()]
    assert len(done) == 12
    with (small / JOURNAL).open("a") as file:
        file.write('{"subfolder": "tra')  # cut by a kill
    changed = small / done[3]["subfolder"] / done[3]["name"]
    next(changed.iterdir()).write_bytes(b"y" * 10)
    read = []
    real = Image.open
    monkeypatch.setattr(Image, "open", lambda file, **options: read.append(file.name) or real(file, **options))
    found = check(small, SMALL, decode=True)
    files = {(d["subfolder"], d["name"]) for d in done if d != done[3]}
    assert len(read) == 40 - sum(len(list((small / p / n).iterdir())) for p, n in files)
    problems = [problem for split in found for problem in split.problems]
    assert sorted(p.split(" ")[0] for p in problems) == sorted(
        str(path.relative_to(small)) for path in (broken, next(changed.iterdir()))
    )


@pytest.mark.parametrize("content", ["no json\n", "[1]\n"])
def test_a_journal_that_is_none_is_named(content, small, tmp_path):
    (tmp_path / "journal").write_text(content)
    with pytest.raises(SanbenchError, match=r"journal cannot keep .*--journal"):
        check(small, SMALL, decode=True, journal=tmp_path / "journal")


def test_threads_give_every_result_and_stop_at_the_first_failure():
    assert sorted(result for _, result in in_threads(lambda n: n * n, range(50))) == [n * n for n in range(50)]
    done = []

    def work(n):
        done.append(n)
        if n == 3:
            raise ValueError("three")
        time.sleep(0.001 * (n > 3))  # or all are done on a busy machine before the failure is seen

    with pytest.raises(ValueError, match="three"):
        list(in_threads(work, range(1000), threads=1))
    assert len(done) < 1000


def test_the_commands_say_what_is_accepted(tmp_path, small):
    for command, code, said in (
        (["check", "cifar10", "--data-root", tmp_path], 2, "Unknown data set 'cifar10'"),
        (["check", "imagenet", "--data-root", tmp_path / "nowhere"], 2, "There is no folder"),
        (["check", "imagenet"], 2, "data-root"),
        (["shrink", "--data-root", small, "--output", tmp_path / "tiny", "--size", 32], 0, "40 images with shorter sides"),
    ):
        outcome = sanbench("data", *command)
        assert outcome.exit_code == code, outcome.output
        assert said in outcome.output
