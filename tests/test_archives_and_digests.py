"""Archives that would write elsewhere, and files that are others than those that were measured."""

import io
import os
import tarfile

import pytest
from PIL import Image

import sanbench.data.tensors as tensors
from sanbench.data.check import check
from sanbench.data.imagenet import Layout
from sanbench.data.prepare import prepare
from sanbench.errors import SanbenchError
from tests.support.commands import sanbench
from tests.test_data_prepare import CLASSES, archives, tell_md5  # noqa: F401  # a fixture


def member(name, **fields):
    info = tarfile.TarInfo(name)
    for field, value in fields.items():
        setattr(info, field, value)
    return info


ESCAPING = {
    "parent": [member("../../escaped")],
    "absolute": [member("{outside}/escaped")],
    "link": [member("link", type=tarfile.SYMTYPE, linkname="{outside}"), member("link/escaped")],
    "hard link": [member("link", type=tarfile.LNKTYPE, linkname="../../../secret")],
    "device": [member("device", type=tarfile.CHRTYPE, devmajor=1, devminor=5)],
    "fifo": [member("fifo", type=tarfile.FIFOTYPE)],
}


@pytest.mark.parametrize("name", ESCAPING)
def test_a_class_archive_writes_nowhere_else(name, archives, tmp_path, monkeypatch):  # noqa: F811
    outside = tmp_path / "outside"
    outside.mkdir()
    (tmp_path / "secret").write_text("secret")
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as tar:
        for info in ESCAPING[name]:
            info.name = info.name.format(outside=outside)
            info.linkname = info.linkname.format(outside=outside)
            info.size = 4 if info.isreg() else 0
            tar.addfile(info, io.BytesIO(b"text") if info.isreg() else None)
    (path,) = archives.glob("*train*")
    with tarfile.open(path, "w") as train:
        info = member(f"{CLASSES[0]}.tar", size=len(content.getvalue()))
        train.addfile(info, io.BytesIO(content.getvalue()))
    tell_md5(monkeypatch, archives, "train")  # the checksum is right
    before = tarfile.TarFile.__dict__.get("extraction_filter")
    root = tmp_path / "root"
    with pytest.raises(SanbenchError, match=rf"{path.name} is broken, download it again: ") as caught:
        prepare(archives, root)
    assert "\n" not in str(caught.value)
    assert not list(outside.iterdir()) and not (tmp_path / "escaped").exists() and not (root / "escaped").exists()
    assert not [path for path in root.rglob("*") if not (path.is_file() or path.is_dir()) or path.is_symlink()]
    assert not (root / "train").exists()
    assert tarfile.TarFile.__dict__.get("extraction_filter") is before


def test_python_without_filters_unpacks_nothing(archives, tmp_path, monkeypatch):  # noqa: F811
    monkeypatch.delattr(tarfile, "data_filter")
    with pytest.raises(SanbenchError, match=r"cannot unpack archives safely: 3\.11\.4 or later is needed"):
        prepare(archives, tmp_path / "root")
    assert not (tmp_path / "root").exists()


def test_contents_are_seen_where_names_and_sizes_are_equal(tmp_path):
    for split in ("train", "val"):
        (tmp_path / split / "a").mkdir(parents=True)
        Image.effect_noise((8, 8), 50).save(tmp_path / split / "a" / "x.bmp")
    layout = Layout(("a",), {"train": 1, "val": 1})
    before = check(tmp_path, layout, decode=True)
    same = check(tmp_path, layout, decode=True)
    assert [split.contents for split in before] == [split.contents for split in same]
    assert [len(split.contents) for split in before] == [64, 64] and check(tmp_path, layout)[0].contents == ""
    path = tmp_path / "val" / "a" / "x.bmp"
    status = path.stat()
    path.write_bytes(path.read_bytes()[:-1] + b"\x7f")
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    after = check(tmp_path, layout, decode=True)
    assert after[0] == before[0]
    assert after[1].fingerprint == before[1].fingerprint and after[1].contents != before[1].contents
    outcome = sanbench("data", "check", "imagenet", "--data-root", tmp_path, "--decode")
    assert f"val: SHA-256 of names and contents {after[1].contents}" in outcome.stdout


def test_shipped_images_are_verified(tmp_path, monkeypatch):
    folder = tmp_path / "fashion10k"
    folder.mkdir()
    for path in (tensors.files("sanbench.data") / "fashion10k").iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    monkeypatch.setattr(tensors, "files", lambda package: tmp_path)
    assert len(tensors.load_fashion10k("test")) == 2000
    path = folder / "t10k-images-idx3-ubyte.gz"
    content = bytearray(path.read_bytes())
    content[5] ^= 1  # a time in the header, which gzip does not check
    path.write_bytes(content)
    with pytest.raises(SanbenchError, match=r"t10k-images.* is not the file that sanbench ships"):
        tensors.load_fashion10k("test")


@pytest.mark.parametrize("content", ["no json", "[]", '{"size": 3}', "\udcff"])
def test_a_marker_of_shrinking_that_is_none_is_named(content, tmp_path):
    from sanbench.data.listing import SHRUNK, shrunk

    (tmp_path / SHRUNK).write_text(content, errors="surrogateescape")
    with pytest.raises(SanbenchError, match=r"shrunk\.json"):
        shrunk(tmp_path)
