"""Reports: tables derived from the records, nothing else. Delete them and they come back."""

import math
from collections.abc import Iterable, Sequence
from typing import Any

import pandas as pd

from sanbench.evaluation.statistics import Proportion, wilson
from sanbench.figures import draw_robustness
from sanbench.models import MODELS
from sanbench.records import Record, Store


def write_report(store: Store) -> list[str]:
    """Write report.md, a CSV an experiment and a picture a data set; the paths written.

    Of a run that was trained again only the newest weights are shown.
    """
    records = newest(store.records())
    files: dict[str, Any] = {"report.md": markdown(records)}
    for experiment in dict.fromkeys(record.experiment for record in records):
        chosen = [record for record in records if record.experiment == experiment]
        files[f"{experiment}.csv"] = pd.DataFrame([flat(record) for record in chosen]).to_csv(index=False)
    for title, group in by_data(records).items():
        if any(record.experiment != "accuracy" for record in group):
            files[picture(title)] = lambda path, group=group: draw_robustness(group, path)
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
    groups: dict[tuple[Any, ...], list[Record]] = {}
    for record in records:
        groups.setdefault((record.data["name"], record.data["split"], record.data["fingerprint"]), []).append(record)
    named: dict[str, list[Record]] = {}
    for (name, _, fingerprint), group in groups.items():
        named[name if name not in named else f"{name} ({fingerprint[:8]})"] = group
    return named


def picture(title: str) -> str:
    return "robustness-" + "".join(c if c.isalnum() else "_" for c in title) + ".png"


def flat(record: Record) -> dict[str, Any]:
    """A record as one row of a CSV: nothing rounded."""
    accuracy = wilson(record.counts["correct"], record.counts["images"])
    return {
        "model": record.model,
        "run": record.run,
        "weights": record.weights,
        "training_seed": record.training["seed"],
        "epoch": record.training["epoch"],
        "selection": record.selection,
        **{f"data_{name}": value for name, value in record.data.items()},
        **record.setting,
        **record.counts,
        "top1": accuracy.value,
        "top1_low": accuracy.low,
        "top1_high": accuracy.high,
        **{f"largest_{name}": value for name, value in record.extremes.items()},
        "device": record.device,
        "seconds": record.seconds,
        "created": record.created,
        **record.versions,
    }


def markdown(records: Sequence[Record]) -> str:
    lines = [
        "# Robustness of self-attention networks and their ResNet baselines",
        "",
        "Percent of images, with 95% Wilson intervals in brackets. Written by `sanbench report` from `records/`.",
    ]
    for title, group in by_data(records).items():
        of = group[0].data["of"]
        lines += ["", f"## {title}: {group[0].data['split']} images ({of:,})"]
        lines += accuracy_section(title, group) + rotation_section(group) + attack_section(group)
        if any(record.experiment != "accuracy" for record in group):
            lines += ["", f"![Accuracy when rotated and under attack]({picture(title)})"]
        lines += provenance_section(group)
    if not records:
        lines += ["", "There are no records yet: `sanbench accuracy`, `sanbench rotate` and `sanbench attack` make them."]
    return "\n".join(lines) + "\n"


def accuracy_section(title: str, group: Sequence[Record]) -> list[str]:
    published = title == "imagenet"
    rows = []
    for record in (record for record in group if record.experiment == "accuracy"):
        counts = record.counts
        row = {
            "network": record.model,
            "top-1": cell(wilson(counts["correct"], counts["images"])),
            "top-5": cell(wilson(counts["correct_top5"], counts["images"])),
            **identity(record),
        }
        paper = MODELS[record.model].published if published and record.model in MODELS else None
        if published:
            row["published top-1 / top-5"] = f"{paper.top1} / {paper.top5}" if paper else ""
        rows.append(row)
    return ["", "### Accuracy, upright", "", *table(rows)] if rows else []


def rotation_section(group: Sequence[Record]) -> list[str]:
    upright = {subject(r): wilson(r.counts["correct"], r.counts["images"]) for r in group if r.experiment == "accuracy"}
    rotated = [record for record in group if record.experiment == "rotation"]
    angles = sorted({record.setting["angle"] for record in rotated}, key=lambda angle: (isinstance(angle, str), angle))
    rows = []
    for key in dict.fromkeys(map(subject, rotated)):
        own = {record.setting["angle"]: record for record in rotated if subject(record) == key}
        row = {"network": key[0], "upright": cell(upright.get(key))}
        for angle in angles:
            found = own.get(angle)
            value = wilson(found.counts["correct"], found.counts["images"]) if found else None
            drop = f" ({100 * (value.value - upright[key].value):+.1f})" if value and key in upright else ""
            row[f"{angle}°" if isinstance(angle, int) else str(angle)] = cell(value) + drop
        rows.append(row | identity(next(iter(own.values()))))
    text = "Top-1 on images turned clockwise, flip is upside down; in parentheses the difference to upright in points."
    return ["", "### Rotated images, zero-shot", "", text, "", *table(rows)] if rows else []


