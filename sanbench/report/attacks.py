"""Accuracy under attack: one table for all attacks, and what each attack did."""

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

from sanbench.evaluation.kinds import NORMS, budget, listed, nested_attack, shared_attack, worded
from sanbench.evaluation.robust import Findings
from sanbench.evaluation.statistics import Proportion, wilson
from sanbench.report.cells import (
    Footnotes,
    Shown,
    cell,
    main_selection,
    matrix,
    names,
    number_of_images,
    selection,
    series,
    shown,
    told_n,
)
from sanbench.report.charts import Panel, Series
from sanbench.report.rendering import Block, Heading, Picture, Table, Text
from sanbench.store.schema import Record

ABOUT = (
    "Robust: right under attack, of all images, as RobustBench counts; what fell within a smaller budget ε has fallen within a "
    "larger one. ε is in pixels of [0, 1]. ε = 0: the same images unattacked. `standard` is the ensemble of AutoAttack, one "
    "member after the other on the images that still stand; the other attacks are the library's own settings of them."
)
COUNTS = (
    "Success: wrong now, of those right before. Target hit: given the target's class, of those right before. In 8 bits: robust "
    "after rounding onto 256 levels inside the ball. Passes count images; batches full: passes forward of the places that the "
    "batches had."
)


PASSES = (
    "Passes: forward and backward ones that the attack spent on an image until it fell; under pgd-targeted until it had its "
    "target. An image that stands has withstood all of them."
)


def section(group: Sequence[Record], findings: Findings) -> list[Block]:
    """The picture of budgets, and tables: robust accuracy, what each attack did, members of ensembles, protocols."""
    attacks = [record for record in group if record.kind == "attack"]
    if not attacks:
        return []
    named, called, notes = names(group), protocols(attacks), Footnotes(attacks, findings)
    attacks.sort(key=lambda record: (called[protocol(record)], budget(record.setting)))

    def condition(record: Record) -> dict[str, str]:
        return {"attack": called[protocol(record)], "ε": record.setting["eps"]}

    blocks: list[Block] = [Heading("Under attack", 3), Text(ABOUT), pictures(attacks, findings, named, called)]
    clean = matrix(first_of_images(attacks), lambda _: {"attack": "none", "ε": "0"}, lambda r: cell(before(r)), named)
    blocks += [Table([*clean, *matrix(attacks, condition, notes.cell, named)], "Robust accuracy"), *notes.blocks()]
    lines = [condition(record) | {"network": named[shown(record)]} | did(record, findings) for record in attacks]
    blocks += [Text(COUNTS), Table(lines, "What each attack did")]
    ensembles = [record for record in attacks if record.setting.get("members")]
    if ensembles:
        members = [condition(record) | {"network": named[shown(record)]} | fell(record) for record in ensembles]
        blocks.append(Table(members, "Images that fell to each member, in their order"))
    if limited := [record for record in attacks if "max_passes" in record.setting]:
        blocks += [Text(PASSES), Table(over_passes(limited, condition, findings, named), "Robust accuracy over passes")]
    told = {called[protocol(record)]: settings(record.setting) for record in attacks}
    return [*blocks, Table([{"attack": name} | setting for name, setting in told.items()], "Protocols")]


def protocol(record: Record) -> str:
    """What an attack's budgets share: those of one protocol are nested."""
    return nested_attack(record.setting)[0]


def protocols(records: Iterable[Record]) -> dict[str, str]:
    """What each protocol is called: the attack, and where an attack has several, what differs between them."""
    found = {protocol(record): record.setting for record in records}
    called = {}
    for key, setting in found.items():
        own = settings(setting)
        others = [settings(other) for other in found.values() if other["attack"] == setting["attack"]]
        differing = {name: value for name, value in own.items() if any(other.get(name) != value for other in others)}
        called[key] = setting["attack"] + (f" ({listed(differing, ', ')})" if differing else "")
    return called


