"""From a network, images and perturbations to records in a store: part by part, by any number of processes at once."""

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch

from sanbench.data import Batch, Changed, Images, Request, batches, dead_workers_named, default_workers, subset
from sanbench.data.images import without_border
from sanbench.device import describe, versions
from sanbench.errors import InputError, SanbenchError
from sanbench.evaluation.kinds import condition as condition_text
from sanbench.evaluation.loop import Perturbation, Scored, measure
from sanbench.evaluation.processes import run_processes
from sanbench.evaluation.sanity_checks import non_finite
from sanbench.progress import Progress, Report, silent
from sanbench.runs.evaluated import EvaluatedModel
from sanbench.store.check import count, sound
from sanbench.store.claims import Claims
from sanbench.store.files import Part, Store
from sanbench.store.rows import digest
from sanbench.store.schema import ImageSet, Measurement, Record, now

PART = 256  # images between two points from which an interrupted measurement goes on
TELL = 0.5  # seconds between two tellings of progress, at least
LOOK = 0.5  # seconds between two looks at what other processes measure


@dataclass(frozen=True)
class EvaluationOptions:
    """How many images, in which batches: `limit` of them drawn by `seed`, all without a limit; by `nproc` processes.

    Of the first `save_images` images an attack's examples are kept as PNG. Only limit and seed decide results.
    """

    limit: int | None = None
    seed: int = 0
    batch_size: int = 64
    workers: int | None = None  # see `default_workers`
    force: bool = False
    nproc: int = 1
    save_images: int = 0


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
    done: set[tuple[int, int]] = field(default_factory=set)  # (condition, part) that need not be looked for again

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
        every = ((number, part) for part in self.parts for number in range(len(self.conditions)))
        left = (pair for pair in every if pair not in self.done)
        self.done.update(pair for pair in left if self.store.has_part(self.conditions[pair[0]].measurement, pair[1]))
        return len(self.done)


def evaluate(
    evaluated: EvaluatedModel,
    images: Images,
    perturbations: Sequence[Perturbation],
    store: Store,
    device: torch.device,
    options: EvaluationOptions = EvaluationOptions(),
    progress: Report = silent,
) -> list[Record]:
    """Measure every perturbation that the store does not hold yet; the records of all, in order.

    All perturbations of an image are applied to one reading of it. What is interrupted goes on at the next part of
    `PART` images; what another process measures now is waited for, and taken over if that process dies. Raises
    InputError if the network has other classes than the images.
    """
    if len(images.classes) != evaluated.model.spec.num_classes:
        raise InputError(
            f"{images.name} has {len(images.classes)} classes, but "
            f"{evaluated.run} tells {evaluated.model.spec.num_classes} apart."
        )
    store.check_writable()
    images = images.with_options(border=max((perturbation.border for perturbation in perturbations), default=0))
    chosen = subset(images, options.limit, options.seed)
    conditions = [Condition(measurement(evaluated, images, chosen, p, options.seed), p) for p in perturbations]
    parts = {number: chosen[start : start + PART] for number, start in enumerate(range(0, len(chosen), PART))}
    whole = Job(evaluated, images, conditions, parts, store, options, now() if options.force else "")
    with store.claims() as claims:
        if options.force:
            discard(conditions, store, claims)
        else:
            forget_broken(whole)
        while left := [c for c in conditions if c.measurement.key not in (found := whole.recorded())]:
            job = replace(whole, conditions=left, done=set())
            several = options.nproc > 1 and sum(bool(job.missing(part)) for part in parts) > 1
            measured = (measure_in_processes if several else measure_parts)(job, claims, device, progress)
            if not finish(job, claims, device) and not measured:
                wait(job, claims, progress)
    if options.save_images:
        draw_missing_examples(whole, chosen, device)
    return [found[condition.measurement.key] for condition in conditions]


def measurement(
    evaluated: EvaluatedModel, images: Images, chosen: Sequence[int], perturbation: Perturbation, seed: int
) -> Measurement:
    data = ImageSet(
        name=images.name,
        split=images.split,
        fingerprint=images.fingerprint,
        decoder=images.decoder,
        preprocessing=images.preprocessing,
        images=len(chosen),
        of=len(images),
        subset_seed=seed if len(chosen) < len(images) else None,
    )
    return Measurement(network=evaluated.network, data=data, kind=perturbation.kind, setting=perturbation.setting)


