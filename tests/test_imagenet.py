"""ImageNet's layout on its own photographs: class indices, words, decoders, crops."""

import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import v2

from sanbench.data import ReadOptions, load_dataset
from sanbench.data.decoding import DECODERS, Region, find_decoder, random_box, whole
from sanbench.data.imagenet import class_indices, wnids, words
from sanbench.errors import InputError, UnreadableImage
from sanbench.models import build_model
from tests.support.photographs import LABELS, PHOTOGRAPHS, place, thousand, wnid

FAST = [name for name in DECODERS if name != "pil"]


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    return place(tmp_path_factory.mktemp("photographs"), name=wnid)


def test_the_list_of_wnids():
    assert len(wnids()) == len(set(wnids())) == len(words()) == len(set(words())) == 1000
    assert list(wnids()) == sorted(wnids())
    assert (wnids()[0], words()[0], wnids()[999], words()[999]) == ("n01440764", "tench", "n15075141", "toilet tissue")


@pytest.mark.parametrize("name", [str, wnid, "{:04d}".format], ids=["numbers", "wnids", "zeros before"])
def test_folders_keep_imagenets_indices(name, tmp_path):
    images = load_dataset(f"folder:{place(tmp_path, ('val',), name, side=64)}", "test", ReadOptions(image_size=56))
    assert sorted(images.labels.tolist()) == sorted(PHOTOGRAPHS.values())
    assert (len(images.classes), images.classes[99], images.classes[22]) == (1000, "goose", "bald eagle")
    for index, label in enumerate(images.labels.tolist()):
        assert images.locate(index).endswith(f"_{label}.jpg")


def test_numbers_without_gaps_are_themselves(tmp_path):
    folders = [str(n) for n in range(12)]
    index, names = class_indices(sorted(folders), tmp_path)
    assert index == {str(n): n for n in range(12)}  # not "0", "1", "10", "11", "2"
    assert names == folders


def test_other_folders_are_numbered_as_they_sort(tmp_path):
    assert class_indices(["b", "a"], tmp_path) == ({"a": 0, "b": 1}, ["a", "b"])
    assert class_indices(["n99999999", "n01440764"], tmp_path)[0] == {"n01440764": 0, "n99999999": 1}  # no class of the 1000


@pytest.mark.parametrize("folders", [["3", "1000"], ["7", "007", "9"]])
def test_numbers_that_are_no_index_are_refused(folders, tmp_path):
    with pytest.raises(InputError, match=r"0, 1, ... without gaps"):
        class_indices(folders, tmp_path)


def test_names_from_a_file(tmp_path):
    (tmp_path / "classes.txt").write_text("a big cat\n\nb big cat\n")
    assert class_indices(["a", "b", "c"], tmp_path)[1] == ["big cat (a)", "big cat (b)", "c"]
    for line in ("a\n", "z zebra\n"):
        (tmp_path / "classes.txt").write_text(line)
        with pytest.raises(InputError, match=r"classes\.txt: the line"):
            class_indices(["a", "b"], tmp_path)


def test_imagenet_is_all_its_folders(tmp_path):
    root = thousand(tmp_path, 0, 1)
    images = load_dataset("imagenet", "test", ReadOptions(root))
    assert images.labels.tolist() == list(range(1000))
    assert images.classes == list(words())
    (root / "train" / wnids()[3]).rmdir()
    with pytest.raises(InputError, match=r"999 class folders.*sanbench data check imagenet"):
        load_dataset("imagenet", "test", ReadOptions(root))


@pytest.mark.parametrize("size", [(500, 375), (375, 500), (333, 500), (1024, 683), (100, 100)])
def test_the_resized_size_is_torchvisions(size):
    view = whole(*size, 256)
    assert tuple(reversed(v2.Resize(256)(Image.new("RGB", size)).size)) == view.size


def test_pil_reads_what_torchvisions_reference_reads(photographs):
    images = load_dataset(f"folder:{photographs}", "test", ReadOptions())
    reference = v2.Compose([v2.Resize(256), v2.CenterCrop(224), v2.PILToTensor()])
    for index in (0, 9):
        with Image.open(images.locate(index)) as file:
            assert torch.equal(images.read([index])[0], reference(file.convert("RGB")))


