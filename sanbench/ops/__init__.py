"""Operators: torch.ops.sanbench.*; their plain specifications are in `sanbench.ops.attention` and `sanbench.ops.fused`."""

from sanbench.ops import attention, fused
from sanbench.ops.footprint import Footprint
from sanbench.relation import RELATIONS

from sanbench.ops import cpu, gpu  # isort: skip  # put kernels under the operators registered above

__all__ = ["RELATIONS", "Footprint", "attention", "cpu", "fused", "gpu"]
