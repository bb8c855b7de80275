"""ImageNet-C and CIFAR-10-C from files: folders, pixels as they are stored, records that never mix with those on the fly."""

import json

import numpy as np
import pytest
from PIL import Image

from sanbench.data import ReadOptions, load_dataset
from sanbench.data.check import check
from sanbench.data.corrupted import ARCHIVES, BENCHMARK, EXTRA, IMAGENET_C, SEVERITIES
from sanbench.data.imagenet import Layout, wnids
from sanbench.errors import InputError, UnreadableImage
from sanbench.evaluation.corruption_files import image_sets
from sanbench.evaluation.corruptions import CORRUPTIONS
from sanbench.evaluation.corruptions import SEVERITIES as ON_THE_FLY
from sanbench.evaluation.kinds import CorruptionOptions
from sanbench.report import by_data
from sanbench.store.files import Store
from tests.support.colours import NAME, READ, class_folders, paint, write_weights
from tests.support.commands import sanbench, snapshot
from tests.support.report_pages import page

SHOWN = {("fog", 1): (0, 1, 2), ("fog", 3): (0, 1, 9), ("snow", 3): (9, 9, 9), ("speckle_noise", 3): (0, 9, 2)}


def photographs(root, sets=SHOWN, archive=""):
    """An image each of classes 0, 1 and 2 in every set, showing the classes that `sets` says."""
    for (kind, severity), shown in sets.items():
        split = class_folders(root / archive / kind / str(severity), wnids())
        for label, other in enumerate(shown):
            paint(split / wnids()[label] / f"ILSVRC2012_val_0000000{label}.JPEG", other)
    return root


@pytest.fixture
def corrupt(tmp_path):
    """`corrupt(...)` measures the network that reads colours on the files; what the command gave."""
    weights = write_weights(tmp_path / "colours.pt")
    shared = [NAME, "--weights", weights, "--runs", tmp_path / "runs", "--results", tmp_path / "results", "--device", "cpu"]
    return lambda *words, command="corrupt": sanbench(command, *shared, *READ, *words, columns=300)


def test_names_are_those_of_the_corruptions_on_the_fly():
    assert list(BENCHMARK) == list(CORRUPTIONS) and SEVERITIES == ON_THE_FLY
    assert not set(EXTRA) & set(CORRUPTIONS)
    theirs = "gaussian_noise shot_noise impulse_noise defocus_blur glass_blur motion_blur zoom_blur snow frost fog brightness "
    theirs += "contrast elastic_transform pixelate jpeg_compression"
    assert list(BENCHMARK.values()) == theirs.split()
    assert list(EXTRA.values()) == ["speckle_noise", "gaussian_blur", "spatter", "saturate"]
    assert (len(IMAGENET_C.images), len(IMAGENET_C.optional)) == (75, 20)
    assert set(IMAGENET_C.images.values()) == {50_000} and "jpeg_compression/5" in IMAGENET_C.images


def test_all_are_the_75_sets_and_the_other_20_are_named():
    sets = image_sets("imagenet-c", CorruptionOptions())
    assert len(sets) == 75 and sets[0] == ("gaussian-noise", 1) and sets[-1] == ("jpeg", 5)
    assert image_sets("cifar10-c", CorruptionOptions("speckle-noise,jpeg", "2")) == [("speckle-noise", 2), ("jpeg", 2)]
    assert image_sets("imagenet", CorruptionOptions()) == image_sets(None, CorruptionOptions("fog")) == [None]


@pytest.mark.parametrize("archive", ["", "weather"])
def test_both_layouts_hold_the_same_images(archive, tmp_path):
    """As the archives unpack into one folder, or each into one of its own name."""
    assert "weather" in ARCHIVES
    root = photographs(tmp_path, archive=archive)
    plain = photographs(tmp_path / "plain")
    for kind, severity in (("fog", 1), ("fog", 3), ("snow", 3)):
        options = ReadOptions(root), ReadOptions(plain)
        here, there = (load_dataset("imagenet-c", "test", each, (kind, severity)) for each in options)
        assert (here.fingerprint, here.stored, here.labels.tolist()) == (there.fingerprint, there.stored, [0, 1, 2])
        assert here.locate(2) == str(root / archive / kind / str(severity) / wnids()[2] / "ILSVRC2012_val_00000002.JPEG")
        with Image.open(here.locate(2)) as image:
            assert np.array_equal(here.read([2])[0].permute(1, 2, 0), np.asarray(image))  # as stored: no pixel is resampled


