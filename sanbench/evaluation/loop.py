"""The evaluation loop: accuracy, rotations and attacks are pairs (setting, perturbation) handed to it."""

from __future__ import annotations

import copy
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, Self

from sanbench.device import Heap, release_memory
from sanbench.errors import SanbenchError, short_of_memory
from sanbench.evaluation.kinds import AccuracyOptions, Request
from sanbench.evaluation.sanity_checks import near_chance
from sanbench.late import Late

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from sanbench.data import Batch
    from sanbench.data import images as loaded
    from sanbench.evaluation.kinds import Bind
    from sanbench.store import rows as stored
    from sanbench.store.rows import Rows
else:
    torch, loaded, stored = Late("torch"), Late("sanbench.data.images"), Late("sanbench.store.rows")

AT_ONCE = 32 * 224**2  # pixels that a network on a CPU is shown: twice as many take twice the memory and 1 to 2% less time
KEEP = 20.0  # seconds between two points from which an interrupted perturbation goes on, at least


class Perturbed(NamedTuple):
    images: Tensor  # N x 3 x H x W in [0, 1]
    columns: dict[str, Tensor]  # N each: what the rows shall say about the perturbation
    rounded: Tensor | None = None  # the same in 8 bits, where that has to be inside a budget
    places: int = 0  # in the batches that the network was shown while they were made
    earlier: float = 0.0  # seconds that were spent on them before an interruption


class Seen(NamedTuple):
    """How far the measurement of a batch is, in [0, 1]; of an attack also its member and the images that stand."""

    share: float
    about: str = ""
    standing: int | None = None


def unwatched(seen: Seen) -> None:
    """Tell nobody."""


class Keeper(Protocol):
    """Where the state of a batch's images is kept for the case that their measurement is interrupted."""

    def load(self) -> dict[str, Any] | None: ...

    def keep(self, state: dict[str, Any]) -> None: ...


class Interruptible:
    """The state of a batch's images, which goes on from what `keeper` has of the same images.

    state    N values each; they are changed in place, here and by the perturbation
    where    beside them what was kept of the place to go on at; empty where that is the beginning
    earlier  seconds that were spent before the interruption
    """

    def __init__(self, keeper: Keeper | None, state: dict[str, Tensor], indices: Tensor) -> None:
        found = keeper.load() if keeper else None
        self.keeper, self.state, self.indices = keeper, state, indices
        self.where: dict[str, Any] = {}
        if found and found["indices"].tolist() == indices.tolist():
            self.where = found
            for name, values in state.items():
                values.copy_(found[name])
        self.earlier: float = self.where.get("seconds", 0.0)
        self.kept = self.started = time.monotonic()

    def is_due(self) -> bool:
        """Whether the last keeping is long ago; without a keeper there is never any."""
        return self.keeper is not None and time.monotonic() - self.kept > KEEP

    def keep(self, **where: Any) -> None:
        assert self.keeper is not None
        self.kept = time.monotonic()
        seconds = self.earlier + self.kept - self.started
        self.keeper.keep({**self.state, **where, "seconds": seconds, "indices": self.indices})


class Perturbation:
    """What happens to images before the network sees them.

    kind     a name of `sanbench.evaluation.kinds.KINDS`
    setting  all that decides what happens, in plain values
    border   how many pixels around the network's input it is given too
    has_examples  whether what it makes is worth keeping as pictures
    whole    whether it is given all images of a part at once; otherwise as many as the network sees at a time
    by_reader  whether `change` makes the images, in the processes that read them, while the network works on others
    passes  of the network for an image, at most; one backward counts as two
    batch_size  how many images it shows the network at once, at most
    watch, keeper  it tells `watch` how far it is; what takes minutes goes on from what `keeper` has
    """

    kind = ""
    border = 0
    has_examples = False
    whole = False
    by_reader = False
    batch_size = sys.maxsize
    watch: Callable[[Seen], None] = staticmethod(unwatched)
    keeper: Keeper | None = None

    @property
    def passes(self) -> int:
        return 1

    @property
    def setting(self) -> dict[str, Any]:
        return {}

    def change(self, images: Tensor, indices: Tensor) -> Tensor:
        """images N x 3 x H x W, uint8, and their indices in the split -> what the network is given, uint8."""
        return images

    def __call__(self, images: Tensor, labels: Tensor, indices: Tensor) -> Perturbed:
        """images N x 3 x H x W in [0, 1], their labels, and their indices in the split."""
        return Perturbed(images, {})

    def network(self, model: nn.Module, indices: Tensor) -> Callable[[Tensor], Tensor]:
        """What scores the images, which it is shown in order."""
        return model

    def with_options(self, **options: Any) -> Self:
        """The same with another `batch_size`, `watch` or `keeper`."""
        other = copy.copy(self)
        for name, value in options.items():
            object.__setattr__(other, name, value)  # some are frozen
        return other

    def flags(self, rows: Rows, classes: int) -> list[str]:
        """Names of FLAGS that the rows of all images show, beside logits that are not finite."""
        return []


class Identity(Perturbation):
    """Upright images as they are."""

    kind = "accuracy"

    def flags(self, rows: Rows, classes: int) -> list[str]:
        return near_chance(rows, classes)


def parse_accuracy(options: AccuracyOptions, request: Request) -> Bind:
    return lambda model, images: [Identity()]


class Scored(NamedTuple):
    """One perturbation's outcome on one batch: a row an image, of what has examples the images, and the seconds it took."""

    rows: Rows
    perturbed: Perturbed
    seconds: float


