"""The parts of a measurement: which of them are this process's, reading ahead, and keeping their rows."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch

from sanbench.data import Batch, Changed, ImageList, Images, Request, batches, dead_workers_named, default_workers
from sanbench.data.images import pixels, without_border
from sanbench.errors import SanbenchError
from sanbench.evaluation.kinds import kind_of
from sanbench.evaluation.loop import Perturbation, Scored, Seen, measure
from sanbench.models.checkpoints import read_checkpoint
from sanbench.models.integrity import content_digest
from sanbench.progress import Progress, Report
from sanbench.runs.evaluated import EvaluatedModel
from sanbench.store.claims import Claims
from sanbench.store.files import Part, Store
from sanbench.store.schema import Measurement, Record

UNFINISHED = "sanbench unfinished part 2"
TELL = 0.5  # seconds between two tellings of progress, at least


@dataclass(frozen=True)
class EvaluationOptions:
    """Which images, in which batches: `limit` of them drawn by `seed`, all without a limit; by `nproc` processes.

    `batch_size` images at most are shown to the network at once (see `measure`). They are those of the list `images`, all
    without one. Of the first `save_images` images an attack's examples are kept as PNG. Only images, limit and seed decide
    results.
    """

    limit: int | None = None
    seed: int = 0
    batch_size: int = 64
    workers: int | None = None  # see `default_workers`
    force: bool = False
    nproc: int = 1
    save_images: int = 0
    images: ImageList | None = None


class Condition(NamedTuple):
    measurement: Measurement
    perturbation: Perturbation


@dataclass(frozen=True)
class Job:
    """What is to be measured, as each process needs it; `parts` are the images of each part."""

    evaluated: EvaluatedModel
    images: Images
    conditions: list[Condition]
    parts: Mapping[int, list[int]]
    store: Store
    options: EvaluationOptions
    since: str = ""  # records that were created before do not count
    # (condition, part) that need not be looked for again: of attacks the images that are right, as far as that is known
    done: dict[tuple[int, int], int | None] = field(default_factory=dict)

    @property
    def task(self) -> str:
        return f"{self.evaluated.run} {self.images.name}"

    def missing(self, part: int) -> list[Condition]:
        return [condition for condition in self.conditions if not self.store.has_part(condition.measurement, part)]

    def recorded(self) -> dict[str, Record]:
        """By key, what is measured and recorded already."""
        found = self.store.find([condition.measurement for condition in self.conditions])
        return {key: record for key, record in found.items() if record.created >= self.since}

    def finished(self) -> int:
        """How many parts of measurements are done, by any process."""
        for part in self.parts:
            for number, (measurement, perturbation) in enumerate(self.conditions):
                if (number, part) not in self.done and self.store.has_part(measurement, part):
                    rows = self.store.part_rows(measurement, part) if perturbation.has_examples else None
                    self.done[number, part] = None if rows is None else int((rows["prediction"] == rows["label"]).sum())
        return len(self.done)

    @property
    def passes(self) -> int:
        """Of the network, at most, for all images and conditions."""
        return sum(map(len, self.parts.values())) * sum(perturbation.passes for _, perturbation in self.conditions)

    def share(self) -> float:
        """How much of `passes` is done, in [0, 1], by any process."""
        return sum(len(self.parts[part]) * self.conditions[n].perturbation.passes for n, part in self.done) / self.passes


def readers(job: Job) -> int:
    """How many processes read images, and change them where a condition asks for it."""
    if job.options.workers is not None:
        return job.options.workers
    changing = any(perturbation.by_reader for _, perturbation in job.conditions)
    return default_workers(job.images, job.options.nproc if job.options.nproc > 1 else None, changing)


class OwnParts:
    """The parts of a job that this process can claim: `measure` is given their `stream`, and `keep` is given what it finds.

    While the network works on a batch, the reading processes read, and corrupt, those that come after it.

    say     is told where this process is
    tasks   what readers were asked for, in order: a part, and the conditions that are measured on the same batch of it. That
            is one that readers make, or all others
    pieces  part, condition and seconds waited of what is being measured, in order
    """

    def __init__(self, job: Job, claims: Claims, device: torch.device, say: "Say") -> None:
        self.job, self.claims, self.device, self.say = job, claims, device, say
        self.tasks: list[tuple[int, list[Condition]]] = []
        self.pieces: list[tuple[int, Condition, float]] = []
        self.told, self.finished = time.monotonic(), -1

    def stream(self) -> Iterator[tuple[Batch, list[Perturbation]]]:
        """One condition after another, so that each is kept as soon as it is measured."""
        self.say()
        changed = Changed(self.job.images, {m.id: p.change for m, p in self.job.conditions if p.by_reader})
        asked = time.monotonic()
        for done, batch in enumerate(batches(changed, self.claimed(), readers(self.job))):
            part, conditions = self.tasks[done]
            waited = (time.monotonic() - asked) / len(conditions)
            here = batch._replace(images=batch.images.to(self.device, non_blocking=True))
            for condition in conditions:
                self.pieces.append((part, condition, waited))
                watch = partial(self.seen, part, self.job.conditions.index(condition))
                keeper = Kept(self.job.store, condition.measurement, part, self.say)
                yield here, [condition.perturbation.with_options(watch=watch, keeper=keeper)]
            asked = time.monotonic()
        self.tell(0)

    def claimed(self) -> Iterator[Request]:
        """What readers are asked for: each part that is this process's, claimed when they are ready for it."""
        job = self.job
        for number, indices in job.parts.items():
            missing = {claim(condition, number): condition for condition in job.missing(number)}
            taken = self.claims.take(list(missing)) if missing else []
            recorded = job.recorded() if taken else {}
            done = [
                name  # by another process in the meantime
                for name in taken
                if job.store.has_part(missing[name].measurement, number) or missing[name].measurement.key in recorded
            ]
            self.claims.release(done)
            mine = [missing[name] for name in taken if name not in done]
            if as_read := [condition for condition in mine if not condition.perturbation.by_reader]:
                self.tasks.append((number, as_read))
                yield Request(None, indices)
            for condition in mine:
                if condition.perturbation.by_reader:
                    self.tasks.append((number, [condition]))
                    yield Request(condition.measurement.id, indices)

    def keep(self, scored: Scored) -> None:
        part, condition, waited = self.pieces.pop(0)
        save_examples(self.job, condition.measurement, part, scored)
        rows = Part(scored.rows, scored.seconds, scored.perturbed.places, waited)
        self.job.store.write_part(condition.measurement, part, rows)
        self.claims.release([claim(condition, part)])
        self.tell(TELL)

    def seen(self, part: int, condition: int, seen: Seen) -> None:
        """Say how far a part is, unless that was done just now."""
        if (now := time.monotonic()) - self.told >= TELL:
            self.told = now
            self.say("", [At(part, condition, seen)])

    def tell(self, after: float) -> None:
        """Have progress told if that was last done `after` seconds ago, and there is some."""
        if (now := time.monotonic()) - self.told >= after and (finished := self.job.finished()) != self.finished:
            self.told, self.finished = now, finished
            self.say()


