"""Experiments: a trained network, images and perturbations become rows and records, part by part."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import torch

from sanbench.data import Images, Source, batches, load_dataset, subset
from sanbench.device import describe, versions
from sanbench.errors import InputError, SanbenchError
from sanbench.evaluation.loop import Perturbation, Rows, measure
from sanbench.models import Classifier
from sanbench.models.checkpoints import read_checkpoint, rebuild, weights_hash
from sanbench.progress import Progress, Report, silent
from sanbench.records import Measurement, Record, Store

PART = 250  # images between two points from which an interrupted measurement goes on


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
    """How many images, in which batches: `limit` of them drawn by `seed`, all without a limit."""

    limit: int | None = None
    seed: int = 0
    batch_size: int = 64
    workers: int = 0
    force: bool = False


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
    missing = [condition for condition in conditions if records[condition.measurement.key] is None]
    parts = [chosen[start : start + PART] for start in range(0, len(chosen), PART)]
    measure_parts(subject, images, parts, missing, store, device, protocol, progress)
    for measurement, _ in missing:
        records[measurement.key] = finish(measurement, subject, chosen, len(parts), store, device)
    return [record for record in records.values() if record is not None]


class Condition(NamedTuple):
    measurement: Measurement
    perturbation: Perturbation


def measure_parts(
    subject: Subject,
    images: Images,
    parts: list[list[int]],
    conditions: list[Condition],
    store: Store,
    device: torch.device,
    protocol: Protocol,
    progress: Report,
) -> None:
    """Write every part of every condition that the store does not hold."""
    plan = [
        (part, needed, indices[start : start + protocol.batch_size])
        for part, indices in enumerate(parts)
        if (needed := [c for c in conditions if not store.has_part(c.measurement, part)])
        for start in range(0, len(indices), protocol.batch_size)
    ]
    reader = batches(images, [chunk for _, _, chunk in plan], protocol.workers)
    stream = ((batch, [c.perturbation for c in needed]) for batch, (_, needed, _) in zip(reader, plan, strict=True))
    collected: list[list[Rows]] = []  # of the part so far, one entry a batch
    for done, outcome in enumerate(measure(subject.model, stream, device), start=1):
        collected.append(outcome)
        progress(Progress(f"{subject.run} {images.name}", done, len(plan)))
        part, needed, _ = plan[done - 1]
        if done < len(plan) and plan[done][0] == part:
            continue
        for condition, rows in zip(needed, zip(*collected, strict=True), strict=True):
            frame = pd.concat([each.frame for each in rows], ignore_index=True)
            store.write_part(condition.measurement, part, frame, sum(each.seconds for each in rows))
        collected = []


def finish(
    measurement: Measurement, subject: Subject, chosen: list[int], parts: int, store: Store, device: torch.device
) -> Record:
    """Merge the parts of a measurement into its rows and its record."""
    rows, seconds = store.read_parts(measurement, parts)
    if rows["index"].tolist() != chosen:
        raise SanbenchError(f"The parts of {measurement.name} do not hold each image once: repeat with --force.")
    record = Record(
        **measurement.model_dump(),
        run=subject.run,
        counts=count(rows),
        extremes={"linf": float(rows["linf"].max())} if "linf" in rows else {},
        training=subject.training,
        selection=subject.selection,
        versions=versions(),
        device=describe(device),
        seconds=seconds,
        created=datetime.now(UTC).isoformat(timespec="milliseconds"),
    )
    store.write(record, rows)
    return record


def count(rows: pd.DataFrame) -> dict[str, int]:
    """Counts of a record, see `Record`."""
    counts = {"images": len(rows), "correct": (rows["prediction"] == rows["label"]).sum(), "correct_top5": rows["top5"].sum()}
    if "clean_prediction" in rows:
        right_before = rows["clean_prediction"] == rows["label"]
        counts |= {"right_before": right_before.sum(), "success": rows["success"].sum()}
        if "target" in rows:
            counts["hit_target"] = (right_before & (rows["prediction"] == rows["target"])).sum()
    return {name: int(value) for name, value in counts.items()}
