"""The tables of a report: each section turns the records of one data set into blocks."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from sanbench.evaluation.corruptions import ORIGINAL
from sanbench.evaluation.masking import FLAGS
from sanbench.evaluation.statistics import Proportion, wilson
from sanbench.models import MODELS
from sanbench.records import Record
from sanbench.report.rendering import Block, Heading, Table, Text

Rows = Callable[[Record], pd.DataFrame]


WIDEST = 8  # angles in columns


def network_order(record: Record) -> int:
    names = list(MODELS)
    name = record.model.split()[0]
    return names.index(name) if name in names else len(names)


def subject(record: Record) -> tuple[str, str, int, int | None]:
    """What a table has a row for: one network's weights on one selection of images."""
    return record.model, record.weights, record.data["images"], record.data["subset_seed"]


def by_subject(records: Sequence[Record]) -> dict[tuple[str, str, int, int | None], list[Record]]:
    return {key: [r for r in records if subject(r) == key] for key in dict.fromkeys(map(subject, records))}


def identity(record: Record) -> dict[str, str]:
    data = record.data
    n = f"{data['images']:,}" if data["images"] == data["of"] else f"{data['images']:,} of {data['of']:,}"
    return {"n": n, "seed": str(record.training.get("seed", "—")), "weights": record.weights[:8]}


def cell(value: Proportion | None) -> str:
    """`84.3 [82.6, 85.8]`, in percent."""
    if value is None or math.isnan(value.value):
        return "—"
    return f"{100 * value.value:.1f} [{100 * value.low:.1f}, {100 * value.high:.1f}]"


def top1(record: Record) -> Proportion:
    return wilson(record.counts["correct"], record.counts["images"])


def condition(record: Record) -> str:
    """`turned 90°`, `pgd, L∞ ε = 8/255`, `fog 3`: what was done to the images."""
    setting = record.setting
    match record.experiment:
        case "rotation":
            return turned(setting["angle"]) + "".join(f", {word}" for word in (view_name(view(record)),) if word)
        case "attack":
            return f"{setting['attack']}, {norm(setting)} ε = {setting['eps']}"
        case "transfer":
            return f"{setting['attack']} from {setting['source']}, {norm(setting)} ε = {setting['eps']}"
        case "corruption":
            return f"{setting['kind']} {setting['severity']}"
    return "upright"


def turned(angle: int | float | str) -> str:
    return angle if isinstance(angle, str) else f"{angle}°"


def norm(setting: dict[str, Any]) -> str:
    return {"linf": "L∞", "l2": "L₂"}[setting["norm"]]


def budget(text: str) -> float:
    top, _, bottom = text.partition("/")
    return float(top) / float(bottom or 1)


def accuracy_section(group: Sequence[Record], rows: Rows) -> list[Block]:
    published = group[0].data["name"] == "imagenet"
    upright = [record for record in group if record.experiment == "accuracy"]
    marks = footmarks(upright)
    lines = []
    for record in upright:
        counts = record.counts
        line = {
            "network": record.model,
            "top-1": cell(top1(record)) + marked(record, marks),
            "top-5": cell(wilson(counts["correct_top5"], counts["images"])),
            **identity(record),
        }
        paper = MODELS[record.model].published if published and record.model in MODELS else None
        if published:
            line["published top-1 / top-5"] = f"{paper.top1} / {paper.top5}" if paper else ""
        lines.append(line)
    return [Heading("Accuracy, upright", 3), Table(lines), *footnotes(marks)] if lines else []


def footmarks(records: Sequence[Record]) -> dict[str, str]:
    """A mark for each flag that any of them has."""
    return {name: f"†{n}" for n, name in enumerate(dict.fromkeys(f for r in records for f in r.flags), start=1)}


def marked(record: Record, marks: dict[str, str]) -> str:
    return "".join(f" {marks[name]}" for name in record.flags)


def footnotes(marks: dict[str, str]) -> list[Block]:
    return [Text(f"{mark} {FLAGS[name]}") for name, mark in marks.items()]


View = tuple[tuple[str, Any], ...]


def view(record: Record) -> View:
    """What is declared beside the angle."""
    return tuple((name, value) for name, value in record.setting.items() if name != "angle")


def view_name(declared: View) -> str:
    return ", ".join(f"{name} {value}" for name, value in declared if value != "none")


def rotation_section(group: Sequence[Record], rows: Rows) -> list[Block]:
    """A table for each view; angles are in rows where there are more than eight."""
    blocks: list[Block] = []
    rotated = [record for record in group if record.experiment == "rotation"]
    for declared in dict.fromkeys(map(view, rotated)):
        chosen = [record for record in rotated if view(record) == declared]
        controls = [record for record in group if record.experiment == "accuracy"] if not framed(declared) else chosen
        upright = {subject(r): top1(r) for r in controls if r.setting.get("angle", 0) == 0}
        angles = sorted(
            {r.setting["angle"] for r in chosen if r.setting["angle"] != 0}, key=lambda angle: (isinstance(angle, str), angle)
        )
        lines = []
        for key, own in by_subject(chosen).items():
            line = {"network": key[0], "upright": cell(upright.get(key))}
            for angle in angles:
                value = next((top1(record) for record in own if record.setting["angle"] == angle), None)
                drop = f" ({100 * (value.value - upright[key].value):+.1f})" if value and key in upright else ""
                line[turned(angle)] = cell(value) + drop
            lines.append(line | identity(own[0]))
        if len(angles) > WIDEST:
            lines = transposed(lines)
        text = "Top-1 on images turned clockwise, flip is upside down, mirror left to right; in parentheses the difference "
        text += "to upright in points." + (f" Declared: {view_name(declared)}." if declared else "")
        title = "Rotated images, zero-shot" + (f": {view_name(declared)}" if declared else "")
        blocks += [Heading(title, 3), Text(text), Table(lines)]
    return blocks


