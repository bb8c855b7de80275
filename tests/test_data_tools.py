"""`sanbench data`: checking, unpacking and shrinking, on archives and trees that the tests make."""

import hashlib
import io
import json
import re
import shutil
import tarfile
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import scipy.io
from PIL import Image
from torchvision.datasets import imagenet

from sanbench.data import Source, load_dataset
from sanbench.data.check import JOURNAL, check
from sanbench.data.imagenet import Layout, wnids, words
from sanbench.data.prepare import prepare
from sanbench.data.shrink import shrink
from sanbench.data.threads import in_threads
from sanbench.errors import InputError, SanbenchError
from tests import commands
from tests.photographs import LABELS, PHOTOGRAPHS, place, thousand, wnid

SMALL = Layout(tuple(sorted(map(wnid, LABELS))), {"train": 20, "val": 20})


@pytest.fixture
def small(tmp_path) -> Path:
    """The photographs as a complete set of their own classes, `SMALL`."""
    return place(tmp_path / "small", name=wnid, side=64)


sanbench = partial(commands.sanbench, columns=200)  # paths fit a line


def one_file(root: Path, split="val", label=LABELS[0]) -> Path:
    return next((root / split / wnid(label)).iterdir())


def test_a_complete_set_has_no_problems(small):
    found = check(small, SMALL)
    assert [(s.place, s.classes, s.images, s.problems) for s in found] == [(p, len(LABELS), 20, ()) for p in ("train", "val")]
    for split, result in zip(("train", "test"), found, strict=True):
        images = load_dataset(f"folder:{small}", split, Source(image_size=32))
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
    outcome = sanbench("data", "check", "imagenet", "--data-root", root)
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
        file.write('{"place": "tra')  # cut by a kill
    changed = small / done[3]["place"] / done[3]["name"]
    next(changed.iterdir()).write_bytes(b"y" * 10)
    read = []
    real = Image.open
    monkeypatch.setattr(Image, "open", lambda path: read.append(path) or real(path))
    found = check(small, SMALL, decode=True)
    files = {(d["place"], d["name"]) for d in done if d != done[3]}
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


# Archives: three classes, two training images each; four validation images


CLASSES = [wnids()[n] for n in (7, 99, 400)]
TRUTH = [2, 3, 1, 2]  # the devkit's class numbers of the validation images, which are not the class indices
NUMBERS = {1: CLASSES[2], 2: CLASSES[0], 3: CLASSES[1]}


def pixels() -> bytes:
    content = io.BytesIO()
    Image.effect_noise((40, 30), 50).convert("RGB").save(content, "JPEG")
    return content.getvalue()


