"""What a network is called: short names, what differs from the entry of the table, and the baseline of each."""

import pytest
import torch

import sanbench
from sanbench.models import MODELS, baseline_of, family_of, resolve
from sanbench.store.schema import ModelSpec, Network


def test_san15_is_san15_pairwise_and_attention_chooses_the_entry():
    with torch.device("meta"):
        assert sanbench.build_model("san15").spec.name == "san15_pairwise"
        assert sanbench.build_model("san15", attention="patchwise").spec.label == "san15_patchwise"
        assert sanbench.build_model("san15", footprint=5).spec.label == "san15_pairwise footprint=5"


@pytest.mark.parametrize("name", MODELS)
def test_a_network_is_resolved_to_its_name_and_what_differs(name):
    family, config = family_of(name), MODELS[name].config
    assert resolve(name) == (name, {})
    assert resolve(name, **{field: getattr(config, field) for field in family.fields}) == (name, {})
    for other, network in family.networks.items():  # from any network of the family, by all its fields
        assert resolve(other, **config.model_dump()) == (name, {})
        changed = {field: value for field, value in config if getattr(network.config, field) != value}
        assert resolve(other, **changed, width=0.5) == (name, {"width": 0.5})


def test_a_short_name_is_pairwise_and_attention_is_part_of_the_name():
    assert resolve("san15") == ("san15_pairwise", {})
    assert resolve("san15", attention="patchwise", footprint=5) == ("san15_patchwise", {"footprint": 5})
    assert resolve("san19", attention="scalar", blocks=(1, 1, 1, 1, 1)) == ("san19_scalar", {"blocks": (1, 1, 1, 1, 1)})


def test_a_baseline_has_the_fields_that_both_families_know():
    """A narrow SAN is compared with a ResNet as narrow, never with one of full width."""
    spec = sanbench.build_model("san10", 10, width=0.375, footprint=5, mean=(0.5, 0.5, 0.5)).spec
    baseline = baseline_of(spec)
    assert baseline == sanbench.build_model("resnet26", 10, width=0.375, mean=(0.5, 0.5, 0.5)).spec
    network = Network(**spec.model_dump(), weights="0" * 64)
    assert baseline_of(network) == baseline and type(baseline_of(network)) is ModelSpec
    assert baseline_of(baseline) is None
    assert baseline_of(ModelSpec(name="torchvision:resnet50")) is None
    pairs = {name: found.name for name in MODELS if (found := baseline_of(ModelSpec(name=name)))}
    resnets = {"10": "resnet26", "15": "resnet38", "19": "resnet50"}
    assert pairs == {f"san{n}_{kind}": resnets[n] for n in resnets for kind in ("pairwise", "patchwise", "scalar")}