def discard(conditions: Sequence[Condition], store: Store, claims: Claims) -> None:
    """Forget what was measured of unfinished measurements, unless another process is at it: that measures anew itself."""
    for measurement, _ in conditions:
        if not claims.living(measurement.id):
            store.discard(measurement)


def forget_broken(job: Job) -> None:
    """Records whose rows are missing or others than theirs are no results: they are measured again."""
    found = job.recorded()
    kept, _ = sound(job.store, list(found.values()))
    job.store.remove([record for record in found.values() if record not in kept])


def measure_in_processes(job: Job, claims: Claims, device: torch.device, progress: Report) -> bool:
    """`measure_parts` by several processes, each of which claims its own parts."""
    job.evaluated.model.cpu()
    shared = replace(job, options=replace(job.options, workers=readers(job)))
    run_processes(measure_here, shared, job.options.nproc, device, lambda: tell(job, progress))
    job.evaluated.model.to(device)
    return True


def readers(job: Job) -> int:
    """How many processes read images, and change them where a condition asks for it."""
    if job.options.workers is not None:
        return job.options.workers
    changing = any(perturbation.by_reader for _, perturbation in job.conditions)
    return default_workers(job.images, job.options.nproc if job.options.nproc > 1 else None, changing)


def measure_here(job: Job, device: torch.device) -> None:
    """One process's share: the parts that it can claim."""
    job.evaluated.model.to(device)
    with job.store.claims() as claims:
        measure_parts(job, claims, device)


class Task(NamedTuple):
    """Conditions of a part that are measured on the same batch: one that readers make, or all others."""

    part: int
    conditions: list[Condition]


def measure_parts(job: Job, claims: Claims, device: torch.device, progress: Report = silent) -> bool:
    """Measure the parts that this process can claim; whether there were any.

    While the network works on a batch, the reading processes read, and corrupt, those that come after it.
    """
    tasks: list[Task] = []  # in the order in which they were asked for
    changed = Changed(job.images, {m.id: p.change for m, p in job.conditions if p.by_reader})
    clock = Clock()
    reader = clock.waited_for(batches(changed, claim_parts(job, claims, tasks), readers(job)))
    stream = ((batch, [p for _, p in tasks[done].conditions]) for done, batch in enumerate(reader))
    notice = partial(tell, job, progress)
    with dead_workers_named():
        for done, outcome in enumerate(measure(job.evaluated.model, stream, device, job.options.batch_size, notice)):
            part, conditions = tasks[done]
            waited = clock.read() / len(conditions)
            for (measurement, _), scored in zip(conditions, outcome, strict=True):
                save_examples(job, measurement, part, scored)
                kept = Part(scored.rows, scored.seconds, scored.perturbed.places, waited)
                job.store.write_part(measurement, part, kept)
            claims.release([claim(condition, part) for condition in conditions])
            clock.tell(job, progress, TELL)
    clock.tell(job, progress, 0)
    return bool(tasks)


class Clock:
    """How long was waited for batches, and when progress is told again."""

    def __init__(self) -> None:
        self.waited, self.told, self.finished = 0.0, time.monotonic(), -1

    def waited_for(self, stream: Iterator[Batch]) -> Iterator[Batch]:
        while True:
            started = time.monotonic()
            batch = next(stream, None)
            self.waited += time.monotonic() - started
            if batch is None:
                return
            yield batch

    def read(self) -> float:
        """Seconds since the last call that were spent waiting."""
        waited, self.waited = self.waited, 0.0
        return waited

    def tell(self, job: Job, progress: Report, after: float) -> None:
        """Tell progress if that was last done `after` seconds ago, and there is some."""
        if (now := time.monotonic()) - self.told >= after and job.finished() != self.finished:
            self.told, self.finished = now, job.finished()
            tell(job, progress)


