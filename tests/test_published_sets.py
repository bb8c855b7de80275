"""ImageNet-A, -R, -Sketch and -V2 in the folders that their archives unpack, and the 200 classes that count of two of them."""

from dataclasses import replace
from importlib.resources import files

import pytest
import torch
from torchvision.transforms import v2

from sanbench.data import DATASETS, ReadOptions, load_dataset
from sanbench.data.check import check
from sanbench.data.imagenet import wnids, words
from sanbench.data.shifted import SHIFTED
from sanbench.errors import InputError
from sanbench.evaluation.loop import Identity
from sanbench.store.files import Store
from tests.support.colours import NAME, READ, class_folders, paint, reader, write_weights
from tests.support.commands import sanbench, snapshot
from tests.support.photographs import PHOTOGRAPHS
from tests.support.quick_measurements import measured
from tests.support.report_pages import pages

FOLDERS = {  # as the archives unpack
    "imagenet-a": "imagenet-a",
    "imagenet-r": "imagenet-r",
    "imagenet-sketch": "sketch",
    "imagenet-v2": "imagenetv2-matched-frequency-format-val",
    "imagenet-v2-threshold0.7": "imagenetv2-threshold0.7-format-val",
    "imagenet-v2-top-images": "imagenetv2-top-images-format-val",
}
IMAGES = {"imagenet-a": 7_500, "imagenet-r": 30_000, "imagenet-sketch": 50_889}


def unpacked(root, name, shown):
    """The set's class folders under `root`; `shown` holds (class folder, class that the image shows)."""
    split = class_folders(root / FOLDERS[name], SHIFTED[name].classes)
    for number, (folder, label) in enumerate(shown):
        paint(split / folder / f"{number}.jpg", label)
    (split / "README.txt").write_text("as in the archive")
    return root


@pytest.fixture
def adversarial(tmp_path):
    """Four images of ImageNet-A: shown as themselves, as a class that is none of the 200, and twice as another of these.

    Class 29 is none of the 200, and of these 39 is by far the nearest.
    """
    return unpacked(
        tmp_path / "sets", "imagenet-a", [(wnids()[n], shown) for n, shown in ((6, 6), (39, 29), (11, 13), (988, 6))]
    )


@pytest.mark.parametrize("name", ["imagenet-a", "imagenet-r"])
def test_the_200_classes_are_those_that_timm_lists(name):
    indices = (files("timm.data") / "_info" / f"{name.replace('-', '_')}_indices.txt").read_text().split()
    assert len(set(SHIFTED[name].classes)) == 200
    assert SHIFTED[name].indices == SHIFTED[name].among == tuple(map(int, indices))


@pytest.mark.parametrize("name", SHIFTED)
def test_a_set_is_read_from_the_folder_of_its_archive(name, tmp_path):
    layout = SHIFTED[name]
    last = layout.classes[-1]
    unpacked(tmp_path, name, [(layout.classes[2], 3), (layout.classes[10], 3), (last, 3)])
    images = load_dataset(name, "test", ReadOptions(tmp_path))
    assert dict(layout.images) == {FOLDERS[name]: IMAGES.get(name, 10_000)}
    assert sorted(images.labels.tolist()) == [2, 10, len(layout.classes) - 1]  # folder 10 of V2 is class 10, not the third
    assert images.classes == [words()[index] for index in layout.indices]
    assert images.preprocessing == "shorter side 256, centre crop 224"
    assert sorted(images.paths()) == sorted([f"{layout.classes[2]}/0.jpg", f"{layout.classes[10]}/1.jpg", f"{last}/2.jpg"])
    itself = load_dataset(name, "test", ReadOptions(tmp_path / FOLDERS[name]))
    assert (itself.fingerprint, itself.paths()) == (images.fingerprint, images.paths())


def test_pixels_are_those_of_the_authors_transform(tmp_path):
    from PIL import Image

    unpacked(tmp_path, "imagenet-r", [])
    for path in PHOTOGRAPHS:
        with Image.open(path) as image:
            image.save(tmp_path / "imagenet-r" / SHIFTED["imagenet-r"].classes[0] / f"{path.stem}.png")
    images = load_dataset("imagenet-r", "test", ReadOptions(tmp_path))
    view = v2.Compose([v2.Resize(256), v2.CenterCrop(224), v2.PILToTensor()])
    for index in range(5):
        with Image.open(images.locate(index)) as image:
            assert torch.equal(images.read([index])[0], view(image.convert("RGB")))


@pytest.mark.parametrize("name", [name for name, entry in DATASETS.items() if entry.test_only])
@pytest.mark.parametrize("split", ["train", "validation"])
def test_nothing_is_trained_on_a_test_set(name, split, tmp_path):
    with pytest.raises(InputError, match=rf"{name} has test images only: there are no {split} images"):
        load_dataset(name, split, ReadOptions(tmp_path))
    outcome = sanbench("train", "san10", "--data", name, "--data-root", tmp_path, "--runs", tmp_path / "runs")
    assert outcome.exit_code == 2 and f"{name} has test images only" in outcome.stderr, outcome.output
    assert snapshot(tmp_path) == {}


