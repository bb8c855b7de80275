"""An attack or a measurement in one call: a budget, few steps, the rows or the records; a network that is random."""

from dataclasses import replace

import pandas as pd
import torch
import torch.nn.functional as F
from torch import nn

from sanbench.evaluation.attacks.attack import Attack
from sanbench.evaluation.attacks.table import parse_attacks
from sanbench.evaluation.evaluate import evaluate
from sanbench.evaluation.loop import evaluating, score
from sanbench.evaluation.parts import EvaluationOptions
from sanbench.progress import silent

FEW = 12  # steps of attacks that take 100 or 5,000


def config(name, budget="4/255", **changes):
    (_, made), *_ = parse_attacks(name, budget)
    made = replace(made, steps=min(made.steps, FEW))
    return replace(made, **changes)


def run(name, model, batch, settings, **options):
    attack = Attack(name, model, settings, **options)
    with evaluating(model):
        perturbed = attack(*batch)
        return attack, perturbed, pd.DataFrame(score(attack.network(model, batch[2]), perturbed, batch[2], batch[1]))


def measured(evaluated, images, store, perturbations, progress=silent, **options):
    return evaluate(evaluated, images, perturbations, store, torch.device("cpu"), EvaluationOptions(**options), progress)


class Drops(nn.Module):
    """Random: some pixels are dropped."""

    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, x):
        return self.network(F.dropout(x, 0.1, training=True))
