"""From a network, images and perturbations to records in a store: part by part, by any number of processes at once."""

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch

from sanbench.data import ImageList, Images, batches, dead_workers_named, default_workers, subset
from sanbench.device import describe, versions
from sanbench.errors import InputError, SanbenchError
from sanbench.evaluation.kinds import condition as condition_text
from sanbench.evaluation.loop import Perturbation, Scored, measure, without_border
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
LOOK = 0.5  # seconds between two looks at what other processes measure


@dataclass(frozen=True)
class EvaluationOptions:
    """Which images, in which batches: `limit` of them drawn by `seed`, all without a limit; by `nproc` processes.

    They are those of the list `images`, all without one. Of the first `save_images` images an attack's examples are kept as
    PNG. Only images, limit and seed decide results.
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
        return sum(not self.missing(part) for part in self.parts)


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
    InputError if the network has other classes than the images, and for corrupted files as anything else.
    """
    if len(images.classes) != evaluated.model.outputs:
        raise InputError(
            f"{images.name} has {len(images.classes)} classes, but {evaluated.run} tells {evaluated.model.outputs} apart."
        )
    if any(getattr(perturbation, "stored", None) != images.stored for perturbation in perturbations):
        raise InputError(f"{images.name} is not accepted here: corrupted files, and they alone, are measured as such.")
    store.check_writable()
    images = images.with_options(border=max((perturbation.border for perturbation in perturbations), default=0))
    chosen = subset(images, options.limit, options.seed, options.images)
    conditions = [Condition(measurement(evaluated, images, chosen, p, options), p) for p in perturbations]
    parts = {number: chosen[start : start + PART] for number, start in enumerate(range(0, len(chosen), PART))}
    whole = Job(evaluated, images, conditions, parts, store, options, now() if options.force else "")
    with store.claims() as claims:
        if options.force:
            discard(conditions, store, claims)
        else:
            forget_broken(whole)
        while left := [c for c in conditions if c.measurement.key not in (found := whole.recorded())]:
            job = replace(whole, conditions=left)
            several = options.nproc > 1 and len(parts) - job.finished() > 1
            measured = (measure_in_processes if several else measure_parts)(job, claims, device, progress)
            if not finish(job, claims, device) and not measured:
                wait(job, claims, progress)
    if options.save_images:
        draw_missing_examples(whole, chosen, device)
    return [found[condition.measurement.key] for condition in conditions]


def measurement(
    evaluated: EvaluatedModel, images: Images, chosen: Sequence[int], perturbation: Perturbation, options: EvaluationOptions
) -> Measurement:
    listed = options.images
    data = ImageSet(
        name=images.name,
        split=images.split,
        fingerprint=images.fingerprint,
        decoder=images.decoder,
        preprocessing=images.preprocessing,
        images=len(chosen),
        of=len(images),
        subset_seed=options.seed if len(chosen) < len(listed.lines if listed else images) else None,
        listed=listed.sha256 if listed else None,
        among=images.counted,
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
    workers = default_workers(job.images, job.options.nproc) if job.options.workers is None else job.options.workers
    job.evaluated.model.cpu()
    shared = replace(job, options=replace(job.options, workers=workers))
    run_processes(measure_here, shared, job.options.nproc, device, lambda: tell(job, progress))
    job.evaluated.model.to(device)
    return True


def measure_here(job: Job, device: torch.device) -> None:
    """One process's share: the parts that it can claim."""
    job.evaluated.model.to(device)
    with job.store.claims() as claims:
        measure_parts(job, claims, device)


def measure_parts(job: Job, claims: Claims, device: torch.device, progress: Report = silent) -> bool:
    """Measure the parts that this process can claim; whether there were any."""
    claimed: list[tuple[int, list[Condition]]] = []
    reader = batches(job.images, claim_parts(job, claims, claimed), job.options.workers)
    stream = ((batch, [condition.perturbation for condition in claimed[done][1]]) for done, batch in enumerate(reader))
    with dead_workers_named():
        for done, outcome in enumerate(measure(job.evaluated.model, stream, device, job.options.batch_size)):
            number, conditions = claimed[done]
            for (measurement, _), scored in zip(conditions, outcome, strict=True):
                save_examples(job, measurement, number, scored)
                job.store.write_part(measurement, number, Part(scored.rows, scored.seconds, scored.perturbed.places))
            claims.release([claim(condition, number) for condition in conditions])
            tell(job, progress)
    return bool(claimed)


def claim_parts(job: Job, claims: Claims, claimed: list[tuple[int, list[Condition]]]) -> Iterator[list[int]]:
    """The images of each part that is this process's, claimed when it is asked for; `claimed` tells which those are."""
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
        conditions = [missing[name] for name in taken if name not in done]
        if conditions:
            claimed.append((number, conditions))
            yield indices


def claim(condition: Condition, part: int | str) -> str:
    return f"{condition.measurement.id}-{part}"


def tell(job: Job, progress: Report) -> None:
    progress(Progress(job.task, job.finished(), len(job.parts)))


def wait(job: Job, claims: Claims, progress: Report) -> None:
    """Until another process, or its death, may have changed what there is to do."""
    progress(Progress(f"{job.task}, measured by another process", job.finished(), len(job.parts)))
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
    rows, seconds, places = job.store.read_parts(measurement, len(job.parts))
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
        image_list=job.options.images.name if job.options.images else None,
        flags=[*job.evaluated.findings, *non_finite(rows), *perturbation.flags(rows, len(job.images.classes))],
        rows=digest(rows),
        versions=versions(),
        device=describe(device),
        seconds=seconds,
    )
    return record, rows


def draw_missing_examples(job: Job, chosen: list[int], device: torch.device) -> None:
    """Examples of what was measured without them: they depend on the image alone, so they are the same."""
    attacks = [c for c in job.conditions if c.perturbation.has_examples and not job.store.has_pictures(c.measurement)]
    first = chosen[: job.options.save_images]
    stream = ((batch, [c.perturbation for c in attacks]) for batch in batches(job.images, [first] if attacks else [], 0))
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
