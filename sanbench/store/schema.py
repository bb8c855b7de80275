"""What the store holds: networks, measurements and their records, benchmarks. All are frozen and refuse unknown fields."""

import hashlib
import json
from collections.abc import Mapping
from datetime import UTC, datetime
from functools import cached_property
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, Field, SerializerFunctionWrapHandler, model_serializer

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

Triple = tuple[float, float, float]


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def slug(*words: object) -> str:
    """The words as part of a file's name: letters, digits, `_` and `.` stay."""
    return "-".join("".join(c if c.isalnum() or c in "_." else "_" for c in str(word)) for word in words)


class Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ModelSpec(Frozen):
    """All that is needed to build a network again, but for its weights.

    name       of `sanbench.models.MODELS`, or `torchvision:NAME`, `timm:NAME`, `module:function`
    variation  fields of its configuration that differ from the named network's; of a network from elsewhere what of
               resize, crop and interpolation differs from ImageNet's
    mean, std  of the normalisation inside the network, by channel, for pixels in [0, 1]
    """

    name: str
    num_classes: int = Field(default=1000, ge=1, le=100_000)
    mean: Triple = IMAGENET_MEAN
    std: Triple = IMAGENET_STD
    variation: dict[str, Any] = {}

    @property
    def label(self) -> str:
        """`san10_pairwise width=0.5`: how text names it. A normalisation that is not ImageNet's stands there too."""
        usual = {"mean": IMAGENET_MEAN, "std": IMAGENET_STD}
        other = {field: ",".join(map(str, values)) for field in usual if (values := getattr(self, field)) != usual[field]}
        fields = [*sorted(self.variation.items()), *other.items()]
        return " ".join([self.name, *(f"{field}={value}" for field, value in fields)])


class Network(ModelSpec):
    """A network with its weights, by their SHA-256."""

    weights: str

    @property
    def stem(self) -> str:
        """`san10_pairwise_width_0.5-1a2b3c4d`: what its files in the store are called."""
        return slug(self.label, self.weights[:8])


class Grown(Frozen):
    """Has optional fields that older records lack: those that are None are not written, so files and keys stay as they were."""

    @model_serializer(mode="wrap")
    def serialize(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {name: value for name, value in handler(self).items() if value is not None or name not in GROWN}


GROWN = ("listed", "among", "image_list", "waited")


class ImageSet(Grown):
    """Which images: `images` of the `of` of a split, drawn by `subset_seed` where they are not all.

    fingerprint    SHA-256 of what the images are, see `sanbench.data.images.Images`
    decoder        what read the files, `none` for images in memory
    preprocessing  what else happened to the pixels of a file
    listed         SHA-256 of the list that they are, or are drawn, from
    among          of a network that tells more classes apart than count here: how many, and a hash of their indices
    """

    name: str
    split: str
    fingerprint: str
    decoder: str
    preprocessing: str = ""
    images: int
    of: int
    subset_seed: int | None = None
    listed: str | None = None
    among: str | None = None


class Measurement(Grown):
    """All that decides a result. Two measurements with the same key have the same result up to float rounding.

    kind     a name of `sanbench.evaluation.kinds.KINDS`
    setting  the kind's parameters, an attack's seed among them
    """

    network: Network
    data: ImageSet
    kind: str
    setting: dict[str, Any]

    @cached_property
    def key(self) -> str:
        """SHA-256 of all fields of a Measurement, also of a Record of it."""
        decisive = self.model_dump(mode="json", include=set(Measurement.model_fields))
        return hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:
        copied = super().model_copy(update=update, deep=deep)
        copied.__dict__.pop("key", None)  # pydantic copies it, and it may be another
        return copied

    @property
    def id(self) -> str:
        """The beginning of the key: what rows and files are found by."""
        return self.key[:16]


class Record(Measurement):
    """A measurement's outcome.

    run         the name of the run or file that the network came from
    counts      images, correct, correct_top5; under attack also right_before, success (right before and wrong now),
                hit_target, correct_8bit (as 8-bit images), forward_passes and backward_passes (of one image each), places
                (of the batches: forward_passes / places is how full they were), and for an ensemble fell_to_MEMBER.
                They are of this measurement alone: what counts as robust is decided by `sanbench.evaluation.robust`
    extremes    largest perturbation norms
    training    how the weights came about, as far as their file tells: recipe, seed, epoch, images, seconds
    selection   on which images the epoch was chosen
    image_list  the name of the list of images, where there was one; its hash is `data.listed`
    flags       what its own rows show, see `sanbench.evaluation.sanity_checks`; what other records show is found on reading
    rows        SHA-256 of its rows, see `sanbench.store.files.digest`
    device      what measured it; of several processes that of the one that finished
    seconds     that the device and its processes were at work
    waited      beside them, seconds of waiting for images that were not read or corrupted yet; None: not told
    """

    run: str
    counts: dict[str, int]
    extremes: dict[str, float] = {}
    training: dict[str, Any] = {}
    selection: str
    classes: list[str] = []
    image_list: str | None = None
    flags: list[str] = []
    rows: str
    versions: dict[str, str]
    device: str
    seconds: float
    waited: float | None = None
    created: str = Field(default_factory=now)


class Failure(Frozen):
    """Why a run of a study was not trained or not measured, as a sentence, and by which process."""

    run: str
    sentence: str
    owner: str
    created: str = Field(default_factory=now)


class Benchmark(Frozen):
    """What something cost on a machine. Measured again, the same setting on the same machine replaces what was there.

    kind     a name of `sanbench.bench.BENCHMARKS`
    setting  what was timed: networks or layers, mode, batch, image size, dtype, n counted rounds, threads, kernels
    seconds  medians of n rounds by side, such as san and resnet, or the kernels
    ratio    of neighbouring rounds of the first side over the second: median, least and most
    bytes    by side: kept for the backward pass, and the largest of a process of its own
    figures  what else was found, by name
    """

    kind: str
    setting: dict[str, Any]
    device: str
    seconds: dict[str, float]
    ratio: tuple[float, float, float] | None = None
    bytes: dict[str, tuple[int, int]] = {}
    figures: dict[str, float] = {}
    versions: dict[str, str]
    created: str = Field(default_factory=now)

    @property
    def key(self) -> str:
        decisive = self.model_dump(mode="json", include={"kind", "setting", "device"})
        return hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()
