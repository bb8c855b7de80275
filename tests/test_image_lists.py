"""--images: the images of a list, of a file or of the package, and what a record says of it."""

import hashlib
import json

import pytest
import torch

from sanbench.data import ImageList, ReadOptions, load_dataset, read_list, subset
from sanbench.data.imagenet import wnids
from sanbench.data.lists import LISTS
from sanbench.errors import InputError
from sanbench.evaluation.evaluate import evaluate
from sanbench.evaluation.loop import Identity
from sanbench.evaluation.parts import EvaluationOptions
from sanbench.store.files import Store
from tests.support.colours import class_folders
from tests.support.commands import sanbench, snapshot
from tests.support.report_pages import pages

ROBUSTBENCH = "robustbench-imagenet-5000"


def upright(evaluated, split, store, **options):
    (record,) = evaluate(evaluated, split, [Identity()], store, torch.device("cpu"), EvaluationOptions(**options))
    return record


def write(path, *lines):
    path.write_text("".join(f"{line}\n" for line in lines))
    return path


def test_the_list_of_robustbench_names_imagenets_images(tmp_path):
    listed = read_list(ROBUSTBENCH)
    paths = [text for _, text in listed.lines]
    assert listed.name == ROBUSTBENCH and len(set(paths)) == 5000
    assert (paths[0], paths[-1]) == ("n09468604/ILSVRC2012_val_00015253.JPEG", "n13133613/ILSVRC2012_val_00025432.JPEG")
    assert listed.sha256 == "49cc660768bb59fb01b0b6b0b9858489592dc1a6dbbc86dfc7e62edcc843a656"
    class_folders(tmp_path / "val", wnids())
    for path in [*paths, *(f"{wnid}/ILSVRC2012_val_00000000.JPEG" for wnid in wnids()[:100])]:
        (tmp_path / "val" / path).touch()
    images = load_dataset("imagenet", "test", ReadOptions(tmp_path))
    chosen = subset(images, None, 0, listed)
    assert (len(images), len(chosen), chosen) == (5100, 5000, sorted(chosen))
    every = images.paths()
    assert {every[index] for index in chosen} == set(paths)


def test_paths_and_indices_name_images(images, tmp_path):
    every = images.paths()
    assert every[0] == "bag/00.png"
    by_path = read_list(str(write(tmp_path / "paths", every[7], "", f"  {every[2]} ")))
    by_index = read_list(str(write(tmp_path / "indices", 2, 7)))
    assert by_path.indices(images) == by_index.indices(images) == [2, 7]
    assert by_index.sha256 == hashlib.sha256(b"2\n7\n").hexdigest()
    (tmp_path / "windows").write_bytes(b"\xef\xbb\xbf2\r\n7\r\n")
    assert read_list(str(tmp_path / "windows")).sha256 == by_index.sha256


WRONG = {
    "unknown path": (
        ["bag/00.png", "", "bag/99.png"],
        r"line 3: bag/99\.png is not accepted: .* has no such test image; .*bag/00",
    ),
    "unknown folder": (["val/bag/00.png"], r"line 1: val/bag/00\.png is not accepted"),
    "out of range": (["17", "18"], r"line 2: 18 is not accepted: .* has 18 test images, numbered from 0"),
    "far out of range": (["9" * 5000], r"line 1: 9+ is not accepted"),
    "negative": (["-1"], r"line 1: -1 is not accepted"),
    "double": (["3", "0", "3"], r"line 3: 3 is not accepted: line 1 names this image already"),
    "double by path": (["0", "bag/00.png"], r"line 2: bag/00\.png is not accepted: line 1 names"),
}


@pytest.mark.parametrize("name", WRONG)
def test_lines_that_are_no_images_are_named(name, images, tmp_path):
    lines, pattern = WRONG[name]
    with pytest.raises(InputError, match=pattern):
        subset(images, None, 0, read_list(str(write(tmp_path / "list", *lines))))


