"""Accuracy under attack: a table for each attack and protocol, a column for each budget."""

from collections.abc import Sequence

from sanbench.evaluation.kinds import NORMS, budget, declared_attack
from sanbench.evaluation.robust import Findings
from sanbench.evaluation.statistics import wilson
from sanbench.report.cells import Footnotes, by_row, cell, identity
from sanbench.report.rendering import Block, Heading, Table, Text
from sanbench.store.schema import Record


def section(group: Sequence[Record], findings: Findings) -> list[Block]:
    blocks: list[Block] = []
    attacks = [record for record in group if record.kind == "attack"]
    for text in dict.fromkeys(map(protocol, attacks)):
        chosen = [record for record in attacks if protocol(record) == text]
        notes = Footnotes(chosen, findings)
        lines = []
        for unsorted in by_row(chosen):
            records = sorted(unsorted, key=lambda record: budget(record.setting))
            first = records[0]
            before = wilson(first.counts["right_before"], first.counts["images"])
            line = {"network": first.network.label, "clean, same images": cell(before)}
            for record in records:
                counts, eps = record.counts, record.setting["eps"]
                line[f"robust, ε = {eps}"] = notes.cell(record)
                line[f"success, ε = {eps}"] = cell(findings.success(record))
                if "hit_target" in counts:
                    line[f"target hit, ε = {eps}"] = cell(wilson(counts["hit_target"], counts["right_before"]))
                if "correct_8bit" in counts:
                    line[f"robust in 8 bits, ε = {eps}"] = cell(wilson(counts["correct_8bit"], counts["images"]))
            passes = [sum(record.counts.get(name, 0) for record in records) for name in ("forward_passes", "backward_passes")]
            line["passes forward / backward"] = " / ".join(f"{number:,}" for number in passes)
            if all("places" in record.counts for record in records):
                line["batches full"] = f"{100 * passes[0] / sum(record.counts['places'] for record in records):.0f}%"
            lines.append(line | identity(first))
        blocks += [Heading(f"Attack: {chosen[0].setting['attack']}", 3), Text(text), Table(lines), *notes.blocks()]
    return blocks


def protocol(record: Record) -> str:
    """What all columns of an attack's table share, as a sentence."""
    target = "hit_target" in record.counts
    return (
        f"{NORMS[record.setting['norm']]} budget ε in pixels of [0, 1]; {declared_attack(record.setting)}. "
        "Robust: right under attack, of all images; what fell within a smaller budget counts as fallen within a larger. "
        "Success: wrong now, of those right before."
        + (" Target hit: given the target's class, of those right before." if target else "")
        + " In 8 bits: after rounding onto 256 levels inside the ball. Passes count images; batches full: passes forward of "
        "the places that the batches had."
    )
