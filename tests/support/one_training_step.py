"""One training step of each network, in float64, alone or under torchrun.

The command is `python -m tests.support.one_training_step SYNC_BN OUTPUT`.

The loss of the whole batch and the weights after the step go to OUTPUT, by network.
"""

import sys

import torch

from sanbench.data import load_dataset
from sanbench.runs.config import configure
from sanbench.training.augment import TrainBatch
from sanbench.training.distributed import joined
from sanbench.training.state import TrainState
from tests.support.narrow_networks import narrow
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
        part = TrainBatch(pixels, labels, labels, torch.tensor(share), 0)
        learnt = {}
        for name in MODELS:
            changes = {"batch_size": BATCH, "optimizer": "sgd", "sync_bn": sync_bn, **narrow(name)}
            state = TrainState.build(configure(name, changes=changes), device, group)
            torch.manual_seed(1)
            unsettle(state.model)
            loss = group.all_reduce_sum(state.train_step([part], BATCH, 0.01))
            learnt[name] = {"loss": loss, **state.model.state_dict()}
        if group.is_rank_zero:
            torch.save(learnt, output)


if __name__ == "__main__":
    main(*sys.argv[1:])