def settings(setting: dict[str, Any]) -> dict[str, str]:
    """Norm and parameters, as words."""
    shared = {"norm": NORMS[setting["norm"]], **shared_attack(setting)}
    return {name.replace("_", " "): worded(value) for name, value in shared.items() if value != "none"}


def before(record: Record) -> Proportion:
    """Right on the clean images, of those that were attacked."""
    return wilson(record.counts["right_before"], record.counts["images"])


def first_of_images(records: Iterable[Record]) -> list[Record]:
    """One record of each network and selection of images."""
    return list({(shown(record), selection(record)): record for record in records}.values())


def did(record: Record, findings: Findings) -> dict[str, str]:
    """What an attack did beside what is robust."""
    counts = record.counts
    line = {"success": cell(findings.success(record))}
    if "hit_target" in counts:
        line["target hit"] = cell(wilson(counts["hit_target"], counts["right_before"]))
    if "correct_8bit" in counts:
        line["in 8 bits"] = cell(wilson(counts["correct_8bit"], counts["images"]))
    passes = [counts.get(name, 0) for name in ("forward_passes", "backward_passes")]
    line["passes forward / backward"] = " / ".join(f"{number:,}" for number in passes)
    if counts.get("places"):
        line["batches full"] = f"{100 * passes[0] / counts['places']:.0f}%"
    return line | {"n": number_of_images(record.data)}


def fell(record: Record) -> dict[str, str]:
    counts = record.counts
    fallen = {
        member: f"{counts[f'fell_to_{member}']:,}" for member in record.setting["members"] if f"fell_to_{member}" in counts
    }
    return (
        {"right before": f"{counts['right_before']:,}"}
        | fallen
        | {"stand": f"{counts['correct']:,}", "n": number_of_images(record.data)}
    )


def over_passes(
    records: Sequence[Record], condition: Callable[[Record], dict[str, str]], findings: Findings, named: dict[Shown, str]
) -> list[dict[str, str]]:
    """A row an attack and number of passes, each twice the one before, up to the limit."""
    lines = []
    for limit in sorted({record.setting["max_passes"] for record in records}):
        own = [record for record in records if record.setting["max_passes"] == limit]
        for passes in sorted({-(-limit // 2**n) for n in range(6)}):
            at = {"passes": f"{passes:,}"}
            lines += matrix(
                own,
                lambda record, at=at: condition(record) | at,  # type: ignore[misc]
                lambda record, passes=passes: cell(findings.within_passes(record, passes)),  # type: ignore[misc]
                named,
            )
    return sorted(lines, key=lambda line: (line["attack"], line["ε"]))


def at_budget(record: Record, scale: int) -> float:
    return scale * float(budget(record.setting))


def pictures(attacks: Sequence[Record], findings: Findings, named: dict[Shown, str], called: dict[str, str]) -> Picture:
    """A curve for each protocol with several budgets, and one panel for all that have a single one."""
    panels, single = [], []
    for key, name in called.items():
        own = main_selection(record for record in attacks if protocol(record) == key)
        if len({record.setting["eps"] for record in own}) == 1:
            single += own
            continue
        scale, norm = (255, "1/255") if own[0].setting["norm"] == "linf" else (1, "pixels of [0, 1]")
        curves = series(own, partial(at_budget, scale=scale), findings.top1, named)
        clean = series(first_of_images(own), lambda _: 0.0, before, named)
        joined = [Series(one.name, {**zero.points, **one.points}) for zero, one in zip(clean, curves, strict=True)]
        panels.append(Panel(f"{name}, {told_n(own)}", f"{NORMS[own[0].setting['norm']]} budget ε in {norm}", joined))
    if single:
        dots = series(single, lambda r: f"{called[protocol(r)]}, ε = {r.setting['eps']}, {told_n([r])}", findings.top1, named)
        panels.append(Panel("one budget", "robust accuracy", dots))
    return Picture(panels, "Robust accuracy.")
