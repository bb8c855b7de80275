"""Other people's networks, measured like runs: where they come from, how they see images, what is said of bad ones."""

import pytest
import timm
import torch
import torchvision
from safetensors.torch import save_file
from torch import nn
from torchvision.models import SqueezeNet1_1_Weights

from sanbench.models.checkpoints import weights_hash
from sanbench.models.external import load_external
from sanbench.store.files import Store
from tests.support.commands import sanbench
from tests.support.photographs import LABELS, PHOTOGRAPHS, place
from tests.support.report_pages import page, pages, table

CLASSES = 1000


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    """Folders named by class index."""
    return place(tmp_path_factory.mktemp("photographs"), splits=("val",))


@pytest.fixture(scope="module")
def squeezenet(tmp_path_factory):
    torch.manual_seed(0)
    network = torchvision.models.squeezenet1_1(num_classes=CLASSES).eval()
    with torch.no_grad():
        network.classifier[1].weight.mul_(100)  # fresh ones tell no two photographs apart
    path = tmp_path_factory.mktemp("weights") / "squeezenet.pth"
    torch.save(network.state_dict(), path)
    return network, path


@pytest.fixture
def places(tmp_path):
    return ["--runs", tmp_path / "runs", "--results", tmp_path / "results"]


def records(tmp_path):
    return Store(tmp_path / "results").records()


def test_accuracy_on_photographs_is_torchvisions_own(squeezenet, photographs, places, tmp_path):
    """Predictions of every photograph under its ImageNet index, against torchvision's network and preprocessing."""
    from PIL import Image

    network, weights = squeezenet
    name = "torchvision:squeezenet1_1"
    outcome = sanbench("accuracy", name, "--weights", weights, "--data", f"folder:{photographs}", *places)
    assert outcome.exit_code == 0, outcome.output
    (record,) = records(tmp_path)
    assert record.network.label == name and record.run == "squeezenet"
    assert record.data.preprocessing == "shorter side 256, centre crop 224"
    assert (record.network.mean, record.network.std) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    assert record.network.weights == weights_hash({f"network.{key}": x for key, x in network.state_dict().items()})
    assert len(record.classes) == CLASSES
    rows = Store(tmp_path / "results").rows(record)
    assert sorted(set(rows["label"])) == LABELS
    view = SqueezeNet1_1_Weights.IMAGENET1K_V1.transforms()
    assert (view.resize_size, view.crop_size) == ([256], [224])
    files = sorted(PHOTOGRAPHS, key=lambda path: (str(PHOTOGRAPHS[path]), path.name))  # as folders sort
    with torch.no_grad():
        expected = network(torch.stack([view(Image.open(path).convert("RGB")) for path in files])).softmax(1)
    assert rows["label"].tolist() == [PHOTOGRAPHS[path] for path in files]
    torch.testing.assert_close(torch.tensor(rows["confidence"].to_numpy()), expected.max(1).values, rtol=1e-3, atol=1e-6)
    sure = (expected.topk(2).values.diff().abs()[:, 0] > 1e-4).numpy()
    assert sure.sum() > 10
    assert (rows["prediction"].to_numpy() == expected.argmax(1).numpy())[sure].all()


def test_every_measurement_and_the_report_take_it(squeezenet, photographs, places, tmp_path):
    _, weights = squeezenet
    name = "torchvision:squeezenet1_1"
    own = ["--weights", weights, "--data", f"folder:{photographs}", "--limit", 4, "--interpolation", "bicubic", "--resize", 240]
    turned = [word if word != "--interpolation" else "--network-interpolation" for word in own]
    commands = [
        ["accuracy", name, *own],
        ["rotate", name, "--angles", "90", *turned],
        ["attack", name, "--attack", "fgsm", "--eps", "1/255", *own],
        ["attack", name, "--attack", "fgsm", "--eps", "1/255", "--surrogate", name, "--surrogate-weights", weights, *own],
        ["corrupt", name, "--kinds", "contrast", "--severity", "1", *own],
    ]
    for command in commands:
        outcome = sanbench(*command, *places)
        assert outcome.exit_code == 0, outcome.output
    found = records(tmp_path)
    assert {record.kind for record in found} == {"accuracy", "rotation", "attack", "transfer", "corruption"}
    assert {record.network.label for record in found} == {f"{name} interpolation=bicubic resize=240"}
    assert {record.data.preprocessing for record in found} == {"shorter side 240 bicubic, centre crop 224"}
    assert sanbench("report", "--format", "md,csv,tex,html", *places[2:]).exit_code == 0
    text = pages(tmp_path / "results")
    assert "not told" in text and "shorter side 240 bicubic" in text
    assert "Self-attention against ResNet" not in text
    mean = table(page(tmp_path / "results", "corruptions"), "Top-1 by corruption")[0]
    assert mean["corruption"] == "mCE (AlexNet)"  # 1,000 classes at 224 pixels; it has no ResNet
    assert mean[f"{name} interpolation=bicubic resize=240"] == "—"  # not all 75 conditions
    assert "mCE (against" not in text


