"""Networks against PAPER's counts, the released tensors, plain modules, and the symmetries of their equations."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torchvision.models.resnet import Bottleneck, ResNet, resnet50

import sanbench
from sanbench.errors import InputError
from sanbench.models import MODELS, counted_kept, counted_size, kept_bytes, size
from sanbench.models.authors_checkpoints import authors_names
from sanbench.models.normalisation import normalisation, synchronise
from sanbench.models.san import SAN, Block, SANConfig, SelfAttention
from sanbench.ops import cpu
from sanbench.ops.attention import pairwise_delta, patchwise_delta
from sanbench.ops.footprint import Footprint
from sanbench.relation import RELATIONS
from tests.support import authors_code
from tests.support.unsettled_weights import unsettle

SIZES = {  # parameters, GMACs at 224
    "resnet26": (13_696_552, None),
    "resnet38": (19_626_792, None),
    "resnet50": (25_557_032, None),
    "san10_pairwise": (10_531_848, 2.044),
    "san10_patchwise": (11_841_124, 1.791),
    "san15_pairwise": (14_065_436, 2.859),
    "san15_patchwise": (16_181_310, 2.478),
    "san19_pairwise": (17_596_156, 3.636),
    "san19_patchwise": (20_518_470, 3.130),
}
VARIATIONS = [
    *({"attention": "pairwise", "relation": r} for r in ("summation", "concatenation", "hadamard", "dot")),
    *({"attention": "patchwise", "relation": r} for r in ("star", "clique")),
    *({"attention": a, "gamma_depth": d} for a in ("pairwise", "patchwise") for d in (1, 3)),
    *({"attention": a, "shared": s} for a in ("pairwise", "patchwise", "scalar") for s in ("phi-psi", "phi-psi-beta")),
    *({"attention": a, "footprint": k} for a in ("pairwise", "patchwise") for k in (3, 5, 9, 11)),
    {"position": "none"},
    {"position": "absolute"},
    {"attention": "scalar", "heads": 1},
]


@pytest.mark.parametrize("name", SIZES)
def test_sizes_are_the_papers(name):
    parameters, gmacs = size(name)
    assert parameters == SIZES[name][0]
    if SIZES[name][1] is not None:
        assert round(gmacs, 3) == SIZES[name][1]


@pytest.mark.parametrize(
    ("name", "variation"),
    [
        *((name, {}) for name in MODELS),
        *(("san10", variation) for variation in VARIATIONS if "attention" not in variation),
        ("san10_patchwise", {"relation": "clique", "footprint": 3}),
        ("san10_patchwise", {"relation": "star", "shared": "phi-psi-beta", "width": 0.375}),
        ("san10_scalar", {"heads": 1, "footprint": 3}),
        ("resnet26", {"width": 0.25}),
        ("resnet50", {"width": 2.0}),
    ],
    ids=str,
)
@pytest.mark.parametrize(("side", "classes"), [(224, 1000), (97, 10)])
def test_sizes_in_closed_form_are_those_that_torch_counts(name, variation, side, classes):
    assert size(name, side, classes, **variation) == counted_size(name, side, classes, **variation)


@pytest.mark.parametrize(
    ("name", "variation"),
    [
        *((name, {}) for name in MODELS),
        *(("san10", variation) for variation in VARIATIONS if "attention" not in variation),
        ("san10_patchwise", {"relation": "clique", "footprint": 3, "gamma_depth": 3}),
        ("san10_scalar", {"heads": 1, "shared": "phi-psi-beta"}),
        ("resnet26", {"width": 0.25}),
    ],
    ids=str,
)
@pytest.mark.parametrize(("side", "images"), [(32, 3), (97, 2), (224, 1)])
def test_what_a_step_keeps_is_in_closed_form_what_autograd_saves(name, variation, side, images):
    """At 224 the larger maps are computed again; 97 is odd in each stage."""
    assert kept_bytes(name, side, 10, images, **variation) == counted_kept(name, side, 10, images, **variation)


@pytest.mark.parametrize("name", MODELS)
def test_a_step_of_one_pixel_is_refused_before_a_network_is_built(name):
    with pytest.raises(InputError, match="one pixel is not accepted"):
        kept_bytes(name, 32, 10, 1)


@pytest.mark.parametrize(
    ("name", "theirs", "blocks"), [("resnet26", None, [1, 2, 4, 1]), ("resnet50", "resnet50", [3, 4, 6, 3])]
)
def test_a_resnet_is_torchvisions_bit_by_bit(name, theirs, blocks):
    torch.manual_seed(3)
    own = sanbench.build_model(name, 10).network
    torch.manual_seed(3)
    other = resnet50(num_classes=10) if theirs else ResNet(Bottleneck, blocks, num_classes=10)
    for (key, value), (wanted, expected) in zip(own.state_dict().items(), other.state_dict().items(), strict=True):
        assert key == wanted and torch.equal(value, expected)
    images = torch.rand(2, 3, 64, 64)
    for network in (own, other):
        network(images).square().sum().backward()
    assert all(torch.equal(a.grad, b.grad) for a, b in zip(own.parameters(), other.parameters()))
    assert torch.equal(own.eval()(images), other.eval()(images))


@pytest.mark.parametrize("kind", ["pairwise", "patchwise"])
@pytest.mark.parametrize(("name", "blocks"), [("san10", (2, 1, 2, 4, 1)), ("san19", (3, 3, 4, 6, 3))])
def test_tensors_match_the_released_checkpoints_one_to_one(name, blocks, kind):
    with torch.device("meta"):
        model = sanbench.build_model(f"{name}_{kind}")
    names = authors_names(model)
    ours = {names[key]: tuple(tensor.shape) for key, tensor in model.state_dict().items()}
    assert ours == authors_code.shapes(blocks, kind)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("image", [(32, 32), (33, 47)])
def test_every_model_takes_images_from_32_up(name, image):
    model = sanbench.build_model(name, num_classes=7, width=0.5).eval()
    assert model(torch.rand(2, 3, *image)).shape == (2, 7)


@pytest.mark.parametrize(
    ("width", "channels"), [(0.5, [128, 256, 512, 1024]), (0.3, [64, 160, 320, 608]), (2, [512, 1024, 2048, 4096])]
)
def test_a_resnets_width_is_that_of_its_stages(width, channels):
    network = sanbench.build_model("resnet26", 7, width=width).network
    assert [
        stage[-1].conv3.out_channels for stage in (network.layer1, network.layer2, network.layer3, network.layer4)
    ] == channels
    assert network.fc.weight.shape == (7, channels[-1])


@pytest.mark.parametrize("variation", VARIATIONS, ids=str)
def test_every_variation_learns(variation):
    torch.manual_seed(0)
    model = sanbench.build_model("san10", num_classes=3, width=0.5, blocks=(1, 1, 1, 1, 1), **variation)
    F.cross_entropy(model(torch.rand(2, 3, 32, 32)), torch.tensor([0, 2])).backward()
    missing = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
    assert missing == []
    assert all(model.spec.variation[field] == value for field, value in variation.items() if field != "attention")


class PlainAttention(nn.Module):
    """A SelfAttention's own modules called one after the other on expanded tensors, in the obvious way."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x):
        layer, window = self.layer, Footprint(self.layer.footprint)
        query, key, value = layer.phi(x), layer.psi(x), layer.beta(x)
        if layer.attention == "pairwise":
            delta = pairwise_delta(query, key, layer.encode(x), layer.relation, window)
            weights = layer.gamma(delta).softmax(2)
        else:
            delta = patchwise_delta(query, key, layer.relation, window)
            weights = layer.gamma(delta).squeeze(2).unflatten(1, (-1, layer.footprint**2))
        shared = weights.repeat(1, value.shape[1] // weights.shape[1], 1, 1)  # channel c has weights c mod G
        return (shared * window.expand(value)).sum(2).unflatten(2, x.shape[2:])


@pytest.mark.parametrize("relation", [name for name, entry in RELATIONS["pairwise"].items() if entry.as_subtraction])
def test_relations_that_are_subtractions_run_in_the_kernels(relation):
    """Output and gradients are those of the relation's own operator, which is the tiled specification."""
    torch.manual_seed(1)
    layer = SelfAttention(SANConfig(blocks=(1, 1, 1, 1, 1), relation=relation), 64, 5).eval()
    unsettle(layer)
    x = torch.randn(2, 64, 6, 7).contiguous(memory_format=torch.channels_last)
    ours, theirs = ([leaf.detach().requires_grad_() for leaf in layer.project(x)] for _ in range(2))
    out = layer.attend(*ours)
    served = cpu.kernel()
    assert cpu.last_kernel("pairwise_attention") == served
    grads = torch.autograd.grad(out.cos().sum(), ours)
    assert cpu.last_kernel("pairwise_attention_backward") == served
    gamma = layer.mapping(lambda _: x, 0)
    plain = torch.ops.sanbench.pairwise_attention(*theirs, layer.encode(x), gamma, relation, 5, 1, 1)
    assert cpu.last_kernel("pairwise_attention") == "tiled"
    torch.testing.assert_close(out, plain)
    torch.testing.assert_close(grads, torch.autograd.grad(plain.cos().sum(), theirs))


@pytest.mark.parametrize(("attention", "relation"), [(kind, relation) for kind, own in RELATIONS.items() for relation in own])
def test_training_equals_plain_modules(attention, relation):
    """Output, every gradient and the running averages after two steps, in float64."""
    config = SANConfig(blocks=(1, 1, 1, 1, 1), attention=attention, relation=relation)
    layers = []
    for _ in range(2):
        torch.manual_seed(1)
        layers.append(SelfAttention(config, 64, 5).double())
        unsettle(layers[-1])
    ours, theirs = layers[0], PlainAttention(layers[1])
    for step in range(2):
        x = torch.randn(3, 64, 4, 5, dtype=torch.double, generator=torch.Generator().manual_seed(step))
        outputs = []
        for layer in (ours, theirs):
            layer.zero_grad()
            leaf = x.clone().requires_grad_()
            out = layer(leaf)
            (out * torch.arange(out.numel()).view_as(out).cos()).sum().backward()
            outputs.append((out, leaf.grad))
        torch.testing.assert_close(outputs[0], outputs[1])
    for (name, a), b in zip(ours.named_parameters(), theirs.layer.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, msg=lambda text, name=name: f"{name}: {text}")
    for (name, a), b in zip(ours.named_buffers(), theirs.layer.buffers(), strict=True):
        torch.testing.assert_close(a, b, msg=lambda text, name=name: f"{name}: {text}")
    ours.eval()
    theirs.eval()
    torch.testing.assert_close(ours(x), theirs(x))


class PlainNetwork(nn.Module):
    """A SAN's own modules called one after the other, with nn.BatchNorm2d's own forward and everything kept."""

    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, x):
        network = self.network
        x = F.relu(network.stem(x))
        for stage in network.stages:
            pool, linear, blocks, norm = stage
            x = linear(pool(x))
            for block in blocks:
                x = x + block.expand(F.relu(block.after(block.attention(F.relu(block.before(x))))))
            x = F.relu(norm(x))
        return network.classifier(x.mean((2, 3)))


