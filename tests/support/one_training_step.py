"""One training step of each network, in float64, with its parts normalised together and each by itself.

The command is `torchrun -m tests.support.one_training_step OUTPUT`.

The loss of the whole batch and the weights after the step go to OUTPUT, by network: first together, then each by itself.
"""

import sys
from typing import Any

import torch

from sanbench.data import load_dataset
from sanbench.runs.config import configure
from sanbench.training.augment import TrainBatch
from sanbench.training.distributed import ProcessGroup, joined
from sanbench.training.state import TrainState
from tests.support.narrow_networks import narrow
from tests.support.unsettled_weights import unsettle

MODELS = ("san10_pairwise", "san10_patchwise", "resnet26")
BATCH = 12


def learnt(group: ProcessGroup, device: torch.device, sync_bn: bool) -> dict[str, dict[str, Any]]:
    """Loss and weights by network, where float64 is the default."""
    images = load_dataset("fashion10k", "train")
    (share,) = group.share(BATCH, 1)
    pixels, labels = images.read(list(share)).double() / 255, images.labels[share.start : share.stop]
    part = TrainBatch(pixels, labels, labels, torch.tensor(share), 0)
    found = {}
    for name in MODELS:
        changes = {"batch_size": BATCH, "optimizer": "sgd", "sync_bn": sync_bn, **narrow(name)}
        state = TrainState.build(configure(name, changes=changes), device, group)
        torch.manual_seed(1)
        unsettle(state.model)
        loss = group.all_reduce_sum(state.train_step([part], BATCH, 0.01))
        found[name] = {"loss": loss, **state.model.state_dict()}
    return found


def main(output: str) -> None:
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float64)
    with joined(torch.device("cpu")) as (group, device):
        found = [learnt(group, device, sync_bn) for sync_bn in (True, False)]
        if group.is_rank_zero:
            torch.save(found, output)


if __name__ == "__main__":
    main(*sys.argv[1:])
