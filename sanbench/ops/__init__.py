"""Attention operators. `torch.ops.sanbench.*` run the registered operators; the functions here specify them."""

from sanbench.ops import attention, normalise
from sanbench.ops.footprint import Footprint
from sanbench.ops.relation import RELATIONS

from sanbench.ops import cpu  # isort: skip  # puts kernels under the operators registered above

__all__ = ["RELATIONS", "Footprint", "attention", "cpu", "normalise"]