def attack_section(group: Sequence[Record]) -> list[str]:
    attacks = [record for record in group if record.experiment == "attack"]
    lines: list[str] = []
    for protocol in dict.fromkeys(map(attack_protocol, attacks)):
        chosen = [record for record in attacks if attack_protocol(record) == protocol]
        rows = []
        for key in dict.fromkeys(map(subject, chosen)):
            own = sorted((r for r in chosen if subject(r) == key), key=lambda r: budget(r.setting["eps"]))
            counts = own[0].counts
            row = {"network": key[0], "clean, same images": cell(wilson(counts["right_before"], counts["images"]))}
            for record in own:
                counts, eps = record.counts, record.setting["eps"]
                row[f"robust, ε = {eps}"] = cell(wilson(counts["correct"], counts["images"]))
                row[f"success, ε = {eps}"] = cell(wilson(counts["success"], counts["right_before"]))
                if "hit_target" in counts:
                    row[f"target hit, ε = {eps}"] = cell(wilson(counts["hit_target"], counts["right_before"]))
            rows.append(row | identity(own[0]))
        lines += ["", f"### Attack: {chosen[0].setting['attack']}", "", protocol, "", *table(rows)]
    return lines


def attack_protocol(record: Record) -> str:
    """What all columns of an attack's table share, as a sentence."""
    setting = record.setting
    steps = f"{setting['steps']} steps of {step_in_budgets(setting)}"
    target = "" if setting["target"] == "none" else f", target {setting['target']}"
    return (
        f"L∞ budget ε in pixels of [0, 1], {steps}, {setting['restarts']} start {setting['start']}{target}, "
        f"seed {setting['seed']}. "
        "Robust: right under attack, of all images. Success: wrong now, of those right before."
        + (" Target hit: given the target's class, of those right before." if target else "")
    )


def step_in_budgets(setting: dict[str, Any]) -> str:
    eps, step = budget(setting["eps"]), budget(setting["step_size"])
    return "ε/4" if math.isclose(eps, 4 * step) else str(setting["step_size"])


def budget(text: str) -> float:
    top, _, bottom = text.partition("/")
    return float(top) / float(bottom or 1)


def provenance_section(group: Sequence[Record]) -> list[str]:
    """How each network was trained and where it was measured."""
    rows = []
    for record in {(record.run, record.weights): record for record in group}.values():
        recipe = record.training["recipe"]
        rows.append(
            {
                "network": record.model,
                "run": record.run,
                "recipe": f"{recipe['optimizer']}, lr {recipe['lr']}, batch {recipe['batch_size']}, {recipe['epochs']} epochs",
                "images": f"{record.training['train_images']:,}",
                "evaluated": f"epoch {record.training['epoch']} ({record.selection})",
                "minutes": f"{record.training['train_seconds'] / 60:.1f}",
            }
        )
    devices = ", ".join(sorted({record.device for record in group}))
    made = ", ".join(f"{name} {value}" for name, value in group[-1].versions.items())
    measured = sum(record.seconds for record in group) / 60
    tail = f"Measured in {measured:.1f} minutes on {devices} with {made}; decoder {group[0].data['decoder']}."
    return ["", "### How the networks came about", "", *table(rows), "", tail]


def subject(record: Record) -> tuple[str, str, int, int | None]:
    """What a table has a row for: one network's weights on one selection of images."""
    return record.model, record.weights, record.data["images"], record.data["subset_seed"]


def identity(record: Record) -> dict[str, str]:
    data = record.data
    n = f"{data['images']:,}" if data["images"] == data["of"] else f"{data['images']:,} of {data['of']:,}"
    return {"n": n, "seed": str(record.training["seed"]), "weights": record.weights[:8]}


def cell(value: Proportion | None) -> str:
    """`84.3 [82.6, 85.8]`, in percent."""
    if value is None or math.isnan(value.value):
        return "—"
    return f"{100 * value.value:.1f} [{100 * value.low:.1f}, {100 * value.high:.1f}]"


def table(rows: Sequence[dict[str, str]]) -> list[str]:
    """Rows as a Markdown table; a column that a row has not stays empty."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    lines = [names, ["---"] * len(names), *([row.get(name, "—") for name in names] for row in rows)]
    return ["| " + " | ".join(line) + " |" for line in lines]
