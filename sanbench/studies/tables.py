"""A study's tables in the paper's layout, from whatever is measured: values, not documents."""

import shlex
import statistics
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from sanbench.evaluation.robust import Findings
from sanbench.evaluation.statistics import SeedDifference, difference_over_seeds, holm, paired_difference, wilson
from sanbench.models import MODELS, size
from sanbench.runs.config import TrainConfig
from sanbench.store.schema import Record
from sanbench.studies.expand import SIZES, Column, Expansion, TablePlan, Training, Wanted
from sanbench.studies.shape import shape_of
from sanbench.studies.status import Standing
from sanbench.studies.study import Rows

LEVEL = 0.05
DASH, DIFFERENCE = "—", "difference"
PUBLISHED = {"top1": "top1", "top5": "top5", "parameters": "parameters", "gmacs": "flops"}  # fields of `Published`
HEADINGS = {"top1": "top-1", "top5": "top-5", "parameters": "parameters, M", "gmacs": "GMACs"}
ABOUT = (
    "Top-1, top-5, drops and successes in %: of one seed with its 95% interval (Wilson's; of a drop Newcombe's for the same "
    "images), of several their mean ± standard deviation. Difference: top-1 minus that of the reference, in points, with a 95% "
    "interval; of several seeds for other seeds and images, paired by both; of one seed by Newcombe for other images alone. It "
    "is within noise where the interval has 0, or p after Holm's correction for the differences of a table is 0.05 or more."
)


class Cell(NamedTuple):
    """`differs` is of a difference that is no noise."""

    text: str
    differs: bool = False


@dataclass(frozen=True)
class Shown:
    """A table: rows by heading, and what has to be said of it, commands that fill its dashes among that."""

    key: str
    title: str
    headings: list[str]
    rows: list[list[Cell]]
    notes: list[str] = field(default_factory=list)


def tables(standing: Standing, findings: Findings) -> list[Shown]:
    return [shown(table, standing, findings) for table in standing.expansion.tables]


def shown(table: TablePlan, standing: Standing, findings: Findings) -> Shown:
    """A row a network; beside a column of top-1 the difference to the reference, beside what the paper published that."""
    expansion = standing.expansion
    compared = [rows for rows in table.entry.rows if rows.reference is not None]
    paper = published_columns(expansion, table)
    differences = {
        (rows.title, name, column.heading): found
        for rows in compared
        for name in rows.networks
        for column in table.columns
        if (found := difference(standing, findings, column, name, rows.reference or ""))
    }
    adjusted = dict(zip(differences, holm([each.p for each in differences.values()]), strict=True))
    headings = [""]
    for column in table.columns:
        headings.append(heading(column, standing, table))
        headings += [DIFFERENCE] * bool(compared and column.figure == "top1")
        headings += ["paper"] * (column.heading in paper)
    body = []
    for rows in table.entry.rows:
        for name, label in rows.networks.items():
            line = [Cell(", ".join(filter(None, [rows.title, label])))]
            for column in table.columns:
                key = (rows.title, name, column.heading)
                line.append(Cell(figure(standing, findings, column, name)))
                if compared and column.figure == "top1":
                    line.append(difference_cell(differences.get(key), adjusted.get(key, 1.0), rows, name))
                if column.heading in paper:
                    line.append(Cell(paper[column.heading].get(name, DASH)))
            body.append(line)
    return Shown(table.key, table.entry.title, headings, body, list(notes(table, standing)))


def records(standing: Standing, column: Column, network: str) -> dict[int, Record]:
    """By seed, what is measured of a column."""
    every = standing.expansion.of(network)
    found = {t.config.seed: standing.records[t.name].get(standing.expansion.column(t, column)) for t in every}
    return {seed: record for seed, record in found.items() if record is not None}


def figure(standing: Standing, findings: Findings, column: Column, network: str) -> str:
    every = standing.expansion.of(network)
    if column.figure in SIZES:
        known = sizes(every[0].config)
        return DASH if known is None else f"{known[SIZES.index(column.figure)]:.3f}"
    found = records(standing, column, network)
    values = [value for seed, record in found.items() if (value := of_seed(standing, findings, column, network, seed, record))]
    if not values:
        return DASH
    percent = [100 * value[0] for value in values]
    if len(every) == 1:
        _, low, high = values[0]
        return f"{percent[0]:.1f} [{100 * low:.1f}, {100 * high:.1f}]"
    spread = f" ± {statistics.stdev(percent):.1f}" if len(percent) > 1 else ""
    few = f" ({len(percent)} of {len(every)} seeds)" if len(percent) < len(every) else ""
    return f"{statistics.mean(percent):.1f}{spread}{few}"


Value = tuple[float, float, float]  # in [0, 1], with its interval


