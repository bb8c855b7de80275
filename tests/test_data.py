"""Data sets: which images, in which split, as which pixels."""

import pickle
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from sanbench.data import DATASETS, ReadOptions, batches, load_dataset, subset
from sanbench.data.tensors import FASHION_CLASSES, stratified
from sanbench.errors import InputError, SanbenchError

SPLITS = ("train", "validation", "test")


def test_fashion10k_is_split_by_class_and_nothing_twice():
    parts = [load_dataset("fashion10k", split) for split in SPLITS]
    assert [len(part) for part in parts] == [7000, 1000, 2000]
    for part, each in zip(parts, (700, 100, 200), strict=True):
        assert part.labels.bincount().tolist() == [each] * 10
        assert part.classes == FASHION_CLASSES
    pixels = torch.cat([part.images for part in parts])
    assert len({image.numpy().tobytes() for image in pixels}) > 9990  # Fashion-MNIST has a few equal images itself


def test_fashion10k_is_the_same_for_everyone():
    """The fingerprints of the splits, as this seed made them: results are compared on these images."""
    found = [load_dataset("fashion10k", split).fingerprint[:8] for split in SPLITS]
    assert found == ["0ede865b", "75737e9a", "d4d32042"]


def test_fashion10k_pixels():
    image = load_dataset("fashion10k", "test").read([0])[0]
    assert image.shape == (3, 32, 32)
    assert image.dtype == torch.uint8
    assert image[:, :2].sum() == image[:, :, -2:].sum() == 0  # the padding
    assert torch.equal(image[0], image[1])
    assert torch.equal(image[1], image[2])
    assert image.max() > 100


def test_stratified_parts_are_disjoint():
    labels = np.repeat([0, 1, 2], 10)
    parts = stratified(labels, [6, 4])
    assert sorted(np.concatenate(parts).tolist()) == list(range(30))
    assert np.bincount(labels[parts[0]]).tolist() == [6, 6, 6]


def test_subset_is_seeded_and_ordered():
    images = load_dataset("fashion10k", "test")
    assert subset(images, 50, 3) == subset(images, 50, 3)
    assert subset(images, 50, 3) != subset(images, 50, 4)
    assert subset(images, 50, 3) == sorted(set(subset(images, 50, 3)))
    assert subset(images, None, 3) == subset(images, 2000, 3) == list(range(2000))
    with pytest.raises(InputError, match="limit 0"):
        subset(images, 0, 0)


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_do_not_depend_on_workers(folder, workers):
    images = load_dataset(f"folder:{folder}", "train", ReadOptions(image_size=32))
    chunks = [[3, 4, 47], [0], [48 + 3]]
    read = list(batches(images, chunks, workers))
    expected = [images.read(chunk) for chunk in chunks]
    assert [batch.indices.tolist() for batch in read] == [[3, 4, 47], [0], [3]]
    assert all(torch.equal(batch.images, pixels) for batch, pixels in zip(read, expected, strict=True))
    assert not torch.equal(read[0].images[0], read[2].images[0])  # image 3 is cropped anew in the next epoch


def test_folder_classes_labels_and_preprocessing(folder):
    images = load_dataset(f"folder:{folder}", "test", ReadOptions(image_size=28))
    assert images.classes == ["bag", "sneaker", "trouser"]
    assert images.labels.tolist() == [0] * 6 + [1] * 6 + [2] * 6
    assert images.split == "test"
    assert not images.held_out  # val is all there is
    with Image.open(images.locate(7)) as file:
        centre = file.convert("RGB").crop((2, 2, 30, 30))  # 28 * 256 / 224 = 32: no resizing, then the centre
    assert np.array_equal(images.read([7])[0].permute(1, 2, 0).numpy(), np.asarray(centre))


def test_reading_does_not_disturb_the_global_generator(folder):
    images = load_dataset(f"folder:{folder}", "train", ReadOptions(image_size=32))
    before = torch.get_rng_state()
    images.read([1, 2])
    assert torch.equal(torch.get_rng_state(), before)


