"""Reports: tables derived from the records, nothing else. Delete them and they come back."""

from collections.abc import Iterable, Sequence
from typing import Any

import pandas as pd

from sanbench.errors import unknown
from sanbench.evaluation.statistics import wilson
from sanbench.models import MODELS
from sanbench.report.accuracy import accuracy_section, per_class_section
from sanbench.report.attacks import attack_section, transfer_section
from sanbench.report.cells import Rows
from sanbench.report.comparisons import comparison_section
from sanbench.report.corruptions import corruption_section
from sanbench.report.cost import COST_PICTURE, SWEEPS, cost_section, draw_cost, sweeps
from sanbench.report.pictures import draw_robustness
from sanbench.report.provenance import provenance_section
from sanbench.report.rendering import DOCUMENTS, Block, Heading, Picture, Text
from sanbench.report.rotations import rotation_section
from sanbench.store.files import Record, Store

FORMATS = (*DOCUMENTS, "csv")
SECTIONS = (
    accuracy_section,
    rotation_section,
    attack_section,
    transfer_section,
    corruption_section,
    comparison_section,
    per_class_section,
    provenance_section,
)


def write_report(store: Store, formats: str = "md,csv") -> list[str]:
    """Write report.md, .html or .tex, a CSV an experiment and a picture a data set; the paths written.

    Of a run that was trained again only the newest weights are shown. Raises InputError for an unknown format.
    """
    wanted = [word.strip() for word in formats.split(",")]
    for word in wanted:
        if word not in FORMATS:
            raise unknown("format", word, FORMATS)
    records = newest(store.records())
    files: dict[str, Any] = {}
    documents = [word for word in wanted if word in DOCUMENTS]
    if documents:
        benchmarks = store.benchmarks()
        blocks = contents(records, store.rows) + cost_section(benchmarks)
        if any(sweeps(benchmarks, varied) for varied in SWEEPS):
            files[COST_PICTURE] = lambda path: draw_cost(benchmarks, path)
        files |= {f"report.{word}": DOCUMENTS[word](blocks) for word in documents}
        for title, group in by_data(records).items():
            if any(record.experiment in ("rotation", "attack") for record in group):
                files[picture(title)] = lambda path, group=group: draw_robustness(group, path)
    if "csv" in wanted:
        for experiment in dict.fromkeys(record.experiment for record in records):
            chosen = [record for record in records if record.experiment == experiment]
            files[f"{experiment}.csv"] = pd.DataFrame([flat(record) for record in chosen]).to_csv(index=False)
    return [str(path) for path in store.write_derived(files)]


def newest(records: Sequence[Record]) -> list[Record]:
    """Without the records of weights that a run of that name no longer has; ResNets before the SANs they compare with."""
    latest = {(record.run, record.model): record.weights for record in records}  # oldest first, so the newest stays
    kept = [record for record in records if latest[record.run, record.model] == record.weights]
    return sorted(kept, key=lambda record: (network_order(record), record.run))


def network_order(record: Record) -> int:
    names = list(MODELS)
    name = record.model.split()[0]
    return names.index(name) if name in names else len(names)


def by_data(records: Iterable[Record]) -> dict[str, list[Record]]:
    """Records on the same images, by the name a reader knows them by."""
    groups: dict[tuple[str, ...], list[Record]] = {}
    for record in records:
        deciding = ("name", "split", "fingerprint", "preprocessing", "decoder")
        groups.setdefault(tuple(record.data.get(key, "") for key in deciding), []).append(record)
    named: dict[str, list[Record]] = {}
    for (name, _, fingerprint, preprocessing, decoder), group in groups.items():
        shrunk, digest = fingerprint.rpartition("-")[::2]  # see `sanbench.data.folders.fingerprint`
        title = name + (f", {shrunk}" if shrunk else "")
        titles = (title, f"{title} ({digest[:8]})", f"{title} ({digest[:8]}, {preprocessing}, {decoder})")
        named[next(title for title in titles if title not in named)] = group
    return named


def picture(title: str) -> str:
    return "robustness-" + "".join(c if c.isalnum() else "_" for c in title) + ".png"


def contents(records: Sequence[Record], rows: Rows) -> list[Block]:
    blocks: list[Block] = [
        Heading("Robustness of self-attention networks and their ResNet baselines", 1),
        Text("Percent of images, with 95% Wilson intervals in brackets. Written by `sanbench report` from `records/`."),
    ]
    for title, group in by_data(records).items():
        blocks.append(Heading(f"{title}: {group[0].data['split']} images ({group[0].data['of']:,})", 2))
        for section in SECTIONS:
            blocks += section(group, rows)
        if any(record.experiment in ("rotation", "attack") for record in group):
            blocks.append(Picture(picture(title), "Accuracy when rotated and under attack"))
    if not records:
        blocks.append(Text("There are no records yet: `sanbench accuracy`, `sanbench rotate` and `sanbench attack` make them."))
    return blocks


def flat(record: Record) -> dict[str, Any]:
    """A record as one row of a CSV: nothing rounded."""
    accuracy = wilson(record.counts["correct"], record.counts["images"])
    return {
        "model": record.model,
        "run": record.run,
        "weights": record.weights,
        "training_seed": record.training.get("seed"),
        "epoch": record.training.get("epoch"),
        "selection": record.selection,
        **{f"data_{name}": value for name, value in record.data.items()},
        **record.setting,
        **record.counts,
        "top1": accuracy.value,
        "top1_low": accuracy.low,
        "top1_high": accuracy.high,
        **{f"largest_{name}": value for name, value in record.extremes.items()},
        "flags": " ".join(record.flags),
        "device": record.device,
        "seconds": record.seconds,
        "created": record.created,
        **record.versions,
    }