@pytest.mark.parametrize("synchronised", [False, True])
@pytest.mark.parametrize("attention", ["pairwise", "patchwise", "scalar"])
def test_training_a_network_equals_batch_norm(attention, synchronised):
    """Logits, every gradient and the running averages after two steps, in float64; then in evaluation."""
    config = SANConfig(blocks=(2, 1, 1, 1, 1), attention=attention, width=0.5, footprint=3)
    networks = []
    for _ in range(2):
        torch.manual_seed(1)
        networks.append(SAN(config, 5))
        unsettle(networks[-1])
    if synchronised:
        synchronise(networks[0])
    ours, theirs = networks[0].double(), PlainNetwork(networks[1].double())
    for step in range(2):
        images = torch.randn(3, 3, 40, 32, dtype=torch.double, generator=torch.Generator().manual_seed(step))
        for network in (ours, theirs):
            network.zero_grad()
        leaves = [images.clone().requires_grad_() for _ in range(2)]
        logits = [network(leaf) for network, leaf in zip((ours, theirs), leaves)]
        for out in logits:
            F.cross_entropy(out, torch.tensor([0, 3, 1])).backward()
        torch.testing.assert_close(*logits)
        torch.testing.assert_close(leaves[0].grad, leaves[1].grad)
    for (name, a), b in zip(ours.named_parameters(), networks[1].parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, msg=lambda text, name=name: f"{name}: {text}")
    torch.testing.assert_close(dict(ours.named_buffers()), dict(networks[1].named_buffers()))
    torch.testing.assert_close(ours.eval()(images), theirs.eval()(images))


