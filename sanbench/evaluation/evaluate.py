"""From a network, images and perturbations to records in a store: part by part, by any number of processes at once."""

import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import torch

from sanbench.data import Images, dead_workers_named, subset
from sanbench.device import describe, versions
from sanbench.errors import InputError, SanbenchError
from sanbench.evaluation.kinds import condition as condition_text
from sanbench.evaluation.loop import AT_ONCE, Perturbation, measure
from sanbench.evaluation.parts import (
    At,
    Condition,
    EvaluationOptions,
    Job,
    OwnParts,
    Say,
    claim,
    draw_missing_examples,
    measure_here,
    readers,
    tell,
)
from sanbench.evaluation.processes import run_processes
from sanbench.evaluation.sanity_checks import non_finite
from sanbench.progress import Progress, Report, silent, within
from sanbench.runs.evaluated import EvaluatedModel
from sanbench.store.check import count, sound
from sanbench.store.claims import Claims
from sanbench.store.files import Store
from sanbench.store.rows import Rows, digest
from sanbench.store.schema import ImageSet, Measurement, Record, now

PART = 256  # images between two points from which an interrupted measurement goes on, at most
FEWEST = 32  # at least: fewer would leave a processor idle, and a long attack goes on from within a part
MOST = 60_000  # passes of images of 32 x 32 in a part: about a minute of a small network on two cores
ALL_IMAGES = EvaluationOptions()
LOOK = 0.5  # seconds between two looks at what other processes measure


def evaluate(
    evaluated: EvaluatedModel,
    images: Images,
    perturbations: Sequence[Perturbation],
    store: Store,
    device: torch.device,
    options: EvaluationOptions = ALL_IMAGES,
    progress: Report = silent,
) -> list[Record]:
    """Measure every perturbation that the store does not hold yet; the records of all, in order.

    All perturbations of an image are applied to one reading of it. What is interrupted goes on at the next part
    (see `by_part`); what another process measures now is waited for, and taken over if that process dies. Raises
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
    jobs, since = list[Job](), now() if options.force else ""
    for size, alike in by_part(conditions, images.side).items():
        parts = {number: chosen[start : start + size] for number, start in enumerate(range(0, len(chosen), size))}
        jobs.append(Job(evaluated, images, alike, parts, store, options, since))
    found: dict[str, Record] = {}
    passes, before = sum(job.passes for job in jobs), 0
    with store.claims() as claims, dead_workers_named():
        for job in jobs:
            told = within(progress, before / passes, (before + job.passes) / passes)
            before += job.passes
            forget(job, claims, told)
            found |= job.recorded()
            while left := [c for c in job.conditions if c.measurement.key not in found]:
                rest = replace(job, conditions=left, done={})
                own = OwnParts(rest, claims, device, partial(tell, rest, told))
                several = options.nproc > 1 and sum(bool(rest.missing(part)) for part in job.parts) > 1
                if several:
                    measure_in_processes(rest, device, own.say)
                else:
                    for outcome in measure(evaluated.model, own.stream(), device, options.batch_size, own.say):
                        own.keep(outcome.pop())  # no name keeps its images while the next are measured
                if not finish(rest, claims, device) and not several and not own.tasks:
                    wait(rest, claims, told)
                found |= job.recorded()
    if options.save_images:
        for job in jobs:
            draw_missing_examples(job, chosen, device)
    return [found[condition.measurement.key] for condition in conditions]


def by_part(conditions: Sequence[Condition], side: int) -> dict[int, list[Condition]]:
    """Conditions by the images of their parts: `PART`, halved until `MOST` passes, what is perturbed as a whole
    `AT_ONCE` pixels, or `FEWEST` images are left.

    Nothing but the condition and the `side` of the images decides it, so all processes agree.
    """
    found: dict[int, list[Condition]] = {}
    for condition in conditions:
        perturbation, size = condition.perturbation, PART
        passes, pixels = perturbation.passes * (side / 32) ** 2, perturbation.whole * side**2  # of an image
        while size >= 2 * FEWEST and (size * passes > MOST or size * pixels > AT_ONCE):
            size //= 2
        found.setdefault(size, []).append(condition)
    return found


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


def forget(job: Job, claims: Claims, progress: Report) -> None:
    """Records whose rows are missing or others than theirs are no results: they are measured again, and that is told.

    With `force` no record counts (see `Job.since`), nor do parts, unless another process is at them: that measures anew itself.
    """
    if job.options.force:
        for measurement, _ in job.conditions:
            if not claims.living(measurement.id):
                job.store.discard(measurement)
        return
    found = list(job.recorded().values())
    kept, problems = sound(job.store, found)
    job.store.remove([record for record in found if record not in kept])
    for problem in dict.fromkeys(problems):
        tell(job, progress, f"{problem} Now it is measured again.")


def measure_in_processes(job: Job, device: torch.device, say: Say) -> None:
    """`measure_here` by several processes, each of which claims its own parts."""
    job.evaluated.model.cpu()
    shared = replace(job, options=replace(job.options, workers=readers(job)))
    running: dict[int, Sequence[At]] = {}

    def hear(process: int, notice: str = "", now: Sequence[At] = ()) -> None:
        running.pop(process, None)
        running[process] = now
        say(notice, [at for own in running.values() for at in own])

    run_processes(measure_here, shared, job.options.nproc, device, hear)
    job.evaluated.model.to(device)


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


def record_of(job: Job, condition: Condition, device: torch.device) -> tuple[Record, Rows]:
    """The record of all parts of a measurement, and its rows."""
    measurement, perturbation = condition
    rows, seconds, places, waited = job.store.read_parts(measurement, len(job.parts))
    if rows["index"].tolist() != [index for part in job.parts.values() for index in part]:
        raise SanbenchError(f"The parts of measurement {measurement.id} do not hold each image once: repeat with --force.")
    if not rows["finite"].any():
        raise SanbenchError(
            f"{job.evaluated.run} gave no finite logits for any of {len(rows['index'])} images "
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
        waited=waited,
    )
    return record, rows
