"""What is added to a table is used everywhere: each test adds an entry from a temporary module."""

import importlib
import runpy
from pathlib import Path

import pytest
import torch

from sanbench import load_model
from sanbench.errors import InputError
from sanbench.models import FAMILIES, MODELS, baseline_of, build_model
from sanbench.runs.config import configure
from sanbench.runs.evaluated import load_evaluated
from sanbench.store.schema import ModelSpec
from sanbench.training.loop import train
from tests.support.commands import sanbench

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
def mixer(tmp_path, monkeypatch):
    """A family of networks, as its module and its entry."""
    (tmp_path / "mixer_family.py").write_text(FAMILY)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(FAMILIES, "mixer", importlib.import_module("mixer_family").FAMILY)


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
