"""Attacks and their transfer."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sanbench.evaluation.statistics import wilson
from sanbench.report.cells import Rows, by_subject, cell, footmarks, footnotes, identity, marked, norm, subject
from sanbench.report.rendering import Block, Heading, Table, Text
from sanbench.store.files import Record


def budget(text: str) -> float:
    top, _, bottom = text.partition("/")
    return float(top) / float(bottom or 1)


def attack_section(group: Sequence[Record], rows: Rows) -> list[Block]:
    blocks: list[Block] = []
    attacks = [record for record in group if record.experiment == "attack"]
    for protocol in dict.fromkeys(map(attack_protocol, attacks)):
        chosen = [record for record in attacks if attack_protocol(record) == protocol]
        marks = footmarks(chosen)
        lines = []
        for key, unsorted in by_subject(chosen).items():
            own = sorted(unsorted, key=lambda record: budget(record.setting["eps"]))
            counts = own[0].counts
            line = {"network": key[0], "clean, same images": cell(wilson(counts["right_before"], counts["images"]))}
            for record in own:
                counts, eps = record.counts, record.setting["eps"]
                robust = int(still_right(record, own, rows).sum())
                line[f"robust, ε = {eps}"] = cell(wilson(robust, counts["images"])) + marked(record, marks)
                line[f"success, ε = {eps}"] = cell(wilson(counts["right_before"] - robust, counts["right_before"]))
                if "hit_target" in counts:
                    line[f"target hit, ε = {eps}"] = cell(wilson(counts["hit_target"], counts["right_before"]))
                if "correct_8bit" in counts:
                    line[f"robust in 8 bits, ε = {eps}"] = cell(wilson(counts["correct_8bit"], counts["images"]))
            passes = [sum(record.counts.get(name, 0) for record in own) for name in ("forward_passes", "backward_passes")]
            line["passes forward / backward"] = " / ".join(f"{number:,}" for number in passes)
            if all("places" in record.counts for record in own):
                line["batches full"] = f"{100 * passes[0] / sum(record.counts['places'] for record in own):.0f}%"
            lines.append(line | identity(own[0]))
        blocks += [Heading(f"Attack: {chosen[0].setting['attack']}", 3), Text(protocol), Table(lines)]
        blocks += footnotes(marks)
    return blocks


def still_right(record: Record, group: Sequence[Record], rows: Rows) -> NDArray[np.bool_]:
    """By ascending index, whether an image is right; under attack also within every smaller budget of the same attack."""
    smaller = [
        other
        for other in group
        if record.experiment == other.experiment == "attack"
        and (subject(other), attack_protocol(other)) == (subject(record), attack_protocol(record))
        and budget(other.setting["eps"]) < budget(record.setting["eps"])
    ]
    frames = [rows(each).sort_values("index") for each in (record, *smaller)]
    right: NDArray[np.bool_] = np.logical_and.reduce([frame["prediction"].eq(frame["label"]).to_numpy() for frame in frames])
    return right


def attack_protocol(record: Record) -> str:
    """What all columns of an attack's table share, as a sentence."""
    words = []
    for name, value in record.setting.items():
        if name in ("attack", "norm", "eps") or value == "none":
            continue
        shown = step_in_budgets(record.setting) if name == "step_size" else value
        words.append(f"{name.replace('_', ' ')} {', '.join(map(str, shown)) if isinstance(shown, list) else shown}")
    target = "hit_target" in record.counts
    return (
        f"{norm(record.setting)} budget ε in pixels of [0, 1]; {'; '.join(words)}. "
        "Robust: right under attack, of all images; what fell within a smaller budget counts as fallen within a larger. "
        "Success: wrong now, of those right before."
        + (" Target hit: given the target's class, of those right before." if target else "")
        + " In 8 bits: after rounding onto 256 levels inside the ball. Passes count images; batches full: passes forward of "
        "the places that the batches had."
    )


def step_in_budgets(setting: dict[str, Any]) -> str:
    eps, step = budget(setting["eps"]), budget(setting["step_size"])
    return "ε/4" if math.isclose(eps, 4 * step) else str(setting["step_size"])


def transfer_section(group: Sequence[Record], rows: Rows) -> list[Block]:
    """A matrix for each attack and budget: made on the row's network, scored on the column's."""
    blocks: list[Block] = []
    transfers = [record for record in group if record.experiment == "transfer"]

    def protocol(record: Record) -> str:
        same = {name: value for name, value in record.setting.items() if not name.startswith("source")}
        return "; ".join(f"{name.replace('_', ' ')} {value}" for name, value in same.items() if value != "none")

    for shared in dict.fromkeys(map(protocol, transfers)):
        chosen = [record for record in transfers if protocol(record) == shared]
        lines = []
        for source in dict.fromkeys(record.setting["source"] for record in chosen):
            own = [record for record in chosen if record.setting["source"] == source]
            line = {"made on": source}
            line |= {f"{r.model} ({r.run})": cell(wilson(r.counts["success"], r.counts["right_before"])) for r in own}
            lines.append(line | {"n": identity(own[0])["n"]})
        text = (
            "Attack success: wrong now, of the images that the column's network had right before, on images made for the row's."
        )
        title = f"Transfer: {chosen[0].setting['attack']}, {norm(chosen[0].setting)} ε = {chosen[0].setting['eps']}"
        blocks += [Heading(title, 3), Text(f"{text} Protocol: {shared}."), Table(lines)]
    return blocks
