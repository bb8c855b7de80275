"""docs/extending.md: what is added to a table is used everywhere. Each test adds an entry from temporary modules alone."""

import importlib
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from sanbench import load_model
from sanbench.data import DATASETS, ReadOptions, load_dataset
from sanbench.errors import InputError
from sanbench.evaluation.attacks.table import ATTACKS
from sanbench.evaluation.corruptions import CORRUPTIONS
from sanbench.evaluation.kinds import KINDS
from sanbench.models import FAMILIES, MODELS, baseline_of, build_model
from sanbench.models.checkpoints import save_checkpoint
from sanbench.ops import RELATIONS
from sanbench.runs.config import configure
from sanbench.runs.evaluated import load_evaluated
from sanbench.store.files import Store
from sanbench.store.schema import ModelSpec
from sanbench.training.loop import train
from tests.support.commands import sanbench
from tests.support.report_pages import page, pages, table

ROOT = Path(__file__).parent.parent
FAMILY = """
from pydantic import BaseModel, ConfigDict
from torch import nn

from sanbench.models.families import Family, NamedNetwork


class MixerConfig(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")
    blocks: int
    channels: int = 8
    width: float = 1.0


class Residual(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.layers = nn.Sequential(nn.BatchNorm2d(channels), nn.ReLU(), nn.Conv2d(channels, channels, 3, padding=1))

    def forward(self, x):
        return x + self.layers(x)


def build(config, num_classes):
    channels = round(config.channels * config.width)
    blocks = [Residual(channels) for _ in range(config.blocks)]
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, num_classes)]
    return nn.Sequential(nn.Conv2d(3, channels, 4, 4), *blocks, *head)


def residual_ends(network):
    return (block.layers[2] for block in network if isinstance(block, Residual))


FAMILY = Family(
    MixerConfig,
    build,
    {
        "mixer2": NamedNetwork(MixerConfig(blocks=2), baseline="resnet26"),
        "mixer4": NamedNetwork(MixerConfig(blocks=4)),
    },
    residual_ends,
    aliases={"mixer": "mixer2"},
)
"""


@pytest.fixture
def module(tmp_path, monkeypatch):
    """`module(name, text)`: a module that is there for one test."""
    (tmp_path / "modules").mkdir()
    monkeypatch.syspath_prepend(tmp_path / "modules")

    def write(name, text):
        (tmp_path / "modules" / f"{name}.py").write_text(text)
        return importlib.import_module(name)

    yield write
    for path in (tmp_path / "modules").glob("*.py"):
        sys.modules.pop(path.stem, None)


@pytest.fixture
def measured(runs, tmp_path):
    """`measured(command, ...)` measures the two networks on 6 of their images; the report."""
    shared = ["--results", tmp_path / "results"]

    def run(*command):
        outcome = sanbench(*command, "--limit", 6, "--runs", runs, *shared)
        assert outcome.exit_code == 0, outcome.output
        outcome = sanbench("report", *shared)
        assert outcome.exit_code == 0, outcome.output
        return pages(tmp_path / "results")

    return run


@pytest.fixture
def mixer(module, monkeypatch):
    """A family of networks, as its module and its entry."""
    monkeypatch.setitem(FAMILIES, "mixer", module("mixer_family", FAMILY).FAMILY)


def test_a_family_is_trained_and_loaded_by_name(mixer, folder, tmp_path):
    assert [name for name in MODELS if name.startswith(("mixer", "resnet26"))] == ["resnet26", "mixer2", "mixer4"]
    changes = {"channels": "16", "epochs": 1, "batch_size": 48, "lr": 0.01, "zero_init": True}
    config = configure("mixer", f"folder:{folder}", changes=changes, image_size=32, workers=0)
    assert config.model.label == "mixer2 channels=16"
    run = train(config, tmp_path / "runs" / "mine", torch.device("cpu"))
    assert [line["step"] for line in run.lines() if "loss" in line and "step" in line] == [1]
    model = load_model(run.checkpoint)
    assert model.spec == ModelSpec(name="mixer2", num_classes=3, variation={"channels": 16})
    fresh = build_model("mixer2", 3, channels=16)
    assert model(torch.rand(2, 3, 32, 32)).shape == (2, 3)
    assert model.state_dict().keys() == fresh.state_dict().keys()
    (evaluated,) = load_evaluated(["mine"], tmp_path / "runs")
    assert evaluated.network.label == "mixer2 channels=16"