@pytest.mark.parametrize("name", FAST)
def test_decoders_agree_on_pixels(photographs, name):
    """libjpeg is the same, and resizing differs in rounding: most pixels are equal."""
    pil, other = (
        load_dataset(f"folder:{photographs}", "test", ReadOptions(decoder=d)).read(range(20)).float() for d in ("pil", name)
    )
    distance = (pil - other).abs()
    assert distance.max() <= 2
    assert distance.mean() < 0.01


@pytest.mark.parametrize("name", FAST)
def test_predictions_do_not_depend_on_the_decoder(photographs, name):
    """Fixed random weights are all that is at hand: logits move far less than they differ between images."""
    torch.manual_seed(0)
    model = build_model("resnet26", 1000).eval()
    pixels = [load_dataset(f"folder:{photographs}", "test", ReadOptions(decoder=d)).read(range(20)) for d in ("pil", name)]
    with torch.no_grad():
        pil, other = (model(images / 255) for images in pixels)
    assert (pil - other).abs().mean() < 1e-3 * pil.std(0).mean()
    assert torch.equal(pil.argmax(1), other.argmax(1))


def test_records_know_the_decoder_and_the_preprocessing(photographs):
    images = load_dataset(f"folder:{photographs}", "test", ReadOptions(decoder="turbo", image_size=112))
    assert images.decoder.startswith("simplejpeg ")
    assert images.preprocessing == "shorter side 128, centre crop 112"


@pytest.mark.parametrize("needs", [("no_such_package", "decode_jpeg"), ("torchvision.io", "no_longer_there")])
def test_a_decoder_that_is_not_installed_is_named(needs, monkeypatch):
    monkeypatch.setitem(DECODERS, "turbo", replace(DECODERS["turbo"], needs=needs))
    with pytest.raises(
        InputError, match=rf"decoder turbo needs {'.'.join(needs)}, which is not installed: name another of pil"
    ):
        find_decoder("turbo")


def test_an_unknown_decoder_gets_a_suggestion():
    with pytest.raises(InputError, match="Did you mean 'torchvision'"):
        find_decoder("torchvison")


ODD = {
    "grey.jpg": lambda image, path: image.convert("L").save(path),
    "cmyk.jpg": lambda image, path: image.convert("CMYK").save(path),
    "really-png.jpg": lambda image, path: image.save(path, format="PNG"),
    "palette.png": lambda image, path: image.convert("P").save(path),
    "alpha.png": lambda image, path: image.convert("RGBA").save(path),
    "bitmap.bmp": lambda image, path: image.save(path),
}


def whole_image(width, height):
    """The whole image, as 64 x 64."""
    return Region(0, 0, width, height, (64, 64))


@pytest.mark.parametrize("decoder", FAST)
@pytest.mark.parametrize("odd", ODD)
def test_odd_files_are_read_as_pil_reads_them(odd, decoder, tmp_path):
    with Image.open(next(iter(PHOTOGRAPHS))) as image:
        ODD[odd](image.resize((128, 128)), tmp_path / odd)
    expected, found = (DECODERS[name].read(str(tmp_path / odd), whole_image).float() for name in ("pil", decoder))
    assert (expected - found).abs().mean() < 0.6