def test_records_from_files_say_so_and_share_their_images(corrupt, tmp_path):
    root = photographs(tmp_path / "C")
    outcome = corrupt("--data", "imagenet-c", "--data-root", root, "--kinds", "fog,snow,speckle-noise", "--severity", "3")
    assert outcome.exit_code == 0, outcome.output
    outcome = corrupt("--data", "imagenet-c", "--data-root", root, "--kinds", "fog", "--severity", "1")
    assert outcome.exit_code == 0, outcome.output
    records = Store(tmp_path / "results").records()
    found = {(record.setting["corruption"], record.setting["severity"]): record for record in records}
    correct = {condition: record.counts["correct"] for condition, record in found.items()}
    assert correct == {("fog", 1): 3, ("fog", 3): 2, ("snow", 3): 0, ("speckle-noise", 3): 2}
    first = records[0]
    for record in records:
        assert record.kind == "corruption" and record.data == first.data and record.data.name == "imagenet-c"
        assert record.setting["source"] == "files" and "seed" not in record.setting
        assert (record.data.images, record.data.preprocessing) == (3, "as stored, 224 x 224")
    assert len({record.setting["files"] for record in records}) == 4
    again = corrupt("--data", "imagenet-c", "--data-root", root, "--kinds", "fog", "--severity", "1")
    assert again.exit_code == 0 and len(Store(tmp_path / "results").records()) == 4


def test_another_file_is_another_measurement(corrupt, tmp_path):
    root = photographs(tmp_path / "C")
    measure = ["--data", "imagenet-c", "--data-root", root, "--kinds", "fog", "--severity", "3"]
    assert corrupt(*measure).exit_code == 0
    Image.effect_noise((224, 224), 60).convert("RGB").save(root / "fog" / "3" / wnids()[1] / "ILSVRC2012_val_00000001.JPEG")
    assert corrupt(*measure).exit_code == 0
    one, two = Store(tmp_path / "results").records()
    assert one.data == two.data and one.setting["files"] != two.setting["files"]


def test_files_and_what_is_made_on_the_fly_never_share_a_table(corrupt, tmp_path):
    root = photographs(tmp_path / "C")
    for label in range(3):
        paint(
            class_folders(tmp_path / "clean" / "val", wnids()) / wnids()[label] / f"ILSVRC2012_val_0000000{label}.JPEG", label
        )
    measure = ["--kinds", "fog", "--severity", "3"]
    assert corrupt("--data", "imagenet", "--data-root", tmp_path / "clean", *measure).exit_code == 0
    assert corrupt("--data", "imagenet-c", "--data-root", root, *measure).exit_code == 0
    assert sanbench("report", "--results", tmp_path / "results").exit_code == 0
    groups = by_data(Store(tmp_path / "results").records())
    sources = {name: {r.setting.get("source") for r in group if r.kind == "corruption"} for name, group in groups.items()}
    assert sources == {"imagenet: test images (3)": {None}, "imagenet-c: test images (3)": {"files"}}
    text = page(tmp_path / "results", "corruptions")
    assert text.count("Top-1 by corruption") == 2 and "imagenet-c" in text


@pytest.mark.parametrize("data", ["imagenet-c", "cifar10-c"])
@pytest.mark.parametrize("command", ["accuracy", "rotate", "attack"])
def test_other_measurements_on_corrupted_files_are_refused(command, data, corrupt, tmp_path):
    before = snapshot(tmp_path)
    outcome = corrupt("--data", data, "--data-root", photographs(tmp_path / "C", {}), command=command)
    assert outcome.exit_code == 2
    assert f"{data} has an image set for each corruption and severity: accepted is `sanbench corrupt`." in outcome.stderr
    assert snapshot(tmp_path) == before


