"""`sanbench data prepare`: archives that the tests make become class folders.

Three classes, two training images each; four validation images.
"""

import hashlib
import io
import shutil
import tarfile
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import scipy.io
from PIL import Image
from torchvision.datasets import imagenet

from sanbench.data import ReadOptions, load_dataset
from sanbench.data.check import check
from sanbench.data.imagenet import Layout, wnids
from sanbench.data.prepare import prepare
from sanbench.errors import SanbenchError
from tests.support import commands

sanbench = partial(commands.sanbench, columns=200)  # paths fit a line
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
    if not hasattr(tarfile, "data_filter"):
        pytest.skip("archives are unpacked by Python 3.11.4 or later")
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
    images = load_dataset(f"folder:{tmp_path / 'imagenet'}", "test", ReadOptions(image_size=32))
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
    assert "is not a complete imagenet" in outcome.output
