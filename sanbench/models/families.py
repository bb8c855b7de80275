"""FAMILIES: every architecture, one entry each, with its named networks: all that is known of one before it is built."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel

from sanbench.errors import unknown
from sanbench.late import Late
from sanbench.models import kept, sizes
from sanbench.models.configurations import AUTHORS_NAMES, ResNetConfig, SANConfig

if TYPE_CHECKING:
    from torch import nn

    from sanbench.models import resnet, san
else:
    resnet, san = Late("sanbench.models.resnet"), Late("sanbench.models.san")


@dataclass(frozen=True)
class Published:
    """ImageNet validation, single 224 centre crop, in % and units of 10^6 and 10^9, as printed with the authors' code."""

    top1: float
    top5: float
    parameters: float
    flops: float


@dataclass(frozen=True)
class NamedNetwork:
    """A configuration that has a name. `baseline` is the network that the paper compares it with."""

    config: BaseModel
    published: Published | None = None
    baseline: str | None = None


@dataclass(frozen=True)
class Family:
    """Networks that one configuration class describes and one function builds.

    config          a frozen pydantic class; all its fields but `fixed` may be varied by `build_model` and `--set`
    build           (configuration, number of classes) -> a module from normalised images N x 3 x H x W, H and W from 32 up,
                    to logits N x classes
    residual_ends   the last layer of every residual branch of such a module: those that `zero_init` sets to zero
    size            (configuration, number of classes, image side) -> parameters, and multiply-accumulates of an image, without
                    building it; without one torch counts them
    kept            (configuration, number of classes, image side, images) -> bytes that autograd keeps of a training step in
                    float32, without building it; without one torch counts them
    aliases         short name -> name
    authors_names   regular expression for the beginning of a tensor's name -> what the paper's authors write in its place
    authors_prefix  what stands before every name in the authors' checkpoints
    """

    config: type[BaseModel]
    build: Callable[[Any, int], nn.Module]
    networks: Mapping[str, NamedNetwork]
    residual_ends: Callable[[nn.Module], Iterable[nn.Module]]
    size: Callable[[Any, int, int], tuple[int, int]] | None = None
    kept: Callable[[Any, int, int, int], int] | None = None
    aliases: Mapping[str, str] = field(default_factory=dict)
    fixed: tuple[str, ...] = ("blocks",)
    authors_names: Mapping[str, str] = field(default_factory=dict)
    authors_prefix: str = ""

    @property
    def fields(self) -> list[str]:
        """The fields of the configuration that may be varied."""
        return [name for name in self.config.model_fields if name not in self.fixed]


SAN10, SAN15, SAN19 = (2, 1, 2, 4, 1), (3, 2, 3, 5, 2), (3, 3, 4, 6, 3)  # blocks of each stage
FAMILIES: dict[str, Family] = {
    "resnet": Family(
        ResNetConfig,
        lambda config, classes: resnet.ResNet(config, classes),
        {
            "resnet26": NamedNetwork(ResNetConfig(blocks=(1, 2, 4, 1)), Published(73.6, 91.7, 13.7, 2.4)),
            "resnet38": NamedNetwork(ResNetConfig(blocks=(2, 3, 5, 2)), Published(76.0, 93.0, 19.6, 3.2)),
            "resnet50": NamedNetwork(ResNetConfig(blocks=(3, 4, 6, 3)), Published(76.9, 93.5, 25.6, 4.1)),
        },
        lambda network: resnet.residual_ends(network),
        sizes.resnet,
        kept.resnet,
    ),
    "san": Family(
        SANConfig,
        lambda config, classes: san.SAN(config, classes),
        {
            "san10_pairwise": NamedNetwork(SANConfig(blocks=SAN10), Published(74.9, 92.1, 10.5, 2.2), "resnet26"),
            "san10_patchwise": NamedNetwork(
                SANConfig(blocks=SAN10, attention="patchwise"), Published(77.1, 93.5, 11.8, 1.9), "resnet26"
            ),
            "san10_scalar": NamedNetwork(SANConfig(blocks=SAN10, attention="scalar"), None, "resnet26"),
            "san15_pairwise": NamedNetwork(SANConfig(blocks=SAN15), Published(76.6, 93.1, 14.1, 3.0), "resnet38"),
            "san15_patchwise": NamedNetwork(
                SANConfig(blocks=SAN15, attention="patchwise"), Published(78.0, 93.9, 16.2, 2.6), "resnet38"
            ),
            "san15_scalar": NamedNetwork(SANConfig(blocks=SAN15, attention="scalar"), None, "resnet38"),
            "san19_pairwise": NamedNetwork(SANConfig(blocks=SAN19), Published(76.9, 93.4, 17.6, 3.8), "resnet50"),
            "san19_patchwise": NamedNetwork(
                SANConfig(blocks=SAN19, attention="patchwise"), Published(78.2, 93.9, 20.5, 3.3), "resnet50"
            ),
            "san19_scalar": NamedNetwork(SANConfig(blocks=SAN19, attention="scalar"), None, "resnet50"),
        },
        lambda network: san.residual_ends(network),
        sizes.san,
        kept.san,
        aliases={"san10": "san10_pairwise", "san15": "san15_pairwise", "san19": "san19_pairwise"},
        authors_names=AUTHORS_NAMES,
        authors_prefix="module.",
    ),
}


class Networks(Mapping[str, NamedNetwork]):
    """The networks of all FAMILIES by name, each baseline before those that are compared with it.

    FAMILIES is read at every access: a family that a program adds to it can be built, trained and loaded by name.
    """

    def table(self) -> dict[str, NamedNetwork]:
        every = {name: network for family in FAMILIES.values() for name, network in family.networks.items()}
        order = list(every)

        def position(name: str) -> tuple[int, bool]:
            baseline = every[name].baseline
            return order.index(baseline or name), baseline is not None

        return {name: every[name] for name in sorted(every, key=position)}

    def __getitem__(self, name: str) -> NamedNetwork:
        for family in FAMILIES.values():
            if name in family.networks:
                return family.networks[name]
        raise KeyError(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self.table())

    def __len__(self) -> int:
        return len(self.table())


MODELS = Networks()


def family_name(name: str) -> str:
    """The key in FAMILIES of the network `name`. Raises InputError for a name that is not in MODELS."""
    for key, family in FAMILIES.items():
        if name in family.networks:
            return key
    raise unknown("model", name, MODELS)


def family_of(name: str) -> Family:
    """The family of the network `name`. Raises as `family_name` does."""
    return FAMILIES[family_name(name)]