def test_another_sets_folders_are_refused(tmp_path):
    class_folders(tmp_path / "imagenet-a", SHIFTED["imagenet-r"].classes)
    with pytest.raises(
        InputError, match=r"200 class folders: imagenet-a has 200, as n01498041.*sanbench data check imagenet-a"
    ):
        load_dataset("imagenet-a", "test", ReadOptions(tmp_path))
    with pytest.raises(InputError, match=r"There is no folder .*/sketch: imagenet-sketch needs class folders"):
        load_dataset("imagenet-sketch", "test", ReadOptions(tmp_path))
    with pytest.raises(InputError, match="There is no folder"):  # not any other folder of 1,000 WNIDs, such as ImageNet's val/
        load_dataset("imagenet-sketch", "test", ReadOptions(class_folders(tmp_path / "val", wnids())))


def test_top1_is_over_the_logits_of_the_200_classes(adversarial, tmp_path):
    """As the authors take the argmax: an image that looks most like a class outside of the 200 may still be right."""
    images = load_dataset("imagenet-a", "test", ReadOptions(adversarial))
    network = reader()
    with pytest.raises(InputError, match="imagenet-a has 200 classes, but colours tells 1000 apart"):
        measured(network, images, Store(tmp_path / "whole"), [Identity()])
    store = Store(tmp_path / "results")
    (record,) = measured(network.telling(images), images, store, [Identity()])
    rows = store.rows(record)
    pixels = images.read(range(4)).float() / 255
    with torch.no_grad():
        logits = network.model(pixels)
    among = torch.tensor(SHIFTED["imagenet-a"].indices)
    assert logits.argmax(1).tolist() == [6, 13, 29, 6]
    assert among[rows["prediction"].tolist()].tolist() == [6, 13, 39, 6]
    assert among[rows["label"].tolist()].tolist() == [6, 11, 39, 988]
    right = rows["prediction"].eq(rows["label"]).tolist()
    assert right == [True, False, True, False] != logits.argmax(1).eq(among[rows["label"].tolist()]).tolist()
    inside = logits[:, among]
    torch.testing.assert_close(torch.tensor(rows["confidence"].to_numpy()), inside.softmax(1).amax(1))
    hits = inside.topk(5).indices.eq(torch.tensor(rows["label"].to_numpy())[:, None]).any(1)
    assert rows["top5"].tolist() == hits.tolist()
    assert record.network.num_classes == 1000 and record.data.among == images.counted
    assert record.data.among.startswith("200 classes, ") and record.classes[0] == words()[6]


def test_every_measurement_counts_the_200_classes(adversarial, tmp_path):
    weights = write_weights(tmp_path / "colours.pt")
    external = [NAME, "--weights", weights, *READ]
    where = ["--data", "imagenet-a", "--data-root", adversarial, "--runs", tmp_path / "runs", "--results", tmp_path / "results"]
    attack = ["--attack", "pgd-targeted", "--eps", "8/255", "--steps", 2]
    for command in (
        ["accuracy", *external],
        ["rotate", *external, "--angles", "90"],
        ["attack", *external, *attack],
        ["attack", *external, *attack, "--surrogate", NAME, "--surrogate-weights", weights],
    ):
        outcome = sanbench(*command, *where, "--device", "cpu")
        assert outcome.exit_code == 0, outcome.output
    store = Store(tmp_path / "results")
    assert sorted({record.kind for record in store.records()}) == ["accuracy", "attack", "rotation", "transfer"]
    for record in store.records():
        rows = store.rows(record)
        assert record.data.among.startswith("200 classes")
        assert record.counts["correct"] == 2 or record.kind not in ("accuracy", "rotation")
        for column in {"label", "prediction", "clean_prediction", "target"} & set(rows):
            assert rows[column].between(0, 199).all(), (record.kind, column)
    assert sanbench("report", "--results", tmp_path / "results").exit_code == 0
    assert "Logits of 200 classes alone count" in pages(tmp_path / "results")


def test_a_network_of_other_classes_is_refused(adversarial, runs, tmp_path):
    outcome = sanbench(
        "accuracy", "san10", "--data", "imagenet-a", "--data-root", adversarial, "--runs", runs, "--results", tmp_path
    )
    assert outcome.exit_code == 2
    assert "imagenet-a counts 200 of ImageNet's 1,000 classes, but san10 tells 3 apart." in " ".join(outcome.stderr.split())


@pytest.mark.parametrize("name", SHIFTED)
def test_the_check_compares_with_the_sets_layout(name, tmp_path):
    layout = SHIFTED[name]
    folder, first = FOLDERS[name], layout.classes[0]
    unpacked(tmp_path, name, [(other, 3) for other in layout.classes])
    few = replace(layout, images={folder: len(layout.classes)})
    for root in (tmp_path, tmp_path / folder):
        (found,) = check(root, few, decode=name == "imagenet-a")
        assert (found.subfolder, found.classes, found.images, found.problems) == (
            folder,
            len(layout.classes),
            few.images[folder],
            (),
        )
        assert found.fingerprint == load_dataset(name, "test", ReadOptions(root)).fingerprint
    (tmp_path / folder / first / "0.jpg").unlink()
    (tmp_path / folder / first).rmdir()
    outcome = sanbench("data", "check", name, "--data-root", tmp_path, columns=400)
    assert outcome.exit_code == 1
    assert f"{folder}/ lacks 1 class folders: {first}." in outcome.stderr
    assert f"there should be {IMAGES.get(name, 10_000):,}." in outcome.stderr
    assert f"is not a complete {name}: 2 problems" in outcome.stderr