def measure(
    model: nn.Module,
    stream: Iterable[tuple[Batch, Sequence[Perturbation]]],
    device: torch.device,
    batch_size: int | None = None,
    notice: Callable[[str], None] = lambda sentence: None,
) -> Iterator[list[Scored]]:
    """For each batch, the rows of each of its perturbations, in float32 and evaluation mode.

    A batch is read once; the network sees at most `batch_size` images at once, on a CPU at most AT_ONCE pixels. Where they are
    too many for the device's memory, half as many are tried, and `notice` is told. Raises SanbenchError if one is too many.
    """
    heap = Heap()
    for batch, perturbations in stream:
        outcome = []
        for perturbation in perturbations:
            while True:
                try:
                    outcome.append(measure_one(model, batch, perturbation, device, batch_size))
                    break
                except (RuntimeError, MemoryError) as error:
                    if not short_of_memory(error):
                        raise
                    batch_size = (batch_size or len(batch.labels)) // 2
                    if batch_size == 0:
                        raise SanbenchError(
                            f"One image at a time is too much for the memory of {device.type}: a smaller network or image "
                            "takes less."
                        ) from error
                notice(f"Short of memory on {device.type}: from here on the network sees {batch_size} images at once.")
                release_memory(device)
        yield outcome
        heap.trim_if_grown()


def measure_one(
    model: nn.Module, batch: Batch, perturbation: Perturbation, device: torch.device, batch_size: int | None
) -> Scored:
    """Of a batch that is perturbed as a whole, or as many images at a time as the network sees."""
    with evaluating(model):
        images, labels = batch.images.to(device, non_blocking=True), batch.labels.to(device)
        started, size = time.perf_counter(), max(1, len(labels))
        batch_size = batch_size or size
        if device.type == "cpu":
            height, width = (side - 2 * batch.border for side in images.shape[-2:])
            batch_size = min(batch_size, max(1, AT_ONCE // (height * width)))
        few = size if perturbation.whole else batch_size
        smaller = perturbation.with_options(batch_size=min(perturbation.batch_size, batch_size))
        rows: list[Rows] = []
        perturbed, seen = Perturbed(images, {}), 0
        for shown, own, indices in zip(images.split(few), labels.split(few), batch.indices.split(few), strict=True):
            given = loaded.without_border(loaded.pixels(shown), batch.border - perturbation.border)
            perturbed = smaller(given, own, indices)
            rows.append(score(perturbation.network(model, indices), perturbed, indices, own, batch_size))
            seen += len(own)
            if not perturbation.has_examples:  # nobody looks at them again, and what comes next needs their memory
                perturbed = perturbed._replace(images=given.new_empty(0))
                perturbation.watch(Seen(seen / size))  # an attack has told of itself
        return Scored(stored.joined(rows), perturbed, time.perf_counter() - started + perturbed.earlier)


def score(
    model: Callable[[Tensor], Tensor],
    perturbed: Perturbed,
    indices: Tensor,
    labels: Tensor,
    batch_size: int | None = None,
) -> Rows:
    """index, label, prediction, top5 (hit), confidence, finite, then the perturbation's own columns.

    Predictions are those of the logits: a softmax in float32 makes ties of small ones. Where the perturbation tells the
    `clean_prediction`, `success` is: right before, wrong now.
    """
    with torch.no_grad():
        logits = torch.cat([model(chunk) for chunk in perturbed.images.split(batch_size or max(1, len(labels)))])
    prediction, finite = predictions(logits), logits.isfinite().all(1)
    top5 = logits.topk(min(5, logits.shape[1])).indices.eq(labels[:, None]).any(1) & finite
    confidence = logits.softmax(1).amax(1)
    columns = {"index": indices, "label": labels, "prediction": prediction, "top5": top5, "confidence": confidence}
    columns["finite"] = finite
    columns |= perturbed.columns
    if "clean_prediction" in columns:
        columns["success"] = (columns["clean_prediction"] == labels) & (prediction != labels)
    return {name: values.cpu().numpy() for name, values in columns.items()}


def predictions(logits: Tensor) -> Tensor:
    """The class of the largest logit of each row, or -1 where a logit is NaN or infinite: that is no prediction."""
    return torch.where(logits.isfinite().all(1), logits.argmax(1), -1)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode, frozen weights, TF32 off; afterwards every module and parameter is as it was."""
    switches = list(tf32_switches())
    before: list[tuple[Any, str, Any]] = [(module, "training", module.training) for module in model.modules()]
    before += [(parameter, "requires_grad", parameter.requires_grad) for parameter in model.parameters()]
    before += [(where, name, getattr(where, name)) for where, name, _ in switches]
    try:
        model.eval().requires_grad_(False)
        for where, name, off in switches:
            setattr(where, name, off)
        yield
    finally:
        for where, name, value in before:
            setattr(where, name, value)


def tf32_switches() -> Iterator[tuple[Any, str, Any]]:
    """What turns TF32 off for products and for convolutions: object, attribute and value. torch has an older and a newer
    attribute for it, and raises RuntimeError where the older is read after the newer was set."""
    products, convolutions = torch.backends.cuda.matmul, torch.backends.cudnn
    for older, newer in ((products, products), (convolutions, convolutions.conv)):  # type: ignore[attr-defined]  # made at import
        try:
            older.allow_tf32  # noqa: B018  reading is the question
        except RuntimeError:
            yield newer, "fp32_precision", "ieee"
        else:
            yield older, "allow_tf32", False
