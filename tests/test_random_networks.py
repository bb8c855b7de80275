"""Networks that draw random numbers: averaged gradients, noise that belongs to the image, and flags of randomness alone."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from sanbench.evaluation.attacks.queried_model import Aim, QueriedModel
from sanbench.evaluation.rng import ImageNoise
from sanbench.evaluation.sanity_checks import FLAGS, attack_flags
from tests.support.quick_measurements import config, run


class Scrambled(nn.Module):
    """The logits of `network`; the gradient of each pixel times 1 + 3 z with z normal: right in the mean alone."""

    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, x):
        factor = 1 + 3 * torch.randn_like(x)
        return self.network(x.detach() + factor * (x - x.detach()))


class Random(nn.Module):
    def __init__(self, network, noise):
        super().__init__()
        self.network, self.noise = network, noise

    def forward(self, x):
        return self.noise(self.network, x)


NOISES = {
    "of the pixels": lambda network, x: network(x + 0.05 * torch.randn_like(x)),
    "of the logits": lambda network, x: (logits := network(x)) + 0.3 * torch.rand(logits.shape),
    "of a size": lambda network, x: network(x + 0.05 * torch.randn(len(x), 1, 1, 1)),
    "dropout": lambda network, x: network(F.dropout(x, 0.1, training=True)),
    "in place": lambda network, x: network(x + torch.empty_like(x).uniform_(-0.05, 0.05)),
}


def test_averaged_gradients_are_those_of_the_network_without_noise(network, many):
    """Of 100 images: one scrambled gradient a step fells fewer, and the mean of 32 comes near the network's own."""
    many = tuple(x[::2] for x in many)
    settings = config("pgd", "16/255", steps=4)
    plain = int(run("pgd", network, many, settings)[2]["success"].sum())
    once, often = (
        int(run("pgd", Scrambled(network), many, config("pgd", "16/255", steps=4, eot=n))[2]["success"].sum()) for n in (1, 32)
    )
    assert once < often - 5
    assert once < plain - 5
    assert abs(plain - often) <= 5


def test_a_gradient_is_the_mean_over_passes_with_the_noise_of_each(network, batch):
    images, labels, indices = (x[:5] for x in batch)
    model = Random(network, NOISES["of the pixels"])
    queried = QueriedModel(model, images, labels, network(images).detach(), Aim("linf", 1.0, leaves=False), batch_size=2)
    queried.loss = lambda logits, rows: F.cross_entropy(logits, labels[rows], reduction="none")
    queried.eot = 3
    queried.noise = lambda rows, passes: ImageNoise(0, indices[rows].tolist(), "pgd", passes.tolist())
    x = (images * 0.9).requires_grad_()
    (found,) = torch.autograd.grad(queried(x).sum(), x)
    wanted = torch.zeros_like(images)
    for number in range(3):
        for n, image in enumerate(indices.tolist()):
            with ImageNoise(0, [image], "pgd", [number]):
                one = x[n : n + 1].detach().requires_grad_()
                loss = F.cross_entropy(model(one), labels[n : n + 1])
            wanted[n] += torch.autograd.grad(loss, one)[0][0] / 3
    torch.testing.assert_close(found, wanted, atol=1e-6, rtol=1e-4)
    assert queried.spent["forward_passes"].tolist() == queried.spent["backward_passes"].tolist() == [3] * 5


@pytest.mark.parametrize("noise", NOISES)
def test_rows_of_a_random_network_do_not_depend_on_the_batch(noise, network, batch):
    model, settings = Random(network, NOISES[noise]), config("pgd", "4/255", steps=2, eot=2)
    before = torch.get_rng_state()
    found = [run("pgd", model, batch, settings, batch_size=size) for size in (1, 7, 25)]
    assert torch.equal(torch.get_rng_state(), before)
    for (_, perturbed, rows), (_, other, same) in zip(found, found[1:], strict=False):
        changed = (perturbed.images - other.images).abs().flatten(1).amax(1) > 1e-4
        assert changed.sum() <= 1, "but for rounding"
        assert (rows["prediction_8bit"] != same["prediction_8bit"]).sum() <= 1
        assert rows["varies"].equals(same["varies"])
    attack, _, rows = found[0]
    assert attack.setting["eot"] == 2
    assert "noisy-logits" in attack_flags(rows, attack.setting)
    assert "--eot" in FLAGS["noisy-logits"]


def test_averaged_passes_are_counted(network, batch):
    """Of an image that stands: two steps and their last query; three looks, of a control four; each twice."""
    rows = run("pgd", network, batch, config("pgd", "1/255", steps=2, eot=2))[2]
    standing = rows["prediction"] == rows["label"]
    assert standing.sum() > 10
    assert (rows["forward_passes"] == 2 * (3 + 3 + (rows["index"] % 4 == 0)))[standing].all()
    assert (rows["backward_passes"] == 2 * 2)[standing].all()


def test_what_has_no_row_an_image_is_shared_by_the_batch():
    def drawn(images, number=0):
        with ImageNoise(1, images, "pgd", [number] * len(images)):
            return torch.rand(5), torch.rand(len(images), 2)

    (shared, own), (again, others) = drawn([3, 4, 8]), drawn([8, 9])
    assert torch.equal(shared, again) and torch.equal(own[2], others[0])
    assert not torch.equal(own[0], own[1])
    assert not torch.equal(drawn([3, 4, 8], 1)[0], shared) and not torch.equal(drawn([3, 4, 8], 1)[1], own)


class Rounds(nn.Module):
    """Its logits depend on the size of the batch, as sums in another order do, and on nothing else."""

    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, x):
        return self.network(x) + 0.01 * len(x)


def test_only_randomness_is_called_noise(network, batch):
    """25 images of which 24 are controls or not in batches of 64: the second look is in a batch of the same images."""
    images, labels, indices = batch
    mixed = (images, labels, indices + torch.arange(len(indices)) % 3)
    assert 0 < (mixed[2] % 4 == 0).sum() < len(labels)
    for size in (4, 64):
        attack, _, rows = run("fgsm", Rounds(network), mixed, config("fgsm", "1/255"), batch_size=size)
        assert not rows["varies"].any()
        rows = run("fgsm", Random(network, NOISES["of the logits"]), mixed, config("fgsm", "1/255"), batch_size=size)[2]
        assert rows["varies"].equals(rows["index"] % 4 == 0)
        assert attack_flags(rows, attack.setting) == ["noisy-logits"]