def test_a_familys_fields_names_and_baseline_are_its_own(mixer):
    with pytest.raises(InputError, match=r"'footprint'.* Known: .*channels, .*width"):
        configure("mixer2", changes={"footprint": 3})
    with pytest.raises(InputError, match=r"'mixer5'\. Did you mean 'mixer"):
        build_model("mixer5")
    assert baseline_of(build_model("mixer", width=2.0, channels=4).spec) == build_model("resnet26", width=2.0).spec
    assert baseline_of(build_model("mixer4").spec) is None


def test_a_family_is_listed_by_the_command_line_and_torch_hub(mixer):
    outcome = sanbench("models")
    assert outcome.exit_code == 0 and "mixer4" in outcome.stdout
    scope = runpy.run_path(str(ROOT / "hubconf.py"))
    assert scope["mixer2"](num_classes=5)(torch.rand(1, 3, 32, 32)).shape == (1, 5)


ATTACK = """
import torch

from sanbench.evaluation.attacks.table import Entry


def corners(queried, turn):
    eps, step = float(turn.config.eps), 0
    best = queried.images
    while step < turn.config.steps:
        best = (queried.images + eps * torch.randn(queried.images.shape).sign()).clamp(0, 1)
        queried(best)
        step += 1
    return best


ENTRY = Entry(corners, 3, norms=("linf",))
"""


def test_an_attack_is_an_entry(module, monkeypatch, measured, tmp_path):
    monkeypatch.setitem(ATTACKS, "corners", module("corners_attack", ATTACK).ENTRY)
    report = measured("attack", "--attack", "corners", "--eps", "8/255,16/255")
    protocol = table(report, "Protocols")[0]
    assert (protocol["attack"], protocol["norm"], protocol["steps"], protocol["restarts"]) == ("corners", "L∞", "3", "1")
    records = Store(tmp_path / "results").records()
    assert {record.setting["eps"] for record in records} == {"8/255", "16/255"}
    assert all(record.extremes["linf"] <= 16 / 255 + 1e-6 for record in records)
    assert "corners" in sanbench("attack", "--attack", "corner", "--eps", "8/255").output


CORRUPTION = """
from sanbench.evaluation.corruptions import Corruption


def negative(image, strength, draw):
    return (1 - strength) * image + strength * (1 - image)


ENTRY = Corruption(negative, (0.2, 0.4, 0.6, 0.8, 1.0), "a mixture with the negative.")
"""


def test_a_corruption_is_an_entry(module, monkeypatch, measured):
    monkeypatch.setitem(CORRUPTIONS, "negative", module("negative_corruption", CORRUPTION).ENTRY)
    report = measured("corrupt", "--kinds", "negative", "--severity", "1,5")
    rows = table(report, "Top-1 by corruption")
    assert rows[-1]["corruption"] == "negative"
    assert rows[0]["corruption"] == "mCE (against resnet26)"
    assert "negative: a mixture with the negative." in report


RELATION = """
import torch

from sanbench.relation import Relation

ENTRY = Relation(torch.minimum, lambda r, k: r)
"""


def test_a_relation_is_an_entry(module, monkeypatch, folder, tmp_path):
    monkeypatch.setitem(RELATIONS["pairwise"], "minimum", module("minimum_relation", RELATION).ENTRY)
    places = ["--runs", tmp_path / "runs", "--results", tmp_path / "results"]
    settings = [word for text in ("relation=minimum", "width=0.5", "batch_size=48", "epochs=1") for word in ("--set", text)]
    data = ["--data", f"folder:{folder}", "--image-size", 32, "--workers", 0]
    trained = sanbench("train", "san10", *settings, *data, "--run", "mine", *places[:2])
    assert trained.exit_code == 0, trained.output
    outcome = sanbench("accuracy", "mine", *places, columns=200)
    assert "san10_pairwise relation=minimum x0.5" in outcome.stdout
    attention = build_model("san10", 10, relation="minimum", width=0.5)
    attention(torch.rand(2, 3, 32, 32)).sum().backward()
    assert all(parameter.grad is not None for parameter in attention.parameters())
    assert sanbench("train", "san10", "--set", "relation=minimun").output.count("minimum") == 2  # the nearest, and the list