def test_weights_that_a_run_has_and_anothers_stand_in_one_table(squeezenet, runs, folder, places, tmp_path):
    """A head of three classes, counted in the file; several processes; images that are taken as they are."""
    torch.manual_seed(0)
    save_file(torchvision.models.resnet18(num_classes=3).state_dict(), tmp_path / "r18.safetensors")
    options = ["--data", f"folder:{folder}", "--crop", 32, "--runs", runs, *places[2:]]
    outcome = sanbench("accuracy", "resnet26", "torchvision:resnet18", "--weights", tmp_path / "r18.safetensors", *options)
    assert outcome.exit_code == 0, outcome.output
    assert [record.network.label for record in records(tmp_path)] == ["resnet26 width=0.5", "torchvision:resnet18 crop=32"]
    same = [record.data for record in records(tmp_path)]
    assert same[0] == same[1]
    attack = ["attack", "torchvision:resnet18", "--weights", tmp_path / "r18.safetensors", "--surrogate", "resnet26"]
    outcome = sanbench(*attack, "--attack", "fgsm", "--eps", "1/255", "--limit", 2, *options)
    assert outcome.exit_code == 0, outcome.output


def test_timm_states_its_own_preprocessing(tmp_path):
    network = timm.create_model("resnet10t", num_classes=7)
    torch.save({"state_dict": {f"module.{k}": x for k, x in network.state_dict().items()}}, tmp_path / "w.pt")
    model, view = load_external("timm:resnet10t", tmp_path / "w.pt")
    stated = timm.get_pretrained_cfg("resnet10t")
    assert model.spec.num_classes == 7
    assert (view.crop, view.interpolation, view.mean) == (stated.input_size[-1], stated.interpolation, stated.mean)
    assert view.resize == int(stated.input_size[-1] / stated.crop_pct)
    _, chosen = load_external("timm:resnet10t", tmp_path / "w.pt", mean="0.5,0.4,0.3", resize=300, crop=288)
    assert (chosen.mean, chosen.resize, chosen.crop) == ((0.5, 0.4, 0.3), 300, 288)
    images = torch.rand(2, 3, 64, 64)
    expected = network.eval()((images - torch.tensor(stated.mean)[:, None, None]) / torch.tensor(stated.std)[:, None, None])
    torch.testing.assert_close(model(images), expected)


