"""Weights on which rounding decides little."""

import torch
from torch import nn


def unsettle(model):
    """Parameters as unlike fresh ones as trained ones are: a fresh bias of 0 puts x_i - x_i just on the kink of a ReLU."""
    with torch.no_grad():
        for norm in (module for module in model.modules() if isinstance(module, nn.BatchNorm2d)):
            norm.weight.uniform_(0.5, 1.5)
            norm.bias.uniform_(-0.5, 0.5)
            norm.running_mean.uniform_(-0.1, 0.1)
        for linear in (module for module in model.modules() if isinstance(module, nn.Conv2d) and module.in_channels < 32):
            linear.weight.mul_(3)