def claim_parts(job: Job, claims: Claims, tasks: list[Task]) -> Iterator[Request]:
    """What readers are asked for: each part that is this process's, claimed when they are ready for it; see `Task`."""
    for number, indices in job.parts.items():
        missing = {claim(condition, number): condition for condition in job.missing(number)}
        taken = claims.take(list(missing)) if missing else []
        recorded = job.recorded() if taken else {}
        done = [
            name  # by another process in the meantime
            for name in taken
            if job.store.has_part(missing[name].measurement, number) or missing[name].measurement.key in recorded
        ]
        claims.release(done)
        mine = [missing[name] for name in taken if name not in done]
        if as_read := [condition for condition in mine if not condition.perturbation.by_reader]:
            tasks.append(Task(number, as_read))
            yield Request(None, indices)
        for condition in mine:
            if condition.perturbation.by_reader:
                tasks.append(Task(number, [condition]))
                yield Request(condition.measurement.id, indices)


def claim(condition: Condition, part: int | str) -> str:
    return f"{condition.measurement.id}-{part}"


def tell(job: Job, progress: Report, notice: str = "") -> None:
    progress(Progress(job.task, job.finished(), len(job.parts) * len(job.conditions), notice=notice))


def wait(job: Job, claims: Claims, progress: Report) -> None:
    """Until another process, or its death, may have changed what there is to do."""
    total = len(job.parts) * len(job.conditions)
    progress(Progress(f"{job.task}, measured by another process", job.finished(), total))
    time.sleep(LOOK)
    claims.clean()


def finish(job: Job, claims: Claims, device: torch.device) -> bool:
    """Make the records whose parts are all there, and that nobody else is making; whether there were any."""
    whole = [c for c in job.conditions if all(job.store.has_part(c.measurement, part) for part in job.parts)]
    names = {claim(condition, "record"): condition for condition in whole}
    taken = claims.take(list(names))
    try:
        mine = [names[name] for name in taken if job.store.has_part(names[name].measurement, 0)]  # still
        job.store.add([record_of(job, condition, device) for condition in mine])
    finally:
        claims.release(taken)
    return bool(mine)


def record_of(job: Job, condition: Condition, device: torch.device) -> tuple[Record, pd.DataFrame]:
    """The record of all parts of a measurement, and its rows."""
    measurement, perturbation = condition
    rows, seconds, places, waited = job.store.read_parts(measurement, len(job.parts))
    if rows["index"].tolist() != [index for part in job.parts.values() for index in part]:
        raise SanbenchError(f"The parts of measurement {measurement.id} do not hold each image once: repeat with --force.")
    if not rows["finite"].any():
        raise SanbenchError(
            f"{job.evaluated.run} gave no finite logits for any of {len(rows)} images "
            f"({condition_text(measurement.kind, measurement.setting)}): "
            "nothing is recorded. Are its weights whole, and the images prepared as it expects?"
        )
    members = measurement.setting.get("members", [])
    record = Record(
        **{field: getattr(measurement, field) for field in Measurement.model_fields},
        run=job.evaluated.run,
        counts=count(rows, members) | ({"places": places} if places else {}),
        extremes={norm: float(rows[norm].max()) for norm in ("linf", "l2") if norm in rows},
        training=job.evaluated.training,
        selection=job.evaluated.selection,
        classes=job.images.classes,
        flags=[*job.evaluated.findings, *non_finite(rows), *perturbation.flags(rows, len(job.images.classes))],
        rows=digest(rows),
        versions=versions(),
        device=describe(device),
        seconds=seconds,
        waited=waited,
    )
    return record, rows


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
    wanted = range(min(job.options.save_images - part * PART, len(scored.rows)))
    if scored.perturbed.rounded is None or not wanted:
        return
    indices, labels, predictions = (scored.rows[name].tolist()[: len(wanted)] for name in ("index", "label", "prediction"))
    names = ["".join(c if c.isalnum() else "_" for c in name) for name in job.images.classes]
    originals = without_border(job.images.read(indices), job.images.border)
    pairs = zip(originals, scored.perturbed.rounded, strict=False)
    for (clean, adversarial), index, label, prediction in zip(pairs, indices, labels, predictions, strict=True):
        before, after = (x.permute(1, 2, 0).cpu().double().numpy() for x in (clean / 255, adversarial))
        largest = max(abs(after - before).max(), 1 / 255)
        difference = 0.5 + (after - before) / largest / 2
        views = {"clean": before, f"adversarial-as-{names[prediction]}": after, "difference": difference}
        for name, view in views.items():
            pixels = (view * 255).round().astype(np.uint8)
            job.store.write_picture(measurement, f"{index:05d}-{names[label]}-{name}", pixels)