def of_seed(standing: Standing, findings: Findings, column: Column, network: str, seed: int, record: Record) -> Value | None:
    """None where a figure needs another measurement that is missing, or has no images."""
    match column.figure:
        case "top5":
            found = wilson(record.counts["correct_top5"], record.counts["images"])
        case "success":
            success = findings.success(record)
            if success is None or not success.total:
                return None
            found = success
        case "drop":
            training = next(t for t in standing.expansion.of(network) if t.config.seed == seed)
            wanted = standing.expansion.upright(training, standing.expansion.column(training, column))
            upright = standing.records[training.name].get(wanted)
            if upright is None:
                return None
            drop = paired_difference(findings.right(upright), findings.right(record))
            return drop.value, drop.low, drop.high
        case _:
            found = findings.top1(record)
    return found.value, found.low, found.high


def difference(standing: Standing, findings: Findings, column: Column, network: str, reference: str) -> SeedDifference | None:
    """Of top-1, over the seeds that both have; None for other figures, for the reference, and where nothing is paired."""
    if column.figure != "top1" or network == reference:
        return None
    ours, theirs = records(standing, column, network), records(standing, column, reference)
    pairs = [(ours[seed], theirs[seed]) for seed in ours if seed in theirs and ours[seed].data == theirs[seed].data]
    return difference_over_seeds([(findings.right(a), findings.right(b)) for a, b in pairs]) if pairs else None


def difference_cell(found: SeedDifference | None, adjusted: float, rows: Rows, name: str) -> Cell:
    if found is None:
        return Cell("reference" if name == rows.reference else DASH)
    differs = found.excludes_zero and adjusted < LEVEL
    text = f"{100 * found.value:+.1f} [{100 * found.low:+.1f}, {100 * found.high:+.1f}]"
    return Cell(text if differs else f"{text} within noise", differs)


def heading(column: Column, standing: Standing, table: TablePlan) -> str:
    """`top-1, n 2,000`; n is left out where networks saw different numbers of images."""
    if column.figure in SIZES:
        return HEADINGS[column.figure]
    numbers = {r.data.images for name in table.networks for r in records(standing, column, name).values()}
    words = HEADINGS.get(column.heading) or f"{column.figure.replace('top1', '')} {column.about}".strip()
    return words + (f", n {numbers.pop():,}" if len(numbers) == 1 else "")


def published_columns(expansion: Expansion, table: TablePlan) -> dict[str, dict[str, str]]:
    """By column and network what was printed with the authors' code: of ImageNet and the networks as they are named alone."""
    found: dict[str, dict[str, str]] = {}
    for training in expansion.trainings if expansion.data == "imagenet" else ():
        spec = training.config.model
        paper = MODELS[spec.name].published
        if paper is not None and not spec.variation and training.network in table.networks:
            for column in table.columns:
                if column.heading in PUBLISHED:
                    value = f"{getattr(paper, PUBLISHED[column.heading])}"
                    found.setdefault(column.heading, {})[training.network] = value
    return found


def sizes(config: TrainConfig) -> tuple[float, float] | None:
    """Parameters in 10^6, and 10^9 multiply-adds of an image of the data set; None where its images are not known."""
    shape = shape_of(config)
    if shape is None:
        return None
    parameters, gmacs = size(config.model.name, shape.side, shape.classes, **config.model.variation)
    return parameters / 1e6, gmacs


def notes(table: TablePlan, standing: Standing) -> Iterator[str]:
    """Which cells are dashes, or of fewer seeds, and the command that fills them; which runs failed, and why."""
    missing: dict[str, list[Training]] = {}
    for training, wanted in standing.shown(table):
        if wanted not in standing.records[training.name]:
            own = missing.setdefault(training.network, [])
            own += [training] if training not in own else []
    labels = {
        name: ", ".join(filter(None, [rows.title, label])) for rows in table.entry.rows for name, label in rows.networks.items()
    }
    for network, trainings in missing.items():
        yield f"{labels[network]}: {command(standing.expansion, table.key, network)}"
        for training in trainings:
            if (state := standing.states[training.name]).word == "failed":
                yield f"{training.name} failed: {state.detail}"


def command(expansion: Expansion, table: str, network: str) -> str:
    """The command that fills the dashes of a network's row."""
    choice = expansion.choice
    words = [expansion.study.word, "--tables", table, "--networks", network, *choice.words, *choice.folders]
    return f"sanbench study run {shlex.join(words)}"


def conditions(found: Mapping[str, Mapping[Wanted, Record]]) -> str:
    """`Measured on cpu, 2 threads, AMD EPYC; seeds 0, 1, 2.`"""
    every = [record for own in found.values() for record in own.values()]
    devices = sorted({record.device for record in every})
    seeds = sorted({int(record.training.get("seed", 0)) for record in every})
    return f"Measured on {'; '.join(devices)}. Seeds {', '.join(map(str, seeds))}." if every else "Nothing is measured yet."