def test_images_in_memory_have_indices_alone():
    images = load_dataset("fashion10k", "test")
    assert ImageList("two", ((1, "5"), (2, "3"))).indices(images) == [3, 5]
    with pytest.raises(InputError, match="fashion10k has no such test image; write an index, as they have no paths"):
        ImageList("one", ((1, "a.png"),)).indices(images)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "There is no list of images"),
        (b"", "it is empty"),
        (b" \n\n", "it is empty"),
        (b"0\n\xff\n", "byte 2 is not UTF-8"),
    ],
)
def test_files_that_are_no_list_are_refused_before_anything(content, said, runs, tmp_path):
    if content is not None:
        (tmp_path / "list").write_bytes(content)
    before = snapshot(tmp_path)
    outcome = sanbench("accuracy", "san10", "--images", tmp_path / "list", "--runs", runs, "--results", tmp_path / "results")
    assert outcome.exit_code == 2 and said in outcome.stderr and outcome.stderr.count("\n") == 1, outcome.output
    assert ROBUSTBENCH in outcome.stderr or content is not None
    assert snapshot(tmp_path) == before


def test_a_line_that_is_no_image_leaves_no_results(runs, tmp_path):
    listed = write(tmp_path / "list", "bag/00.png", "nowhere.png")
    outcome = sanbench("rotate", "san10", "--images", listed, "--runs", runs, "--results", tmp_path / "results")
    assert outcome.exit_code == 2 and "line 2: nowhere.png is not accepted" in outcome.stderr
    assert list(snapshot(tmp_path)) == [listed]


def test_a_list_stands_in_the_record_by_its_hash(evaluated, images, tmp_path):
    store = Store(tmp_path / "results")
    one = read_list(str(write(tmp_path / "one", 3, 5, 11, 2)))
    same = read_list(str(write(tmp_path / "same", 3, 5, 11, 2)))
    record = upright(evaluated, images, store, images=one)
    assert store.rows(record)["index"].tolist() == [2, 3, 5, 11]
    assert (record.data.images, record.data.of, record.data.subset_seed) == (4, len(images), None)
    assert (record.image_list, record.data.listed) == ("one", one.sha256)
    again = upright(evaluated, images, store, images=same)
    assert again == record  # the file's name decides nothing
    drawn = upright(evaluated, images, store, images=one, limit=2, seed=4)
    assert set(store.rows(drawn)["index"]) < {2, 3, 5, 11}
    assert (drawn.data.images, drawn.data.subset_seed, drawn.data.listed) == (2, 4, one.sha256)
    limited = upright(evaluated, images, store, images=one, limit=4, seed=4)
    assert limited.key == record.key  # nothing is drawn of four images of four
    whole = upright(evaluated, images, store)
    chance = upright(evaluated, images, store, limit=4)
    assert len({r.key for r in (record, drawn, whole, chance)}) == 4
    assert Store(tmp_path / "results").records()[0] == record  # read back


def test_records_without_a_list_are_written_as_before(evaluated, images, tmp_path):
    record = upright(evaluated, images, Store(tmp_path), limit=3)
    written = json.loads(record.model_dump_json())
    assert {"listed", "among", "image_list"} & {*written, *written["data"]} == set()
    assert written["data"]["subset_seed"] == 0
    fields = {"name", "split", "fingerprint", "decoder", "preprocessing", "images", "of", "subset_seed"}
    assert set(written["data"]) == fields
    decisive = {name: written[name] for name in ("network", "data", "kind", "setting")}
    assert record.key == hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()


def test_the_report_names_the_list(runs, tmp_path):
    listed = write(tmp_path / "mine.txt", "bag/00.png", "sneaker/01.png", "trouser/02.png")
    results = ["--results", tmp_path / "results"]
    for command in (["accuracy"], ["corrupt", "--kinds", "fog", "--severity", "1"]):
        outcome = sanbench(*command, "--images", listed, "--runs", runs, *results)
        assert outcome.exit_code == 0, outcome.output
    assert sanbench("report", *results).exit_code == 0
    text, digest = pages(tmp_path / "results"), read_list(str(listed)).sha256
    assert f"Images by list: mine.txt, SHA-256 {digest}." in text
    assert f"3 of 18, list {digest[:8]}" in text
    assert "data_listed" in (tmp_path / "results" / "accuracy.csv").read_text()


def test_every_list_that_ships_can_be_read():
    assert all(read_list(name).lines for name in LISTS)
