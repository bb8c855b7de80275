"""The mean corruption error, mCE, against AlexNet as it is published, or against a network that was measured here.

Source: Hendrycks and Dietterich, ICLR 2019, section 4. Of a corruption c at severity s, E is a network's top-1 error and B the
baseline's:

    CE(c) = sum over s of E(s, c) / sum over s of B(s, c)
    relative CE(c) = sum over s of (E(s, c) - E(clean)) / sum over s of (B(s, c) - B(clean))

mCE and relative mCE are their means over corruptions.
"""

import csv
import json
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from importlib.resources import files
from typing import Any, NamedTuple

from sanbench.evaluation.robust import Findings
from sanbench.store.schema import Record

Condition = tuple[str, int]  # a corruption and its severity
CLEAN_ALEXNET = 1 - 0.56522  # on upright images, by torchvision of its weights; the paper gives 43.5%


class Errors(NamedTuple):
    """Top-1 errors in [0, 1] of a network: of corrupted images by condition, and of upright ones where they were measured."""

    corrupted: Mapping[Condition, float]
    clean: float | None


@cache
def alexnet() -> Errors:
    """Of all 75 conditions of ImageNet-C: the baseline of published figures."""
    lines = (files("sanbench.evaluation") / "alexnet.csv").read_text().splitlines()
    rows = csv.DictReader(line for line in lines if not line.startswith("#"))
    errors = {(row["corruption"], level): float(row[str(level)]) for row in rows for level in range(1, 6)}
    return Errors(errors, CLEAN_ALEXNET)


def comparable_with_alexnet(record: Record) -> bool:
    """Whether its images are as those of ImageNet-C: photographs of 1,000 classes, cropped to 224 pixels."""
    return record.network.num_classes == 1000 and record.data.preprocessing.endswith("crop 224")


def mean_corruption_error(own: Errors, baseline: Errors) -> float | None:
    """mCE as a ratio: 1 is as bad as the baseline. None unless both have the same conditions, and the baseline errs in each."""
    return mean_ratio(own.corrupted, baseline.corrupted)


def relative_mean_corruption_error(own: Errors, baseline: Errors) -> float | None:
    """Relative mCE as a ratio. None as of mCE, and where upright images were not measured or cost the baseline no less."""
    if own.clean is None or baseline.clean is None:
        return None
    rise = {at: error - own.clean for at, error in own.corrupted.items()}
    return mean_ratio(rise, {at: error - baseline.clean for at, error in baseline.corrupted.items()})


def mean_ratio(own: Mapping[Condition, float], baseline: Mapping[Condition, float]) -> float | None:
    if not own or set(own) != set(baseline):
        return None
    ours, theirs = totals(own), totals(baseline)
    if min(theirs.values()) <= 0:
        return None
    return sum(ours[name] / theirs[name] for name in ours) / len(ours)


def totals(errors: Mapping[Condition, float]) -> dict[str, float]:
    """The sum over severities, by corruption."""
    found: dict[str, float] = {}
    for (name, _), error in errors.items():
        found[name] = found.get(name, 0) + error
    return found


def errors_of(corrupted: Iterable[Record], upright: Record | None, findings: Findings) -> Errors:
    """Of one network on one selection of images: its records of corruptions, and the record of its accuracy."""
    made = {condition(record): 1 - findings.top1(record).value for record in corrupted}
    return Errors(made, None if upright is None else 1 - findings.top1(upright).value)


def condition(record: Record) -> Condition:
    return record.setting["corruption"], record.setting["severity"]


def by_definition(records: Sequence[Record]) -> list[list[Record]]:
    """Records of corruptions in groups, in each of which a corruption has one definition: one cell never mixes two of them.

    Records with different seeds, roundings or sources stand in different groups; within those, a second definition of a
    corruption, or a second strength of one of its severities, begins another group.
    """
    groups: list[tuple[str, dict[Any, Any], list[Record]]] = []
    for record in records:
        setting = dict(record.setting)
        name, severity = setting.pop("corruption"), setting.pop("severity")
        own = {name: setting.pop("definition", ""), (name, severity): str(setting.pop("strength", ""))}
        setting.pop("files", None)
        common = json.dumps(setting, sort_keys=True)
        fits = (g for g in groups if g[0] == common and all(g[1].get(what, value) == value for what, value in own.items()))
        group = next(fits, None)
        if group is None:
            group = (common, {}, [])
            groups.append(group)
        group[1].update(own)
        group[2].append(record)
    return [members for _, _, members in groups]
