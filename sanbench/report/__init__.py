"""Reports: tables, pictures and documents derived from the store, nothing else. Delete them and they come back."""

from collections.abc import Iterable, Sequence
from importlib import import_module
from typing import Any, NamedTuple

import pandas as pd

from sanbench.errors import unknown
from sanbench.evaluation.kinds import KINDS
from sanbench.evaluation.robust import Findings
from sanbench.models import MODELS
from sanbench.report.accuracy import per_class_section
from sanbench.report.comparisons import comparison_section
from sanbench.report.cost import cost_pictures, cost_section
from sanbench.report.pictures import draw_robustness, has_picture
from sanbench.report.provenance import provenance_section
from sanbench.report.rendering import DOCUMENTS, Block, Heading, Picture, Text, csv_text
from sanbench.store.check import sound
from sanbench.store.files import Store
from sanbench.store.schema import Record

FORMATS = (*DOCUMENTS, "csv")


class Written(NamedTuple):
    """The files of a report, and a sentence for each record that it leaves out."""

    paths: list[str]
    problems: list[str]


def write_report(store: Store, formats: str = "md,csv") -> Written:
    """Write report.md, .html or .tex, a CSV a kind of measurement and a picture a data set.

    Of a run that was trained again only the newest weights are shown. What does not agree with its rows is left out, and a
    sentence says so. Raises InputError for an unknown format, and where there are no results.
    """
    wanted = [word.strip() for word in formats.split(",")]
    for word in wanted:
        if word not in FORMATS:
            raise unknown("format", word, FORMATS)
    store.must_exist()
    records, problems = sound(store, newest(store.records()))
    problems = [*store.problems, *problems]
    findings = Findings(records, store.rows)
    files: dict[str, Any] = {}
    documents = [word for word in wanted if word in DOCUMENTS]
    if documents:
        benchmarks = store.benchmarks()
        blocks = contents(findings) + cost_section(benchmarks)
        files |= {f"report.{word}": DOCUMENTS[word](blocks) for word in documents}
        files |= cost_pictures(benchmarks)
        for title, group in by_data(records).items():
            if has_picture(group):
                files[picture(title)] = lambda path, group=group: draw_robustness(group, findings, path)
    if "csv" in wanted:
        for kind in dict.fromkeys(record.kind for record in records):
            lines = [flat(record, findings) for record in records if record.kind == kind]
            files[f"{kind}.csv"] = pd.DataFrame(lines).map(csv_text).rename(columns=csv_text).to_csv(index=False)
    return Written([str(path) for path in store.write_derived(files)], problems)


def newest(records: Sequence[Record]) -> list[Record]:
    """Without the records of weights that a run of that name no longer has; ResNets before the SANs they compare with."""
    latest = {(record.run, record.network.label): record.network.weights for record in records}  # oldest first
    kept = [record for record in records if latest[record.run, record.network.label] == record.network.weights]
    return sorted(kept, key=lambda record: (network_order(record), record.run))


def network_order(record: Record) -> int:
    names = list(MODELS)
    return names.index(record.network.name) if record.network.name in names else len(names)


def by_data(records: Iterable[Record]) -> dict[str, list[Record]]:
    """Records on the same images, by the name a reader knows them by."""
    groups: dict[tuple[str, ...], list[Record]] = {}
    for record in records:
        deciding = ("name", "split", "fingerprint", "preprocessing", "decoder")
        groups.setdefault(tuple(getattr(record.data, field) for field in deciding), []).append(record)
    named: dict[str, list[Record]] = {}
    for (name, _, fingerprint, preprocessing, decoder), group in groups.items():
        shrunk, digest = fingerprint.rpartition("-")[::2]  # see `sanbench.data.folders.fingerprint`
        title = name + (f", {shrunk}" if shrunk else "")
        titles = (title, f"{title} ({digest[:8]})", f"{title} ({digest[:8]}, {preprocessing}, {decoder})")
        named[next(title for title in titles if title not in named)] = group
    return named


def picture(title: str) -> str:
    return "robustness-" + "".join(c if c.isalnum() else "_" for c in title) + ".png"


def contents(findings: Findings) -> list[Block]:
    modules = dict.fromkeys([*(entry.section for entry in KINDS.values()), "generic"])
    sections = [import_module(f"sanbench.report.{name}").section for name in modules]
    blocks: list[Block] = [
        Heading("Robustness of self-attention networks and their ResNet baselines", 1),
        Text("Percent of images, with 95% Wilson intervals in brackets. Written by `sanbench report` from `records/`."),
    ]
    for title, group in by_data(findings.records).items():
        blocks.append(Heading(f"{title}: {group[0].data.split} images ({group[0].data.of:,})", 2))
        for section in (*sections, comparison_section, per_class_section, provenance_section):
            blocks += section(group, findings)
        if has_picture(group):
            blocks.append(Picture(picture(title), "Accuracy when rotated and under attack"))
    if not findings.records:
        blocks.append(Text("There are no records yet: `sanbench accuracy`, `sanbench rotate` and `sanbench attack` make them."))
    return blocks


def flat(record: Record, findings: Findings) -> dict[str, Any]:
    """A record as one row of a CSV: nothing rounded. What fell within a smaller budget is not correct; see `Findings`."""
    accuracy, success = findings.top1(record), findings.success(record)
    counts = record.counts | {"correct": accuracy.hits} | ({} if success is None else {"success": success.hits})
    return {
        "model": record.network.name,
        **record.network.variation,
        "run": record.run,
        "weights": record.network.weights,
        "training_seed": record.training.get("seed"),
        "epoch": record.training.get("epoch"),
        "selection": record.selection,
        **{f"data_{name}": value for name, value in record.data},
        **record.setting,
        **counts,
        "top1": accuracy.value,
        "top1_low": accuracy.low,
        "top1_high": accuracy.high,
        **{f"largest_{name}": value for name, value in record.extremes.items()},
        "flags": " ".join(findings.flags(record)),
        "device": record.device,
        "seconds": record.seconds,
        "created": record.created,
        **record.versions,
    }