def test_a_batch_without_a_variance_is_named():
    with pytest.raises(InputError, match="batch of 1 image"):
        sanbench.build_model("san10", width=0.5)(torch.rand(1, 3, 32, 32))


def test_a_block_compiles_in_training():
    torch.manual_seed(0)
    block = Block(SANConfig(blocks=(1, 1, 1, 1, 1)), 64, 3)
    unsettle(block)
    twin, x = copy.deepcopy(block), torch.randn(2, 64, 5, 6)
    for network in (torch.compile(block, backend="aot_eager", fullgraph=True), twin):
        network(x).square().sum().backward()
    torch.testing.assert_close(dict(block.named_buffers()), dict(twin.named_buffers()))
    for a, b in zip(block.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-3, atol=1e-3)


def test_normalisation_equals_batch_norm():
    torch.manual_seed(0)
    x = torch.randn(3, 5, 4, 6, dtype=torch.double) * 2 + 7
    ours, theirs = nn.BatchNorm2d(5).double(), nn.BatchNorm2d(5).double()
    moments = torch.stack([x.mean((2, 3)), x.var((2, 3), correction=0)], 1)
    scale, shift = normalisation(ours, moments, 24)
    torch.testing.assert_close(x * scale[:, None, None] + shift[:, None, None], theirs(x))
    torch.testing.assert_close(ours.state_dict(), theirs.state_dict())