def add(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(content)
    archive.addfile(info, io.BytesIO(content))


@pytest.fixture
def archives(tmp_path, monkeypatch) -> Path:
    """devkit, val and train archives as image-net.org makes them, their MD5 sums told to torchvision."""
    folder = tmp_path / "archives"
    folder.mkdir()
    names = {key: name for key, (name, _) in imagenet.ARCHIVE_META.items()}
    with tarfile.open(folder / names["train"], "w") as train:
        for wnid in CLASSES:
            content = io.BytesIO()
            with tarfile.open(fileobj=content, mode="w") as own:
                for number in range(2):
                    add(own, f"{wnid}_{number}.JPEG", pixels())
            add(train, f"{wnid}.tar", content.getvalue())
    with tarfile.open(folder / names["val"], "w") as val:
        for number in range(1, 5):
            add(val, f"ILSVRC2012_val_{number:08d}.JPEG", pixels())
    fields = [(name, object) for name in ("ILSVRC2012_ID", "WNID", "words", "gloss", "num_children", "children")]
    rows = [(number, wnid, f"{wnid}, thing", "", 0, []) for number, wnid in NUMBERS.items()]
    meta = io.BytesIO()
    scipy.io.savemat(meta, {"synsets": np.array([*rows, (4, "n00000001", "all", "", 3, [1, 2, 3])], dtype=fields)})
    with tarfile.open(folder / names["devkit"], "w:gz") as devkit:
        add(devkit, "ILSVRC2012_devkit_t12/data/meta.mat", meta.getvalue())
        truth = "".join(f"{number}\n" for number in TRUTH).encode()
        add(devkit, "ILSVRC2012_devkit_t12/data/ILSVRC2012_validation_ground_truth.txt", truth)
    for key in names:
        tell_md5(monkeypatch, folder, key)
    return folder


def tell_md5(monkeypatch, folder, key):
    name = imagenet.ARCHIVE_META[key][0]
    digest = hashlib.md5((folder / name).read_bytes()).hexdigest()
    monkeypatch.setitem(imagenet.ARCHIVE_META, key, (name, digest))


PREPARED = Layout(tuple(CLASSES), {"train": 6, "val": 4})


def is_prepared(root: Path) -> bool:
    truth = {(root / "val" / NUMBERS[n] / f"ILSVRC2012_val_{i:08d}.JPEG").is_file() for i, n in enumerate(TRUTH, start=1)}
    return truth == {True} and [split.problems for split in check(root, PREPARED)] == [(), ()] and not [*root.glob("*.partial")]


def test_archives_become_class_folders(archives, tmp_path):
    told = []
    prepare(archives, tmp_path / "imagenet", told.append)
    assert is_prepared(tmp_path / "imagenet")
    assert [(p.task.split(",")[0], p.done == p.total) for p in told if p.done == p.total] == [
        ("unpack devkit", True),
        ("unpack val", True),
        ("unpack train", True),
    ]
    images = load_dataset(f"folder:{tmp_path / 'imagenet'}", "test", Source(image_size=32))
    assert sorted(images.labels.tolist()) == [7, 7, 99, 400]
    before = (tmp_path / "imagenet" / "train" / CLASSES[0]).stat().st_mtime_ns
    shutil.rmtree(archives)
    archives.mkdir()
    prepare(archives, tmp_path / "imagenet")  # all is there: nothing is needed, nothing is done
    assert (tmp_path / "imagenet" / "train" / CLASSES[0]).stat().st_mtime_ns == before


@pytest.mark.parametrize("packed", [1, 2, 4], ids=["all archives unpacked, no class", "first class cut", "second class cut"])
def test_unpacking_goes_on_where_it_was_interrupted(packed, archives, tmp_path, monkeypatch):
    """The n-th archive (the first holds those of the classes; those of the classes follow) is cut short by a kill."""
    root, real, seen = tmp_path / "imagenet", imagenet.extract_archive, []

    def extract(source, target, remove_finished=False):
        if "val" in str(target) or "devkit" in str(source):
            return real(source, target, remove_finished)
        seen.append(source)
        if len(seen) == packed:
            Path(target).mkdir(exist_ok=True)
            (Path(target) / f"{Path(source).stem}_0.JPEG").write_bytes(b"cut")
            raise KeyboardInterrupt
        return real(source, target, remove_finished)

    monkeypatch.setattr(imagenet, "extract_archive", extract)
    with pytest.raises(KeyboardInterrupt):
        prepare(archives, root)
    assert not (root / "train").exists()
    monkeypatch.setattr(imagenet, "extract_archive", real)
    if packed > 1:
        (archives / imagenet.ARCHIVE_META["train"][0]).write_bytes(b"not needed again")
    prepare(archives, root)
    assert is_prepared(root)
    assert all(path.stat().st_size > 100 for path in (root / "train").rglob("*.JPEG"))


@pytest.mark.parametrize("key", ["devkit", "val", "train"])
@pytest.mark.parametrize("known", [False, True], ids=["by its MD5", "while unpacking"])
def test_a_broken_archive_is_named(key, known, archives, tmp_path, monkeypatch):
    path = archives / imagenet.ARCHIVE_META[key][0]
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    if known:
        tell_md5(monkeypatch, archives, key)
    with pytest.raises(SanbenchError, match=rf"{path.name} is broken, download it again: "):
        prepare(archives, tmp_path / "imagenet")


def test_a_missing_archive_is_named(archives, tmp_path):
    (archives / imagenet.ARCHIVE_META["val"][0]).unlink()
    outcome = sanbench("data", "prepare", "imagenet", "--archives", archives, "--data-root", tmp_path / "imagenet")
    assert outcome.exit_code == 2
    assert "lacks ILSVRC2012_img_val.tar: download" in outcome.output


def test_a_disk_that_is_too_small_is_told_before(archives, tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**6, 10**6 - 5, 5))
    with pytest.raises(SanbenchError, match=r"imagenet has 0\.0 GB free, and unpacking needs 0\.0 GB more"):
        prepare(archives, tmp_path / "imagenet")
    assert [*(tmp_path / "imagenet").iterdir()] == []


