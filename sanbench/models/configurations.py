"""Configurations of the networks: what may vary, which values are accepted, and the shapes that follow. No torch."""

import re
from typing import Annotated, Literal, NamedTuple, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from sanbench.errors import InputError, unknown
from sanbench.relation import RELATIONS

SMALLEST_IMAGE = 32  # pixels a side: the networks halve it five times
STAGE_CHANNELS = (64, 256, 512, 1024, 2048)
SHARE = 8  # value channels that share one attention weight
DEFAULT_RELATION = {"pairwise": "subtraction", "patchwise": "concatenation", "scalar": "dot"}
SCALAR_RELATIONS = ("dot",)
RECOMPUTED = 2**16  # numbers of an image's map; to compute smaller maps again in training saves little memory for its time
NO_VARIANCE = "A batch of 1 image with maps of one pixel is not accepted in training: it has no variance."
EXPANSION = 4  # channels of a ResNet's map for each of its planes
AUTHORS_BLOCK = {  # tensors of a block here and in the authors' checkpoints
    "before.0": "bn1",
    "attention.phi": "sam.conv1",
    "attention.psi": "sam.conv2",
    "attention.beta": "sam.conv3",
    "attention.gamma": "sam.conv_w",
    "attention.position": "sam.conv_p",
    "after.0": "bn2",
    "expand": "conv",
}
AUTHORS_NAMES = {  # regular expression for the beginning of a tensor's name here -> its beginning there
    r"stem\.0\.": "conv_in.",
    r"stem\.1\.": "bn_in.",
    r"stages\.(\d)\.1\.": r"conv\1.",
    r"stages\.(\d)\.3\.": r"bn\1.",
    **{rf"stages\.(\d)\.2\.(\d)\.{re.escape(here)}\.": rf"layer\1.\2.{there}." for here, there in AUTHORS_BLOCK.items()},
    r"classifier\.": "fc.",
}
Blocks = Annotated[int, Field(ge=0, le=100)]  # of a stage


class Stage(NamedTuple):
    """The maps that a stage's attention sees: `channels` x `side` x `side`."""

    side: int
    channels: int
    footprint: int


class SANConfig(BaseModel):
    """One network: `SANConfig(blocks=(3, 2, 3, 5, 2), attention="patchwise", footprint=5)`.

    relation     delta of equations 3 and 5; None is that of the authors' networks. See `sanbench.relation` (table 4)
    gamma_depth  linears in gamma, each behind BN and ReLU as in the authors' code (table 5)
    shared       which of phi, psi, beta are one linear (table 6). If all three are, the relation sees C/4 channels,
                 because beta has that many; gamma's hidden width does not change. The paper leaves this open
    footprint    side of the footprint in stages 1 to 4; stage 0 keeps 3 (table 7)
    position     pairwise only; relative is p_i - p_j, absolute is p_j; the paper leaves absolute open (table 8)
    width        multiplies every stage's channels, rounded to a multiple of 32
    heads        of scalar attention
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    blocks: tuple[Blocks, Blocks, Blocks, Blocks, Blocks]
    attention: Literal["pairwise", "patchwise", "scalar"] = "pairwise"
    relation: str | None = None
    footprint: int = Field(default=7, ge=1, le=63)
    gamma_depth: int = Field(default=2, ge=1, le=3)
    shared: Literal["none", "phi-psi", "phi-psi-beta"] = "none"
    position: Literal["none", "absolute", "relative"] | None = None
    width: float = Field(default=1.0, gt=0, le=8)
    heads: int = Field(default=2, ge=1, le=64)

    @model_validator(mode="after")
    def consistent(self) -> Self:
        if self.footprint % 2 == 0:
            raise InputError(f"footprint {self.footprint} is not accepted: it must be an odd number.")
        known = RELATIONS.get(self.attention, SCALAR_RELATIONS)
        if self.relation is not None and self.relation not in known:
            raise unknown(f"{self.attention} relation", self.relation, known)
        if self.attention != "pairwise" and self.position not in (None, "none"):
            raise InputError(f"position {self.position!r} is not accepted: {self.attention} attention has no position.")
        narrowest = self.channels(0) // 16
        if self.attention == "scalar" and narrowest % self.heads:
            raise InputError(f"heads {self.heads} is not accepted: it must divide {narrowest}, phi's channels in stage 0.")
        return self

    def channels(self, stage: int) -> int:
        return max(32, round(STAGE_CHANNELS[stage] * self.width / 32) * 32)

    def stage_footprint(self, stage: int) -> int:
        return 3 if stage == 0 else self.footprint

    def stages(self, image_size: int = 224) -> list[Stage]:
        """Of square images. Each stage begins with pooling, which halves the side."""
        halved = [image_size >> (stage + 1) for stage in range(len(self.blocks))]
        return [Stage(side, self.channels(stage), self.stage_footprint(stage)) for stage, side in enumerate(halved)]


STAGES = SANConfig(blocks=(1, 1, 1, 1, 1)).stages()  # of every network of the paper: they differ in blocks only
ResNetBlocks = Annotated[int, Field(ge=1, le=100)]  # of a stage


class ResNetConfig(BaseModel):
    """`ResNetConfig(blocks=(1, 2, 4, 1))` is ResNet26.

    width   multiplies every stage's channels, in multiples of 32, as a SAN's does; the stem keeps its 64
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    blocks: tuple[ResNetBlocks, ResNetBlocks, ResNetBlocks, ResNetBlocks]
    width: float = Field(default=1.0, gt=0, le=8)

    def planes(self, stage: int) -> int:
        """Channels between the linears of a block; the map has four times as many."""
        return max(8, round((64 << stage) * self.width / 8) * 8)
