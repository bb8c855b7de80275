"""Corruptions that were stored as files, ImageNet-C and CIFAR-10-C: another measurement than those made here on the fly."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sanbench.data import DATASETS
from sanbench.data.corrupted import BENCHMARK, STORED
from sanbench.errors import InputError
from sanbench.evaluation import corruptions
from sanbench.evaluation.kinds import CorruptionOptions, Request
from sanbench.evaluation.loop import Perturbation

if TYPE_CHECKING:
    from sanbench.data import Images
    from sanbench.data.images import Stored
    from sanbench.evaluation.kinds import Bind
    from sanbench.runs.evaluated import EvaluatedModel


@dataclass(frozen=True)
class FromFiles(Perturbation):
    """Images as they are: they were corrupted before they were stored."""

    stored: Stored
    kind = "corruption"

    @property
    def setting(self) -> dict[str, Any]:
        return {
            "corruption": self.stored.corruption,
            "severity": self.stored.severity,
            "definition": corruptions.ORIGINAL,
            "source": "files",
            "files": self.stored.files,
        }


def is_stored(data: str | None) -> bool:
    """Whether the data set of that name has an image set for each corruption and severity."""
    return data in DATASETS and DATASETS[data].corrupted is not None


def image_sets(data: str | None, options: Any) -> list[tuple[str, int] | None]:
    """Kind and severity of each image set that `options` ask for; None for the one set that other data sets have.

    Raises InputError for a kind of measurement that is no corruption, on a set of corrupted files.
    """
    if not is_stored(data):
        return [None]
    if not isinstance(options, CorruptionOptions):
        raise InputError(f"{data} has an image set for each corruption and severity: accepted is `sanbench corrupt`.")
    kinds = ",".join(BENCHMARK) if options.kinds == "all" else options.kinds
    return [*corruptions.parse_conditions(kinds, options.severity, STORED)]


def parse(options: CorruptionOptions, request: Request) -> Bind:
    """The corruptions of the files where the data set is made of them, else those that are made on the fly."""
    if not is_stored(request.data):
        return corruptions.parse(options, request)
    image_sets(request.data, options)

    def bind(evaluated: EvaluatedModel, images: Images) -> list[Perturbation]:
        assert images.stored is not None
        return [FromFiles(images.stored)]

    return bind