DATASET = """
import torch

from sanbench.data import Dataset, TensorImages


def load_stripes(split, options):
    labels = torch.arange({"train": 24, "validation": 6, "test": 12}[split]) % 3
    images = torch.zeros(len(labels), 3, 32, 32, dtype=torch.uint8)
    for image, label in zip(images, labels.tolist()):
        image[:, :: label + 2] = 255
    return TensorImages("stripes", split, images, labels, ["two", "three", "four"], crop_padding=0)


ENTRY = Dataset(load_stripes)
"""


def test_a_data_set_is_an_entry(module, monkeypatch, tmp_path):
    monkeypatch.setitem(DATASETS, "stripes", module("stripes_data", DATASET).ENTRY)
    places = ["--runs", tmp_path / "runs", "--results", tmp_path / "results"]
    settings = ["--set", "width=0.5", "--set", "batch_size=24", "--set", "epochs=1", "--set", "crops=false"]
    trained = sanbench("train", "resnet26", "--data", "stripes", *settings, "--run", "mine", *places[:2])
    assert trained.exit_code == 0, trained.output
    assert sanbench("accuracy", "mine", *places).exit_code == 0  # on the set that it was trained on
    assert sanbench("report", *places[2:]).exit_code == 0
    assert "## stripes: test images (12)" in (tmp_path / "results" / "report.md").read_text()
    assert "stripes" in sanbench("train", "resnet26", "--data", "stripe").output


LAYOUT = """
from sanbench.data import Dataset
from sanbench.data.folders import FolderImages
from sanbench.data.imagenet import Layout

MARKS = Layout(("cross", "dot"), {"marks": 4})
ENTRY = Dataset(
    lambda split, options: FolderImages(options.root, "marks", "marks", split, options.image_size, layout=MARKS),
    options=("data_root", "image_size"),
    layout=MARKS,
    test_only=True,
)
"""


def test_a_layout_is_checked_by_name(module, monkeypatch, tmp_path):
    from PIL import Image

    monkeypatch.setitem(DATASETS, "marks", module("marks_data", LAYOUT).ENTRY)
    root = ["--data-root", tmp_path]
    for number, name in enumerate(["cross", "cross", "dot", "dot"]):
        (tmp_path / "marks" / name).mkdir(parents=True, exist_ok=True)
        Image.new("L", (40, 40), 60 * number).save(tmp_path / "marks" / name / f"{number}.png")
    assert sanbench("data", "check", "marks", *root).exit_code == 0
    images = load_dataset("marks", "test", ReadOptions(tmp_path, image_size=32))
    assert (images.classes, images.labels.tolist(), images.among) == (["cross", "dot"], [0, 0, 1, 1], None)
    (tmp_path / "marks" / "dot" / "3.png").unlink()
    outcome = sanbench("data", "check", "marks", *root, columns=200)
    assert outcome.exit_code == 1 and "marks/ holds 3 images: there should be 4." in outcome.output
    assert "marks has test images only" in sanbench("train", "san10", "--data", "marks", *root, columns=200).output