@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize("content", ["empty", "cut", "text", "missing"])
def test_what_cannot_be_read_is_named_alike(decoder, content, tmp_path):
    path = tmp_path / "bad.jpg"
    data = next(iter(PHOTOGRAPHS)).read_bytes()
    contents = {"empty": b"", "cut": data[: len(data) // 2], "text": b"not an image"}
    if content in contents:
        path.write_bytes(contents[content])
    with pytest.raises(UnreadableImage, match=r"bad\.jpg is not a readable image"):
        DECODERS[decoder].read(str(path), whole_image)


def test_turbo_decodes_no_more_than_a_crop_needs(tmp_path, monkeypatch):
    """Of 1024 x 683, a box of 900 x 640 for 224 is decoded at half the size, which still covers it."""
    import simplejpeg

    path = next(path for path in PHOTOGRAPHS if path.name.startswith("imagenet_10"))
    shapes = []
    real = simplejpeg.decode_jpeg
    monkeypatch.setattr(simplejpeg, "decode_jpeg", lambda *a, **k: shapes.append((out := real(*a, **k)).shape) or out)

    def read(name, coarse):
        return DECODERS[name].read(str(path), lambda w, h: Region(100, 30, 900, 640, (224, 224), coarse))

    coarse, exact, pil = read("turbo", True), read("turbo", False), read("pil", False)
    assert shapes == [(342, 512, 3), (683, 1024, 3)]
    assert coarse.shape == exact.shape == (3, 224, 224)
    assert (exact.float() - pil.float()).abs().mean() < 0.4
    assert (coarse.float() - pil.float()).abs().mean() < 4


def test_reduction_keeps_the_size():
    for width, height, size, expected in ((448, 447, 224, 1), (448, 448, 224, 2), (4000, 1792, 224, 8), (10, 10, 224, 1)):
        assert Region(0, 0, width, height, (size, size), coarse=True).reduction == expected
        assert Region(0, 0, width, height, (size, size)).reduction == 1


def test_random_boxes_are_distributed_as_torchvisions():
    """Area and ratio of 4,000 boxes of each in an image of 500 x 375: means within 4 standard errors of each other."""
    generator, transform = np.random.default_rng(0), v2.RandomResizedCrop(224)
    torch.manual_seed(0)
    image = Image.new("RGB", (500, 375))
    own = [random_box(generator, 500, 375, 224) for _ in range(4000)]
    other = [transform.make_params([image]) for _ in range(4000)]
    for of_own, of_other in (
        (lambda v: v.width * v.height, lambda p: p["width"] * p["height"]),
        (lambda v: np.log(v.width / v.height), lambda p: np.log(p["width"] / p["height"])),
        (lambda v: v.left + v.width / 2, lambda p: p["left"] + p["width"] / 2),
        (lambda v: v.top + v.height / 2, lambda p: p["top"] + p["height"] / 2),
    ):
        a, b = np.array([of_own(v) for v in own], float), np.array([of_other(p) for p in other], float)
        assert abs(a.mean() - b.mean()) < 4 * np.hypot(a.std(), b.std()) / 4000**0.5
        assert abs(a.std() / b.std() - 1) < 0.06
    for view in own:
        assert 0 <= view.left <= 500 - view.width
        assert 0 <= view.top <= 375 - view.height


def test_a_narrow_image_gets_its_largest_centred_box():
    assert random_box(np.random.default_rng(0), 1000, 10, 224)[:4] == ((1000 - 13) // 2, 0, 13, 10)


@pytest.mark.parametrize("decoder", DECODERS)
def test_training_crops_are_the_same_for_every_decoder_and_change_with_epoch_and_seed(photographs, decoder):
    images, reference = (load_dataset(f"folder:{photographs}", "train", ReadOptions(decoder=d)) for d in (decoder, "pil"))
    distance = (images.read(range(4)).float() - reference.read(range(4)).float()).abs()
    assert distance.mean() < 4
    assert torch.equal(images.read([1]), images.read([1]))
    assert not torch.equal(images.read([1]), images.read([21]))
    assert not torch.equal(images.with_options(seed=1).read([1]), images.read([1]))


def test_fingerprints_are_those_of_the_files(photographs, tmp_path):
    copy = shutil.copytree(photographs, tmp_path / "copy")

    def fingerprint(root, **source):
        return load_dataset(f"folder:{root}", "test", ReadOptions(**source)).fingerprint

    assert fingerprint(photographs) == fingerprint(copy) == fingerprint(copy, decoder="turbo", image_size=64)
    path = copy / "val" / wnid(LABELS[0])
    next(path.iterdir()).rename(path / "other.jpg")
    assert fingerprint(photographs) != fingerprint(copy)