def test_prepare_checks_what_it_made(archives, tmp_path):
    outcome = sanbench("data", "prepare", "imagenet", "--archives", archives, "--data-root", tmp_path / "imagenet")
    assert outcome.exit_code == 1  # three classes are not ImageNet
    assert "lacks 997 class folders" in outcome.output
    assert "is not a complete ImageNet" in outcome.output


def test_shrinking_keeps_names_and_says_so(tmp_path):
    source = place(tmp_path / "large", ("train", "val"), wnid)
    for path in [*(source / "val").rglob("*.jpg")][2:]:
        path.unlink()
    small = source / "train" / wnid(LABELS[0]) / "small.png"
    Image.new("RGBA", (50, 40)).save(small)
    told = []
    count = shrink(source, tmp_path / "small", 128, told.append)
    assert (count, told[-1].done) == (23, 23)
    before, after = (load_dataset(f"folder:{root}", "train", Source()) for root in (source, tmp_path / "small"))
    assert after.labels.tolist() == before.labels.tolist()
    assert after.classes == before.classes == list(words())
    assert after.fingerprint.startswith("shrunk-128-")
    assert check(tmp_path / "small", Layout(SMALL.classes, {"train": 21, "val": 2}))[0].fingerprint == after.fingerprint
    for n in range(len(after)):
        with Image.open(before.locate(n)) as one, Image.open(after.locate(n)) as other:
            assert one.format == other.format
            assert min(other.size) == min(128, *one.size)
            assert abs(one.width / one.height - other.width / other.height) < 0.01
    assert (tmp_path / "small" / small.relative_to(source)).read_bytes() == small.read_bytes()


def test_shrinking_goes_on_and_names_what_is_broken(small, tmp_path):
    broken = one_file(small)
    content = broken.read_bytes()
    broken.write_bytes(content[:-500])
    target = tmp_path / "tiny"
    with pytest.raises(SanbenchError, match=rf"1 images cannot be shrunk: val/{wnid(LABELS[0])}/{broken.name}: .* All others"):
        shrink(small, target, 32)
    with pytest.raises(InputError, match="is not finished"):
        load_dataset(f"folder:{target}", "test", Source())
    with pytest.raises(InputError, match="shrunk otherwise or from others"):
        shrink(small, target, 48)
    made = {path: path.stat().st_mtime_ns for path in target.rglob("*.jpg")}
    assert len(made) == 39
    broken.write_bytes(content)
    assert shrink(small, target, 32) == shrink(small, target, 32) == 40  # goes on when mended; then there is nothing to do
    assert {path: path.stat().st_mtime_ns for path in made} == made
    broken.unlink()
    with pytest.raises(InputError, match="shrunk otherwise or from others"):
        shrink(small, target, 32)


def test_an_interrupted_shrinking_goes_on(small, tmp_path, monkeypatch):
    monkeypatch.setattr("sanbench.data.threads.available_cpus", lambda: 1)

    def stop(progress):
        if progress.done == 10:
            raise KeyboardInterrupt

    target = tmp_path / "tiny"
    with pytest.raises(KeyboardInterrupt):
        shrink(small, target, 32, stop)
    made = {path: path.stat().st_mtime_ns for path in target.rglob("*.jpg")}
    assert 10 <= len(made) < 40
    assert shrink(small, target, 32) == 40
    assert {path: path.stat().st_mtime_ns for path in made} == made
    assert len(load_dataset(f"folder:{target}", "test", Source())) == 20


def stranger(tmp_path):
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").touch()
    return tmp_path / "other"


@pytest.mark.parametrize(
    ("source", "target", "size", "named"),
    [
        (lambda p: p / "nowhere", lambda p: p / "new", 64, "no data set in"),
        (lambda p: p / "small", lambda p: p / "small", 64, "another folder than that of the images"),
        (lambda p: p / "small", stranger, 64, "is not empty"),
        (lambda p: p / "small", lambda p: p / "new", 8, "size 8 is not accepted"),
    ],
)
def test_wrong_folders_and_sizes(source, target, size, named, small, tmp_path):
    with pytest.raises(InputError, match=named):
        shrink(source(tmp_path), target(tmp_path), size)


def test_what_was_shrunk_is_not_shrunk_again(small, tmp_path):
    shrink(small, tmp_path / "tiny", 48)
    outcome = sanbench("data", "shrink", "--data-root", tmp_path / "tiny", "--output", tmp_path / "tinier", "--size", 32)
    assert outcome.exit_code == 2
    assert "was shrunk already" in outcome.output


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