def measure_here(job: Job, device: torch.device, say: "Say") -> None:
    """What each of several processes does: the parts that it can claim."""
    job.evaluated.model.to(device)
    with job.store.claims() as claims, dead_workers_named():
        own = OwnParts(job, claims, device, say)
        for outcome in measure(job.evaluated.model, own.stream(), device, job.options.batch_size, say):
            own.keep(outcome.pop())


@dataclass(frozen=True)
class Kept:
    """What has become of the images of a part that is not finished; see `sanbench.evaluation.loop.Keeper`."""

    store: Store
    measurement: Measurement
    part: int
    notice: Callable[[str], None]

    def load(self) -> dict[str, Any] | None:
        """None where there is nothing; of what is damaged or another version's that is told, and the part begins anew."""
        path = self.store.unfinished_path(self.measurement, self.part)
        if not path.is_file():
            return None
        try:
            found = read_checkpoint(path, UNFINISHED, "This part is measured from its beginning.")
        except SanbenchError as error:
            self.notice(str(error))
            return None
        return {name: value for name, value in found.items() if name != "format"}

    def keep(self, state: dict[str, Any]) -> None:
        content = {"format": UNFINISHED, **state}
        whole = {**content, "digest": content_digest(content)}
        self.store.write_unfinished(self.measurement, self.part, partial(torch.save, whole))


