"""Experiments: a trained network, images and perturbations become rows and records, part by part."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch

from sanbench.data import Images, Source, batches, load_dataset, subset
from sanbench.device import describe, versions
from sanbench.errors import InputError, SanbenchError
from sanbench.evaluation.loop import Perturbation, Rows, measure
from sanbench.evaluation.masking import all_flags, own_flags
from sanbench.evaluation.processes import run_shards
from sanbench.models import Classifier
from sanbench.models.checkpoints import read_checkpoint, rebuild, weights_hash
from sanbench.progress import Progress, Report, silent
from sanbench.records import Measurement, Record, Store

PART = 256  # images between two points from which an interrupted measurement goes on


@dataclass(frozen=True)
class Subject:
    """A trained network under test and what a record must say of its past."""

    model: Classifier
    weights: str
    run: str
    data: dict[str, Any]  # what it was trained on: name, root, image_size
    training: dict[str, Any]
    selection: str

    @classmethod
    def load(cls, checkpoint: Path, run: str) -> "Subject":
        """From a checkpoint that training wrote. Raises InputError or SanbenchError as `load_model`."""
        content = read_checkpoint(checkpoint)
        model = rebuild(content, checkpoint)
        training = {name: content[name] for name in ("recipe", "seed", "epoch", "train_images", "train_seconds")}
        return cls(model, weights_hash(model.state_dict()), run, content["data"], training, content["selection"])


def test_images(subject: Subject, name: str | None, root: Path | None) -> Images:
    """The test split of the data that the subject was trained on, or of another set or place."""
    trained = subject.data
    source = Source(root or Path(trained["root"]), trained["image_size"])
    return load_dataset(name or trained["name"], "test", source)


@dataclass(frozen=True)
class Protocol:
    """How many images, in which batches: `limit` of them drawn by `seed`, all without a limit; by `nproc` processes.

    Of the first `save_images` images an attack's examples are kept as PNG. Only limit and seed decide results.
    """

    limit: int | None = None
    seed: int = 0
    batch_size: int = 64
    workers: int = 0
    force: bool = False
    nproc: int = 1
    save_images: int = 0


def evaluate(
    subject: Subject,
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
    if len(images.classes) != subject.model.spec.num_classes:
        raise InputError(
            f"{images.name} has {len(images.classes)} classes, but {subject.run} tells {subject.model.spec.num_classes} apart."
        )
    store.check_writable()
    chosen = subset(images, protocol.limit, protocol.seed)
    data = {
        "name": images.name,
        "split": images.split,
        "fingerprint": images.fingerprint,
        "decoder": images.decoder,
        "images": len(chosen),
        "of": len(images),
        "subset_seed": protocol.seed if len(chosen) < len(images) else None,
    }
    conditions = [
        Condition(
            Measurement(
                model=subject.model.spec.label,
                weights=subject.weights,
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
    job = Job(subject, images, missing, store, protocol)
    if protocol.nproc > 1 and len(rest) > 1:
        measure_in_processes(job, rest, device, progress)
    else:
        measure_parts(job, rest, device, progress)
    for measurement, _ in missing:
        records[measurement.key] = finish(measurement, subject, images, chosen, len(parts), store, device)
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

    subject: Subject
    images: Images
    conditions: list[Condition]
    store: Store
    protocol: Protocol


def measure_parts(job: Job, parts: Mapping[int, list[int]], device: torch.device, progress: Report = silent) -> None:
    """Write every part of every condition that the store does not hold."""
    needed = {n: [c for c in job.conditions if not job.store.has_part(c.measurement, n)] for n in parts}
    reader = batches(job.images, list(parts.values()), job.protocol.workers)
    stream = ((batch, [c.perturbation for c in needed[n]]) for batch, n in zip(reader, parts, strict=True))
    outcomes = measure(job.subject.model, stream, device, job.protocol.batch_size)
    for done, (part, outcome) in enumerate(zip(parts, outcomes, strict=True), start=1):
        for condition, rows in zip(needed[part], outcome, strict=True):
            save_examples(job, condition.measurement, part, rows)
            job.store.write_part(condition.measurement, part, rows.frame, rows.seconds)
        progress(Progress(f"{job.subject.run} {job.images.name}", done, len(parts)))


def measure_in_processes(job: Job, parts: Mapping[int, list[int]], device: torch.device, progress: Report) -> None:
    """The same by several processes: each takes every n-th part, so no image is padded or repeated."""
    numbers = list(parts)
    shards = [{n: parts[n] for n in numbers[rank :: job.protocol.nproc]} for rank in range(job.protocol.nproc)]
    job.subject.model.cpu()
    run_shards(
        measure_shard, job, [shard for shard in shards if shard], device, progress, f"{job.subject.run} {job.images.name}"
    )
    job.subject.model.to(device)


def measure_shard(job: Job, shard: Mapping[int, list[int]], device: torch.device) -> None:
    job.subject.model.to(device)
    measure_parts(job, shard, device)


def save_examples(job: Job, measurement: Measurement, part: int, rows: Rows) -> None:
    """Clean image, 8-bit adversarial image and their difference, magnified around grey so that the budget just fits."""
    wanted = range(min(job.protocol.save_images - part * PART, len(rows.frame)))
    if rows.perturbed.rounded is None or not wanted:
        return
    indices = rows.frame["index"].tolist()[: len(wanted)]
    for clean, adversarial, index in zip(job.images.read(indices), rows.perturbed.rounded, indices, strict=False):
        before, after = (x.permute(1, 2, 0).cpu().double().numpy() for x in (clean / 255, adversarial))
        largest = max(abs(after - before).max(), 1 / 255)
        views = {"clean": before, "adversarial": after, "difference": 0.5 + (after - before) / largest / 2}
        for name, view in views.items():
            job.store.write_picture(measurement, f"{index:05d}-{name}", (view * 255).round().astype(np.uint8))


def finish(
    measurement: Measurement,
    subject: Subject,
    images: Images,
    chosen: list[int],
    parts: int,
    store: Store,
    device: torch.device,
) -> Record:
    """Merge the parts of a measurement into its rows and its record."""
    rows, seconds = store.read_parts(measurement, parts)
    if rows["index"].tolist() != chosen:
        raise SanbenchError(f"The parts of {measurement.name} do not hold each image once: repeat with --force.")
    record = Record(
        **measurement.model_dump(),
        run=subject.run,
        counts=count(rows, measurement.setting.get("members", [])),
        extremes={norm: float(rows[norm].max()) for norm in ("linf", "l2") if norm in rows},
        training=subject.training,
        selection=subject.selection,
        classes=images.classes,
        flags=own_flags(rows, measurement.setting) if measurement.experiment == "attack" else [],
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