def transposed(lines: Sequence[dict[str, str]]) -> list[dict[str, str]]:
    """Columns become rows; a network whose name stands there already is told apart by its weights."""
    heads = [f"{line['network']}, n {line['n']}, {line['weights']}" for line in lines]
    names = list(dict.fromkeys(name for line in lines for name in line if name not in ("network", "n", "weights")))
    return [{"turned": n} | {head: line.get(n, "—") for head, line in zip(heads, lines, strict=True)} for n in names]


def framed(declared: View) -> bool:
    """Whether crop or mask change upright images too, which then need a control of their own."""
    return any(name in ("crop", "mask") and value != "none" for name, value in declared)


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


def corruption_section(group: Sequence[Record], rows: Rows) -> list[Block]:
    """Top-1 by kind over all severities, and the mean corruption error against the ResNet of the same table."""
    corrupted = [record for record in group if record.experiment == "corruption"]
    if not corrupted:
        return []
    errors = {
        key: {(r.setting["kind"], r.setting["severity"]): 1 - top1(r).value for r in own}
        for key, own in by_subject(corrupted).items()
    }
    kinds = list(dict.fromkeys(record.setting["kind"] for record in corrupted))
    lines = []
    for key, own in by_subject(corrupted).items():
        name = key[0].split()[0]
        reference = (MODELS[name].baseline or name) if name in MODELS else None
        baseline = next((k for k in errors if k[0].split()[0] == reference and k[2:] == key[2:]), None)
        line = {"network": key[0], "mCE": mean_corruption_error(errors[key], errors[baseline]) if baseline else "—"}
        for kind in kinds:
            of_kind = [record.counts for record in own if record.setting["kind"] == kind]
            line[kind] = cell(wilson(sum(c["correct"] for c in of_kind), sum(c["images"] for c in of_kind)))
        lines.append(line | identity(own[0]))
    severities = sorted({record.setting["severity"] for record in corrupted})
    text = (
        f"Top-1 over severities {', '.join(map(str, severities))}; the interval takes them as separate images. "
        "mCE: mean over kinds of the error summed over severities, divided by that of the ResNet of this table, in percent."
    )
    notes = sorted({r.setting["kind"]: r.setting["definition"] for r in corrupted}.items())
    differing = [f"{kind}: {definition}" for kind, definition in notes if definition != ORIGINAL]
    blocks: list[Block] = [Heading("Corrupted images", 3), Text(text), Table(lines)]
    return [*blocks, Text("Defined otherwise than in the original benchmark. " + " ".join(differing))] if differing else blocks


def mean_corruption_error(own: dict[Any, float], baseline: dict[Any, float]) -> str:
    """100 times the mean over kinds of sum of errors / sum of the baseline's; only where both were measured alike."""
    if set(own) != set(baseline):
        return "—"
    ratios = []
    for kind in {kind for kind, _ in own}:
        ours, theirs = (sum(error for (k, _), error in errors.items() if k == kind) for errors in (own, baseline))
        ratios.append(ours / theirs if theirs else math.nan)
    return f"{100 * sum(ratios) / len(ratios):.1f}"


def trained(record: Record) -> dict[str, str]:
    """How the weights came about; of networks from elsewhere what their file tells, which may be nothing."""
    told, recipe = record.training, record.training.get("recipe")
    evaluated = {"evaluated": f"epoch {told['epoch']} ({record.selection})"} if told.get("epoch") is not None else {}
    if recipe is None:
        return {"recipe": "not told", **evaluated}
    return {
        "recipe": f"{recipe['optimizer']}, lr {recipe['lr']}, batch {recipe['batch_size']}, {recipe['epochs']} epochs",
        "images": f"{told['train_images']:,}",
        **evaluated,
        "minutes": f"{told['train_seconds'] / 60:.1f}",
    }


def preprocessed(record: Record) -> dict[str, str]:
    """`shorter side 256, centre crop 224, mean 0.5 0.5 0.5, std ...`; older records do not say."""
    numbers = [f"{name} {' '.join(map(str, values))}" for name, values in record.normalisation.items()]
    words = [*filter(None, [record.data.get("preprocessing")]), *numbers]
    return {"preprocessing": ", ".join(words)} if words else {}


def provenance_section(group: Sequence[Record], rows: Rows) -> list[Block]:
    """How each network was trained and where it was measured."""
    lines = []
    for record in {(record.run, record.weights): record for record in group}.values():
        lines.append({"network": record.model, "run": record.run, **trained(record), **preprocessed(record)})
    devices = ", ".join(sorted({record.device for record in group}))
    made = ", ".join(f"{name} {value}" for name, value in group[-1].versions.items())
    measured = sum(record.seconds for record in group) / 60
    tail = f"Measured in {measured:.1f} minutes on {devices} with {made}; decoder {group[0].data['decoder']}"
    tail += f", {done}." if (done := group[0].data.get("preprocessing")) else "."
    return [Heading("How the networks came about", 3), Table(lines), Text(tail)]