ORIENTATIONS = [*(lambda x, k=k: torch.rot90(x, k, (2, 3)) for k in (1, 2, 3)), lambda x: x.flip(2), lambda x: x.flip(3)]


def orientation_gap(**variation):
    """Largest change of a logit over all orientations of two real images."""
    from sanbench.data import load_dataset

    torch.manual_seed(0)
    model = sanbench.build_model("san10", num_classes=10, **variation).eval()
    unsettle(model)
    images = load_dataset("fashion10k", "test").read([3, 8]).float() / 255
    with torch.no_grad():
        upright = model(images)
        return max((model(turn(images)) - upright).abs().max().item() for turn in ORIENTATIONS)


def test_pairwise_attention_without_position_is_a_set_operator():
    assert orientation_gap(position="none") < 1e-4


@pytest.mark.parametrize("variation", [{"attention": "patchwise"}, {"position": "absolute"}, {"position": "relative"}], ids=str)
def test_position_and_patchwise_attention_see_orientation(variation):
    assert orientation_gap(**variation) > 1e-3


def test_scalar_networks_compile_and_export():  # the others: tests/test_cpu_networks.py
    torch.manual_seed(0)
    model = sanbench.build_model("san10", num_classes=4, attention="scalar", width=0.5, blocks=(1, 1, 1, 1, 1)).eval()
    images = torch.rand(2, 3, 32, 32)
    expected = model(images)
    torch.testing.assert_close(torch.compile(model, fullgraph=True, backend="aot_eager")(images), expected)
    torch.testing.assert_close(torch.export.export(model, (images,)).module()(images), expected)


def test_normalisation_is_inside():
    model = sanbench.build_model("resnet26", num_classes=3, mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4)).eval()
    images = torch.rand(2, 3, 32, 32)
    means, stds = torch.tensor([0.5, 0.4, 0.3]), torch.tensor([0.2, 0.3, 0.4])
    expected = model.network((images - means.view(3, 1, 1)) / stds.view(3, 1, 1))
    torch.testing.assert_close(model(images), expected)


@pytest.mark.parametrize(
    ("name", "variation", "named"),
    [
        ("san16", {}, r"'san16'. Did you mean 'san1"),
        ("san15", {"footprnt": 5}, "'footprnt'. Did you mean 'footprint'"),
        ("san15", {"footprint": 4}, "footprint 4 .* odd"),
        ("san15", {"relation": "star"}, "'star'.*subtraction"),
        ("san15", {"attention": "patchwise", "position": "absolute"}, "position 'absolute'"),
        ("san15", {"gamma_depth": 4}, "gamma_depth=4"),
        ("san15", {"attention": "scalar", "heads": 3}, "heads 3"),
        ("resnet26", {"footprint": 5}, "'footprint'"),
    ],
)
def test_what_cannot_be_built_is_named(name, variation, named):
    with pytest.raises(InputError, match=named):
        sanbench.build_model(name, **variation)


@pytest.mark.parametrize("shape", [(2, 3, 31, 40), (2, 1, 32, 32), (3, 32, 32)])
def test_images_of_another_shape_are_named(shape):
    with pytest.raises(InputError, match="N x 3 x H x W"):
        sanbench.build_model("resnet26")(torch.rand(shape))


def test_width_scales_every_stage():
    stages = [SANConfig(blocks=(1, 1, 1, 1, 1), width=0.5).channels(stage) for stage in range(5)]
    assert stages == [32, 128, 256, 512, 1024]
    assert all(channels % 32 == 0 for channels in map(SANConfig(blocks=(1, 1, 1, 1, 1), width=0.3).channels, range(5)))