class Tiny(nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.head = nn.Linear(3, num_classes)

    def forward(self, x):
        return self.head(x.mean((2, 3)))


MODULE = """
from torch import nn
from tests.test_external_networks import Tiny
def fixed(): return Tiny(10)
def pair():
    network = Tiny(10); network.forward = lambda x: (x, x); return network
def number(): return 3
"""


def test_a_factory_in_the_folder_of_the_command_on_images_as_they_are(tmp_path, monkeypatch, places):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tinynets.py").write_text(MODULE)
    torch.save(Tiny(10).state_dict(), tmp_path / "tiny.pt")
    command = ["accuracy", "tinynets:fixed", "--weights", "tiny.pt", "--data", "fashion10k", "--limit", 20, *places]
    assert sanbench(*command, "--mean", "0.5,0.5,0.5").exit_code == 0
    assert sanbench(*command, "--crop", 32).exit_code == 0
    assert records(tmp_path)[0].network.name.startswith("tinynets:fixed")
    for option in (["--crop", 64], ["--resize", 300], ["--interpolation", "bicubic"]):
        outcome = sanbench(*command, *option)
        assert outcome.exit_code == 2
        assert "the images of fashion10k stay as they are, 32 x 32" in outcome.stderr
    for name, sentence in {
        "tinynets:pair": "it gives tuple, not logits",
        "tinynets:number": "it gives a int, not a torch.nn.Module",
        "tinynets:absent": "no function 'absent'",
        "tinynet:fixed": "No module named 'tinynet'; accepted are torchvision:NAME",
    }.items():
        outcome = sanbench("accuracy", name, *command[2:])
        assert outcome.exit_code == 2, outcome.output
        assert sentence in outcome.stderr and outcome.stderr.count("\n") == 1


WEIGHTS = ["--weights", "squeezenet.pth"]
BAD = [  # arguments, the sentence, the exit code
    (["torchvision:squeezenet1_1"], "with 0 --weights is not accepted", 2),
    (["torchvision:squeezenet1_1", *WEIGHTS, *WEIGHTS], "with 2 --weights is not accepted", 2),
    (["torchvision:squeezenet", *WEIGHTS], "Did you mean 'squeezenet1_", 2),
    (["timm:resnet10", *WEIGHTS], "Did you mean 'resnet10t'", 2),
    (["torchvision:squeezenet1_1", "--weights", "nowhere.pth"], "There is no file nowhere.pth", 2),
    (["torchvision:squeezenet1_1", "--weights", "nowhere.safetensors"], "There is no file nowhere.safetensors", 2),
    (["torchvision:squeezenet1_1", "--weights", "broken.safetensors"], "not a readable safetensors file", 1),
    (["torchvision:resnet18", *WEIGHTS], "does not hold the weights of a torchvision:resnet18. Missing: conv1.weight", 1),
    (["torchvision:squeezenet1_1", *WEIGHTS, "--mean", "0.5"], "mean '0.5' is not accepted: write three numbers", 2),
    (["torchvision:squeezenet1_1", *WEIGHTS, "--mean", "a,b,c"], "mean 'a,b,c'", 2),
    (["torchvision:squeezenet1_1", *WEIGHTS, "--std", "0,1,1"], "std 0.0,1.0,1.0 is not accepted", 2),
    (["torchvision:squeezenet1_1", *WEIGHTS, "--crop", "8"], "--network-crop 8 is not accepted", 2),
    (["torchvision:squeezenet1_1", *WEIGHTS, "--resize", "200"], "resize 200 is not accepted: a crop of 224", 2),
    (
        ["torchvision:squeezenet1_1", *WEIGHTS, "--interpolation", "cubic"],
        "Unknown interpolation 'cubic'. Did you mean 'bicubic'?",
        2,
    ),
    (["torchvision:squeezenet1_1", *WEIGHTS], "name a data set with --data", 2),
    (["resnet26", *WEIGHTS], "--weights is not accepted for a run", 2),
    (["resnet26", "--crop", "224"], "--crop is not accepted for a run", 2),
]


@pytest.mark.parametrize(("arguments", "sentence", "code"), BAD, ids=[f"{row[1][:40]}-{row[2]}" for row in BAD])
def test_bad_input_is_one_sentence(arguments, sentence, code, squeezenet, runs, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "squeezenet.pth").symlink_to(squeezenet[1])
    (tmp_path / "broken.safetensors").write_bytes(b"nothing of the kind")
    outcome = sanbench("accuracy", *arguments, "--runs", runs, "--results", tmp_path / "results")
    assert outcome.exit_code == code, outcome.output
    assert sentence in outcome.stderr
    assert outcome.stderr.count("\n") == 1
    assert not (tmp_path / "results").exists()


def test_missing_timm_is_named(monkeypatch, tmp_path):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    (tmp_path / "w.pt").write_bytes(b"weights")
    outcome = sanbench("accuracy", "timm:resnet10t", "--weights", tmp_path / "w.pt", "--results", tmp_path)
    assert outcome.exit_code == 2
    assert "pip install 'sanbench[timm]'" in outcome.stderr
