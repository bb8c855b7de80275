"""Experiments: a trained network, images and perturbations become rows and records, part by part."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch

from sanbench.data import Images, batches, dead_workers_named, default_workers, subset
from sanbench.device import describe, versions
from sanbench.errors import InputError, SanbenchError
from sanbench.evaluation.loop import Perturbation, Rows, measure, without_border
from sanbench.evaluation.processes import run_shards
from sanbench.evaluation.sanity_checks import all_flags, attack_flags, near_chance
from sanbench.progress import Progress, Report, silent
from sanbench.runs.evaluated import EvaluatedModel
from sanbench.store.files import Measurement, Record, Store

PART = 256  # images between two points from which an interrupted measurement goes on


@dataclass(frozen=True)
class Protocol:
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


def evaluate(
    evaluated: EvaluatedModel,
    images: Images,
    perturbations: Sequence[Perturbation],
    store: Store,
    device: torch.device,
    protocol: Protocol = Protocol(),
    progress: Report = silent,
) -> list[Record]:
    """Measure every perturbation that the store does not hold yet; the records of all, in order.

    All perturbations of an image are applied to one reading of it. What is interrupted goes on at the next part of
    `PART` images. Raises InputError if the network has other classes than the images.
    """
    if len(images.classes) != evaluated.model.spec.num_classes:
        raise InputError(
            f"{images.name} has {len(images.classes)} classes, but "
            f"{evaluated.run} tells {evaluated.model.spec.num_classes} apart."
        )
    store.check_writable()
    images = images.with_options(border=max((getattr(p, "border", 0) for p in perturbations), default=0))
    chosen = subset(images, protocol.limit, protocol.seed)
    data = {
        "name": images.name,
        "split": images.split,
        "fingerprint": images.fingerprint,
        "decoder": images.decoder,
        **({"preprocessing": images.preprocessing} if images.preprocessing else {}),
        "images": len(chosen),
        "of": len(images),
        "subset_seed": protocol.seed if len(chosen) < len(images) else None,
    }
    conditions = [
        Condition(
            Measurement(
                model=evaluated.model.spec.label,
                weights=evaluated.weights,
                data=data,
                experiment=perturbation.experiment,
                setting=perturbation.setting,
            ),
            perturbation,
        )
        for perturbation in perturbations
    ]
    if protocol.force:
        for measurement, _ in conditions:
            store.discard(measurement)
    records = {m.key: None if protocol.force else store.find(m) for m, _ in conditions}
    parts = {n: chosen[start : start + PART] for n, start in enumerate(range(0, len(chosen), PART))}
    missing = [condition for condition in conditions if records[condition.measurement.key] is None]
    rest = {n: part for n, part in parts.items() if not all(store.has_part(m, n) for m, _ in missing)}
    job = Job(evaluated, images, missing, store, protocol)
    if protocol.nproc > 1 and len(rest) > 1:
        measure_in_processes(job, rest, device, progress)
    else:
        measure_parts(job, rest, device, progress)
    if protocol.save_images:
        unseen = [c for c in conditions if c not in missing and not store.has_pictures(c.measurement)]
        redraw(Job(evaluated, images, unseen, store, protocol), chosen[: protocol.save_images], device)
    for measurement, _ in missing:
        records[measurement.key] = finish(measurement, evaluated, images, chosen, len(parts), store, device)
    return flagged([record for record in records.values() if record is not None], store)


def flagged(records: list[Record], store: Store) -> list[Record]:
    """The records, with what attacks on the same network and images show about each other."""
    known = {record.key: record for record in store.records() if record.experiment == "attack"}
    for key, record in known.items():
        others = [r for r in known.values() if (r.weights, r.data) == (record.weights, record.data) and r.key != key]
        flags = all_flags(record, others)
        if flags != record.flags:
            known[key] = store.write_flags(record, flags)
    return [known.get(record.key, record) for record in records]


class Condition(NamedTuple):
    measurement: Measurement
    perturbation: Perturbation


@dataclass(frozen=True)
class Job:
    """What is to be measured, as one process needs it."""

    evaluated: EvaluatedModel
    images: Images
    conditions: list[Condition]
    store: Store
    protocol: Protocol


def measure_parts(job: Job, parts: Mapping[int, list[int]], device: torch.device, progress: Report = silent) -> None:
    """Write every part of every condition that the store does not hold."""
    needed = {n: [c for c in job.conditions if not job.store.has_part(c.measurement, n)] for n in parts}
    reader = batches(job.images, list(parts.values()), job.protocol.workers)
    stream = ((batch, [c.perturbation for c in needed[n]]) for batch, n in zip(reader, parts, strict=True))
    outcomes = measure(job.evaluated.model, stream, device, job.protocol.batch_size)
    with dead_workers_named():
        for done, (part, outcome) in enumerate(zip(parts, outcomes, strict=True), start=1):
            for condition, rows in zip(needed[part], outcome, strict=True):
                save_examples(job, condition.measurement, part, rows)
                job.store.write_part(condition.measurement, part, rows.frame, rows.seconds, rows.perturbed.places)
            progress(Progress(f"{job.evaluated.run} {job.images.name}", done, len(parts)))


def measure_in_processes(job: Job, parts: Mapping[int, list[int]], device: torch.device, progress: Report) -> None:
    """The same by several processes: each takes every n-th part, so no image is padded or repeated."""
    numbers = list(parts)
    shards = [{n: parts[n] for n in numbers[rank :: job.protocol.nproc]} for rank in range(job.protocol.nproc)]
    job.evaluated.model.cpu()
    workers = default_workers(job.images, job.protocol.nproc) if job.protocol.workers is None else job.protocol.workers
    job = replace(job, protocol=replace(job.protocol, workers=workers))
    run_shards(
        measure_shard, job, [shard for shard in shards if shard], device, progress, f"{job.evaluated.run} {job.images.name}"
    )
    job.evaluated.model.to(device)


def measure_shard(job: Job, shard: Mapping[int, list[int]], device: torch.device) -> None:
    job.evaluated.model.to(device)
    measure_parts(job, shard, device)


def redraw(job: Job, indices: list[int], device: torch.device) -> None:
    """Examples of what was measured before without them: they depend on the image alone, so they are the same."""
    attacks = [c for c in job.conditions if c.measurement.experiment in ("attack", "transfer")]
    stream = ((batch, [c.perturbation for c in attacks]) for batch in batches(job.images, [indices] if attacks else [], 0))
    for outcome in measure(job.evaluated.model, stream, device, job.protocol.batch_size):
        for condition, rows in zip(attacks, outcome, strict=True):
            save_examples(job, condition.measurement, 0, rows)


def save_examples(job: Job, measurement: Measurement, part: int, rows: Rows) -> None:
    """Clean image, 8-bit adversarial image and their difference, magnified around grey so that the budget just fits.

    `00012-tench-clean.png` and `00012-tench-adversarial-as-goldfish.png`: what is shown, and what the network took it for.
    """
    wanted = range(min(job.protocol.save_images - part * PART, len(rows.frame)))
    if rows.perturbed.rounded is None or not wanted:
        return
    indices, labels, predictions = (rows.frame[name].tolist()[: len(wanted)] for name in ("index", "label", "prediction"))
    names = ["".join(c if c.isalnum() else "_" for c in name) for name in job.images.classes]
    originals = without_border(job.images.read(indices), job.images.border)
    pairs = zip(originals, rows.perturbed.rounded, strict=False)
    for (clean, adversarial), index, label, taken in zip(pairs, indices, labels, predictions, strict=True):
        before, after = (x.permute(1, 2, 0).cpu().double().numpy() for x in (clean / 255, adversarial))
        largest = max(abs(after - before).max(), 1 / 255)
        difference = 0.5 + (after - before) / largest / 2
        views = {"clean": before, f"adversarial-as-{names[taken]}": after, "difference": difference}
        for name, view in views.items():
            pixels = (view * 255).round().astype(np.uint8)
            job.store.write_picture(measurement, f"{index:05d}-{names[label]}-{name}", pixels)


def finish(
    measurement: Measurement,
    evaluated: EvaluatedModel,
    images: Images,
    chosen: list[int],
    parts: int,
    store: Store,
    device: torch.device,
) -> Record:
    """Merge the parts of a measurement into its rows and its record."""
    rows, seconds, places = store.read_parts(measurement, parts)
    if rows["index"].tolist() != chosen:
        raise SanbenchError(f"The parts of {measurement.name} do not hold each image once: repeat with --force.")
    flags = []
    if measurement.experiment == "accuracy":
        flags = near_chance(rows, len(images.classes))
    elif measurement.experiment == "attack":
        flags = attack_flags(rows, measurement.setting)
    record = Record(
        **measurement.model_dump(),
        run=evaluated.run,
        counts=count(rows, measurement.setting.get("members", [])) | ({"places": places} if places else {}),
        extremes={norm: float(rows[norm].max()) for norm in ("linf", "l2") if norm in rows},
        training=evaluated.training,
        selection=evaluated.selection,
        normalisation={name: list(getattr(evaluated.model.spec, name)) for name in ("mean", "std")},
        classes=images.classes,
        flags=flags,
        versions=versions(),
        device=describe(device),
        seconds=seconds,
        created=datetime.now(UTC).isoformat(timespec="milliseconds"),
    )
    store.write(record, rows)
    return record


def count(rows: pd.DataFrame, members: Sequence[str] = ()) -> dict[str, int]:
    """Counts of a record, see `Record`."""
    counts = {"images": len(rows), "correct": (rows["prediction"] == rows["label"]).sum(), "correct_top5": rows["top5"].sum()}
    if "clean_prediction" in rows:
        right_before = rows["clean_prediction"] == rows["label"]
        counts |= {"right_before": right_before.sum(), "success": rows["success"].sum()}
        counts |= {name: rows[name].sum() for name in ("forward_passes", "backward_passes")}
        counts["correct_8bit"] = (rows["prediction_8bit"] == rows["label"]).sum()
        counts |= {f"fell_to_{name}": (rows["member"] == n).sum() for n, name in enumerate(members)}
        if "target" in rows:
            counts["hit_target"] = (right_before & (rows["prediction"] == rows["target"])).sum()
    return {name: int(value) for name, value in counts.items()}
