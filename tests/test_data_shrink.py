"""`sanbench data shrink`: images with shorter sides under the same names."""

from functools import partial

import pytest
from PIL import Image

from sanbench.data import ReadOptions, load_dataset
from sanbench.data.check import check
from sanbench.data.imagenet import Layout, words
from sanbench.data.shrink import shrink
from sanbench.errors import InputError, SanbenchError
from tests.support import commands
from tests.support.photographs import LABELS, SMALL, one_file, place, wnid

sanbench = partial(commands.sanbench, columns=200)  # paths fit a line


def test_shrinking_keeps_names_and_says_so(tmp_path):
    source = place(tmp_path / "large", ("train", "val"), wnid)
    for path in [*(source / "val").rglob("*.jpg")][2:]:
        path.unlink()
    small = source / "train" / wnid(LABELS[0]) / "small.png"
    Image.new("RGBA", (50, 40)).save(small)
    told = []
    count = shrink(source, tmp_path / "small", 128, told.append)
    assert (count, told[-1].done) == (23, 23)
    before, after = (load_dataset(f"folder:{root}", "train", ReadOptions()) for root in (source, tmp_path / "small"))
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
    with pytest.raises(SanbenchError, match=rf"1 images cannot be shrunk: val/{wnid(LABELS[0])}/{broken.name} .* All others"):
        shrink(small, target, 32)
    with pytest.raises(InputError, match="is not finished"):
        load_dataset(f"folder:{target}", "test", ReadOptions())
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
    assert len(load_dataset(f"folder:{target}", "test", ReadOptions())) == 20


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
