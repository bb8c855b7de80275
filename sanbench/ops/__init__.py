"""Attention operators: torch.ops.sanbench.*, and in `sanbench.ops.attention` their plain specifications."""

from sanbench.ops import attention, cpu
from sanbench.ops.footprint import Footprint
from sanbench.ops.relation import RELATIONS

__all__ = ["RELATIONS", "Footprint", "attention", "cpu"]
