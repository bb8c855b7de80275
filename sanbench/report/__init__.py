"""Reports: tables, pictures and documents derived from the store, nothing else. Delete them and they come back."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from sanbench.errors import unknown
from sanbench.evaluation.kinds import KINDS
from sanbench.evaluation.pixels import Pixels
from sanbench.evaluation.robust import Findings
from sanbench.models import MODELS
from sanbench.report import comparisons, cost, gallery, images, provenance
from sanbench.report.answer import answer
from sanbench.report.html import page_files, picture_files
from sanbench.report.latex import latex
from sanbench.report.rendering import Block, Picture, Report, Section, csv_text, markdown_files
from sanbench.store.check import ReadRows, sound
from sanbench.store.files import Store
from sanbench.store.rows import Rows
from sanbench.store.schema import Record, slug

DOCUMENTS: dict[str, Callable[[Report], Mapping[str, str]]] = {
    "md": lambda report: {**markdown_files(report), **picture_files(report)},
    "html": page_files,
    "tex": lambda report: {"report.tex": latex(report)},
}
FORMATS = (*DOCUMENTS, "csv")


class Written(NamedTuple):
    """The files of a report, and a sentence for each record that it leaves out."""

    paths: list[str]
    problems: list[str]


def write_report(store: Store, formats: str = "md,csv", output: Path | None = None, pixels: Pixels | None = None) -> Written:
    """Write report.md with its pages and pictures, report.html with its pages of images, report.tex, and a CSV a kind.

    They go to `output`, or into the store's folder, from which the files of the report before are removed. `pixels` gives the
    images themselves, for the page of examples. Of a run that was trained again only the newest weights are shown. What does
    not agree with its rows is left out, and a sentence says so. Raises InputError for an unknown format, and where there are
    no results.
    """
    wanted = [word.strip() for word in formats.split(",")]
    for word in wanted:
        if word not in FORMATS:
            raise unknown("format", word, FORMATS)
    store.must_exist()
    read = remembering(store.columns)
    records, problems = sound(store, newest(store.records()), read=read)
    problems = list(dict.fromkeys([*store.problems, *problems]))
    findings = Findings(records, read)
    files: dict[str, str] = {}
    if documents := [word for word in wanted if word in DOCUMENTS]:
        report = contents(findings, store, pixels)
        for word in documents:
            files |= DOCUMENTS[word](report)
    if "csv" in wanted:
        for kind in dict.fromkeys(record.kind for record in records):
            lines = [flat(record, findings) for record in records if record.kind == kind]
            files[f"{kind}.csv"] = pd.DataFrame(lines).map(csv_text).rename(columns=csv_text).to_csv(index=False)
    target = store if output is None else Store(output, "--output")
    return Written([str(path) for path in target.write_derived(files)], problems)


def remembering(read: ReadRows, limit: int = 2**28) -> ReadRows:
    """`read`, which is asked again only for rows that came after so many bytes."""
    kept: dict[str, Rows] = {}
    size = 0

    def rows(record: Record) -> Rows:
        nonlocal size
        if record.key in kept:
            return kept[record.key]
        found = read(record)
        size += sum(values.nbytes for values in found.values())
        if size <= limit:
            kept[record.key] = found
        return found

    return rows


def newest(records: Sequence[Record]) -> list[Record]:
    """Without the records of weights that a run of that name no longer has; ResNets before the SANs they compare with."""
    latest = {(record.run, record.network.label): record.network.weights for record in records}  # oldest first
    kept = [record for record in records if latest[record.run, record.network.label] == record.network.weights]
    return sorted(kept, key=lambda record: (network_order(record), record.run))


def network_order(record: Record) -> int:
    names = list(MODELS)
    return names.index(record.network.name) if record.network.name in names else len(names)


def by_data(records: Iterable[Record]) -> dict[str, list[Record]]:
    """Records on the same images, by the name a reader knows them by; how files became input may differ within one."""
    groups: dict[tuple[str, str, str], list[Record]] = {}
    for record in records:
        groups.setdefault((record.data.name, record.data.split, record.data.fingerprint), []).append(record)
    named: dict[str, list[Record]] = {}
    for (name, split, fingerprint), group in groups.items():
        shrunk, digest = fingerprint.rpartition("-")[::2]  # see `sanbench.data.listing.fingerprint`
        title = name + (f", {shrunk}" if shrunk else "")
        images = f": {split} images ({group[0].data.of:,})"
        titles = (f"{title}{images}", f"{title} ({digest[:8]}){images}", f"{title} ({fingerprint}){images}")
        named[next(title for title in titles if title not in named)] = group
    return named


def contents(findings: Findings, store: Store, pixels: Pixels | None = None) -> Report:
    """The answer, the sections of each kind, the paired tests, what networks cost, and last where all came from."""
    groups = by_data(findings.records)
    kinds = {
        name: import_module(f"sanbench.report.{name}") for name in [*(entry.section for entry in KINDS.values()), "generic"]
    }
    sections = []
    for subject, module in {**kinds, "comparisons": comparisons, "provenance": provenance}.items():
        if subject == "provenance" and (blocks := cost.section(store.benchmarks())):
            sections.append(Section("cost", "", with_files(blocks, "cost")))
        for number, (data, group) in enumerate(groups.items()):
            if blocks := module.section(group, findings):
                sections.append(
                    Section(
                        subject,
                        data if len(groups) > 1 else "",
                        with_files(blocks, subject + (f"-{slug(data)}-{number}" if number else "")),
                    )
                )
    about = "Robustness to rotation, corruption and adversarial examples. Written by `sanbench report` from records/."
    if not groups:
        about += " There are no records yet: `sanbench accuracy`, `sanbench rotate` and `sanbench attack` make them."
    answers = {data: answer(group, findings) for data, group in groups.items()}
    pages = {name: page for group in groups.values() for name, page in images.pages(group, findings, store).items()}
    return Report(
        "Self-attention networks and their ResNet baselines",
        about,
        answers,
        sections,
        pages,
        gallery.pages(groups, findings, store, pixels),
    )


def with_files(blocks: Sequence[Block], stem: str) -> list[Block]:
    """The blocks, their pictures with names of files."""
    return [replace(block, file=f"report/{stem}.svg") if isinstance(block, Picture) else block for block in blocks]


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
