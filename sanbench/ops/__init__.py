"""Attention operators: torch.ops.sanbench.*, and in `sanbench.ops.attention` their plain specifications."""

from sanbench.ops import attention, linear, normalise, pool
from sanbench.ops.footprint import Footprint
from sanbench.ops.relation import RELATIONS

from sanbench.ops import cpu, gpu  # isort: skip  # put kernels under the operators registered above

__all__ = ["RELATIONS", "Footprint", "attention", "cpu", "gpu", "linear", "normalise", "pool"]
