"""Sizes of attention layers by stage, and the dtypes of their maps: what is modelled, compiled or timed."""

from dataclasses import dataclass
from math import prod

import torch

from sanbench.errors import InputError
from sanbench.models.configurations import SHARE, STAGES

FUSED = ("pairwise", "patchwise")  # attentions that have kernels
DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}
POSITION = 2  # channels of the position encoding


@dataclass(frozen=True)
class AttentionShape:
    """An attention layer on an image of 224 x 224: R, M, G and C channels of phi, gamma's hidden layer, weights and beta; K
    neighbours."""

    attention: str
    side: int
    footprint: int
    R: int
    M: int
    G: int
    C: int

    @classmethod
    def of(cls, attention: str, stage: int) -> "AttentionShape":
        side, channels, footprint = STAGES[stage]
        narrow, wide = channels // 16, channels // 4
        groups = wide // SHARE
        return cls(attention, side, footprint, narrow, narrow if attention == "pairwise" else groups, groups, wide)

    @property
    def K(self) -> int:
        return self.footprint**2

    @property
    def gamma(self) -> list[tuple[int, ...]]:
        """Of s1, t1, W1, s2, t2, W2 and the bias."""
        width = self.R + POSITION if self.attention == "pairwise" else self.R * (1 + self.K)
        last = self.G * (1 if self.attention == "pairwise" else self.K)
        return [(width,), (width,), (self.M, width), (self.M,), (self.M,), (last, self.M), (last,)]

    @property
    def parameters(self) -> int:
        return sum(map(prod, self.gamma))


def find_dtype(name: str) -> torch.dtype:
    """Raises InputError for none of DTYPES."""
    if name not in DTYPES:
        raise InputError(f"dtype {name} is not accepted: accepted are {', '.join(DTYPES)}.")
    return DTYPES[name]
