"""Networks from elsewhere that give something else than logits: a sentence with their name, or a finding."""

import time

import pytest
import torch
from torch import nn

from sanbench.errors import InputError
from sanbench.models.classifier import Classifier
from sanbench.models.findings import FINDINGS
from sanbench.models.probe import probe
from sanbench.runs.evaluated import EvaluatedModel
from sanbench.store.schema import ModelSpec
from tests.support.commands import sanbench

SIDE = 32


class Linear(nn.Module):
    """A linear of 3 classes, and `change` of (images, logits)."""

    def __init__(self, change):
        super().__init__()
        torch.manual_seed(0)
        self.linear = nn.Linear(3 * SIDE * SIDE, 3)
        self.change = change

    def forward(self, x):
        return self.change(x, self.linear(x.flatten(1)))


def fails(x, logits):
    raise RuntimeError("no such layer\nand more")


def probed(change):
    return probe(Classifier(ModelSpec(name="my:net", num_classes=3), Linear(change)).eval(), "my:net", SIDE)


REFUSED = {
    "integers": (lambda x, y: y.round().long(), "logits of torch.int64, not of torch.float32"),
    "half": (lambda x, y: y.half(), "logits of torch.float16"),
    "bfloat": (lambda x, y: y.bfloat16(), "logits of torch.bfloat16"),
    "double": (lambda x, y: y.double(), "logits of torch.float64"),
    "a row too few": (lambda x, y: y[:-1], "of 2 images it gives 1 x 3, not logits 2 x 3"),
    "a class too many": (lambda x, y: torch.cat([y, y], 1), "gives 2 x 6"),
    "a tuple": (lambda x, y: (y, y), "gives tuple"),
    "a scalar": (lambda x, y: y.sum(), "gives a scalar"),
    "raises": (fails, "fails for images of 32 x 32: no such layer"),
    "all NaN": (lambda x, y: y * float("nan"), "all NaN or infinite"),
}
FOUND = {
    "a linear": (lambda x, y: y, ()),
    "small": (lambda x, y: y * 1e-6, ()),
    "zero gradient": (lambda x, y: y.round() + 0 * y, ()),
    "detached": (lambda x, y: y.detach(), ("no-gradient",)),
    "no gradient mode": (torch.no_grad()(lambda x, y: y.clone().detach()), ("no-gradient",)),
    "sampled": (lambda x, y: y + torch.rand_like(y), ("random",)),
    "by the batch": (lambda x, y: y - y.mean(0), ("depends-on-batch",)),
    "some NaN": (lambda x, y: y / torch.tensor([1.0, 1.0, 0.0]), ("non-finite-logits",)),
    "NaN of noise": (lambda x, y: y / (x.std((2, 3)).amax(1) < 1e-3)[:, None], ("non-finite-logits",)),
    "both": (lambda x, y: (y * torch.rand(())).detach(), ("no-gradient", "random")),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_gives_no_logits_is_refused_by_name(kind):
    change, sentence = REFUSED[kind]
    with pytest.raises(InputError, match=rf"^my:net .*{sentence}") as caught:
        probed(change)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", FOUND)
def test_what_is_found(kind):
    change, expected = FOUND[kind]
    state = torch.get_rng_state()
    assert probed(change) == expected
    assert torch.equal(torch.get_rng_state(), state)
    assert {*expected} <= FINDINGS.keys()


def test_networks_of_runs_are_probed_in_a_moment(san_run, resnet_run):
    for run in (san_run, resnet_run):
        evaluated = EvaluatedModel.load(run.checkpoint, run.name)
        assert evaluated.findings == ()
        began = time.perf_counter()
        probe(evaluated.model, run.name, SIDE)
        assert time.perf_counter() - began < 5


MODULE = """
import torch
from torch import nn
class Net(nn.Module):
    def __init__(self, kind):
        super().__init__()
        self.linear, self.kind = nn.Linear(3, 3), kind
    def forward(self, x):
        if self.kind == "raises":
            raise KeyError("x")
        logits = self.linear(x.mean((2, 3)))
        return logits.half() if self.kind == "half" else logits.detach()
def half(): return Net("half")
def detached(): return Net("detached")
def raises(): return Net("raises")
def unbuilt(): raise OSError("no disk")
"""


def test_a_module_from_elsewhere_is_one_sentence_or_a_finding(folder, tmp_path, monkeypatch):
    (tmp_path / "probed_networks.py").write_text(MODULE)
    (tmp_path / "broken_module.py").write_text("1 / 0")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    torch.save({f"linear.{name}": x for name, x in nn.Linear(3, 3).state_dict().items()}, "w.pt")
    options = ["--weights", "w.pt", "--data", f"folder:{folder}", "--crop", 32]
    sentences = {
        "probed_networks:half": "gives logits of torch.float16",
        "probed_networks:raises": "takes no images of 32 x 32: 'x';",
        "probed_networks:unbuilt": "cannot be built: no disk",
        "broken_module:any": "cannot be imported: division by zero",
    }
    for name, sentence in sentences.items():
        outcome = sanbench("accuracy", name, *options)
        assert outcome.exit_code == 2, outcome.output
        assert outcome.stderr.startswith(f"Error: {name} ") and sentence in outcome.stderr, outcome.stderr
    evaluated = EvaluatedModel.external("probed_networks:detached", tmp_path / "w.pt", crop=32)
    assert evaluated.findings == ("no-gradient",)