KIND = """
from dataclasses import dataclass

from sanbench.evaluation.kinds import Kind, option


@dataclass(frozen=True)
class GreyOptions:
    \"\"\"Measure top-1 on images with less colour: sanbench grey --amounts 0.5,1.\"\"\"

    amounts: str = option("1", "Shares of the colour that go, from 0 to 1.")


ENTRY = Kind(
    "With less colour",
    "grey",
    lambda setting: f"grey {setting['amount']}",
    order=lambda setting: (setting["amount"],),
    options=GreyOptions,
    command="grey",
    parse="grey_measurement:parse",
)
"""
MEASUREMENT = """
from dataclasses import dataclass

from sanbench.errors import InputError
from sanbench.evaluation.loop import Identity, Perturbation, Perturbed


@dataclass(frozen=True)
class Grey(Perturbation):
    amount: float
    kind = "grey"

    @property
    def setting(self):
        return {"amount": self.amount}

    def __call__(self, images, labels, indices):
        return Perturbed(images + self.amount * (images.mean(1, keepdim=True) - images), {})


def parse(options, request):
    try:
        amounts = [float(word) for word in options.amounts.split(",")]
    except ValueError:
        raise InputError(f"amounts {options.amounts!r} is not accepted: accepted are numbers from 0 to 1.") from None
    return lambda model, images: [Identity(), *map(Grey, amounts)]
"""
SECTION = """
from sanbench.report.cells import cell, identity
from sanbench.report.rendering import Heading, Table


def section(group, findings):
    rows = {}
    for record in group:
        if record.kind == "grey":
            row = rows.setdefault(record.network.weights, {"network": record.network.label} | identity(record))
            row[f"{record.setting['amount']:g} of the colour gone"] = cell(findings.top1(record))
    lines = list(rows.values())
    return [Heading("Images with less colour", 3), Table(lines)] if lines else []
"""


@pytest.fixture
def grey(module, monkeypatch):
    """A kind of measurement as its entry, its module and its section; the command line as a new process would make it."""
    monkeypatch.setitem(KINDS, "grey", module("grey_kind", KIND).ENTRY)
    module("grey_measurement", MEASUREMENT)
    monkeypatch.setitem(sys.modules, "sanbench.report.grey", module("grey_section", SECTION))
    monkeypatch.delitem(sys.modules, "sanbench_cli.main")
    app = importlib.import_module("sanbench_cli.main").app
    return lambda *words: CliRunner().invoke(app, [str(word) for word in words], env={"COLUMNS": "120"})


@pytest.fixture
def narrow_resnet(folder, tmp_path):
    """A checkpoint of the network that the SAN of `runs` is compared with."""
    data = {"name": f"folder:{folder}", "root": "data", "image_size": 32}
    save_checkpoint(tmp_path / "narrow.pt", build_model("resnet26", 3, width=0.5), data=data, selection="none")
    return tmp_path / "narrow.pt"


def test_a_kind_of_measurement_is_a_module_an_entry_and_a_section(grey, runs, narrow_resnet, tmp_path):
    assert "Measure top-1 on images with less colour" in " ".join(grey("--help").stdout.split())
    assert "Shares of the colour that go" in grey("grey", "--help").stdout
    outcome = grey("grey", "--amounts", "x", "--runs", runs)
    assert outcome.exit_code == 2 and "amounts 'x' is not accepted" in outcome.output
    places = ["--results", tmp_path / "results"]
    networks = ["san10", narrow_resnet, "--runs", runs]
    outcome = grey("grey", *networks, "--amounts", "0.5,1", *places)
    assert outcome.exit_code == 0 and "grey 0.5" in outcome.stdout, outcome.output
    outcome = grey("report", "--format", "md,csv", *places)
    assert outcome.exit_code == 0, outcome.output
    assert "Images with less colour" in (tmp_path / "results" / "report.md").read_text()
    rows = table(page(tmp_path / "results", "grey"), "Images with less colour")
    assert {"0.5 of the colour gone", "1 of the colour gone", "n"} < set(rows[0])
    assert len([row for row in rows if row["network"].startswith("san10")]) == 1
    paired = table(page(tmp_path / "results", "comparisons"), "With less colour")
    assert [row["condition"] for row in paired] == ["grey 0.5", "grey 1.0"]
    assert "amount" in (tmp_path / "results" / "grey.csv").read_text().splitlines()[0]
    records = (tmp_path / "results" / "records").glob("*.jsonl")
    before = {path: path.read_bytes() for path in records}
    assert grey("grey", *networks, "--amounts", "1,0.5", *places).exit_code == 0  # nothing is measured twice
    assert {path: path.read_bytes() for path in before} == before


def test_the_help_of_a_kind_does_not_wait_for_torch(grey):
    """The entry and its options are read without torch, which `parse` imports."""
    code = f"import sys\nsys.path.insert(0, {str(Path(sys.modules['grey_kind'].__file__).parent)!r})\nimport grey_kind\n"
    subprocess.run([sys.executable, "-c", code + "assert 'torch' not in sys.modules"], check=True, cwd=ROOT)
