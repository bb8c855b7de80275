"""CIFAR-10-C from its NumPy files: which images a severity has, and files that are none of it."""

import hashlib
from dataclasses import replace

import numpy as np
import pytest
import torch

from sanbench.data import DATASETS, ReadOptions, load_dataset
from sanbench.data.check import check
from sanbench.data.corrupted import BENCHMARK, CIFAR10_C, Arrays
from sanbench.errors import InputError, SanbenchError
from sanbench.evaluation.corruption_files import FromFiles, image_sets
from sanbench.evaluation.kinds import CorruptionOptions, Request, parse
from sanbench.evaluation.loop import Identity
from sanbench.models import build_model
from sanbench.runs.evaluated import EvaluatedModel
from sanbench.runs.evaluated import test_images as images_of
from sanbench.store.files import Store
from tests.support.commands import sanbench
from tests.support.quick_measurements import measured


@pytest.fixture
def cifar(tmp_path, monkeypatch):
    """CIFAR-10-C of four images a severity, in place of 10,000; a pixel tells kind, severity and image."""
    small = replace(CIFAR10_C, images=4)
    entry = replace(DATASETS["cifar10-c"], layout=small)
    entry = replace(entry, corrupted=lambda kind, severity, options: small.load(kind, severity, options.root))
    monkeypatch.setitem(DATASETS, "cifar10-c", entry)
    folder = tmp_path / "CIFAR-10-C"
    folder.mkdir()
    for number, kind in enumerate([*BENCHMARK.values(), "saturate"]):
        array = np.zeros((20, 32, 32, 3), np.uint8)
        array[..., 0], array[..., 1] = number, np.arange(20)[:, None, None]
        np.save(folder / f"{kind}.npy", array)
    np.save(folder / "labels.npy", np.tile([3, 8, 0, 9], 5).astype(np.uint8))
    return folder


def made_network():
    """Ten classes, not trained."""
    data = {"name": None, "root": "data"}
    return EvaluatedModel(build_model("resnet26", 10, width=0.25), "d" * 64, "made", data, {}, "not told")


def test_a_severity_of_cifar_is_its_ten_thousand(cifar):
    assert Arrays("CIFAR-10-C", 10_000, 32) == CIFAR10_C
    for root in (cifar, cifar.parent):
        images = load_dataset("cifar10-c", "test", ReadOptions(root), ("snow", 3))
        pixels = images.read(range(4))
        assert (pixels.dtype, pixels.shape) == (torch.uint8, (4, 3, 32, 32))
        assert pixels[:, 1, 5, 7].tolist() == [8, 9, 10, 11]
        assert pixels[:, 0].unique().tolist() == [list(BENCHMARK).index("snow")]
        assert images.labels.tolist() == [3, 8, 0, 9] and images.classes[3] == "cat"
    other = load_dataset("cifar10-c", "test", ReadOptions(cifar), ("fog", 1))
    assert other.fingerprint == images.fingerprint and other.stored.files != images.stored.files


def test_cifars_files_are_measured(cifar, tmp_path):
    network = made_network()
    options = CorruptionOptions("snow,saturate", "2,5")
    bind, records = parse("corruption", options, Request(0, 8, None, "cifar10-c")), []
    store = Store(tmp_path / "results")
    for each in image_sets("cifar10-c", options):
        images = images_of(network, "cifar10-c", cifar, "pil", each)
        records += measured(network, images, store, bind(network, images))
    conditions = [(record.setting["corruption"], record.setting["severity"]) for record in records]
    assert conditions == [(kind, severity) for kind in ("snow", "saturate") for severity in (2, 5)]
    assert all(record.data == records[0].data and record.counts["images"] == 4 for record in records)


BROKEN = {
    "missing": (lambda folder: (folder / "fog.npy").unlink(), r"There is no file .*fog\.npy"),
    "shape": (
        lambda folder: np.save(folder / "fog.npy", np.zeros((4, 32, 32, 3), np.uint8)),
        r"4 x 32 x 32 x 3 of uint8: .* 20 x 32",
    ),
    "type": (
        lambda folder: np.save(folder / "fog.npy", np.zeros((20, 32, 32, 3), np.int64)),
        "holds int64: cifar10-c has uint8",
    ),
    "no array": (lambda folder: (folder / "fog.npy").write_bytes(b"x"), "is no NumPy array"),
    "objects": (
        lambda folder: np.save(folder / "fog.npy", np.array([{}]), allow_pickle=True),
        "is no NumPy array|holds 1 of object",
    ),
    "other set": (
        lambda folder: np.save(folder / "labels.npy", np.arange(20) * 5),
        "labels from 0 to 95: cifar10-c has 0 to 9",
    ),
    "labels differ": (lambda folder: np.save(folder / "labels.npy", np.arange(20) % 10), "other labels for one severity"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_arrays_are_named(name, cifar):
    make, pattern = BROKEN[name]
    assert sanbench("data", "check", "cifar10-c", "--data-root", cifar, columns=300).exit_code == 0
    make(cifar)
    with pytest.raises(SanbenchError, match=pattern):
        load_dataset("cifar10-c", "test", ReadOptions(cifar), ("fog", 1))
    outcome = sanbench("data", "check", "cifar10-c", "--data-root", cifar, columns=300)
    assert outcome.exit_code == 1 and "is not a complete cifar10-c: 1 problems" in outcome.stderr


def test_the_check_of_arrays_hashes_them_when_it_reads_them(cifar):
    found = {split.subfolder: split for split in check(cifar.parent, DATASETS["cifar10-c"].layout, decode=True)}
    assert len(found) == 17 and found["saturate.npy"].images == 20
    assert found["fog.npy"].contents == hashlib.sha256((cifar / "fog.npy").read_bytes()).hexdigest()


def test_corrupted_files_are_measured_as_that_alone(cifar, images, evaluated, tmp_path):
    """All severities share a fingerprint, so an upright record would stand for each of them."""
    network = made_network()
    stored = load_dataset("cifar10-c", "test", ReadOptions(cifar), ("fog", 1))
    other = load_dataset("cifar10-c", "test", ReadOptions(cifar), ("fog", 2))
    store = Store(tmp_path / "results")
    for model, shown, perturbation in (
        (network, stored, Identity()),
        (network, stored, FromFiles(other.stored)),
        (evaluated, images, FromFiles(stored.stored)),
    ):
        with pytest.raises(InputError, match="corrupted files, and they alone, are measured as such"):
            measured(model, shown, store, [perturbation])
    assert not (tmp_path / "results").exists()
