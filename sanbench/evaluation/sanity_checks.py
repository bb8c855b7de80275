"""Signs that a figure says less than it seems to: gradients that are masked, accuracy that guessing would reach."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import TYPE_CHECKING, Any

from sanbench.evaluation.statistics import wilson
from sanbench.models.findings import FINDINGS
from sanbench.store.schema import Record

if TYPE_CHECKING:
    from sanbench.store.rows import Rows

DEAD_SHARE = 0.01  # of the attacked images
NOTABLE = 0.01  # of the images: by how much a black-box attack has to beat a white-box one
MUCH_STRONGER = 0.10  # of the images, for ten times the steps
LARGE = {"linf": Fraction(8, 255), "l2": Fraction(1)}  # a budget at which accuracy has to have fallen
STEPPED = ("pgd", "pgd-l2", "apgd", "apgd-dlr", "apgd-targeted")  # untargeted white-box attacks of many steps

FLAGS: dict[str, str] = {
    "non-finite": "Some logits were NaN or infinite: such an image has no prediction and counts as wrong.",
    "near-chance": "Accuracy does not differ from guessing: are classes in another order, or images prepared otherwise?",
    "dead-gradients": "Gradients were all zero or not finite for over 1% of the attacked images: the attack may have stalled.",
    "noisy-logits": "Logits differed between identical runs: gradients follow noise, of which `--eot N` averages N passes.",
    "probabilities": "The outputs are probabilities already, so that a second softmax flattens the loss.",
    "black-box-stronger": "A black-box attack was stronger than this white-box one by more than 1% of the images.",
    "flat-in-eps": "Accuracy did not fall from a smaller budget to this one, which is large.",
    "steps-matter": "Ten times the steps cost more than another 10 points: this attack has not converged.",
    **FINDINGS,
}


def non_finite(rows: Rows) -> list[str]:
    clean = rows["clean_prediction"] if "clean_prediction" in rows else rows["prediction"]
    return ["non-finite"] if not rows["finite"].all() or (clean < 0).any() else []


def near_chance(rows: Rows, classes: int) -> list[str]:
    """A trained network on upright images is told so where the interval of its top-1 reaches down to guessing."""
    right = rows["prediction"] == rows["label"]
    return ["near-chance"] if classes > 1 and wilson(int(right.sum()), len(right)).low <= 1 / classes else []


def attack_flags(rows: Rows, setting: dict[str, Any]) -> list[str]:
    """What the rows of one attack show."""
    flags = []
    attacked = rows["backward_passes"] > 0
    if "dead_gradients" in rows and attacked.any() and (rows["dead_gradients"][attacked] > 0).mean() > DEAD_SHARE:
        flags.append("dead-gradients")
    if rows["varies"].any():
        flags.append("noisy-logits")
    if rows["probabilities"].all():
        flags.append("probabilities")
    members = setting.get("members", [])
    if "square" in members and (rows["member"] == members.index("square")).mean() > NOTABLE:
        flags.append("black-box-stronger")
    return flags


def compared_flags(record: Record, others: Sequence[Record], correct: Callable[[Record], int]) -> list[str]:
    """What other attacks on the same network and images show about `record`; `correct` counts the images that stand."""
    setting, images = record.setting, record.counts["images"]
    flags = []
    for other in others:
        if other.setting["norm"] != setting["norm"]:
            continue
        weaker = correct(record) - correct(other)  # images by which this attack is the weaker one
        alike = {name for name in {*setting, *other.setting} if setting.get(name) == other.setting.get(name)}
        if (
            other.setting["attack"] == "square"
            and setting["attack"] in STEPPED
            and "eps" in alike
            and weaker > NOTABLE * images
        ):
            flags.append("black-box-stronger")
        if setting["attack"] in STEPPED and {*setting} - alike <= {"eps", "step_size"} and "eps" not in alike:
            eps, smaller = Fraction(setting["eps"]), Fraction(other.setting["eps"])
            if smaller < eps and eps >= LARGE[setting["norm"]] and weaker >= 0 and correct(record) > 0.1 * images:
                flags.append("flat-in-eps")
        if {*setting} - alike == {"steps"} and other.setting["steps"] >= 10 * setting["steps"]:
            flags += ["steps-matter"] if weaker > MUCH_STRONGER * images else []
    return flags