def test_fingerprint_changes_with_the_files(folder, tmp_path):
    copy = shutil.copytree(folder, tmp_path / "copy")

    def fingerprint():
        return load_dataset(f"folder:{copy}", "test", ReadOptions(image_size=32)).fingerprint

    assert fingerprint() == fingerprint()
    before = fingerprint()
    (copy / "val" / "bag" / "00.png").unlink()
    assert fingerprint() != before


@pytest.mark.parametrize("name", ["fashion-mnist", "cifar10"])
def test_sets_that_are_not_there_say_how_to_get_them(name, tmp_path):
    with pytest.raises(InputError, match="--download"):
        load_dataset(name, "train", ReadOptions(tmp_path))


def test_cifar10_is_read_as_torchvision_reads_it(tmp_path, monkeypatch):
    """Real fashion pixels in CIFAR-10's own file format: 20 images in each of its six files."""
    from torchvision.datasets import CIFAR10

    source = load_dataset("fashion10k", "train")
    place = tmp_path / CIFAR10.base_folder
    place.mkdir()
    names = [name for name, _ in (*CIFAR10.train_list, *CIFAR10.test_list)]
    for number, name in enumerate(names):
        chosen = [label * 700 + number * 2 + k for label in range(10) for k in (0, 1)]
        order = source.labels.argsort(stable=True)[chosen]
        pixels = source.images[order]
        content = {"data": pixels.reshape(20, -1).numpy(), "labels": source.labels[order].tolist()}
        (place / name).write_bytes(pickle.dumps(content))
    (place / "batches.meta").write_bytes(pickle.dumps({"label_names": [str(n) for n in range(10)]}))
    monkeypatch.setattr(CIFAR10, "_check_integrity", lambda self: True)
    monkeypatch.setattr("torchvision.datasets.cifar.check_integrity", lambda *_: True)
    monkeypatch.setattr("sanbench.data.tensors.CIFAR_VALIDATION", 2)
    parts = [load_dataset("cifar10", split, ReadOptions(tmp_path)) for split in SPLITS]
    assert [len(part) for part in parts] == [80, 20, 20]
    assert [part.labels.bincount().tolist() for part in parts] == [[8] * 10, [2] * 10, [2] * 10]
    first = parts[2].read([0])[0]
    assert torch.equal(first, source.images[source.labels.argsort(stable=True)[[10]]][0])


def empty(root):
    for split in ("train", "val"):
        (root / split / "bag").mkdir(parents=True)


def stranger(root):
    empty(root)
    for split, name in (("train", "bag"), ("val", "bag"), ("val", "hat")):
        (root / split / name).mkdir(exist_ok=True)
        Image.new("RGB", (40, 40)).save(root / split / name / "a.png")


@pytest.mark.parametrize(
    ("make", "named"), [(lambda root: None, "no folder .*train"), (empty, "holds no images"), (stranger, "hat")]
)
def test_broken_folders_are_named(make, named, tmp_path):
    make(tmp_path)
    with pytest.raises(InputError, match=named):
        for split in SPLITS:
            load_dataset(f"folder:{tmp_path}", split)


def test_imagenet_needs_its_thousand_classes(folder):
    with pytest.raises(InputError, match=r"3 class folders: imagenet has 1000"):
        load_dataset("imagenet", "test", ReadOptions(folder))


def test_a_broken_image_is_named(folder, tmp_path):
    copy = shutil.copytree(folder, tmp_path / "copy")
    broken = copy / "val" / "bag" / "03.png"
    broken.write_bytes(broken.read_bytes()[:40])
    with pytest.raises(SanbenchError, match=r"bag/03\.png is not a readable image"):
        load_dataset(f"folder:{copy}", "test", ReadOptions(image_size=32)).read(range(6))


def test_unknown_names_get_a_suggestion():
    with pytest.raises(InputError, match="Did you mean 'fashion10k'"):
        load_dataset("fashon10k", "train")
    trained = {name for name, entry in DATASETS.items() if not entry.test_only}
    assert trained == {"fashion10k", "fashion-mnist", "cifar10", "imagenet", "folder:PATH"}
