"""Attention operators. `torch.ops.sanbench.*` run the registered operators; the functions here are their plain specifications."""

from sanbench.ops import attention, cpu
from sanbench.ops.footprint import Footprint
from sanbench.ops.relation import RELATIONS

__all__ = ["RELATIONS", "Footprint", "attention", "cpu"]
