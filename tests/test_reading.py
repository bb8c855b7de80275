"""From the command to records and figures, on the photographs."""

from functools import partial

import pytest
import torch

from sanbench.data import ReadOptions, load_dataset
from sanbench.models import build_model
from sanbench.models.checkpoints import save_checkpoint
from sanbench.runs.config import configure
from sanbench.store.files import Store
from sanbench.training.augment import BatchSlice, augment
from tests.support import commands
from tests.support.photographs import place, wnid


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    return place(tmp_path_factory.mktemp("photographs"), ("val",), wnid)


@pytest.fixture(scope="module")
def checkpoint(photographs, tmp_path_factory):
    """An untrained network for ImageNet's classes, for images of 64 x 64."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("network") / "untrained.pt"
    save_checkpoint(
        path,
        build_model("resnet26", 1000),
        data={"name": f"folder:{photographs}", "root": "data", "image_size": 64},
        classes=load_dataset(f"folder:{photographs}", "test").classes,
        recipe=configure("resnet26").recipe.model_dump(),
        seed=0,
        epoch=1,
        train_images=20,
        train_seconds=1.0,
        selection="last epoch",
    )
    return path


sanbench = partial(commands.sanbench, columns=200)  # paths fit a line


def test_records_of_two_decoders_stand_beside_each_other(checkpoint, tmp_path):
    results = tmp_path / "results"
    for decoder in ("pil", "turbo", "turbo"):
        outcome = sanbench("accuracy", checkpoint, "--results", results, "--decoder", decoder)
        assert outcome.exit_code == 0, outcome.output
    records = Store(results).records()
    assert sorted(record.data.decoder.split()[0] for record in records) == ["PIL", "simplejpeg"]  # the third was known
    assert {record.data.preprocessing for record in records} == {"shorter side 73, centre crop 64"}
    assert {record.counts["images"] for record in records} == {20}  # all, without a limit
    assert len({record.counts["correct"] for record in records}) == 1
    assert records[0].classes[99] == "goose"


def test_a_limit_is_said_and_pictures_have_words(checkpoint, tmp_path):
    results = tmp_path / "results"
    options = ["--results", results, "--limit", 3, "--workers", 1]
    outcome = sanbench("attack", checkpoint, *options, "--attack", "fgsm", "--eps", "8/255", "--save-images", 1)
    assert outcome.exit_code == 0, outcome.output
    assert "3 of 20" in outcome.output
    (record,) = Store(results).records()
    names = sorted(path.name for path in results.glob("images/*/*/*.png"))
    images = load_dataset(record.data.name, "test", ReadOptions(image_size=64))
    shown = images.classes[images.labels[int(names[0][:5])]].replace(" ", "_").replace("-", "_")
    assert [name[6 : 6 + len(shown)] for name in names] == [shown] * 3
    assert sanbench("accuracy", checkpoint, *options).exit_code == sanbench("report", "--results", results).exit_code == 0
    assert "3 of 20" in (results / "report" / "accuracy.md").read_text().split("Accuracy by class")[1]


def test_unknown_decoders_are_named(checkpoint, tmp_path):
    outcome = sanbench("accuracy", checkpoint, "--results", tmp_path, "--decoder", "pill")
    assert outcome.exit_code == 2
    assert "Unknown decoder 'pill'. Did you mean 'pil'?" in outcome.stderr
    outcome = sanbench("train", "resnet26", "--decoder", "pill", "--runs", tmp_path)
    assert outcome.exit_code == 2
    assert "Unknown decoder 'pill'" in outcome.stderr


def test_training_reads_by_the_decoder_of_its_configuration(photographs):
    config = configure("resnet26", f"folder:{photographs}")
    assert config.decoder == "turbo"
    assert load_dataset(config.data, "test", config.read_options).decoder.startswith("simplejpeg")
    pil = configure("resnet26", f"folder:{photographs}", decoder="pil")
    assert load_dataset(pil.data, "test", pil.read_options).decoder.startswith("PIL")


def test_mirroring_and_conversion_are_on_the_device():
    """uint8 in, float in [0, 1] out: mirrored images are the others turned round."""
    images = torch.randint(0, 256, (64, 3, 8, 8), dtype=torch.uint8)
    pixels = augment(images, BatchSlice(0, 0, 0, range(64), 64), 0)
    mirrored = [bool(torch.equal(pixel, image.flip(2).float() / 255)) for pixel, image in zip(pixels, images)]
    straight = [bool(torch.equal(pixel, image.float() / 255)) for pixel, image in zip(pixels, images)]
    assert all(a != b for a, b in zip(mirrored, straight))
    assert 10 < sum(mirrored) < 54
