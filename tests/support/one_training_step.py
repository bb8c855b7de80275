"""One training step of each network, in float64, alone or under torchrun.

The command is `python -m tests.support.one_training_step SYNC_BN OUTPUT`.

The loss of the whole batch and the weights after the step go to OUTPUT, by network.
"""

import sys

import torch

from sanbench.data import load_dataset
from sanbench.runs.config import configure
from sanbench.training.augment import Ready
from sanbench.training.distributed import joined
from sanbench.training.state import Training
from tests.support.unsettled_weights import unsettle

MODELS = ("san10_pairwise", "san10_patchwise", "resnet26")
BATCH = 12


def main(sync_bn: str, output: str) -> None:
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float64)
    images = load_dataset("fashion10k", "train")
    with joined(torch.device("cpu")) as (group, device):
        (share,) = group.share(BATCH, 1)
        pixels, labels = images.read(list(share)).double() / 255, images.labels[share.start : share.stop]
        part = Ready(pixels, labels, labels, torch.tensor(share), 0)
        learnt = {}
        for name in MODELS:
            changes = {"batch_size": BATCH, "optimizer": "sgd", "sync_bn": sync_bn}
            if name.startswith("san"):
                changes |= {"width": 0.25, "footprint": 3}
            training = Training.build(configure(name, changes=changes), device, group)
            torch.manual_seed(1)
            unsettle(training.model)
            loss = group.total(training.learn([part], BATCH, 0.01))
            learnt[name] = {"loss": loss, **training.model.state_dict()}
        if group.leads:
            torch.save(learnt, output)


if __name__ == "__main__":
    main(*sys.argv[1:])
