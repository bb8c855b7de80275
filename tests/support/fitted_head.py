"""`python -m tests.support.fitted_head san10_pairwise /tmp/made out.pt`: a network that tells a made ImageNet's classes apart.

Nothing is trained but the classifier, by least squares on one image a class: attacks, rotations and corruptions then have
something to lose, at the cost of a network of full size.
"""

import sys
from pathlib import Path

import torch
from torch import nn

from sanbench.bench.pipeline import one_of_each_class
from sanbench.data import ReadOptions, batches, load_dataset
from sanbench.models import build_model
from sanbench.models.checkpoints import save_checkpoint

SETTLING, BATCH, RIDGE = 8, 64, 1e-3  # batches for the running statistics


@torch.no_grad()
def fit(name: str, root: Path, output: Path) -> None:
    torch.manual_seed(0)
    model = build_model(name)
    images = load_dataset("imagenet", "test", ReadOptions(root))
    indices = one_of_each_class(images)
    classifier = next(module for module in model.modules() if isinstance(module, nn.Linear) and module.out_features == 1000)
    features: list[torch.Tensor] = []
    hook = classifier.register_forward_pre_hook(lambda _, inputs: features.append(inputs[0]))
    for training in (True, False):
        features.clear()
        model.train(training)
        shuffled = torch.randperm(len(indices)).tolist()[: SETTLING * BATCH]
        chosen = [indices[n] for n in shuffled] if training else indices
        for batch in batches(images, [chosen[start : start + BATCH] for start in range(0, len(chosen), BATCH)]):
            model(batch.images.float() / 255)
    hook.remove()
    x = torch.cat(features).double()
    mean = x.mean(0)
    x = x - mean
    gram = x @ x.T
    solved = torch.linalg.solve(gram + RIDGE * gram.diagonal().mean() * torch.eye(len(x)).double(), torch.eye(len(x)).double())
    weight = 20 * (x.T @ solved).T
    classifier.weight.copy_(weight)
    classifier.bias.copy_(-weight @ mean)
    data = {"name": "imagenet", "root": str(root), "image_size": 224}
    save_checkpoint(output, model, data=data, selection="not told")


if __name__ == "__main__":
    fit(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]))