REFUSED = {
    "other crop": (["--network-crop", 64], "imagenet-c is not accepted for a network that sees 64 x 64 pixels"),
    "resize": (["--resize", 256], "resize 256 is not accepted: the images of imagenet-c stay as they are, 224 x 224"),
    "on the fly alone": (["--kinds", "mist"], "Unknown kind of corruption 'mist'"),
    "not there": (["--kinds", "frost"], "needs class folders in frost/3/, as its archive has them"),
    "severity": (["--severity", "6"], "severity '6' is not accepted"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_typed_wrong_is_refused(name, corrupt, tmp_path):
    words, said = REFUSED[name]
    shared = ["--data", "imagenet-c", "--data-root", photographs(tmp_path / "C", {("fog", 3): (0,)})]
    outcome = corrupt(
        *shared,
        *(["--kinds", "fog"] if "--kinds" not in words else []),
        *(["--severity", 3] if name != "severity" else []),
        *words,
    )
    assert outcome.exit_code == 2 and said in outcome.stderr, outcome.output
    assert not (tmp_path / "results").exists()


def test_the_extra_kinds_are_not_made_on_the_fly(runs, tmp_path):
    outcome = sanbench("corrupt", "san10", "--kinds", "speckle-noise", "--runs", runs, "--results", tmp_path)
    assert outcome.exit_code == 2 and "Unknown kind of corruption 'speckle-noise'" in outcome.stderr


@pytest.mark.parametrize("decoder", ["pil", "turbo"])
def test_a_file_of_another_size_is_named(decoder, tmp_path):
    root = photographs(tmp_path, {("fog", 3): (0, 1)})
    paint(root / "fog" / "3" / wnids()[1] / "ILSVRC2012_val_00000001.JPEG", 1, side=299)
    images = load_dataset("imagenet-c", "test", ReadOptions(root, decoder=decoder), ("fog", 3))
    with pytest.raises(UnreadableImage, match=r"val_00000001\.JPEG has 299 x 299 pixels: .* imagenet-c have 224 x 224"):
        images.read([0, 1])


def test_the_check_names_missing_sets(tmp_path):
    photographs(tmp_path, {("fog", 1): (0, 1, 2)}, archive="weather")
    photographs(tmp_path, {("speckle_noise", 5): (0, 1, 2)})
    outcome = sanbench("data", "check", "imagenet-c", "--data-root", tmp_path, columns=300)
    assert outcome.exit_code == 1
    assert "fog/1/ holds 3 images: there should be 50,000." in outcome.stderr
    assert f"{tmp_path}/gaussian_noise/1 is missing." in outcome.stderr
    found = {split.subfolder: split for split in check(tmp_path, IMAGENET_C)}
    assert len(found) == 76 and "speckle_noise/5" in found  # what is there of the optional ones
    assert found["fog/1"].fingerprint == load_dataset("imagenet-c", "test", ReadOptions(tmp_path), ("fog", 1)).stored.files
    three = Layout(wnids()[:3], {"fog/1": 3}, groups=ARCHIVES)
    for folder in wnids()[3:]:
        (tmp_path / "weather" / "fog" / "1" / folder).rmdir()
    assert [split.problems for split in check(tmp_path, three, decode=True)] == [()]


def test_a_list_chooses_of_every_set(corrupt, tmp_path):
    root = photographs(tmp_path / "C")
    listed = tmp_path / "list"
    listed.write_text("".join(f"{wnids()[label]}/ILSVRC2012_val_0000000{label}.JPEG\n" for label in (0, 2)))
    outcome = corrupt("--data", "imagenet-c", "--data-root", root, "--kinds", "fog", "--severity", "1,3", "--images", listed)
    assert outcome.exit_code == 0, outcome.output
    one, two = Store(tmp_path / "results").records()
    assert (one.data, one.data.images, one.data.of) == (two.data, 2, 3)
    assert json.loads(one.model_dump_json())["data"]["listed"] == one.data.listed


def test_an_image_set_is_one_of_those_that_there_are(tmp_path):
    options = ReadOptions(tmp_path)
    with pytest.raises(InputError, match=r"imagenet-c has an image set for each corruption .* `sanbench corrupt`"):
        load_dataset("imagenet-c", "test", options)
    with pytest.raises(InputError, match=r"Unknown kind of corruption 'fogg'\. Did you mean 'fog'"):
        load_dataset("imagenet-c", "test", options, ("fogg", 3))
    with pytest.raises(InputError, match="severity 6 is not accepted"):
        load_dataset("imagenet-c", "test", options, ("fog", 6))
    with pytest.raises(InputError, match="fashion10k has no image set for corruption fog: accepted are imagenet-c, cifar10-c"):
        load_dataset("fashion10k", "test", options, ("fog", 3))