def claim(condition: Condition, part: int | str) -> str:
    return f"{condition.measurement.id}-{part}"


class At(NamedTuple):
    """Where a process is: a part, the number of a condition, and how far that is."""

    part: int
    condition: int
    seen: Seen


class Say(Protocol):
    """Has a sentence read that is no empty one, and told where processes are."""

    def __call__(self, notice: str = "", running: Sequence[At] = ()) -> None: ...


def tell(job: Job, progress: Report, notice: str = "", running: Sequence[At] = ()) -> None:
    """How far all of the job is; what is worked on is told of the last that is `running`."""
    finished, share, detail, figures = job.finished(), job.share(), "", dict[str, float]()
    for part, number, seen in running:
        if (number, part) in job.done:
            continue
        measurement, perturbation = job.conditions[number]
        size = len(job.parts[part])
        done = sum(len(job.parts[part]) for which, part in job.done if which == number)
        share += seen.share * size * perturbation.passes / job.passes
        words = [kind_of(measurement.kind).short(measurement.setting), seen.about]
        words += [f"{done:,} of {sum(map(len, job.parts.values())):,} images done"]
        detail = ", ".join(filter(None, words))
        if seen.standing is not None:
            stood = {part: right for (which, part), right in job.done.items() if which == number and right is not None}
            images = size + sum(len(job.parts[part]) for part in stood)
            detail += f", {seen.standing:,} of {size:,} stand"
            figures = {"robust": (seen.standing + sum(stood.values())) / images}
    total = len(job.parts) * len(job.conditions)
    progress(Progress(job.task, finished, total, figures, notice, detail, min(share, 1.0)))


def draw_missing_examples(job: Job, chosen: list[int], device: torch.device) -> None:
    """Examples of what was measured without them: they depend on the image alone, so they are the same."""
    attacks = [c for c in job.conditions if c.perturbation.has_examples and not job.store.has_pictures(c.measurement)]
    first = [Request(None, chosen[: job.options.save_images])] if attacks else []
    stream = ((batch, [c.perturbation for c in attacks]) for batch in batches(Changed(job.images), first, 0))
    for outcome in measure(job.evaluated.model, stream, device, job.options.batch_size):
        for condition, scored in zip(attacks, outcome, strict=True):
            save_examples(job, condition.measurement, 0, scored)


def save_examples(job: Job, measurement: Measurement, part: int, scored: Scored) -> None:
    """Clean image, 8-bit adversarial image and their difference, magnified around grey so that the budget just fits.

    `00012-tench-clean.png` and `00012-tench-adversarial-as-goldfish.png`: what is shown, and what the network took it for.
    """
    wanted = range(min(job.options.save_images - part * len(job.parts[0]), len(scored.rows["index"])))
    if scored.perturbed.rounded is None or not wanted:
        return
    indices, labels, predictions = (scored.rows[name].tolist()[: len(wanted)] for name in ("index", "label", "prediction"))
    names = ["".join(c if c.isalnum() else "_" for c in name) for name in job.images.classes]
    originals = without_border(job.images.read(indices), job.images.border)
    pairs = zip(originals, scored.perturbed.rounded, strict=False)
    for (clean, adversarial), index, label, prediction in zip(pairs, indices, labels, predictions, strict=True):
        before, after = (x.permute(1, 2, 0).cpu().double().numpy() for x in (pixels(clean), adversarial))
        largest = max(abs(after - before).max(), 1 / 255)
        difference = 0.5 + (after - before) / largest / 2
        views = {"clean": before, f"adversarial-as-{names[prediction]}": after, "difference": difference}
        for name, view in views.items():
            drawn = (view * 255).round().astype(np.uint8)
            job.store.write_picture(measurement, f"{index:05d}-{names[label]}-{name}", drawn)
