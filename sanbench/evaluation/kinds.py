"""KINDS: what can be measured. Adding a kind takes its module, its entry here, and its section of the report.

Nothing here needs torch: tables, the console and the command line's help read it.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from sanbench.data import Images
    from sanbench.evaluation.loop import Perturbation
    from sanbench.runs.evaluated import EvaluatedModel

    Bind = Callable[[EvaluatedModel, Images], list[Perturbation]]

Setting = Mapping[str, Any]  # of a record: all that decides the kind's perturbation
NORMS = {"linf": "L∞", "l2": "L₂"}
TOLERANCE = {"linf": 1e-6, "l2": 1e-5}  # in pixels of [0, 1]: float32 steps overshoot by 1e-8, a norm of 10^5 pixels by 1e-6


def option(default: Any, text: str, *flags: str, **limits: Any) -> Any:
    """A field of a command's options: default, help, `min`, `max`, `metavar`, and its flags where they differ from its name."""
    return field(default=default, metadata={"help": text, "flags": flags, "limits": limits})


@dataclass(frozen=True)
class AccuracyOptions:
    """Measure top-1 and top-5 on upright test images."""


@dataclass(frozen=True)
class RotationOptions:
    """Measure top-1 on rotated test images, beside the upright ones: sanbench rotate --angles 90,180."""

    angles: str = option("90,180,270,flip", "Clockwise degrees, ranges start:stop:step, flip (upside down), mirror.")
    interpolation: str = option("bilinear", "nearest or bilinear; multiples of 90 are exact.")
    fill: str = option("black", "black, grey or white.")
    crop: str = option("none", "none, or inscribed: the square that no angle has to fill.")
    mask: str = option("none", "none, or disc: nothing but the inscribed circle is shown.")
    order: str = option(
        "crop-first", "crop-first, or rotate-first: with the pixels around the input that folders and ImageNet have."
    )


SPATIAL_METHODS = ("random", "grid", "smallest")


@dataclass(frozen=True)
class SpatialOptions:
    """Measure top-1 in the worst case over rotations and shifts of each image: sanbench spatial --method random,grid."""

    method: str = option(
        "random", "random (the worst of --draws), grid, smallest (rotation that changes the prediction, no shifts)."
    )
    degrees: float | None = option(None, "Largest rotation, either way. Default: 30, of smallest 180.")
    pixels: float | None = option(None, "Largest shift along each axis. Default: 3 of 28, so 3 of 32 and 24 of 224.")
    draws: int | None = option(None, "Of random: rotations with a shift that each image draws. Default: 10.")
    grid: str = option("5x5x31", "Of grid: shifts to the right x shifts down x angles.")
    step: float | None = option(None, "Of smallest: degrees between angles. Default: 5.")
    interpolation: str = option("bilinear", "nearest or bilinear; whole shifts and multiples of 90 degrees are exact.")
    fill: str = option("black", "black, grey or white.")
    save_images: int = option(0, "Keep examples of so many images as PNG.", min=0, max=10**6)


@dataclass(frozen=True)
class AttackOptions:
    """Measure top-1 under attack and attack success: sanbench attack --eps 2/255,8/255 --limit 500."""

    eps: str = option("8/255", "Budgets in [0, 1] pixels: fractions or decimals.")
    attack: str = option(
        "pgd,pgd-targeted",
        "fgsm, pgd, pgd-targeted, pgd-l2, apgd, apgd-dlr, apgd-targeted, fab, square, standard (the ensemble), "
        "module:function.",
    )
    norm: str | None = option(None, "linf or l2; default: linf, for pgd-l2 l2.")
    steps: int | None = option(None, "Steps, or queries of square; default: the attack's own.", min=1, max=10**6)
    step_size: str | None = option(None, "Default: a quarter of eps.")
    restarts: int | None = option(None, "Starts; an image has to withstand all. Default: 1.", min=1, max=10**4)
    target: str | None = option(None, "Of pgd-targeted: random (default), least-likely or next.")
    targets: int | None = option(None, "Classes that apgd-targeted and fab try. Default: 9.", min=1, max=10**6)
    eot: int = option(1, "Passes of a random network whose gradients are averaged.", min=1, max=10**4)
    max_passes: int | None = option(
        None, "Forward and backward ones of an image under attack; restarts until they are spent.", min=1, max=10**7
    )
    smallest: bool = option(
        False, "The smallest eps of each image, up to --eps; with pgd, pgd-targeted, pgd-l2, fab.", "--smallest"
    )
    bisections: int | None = option(None, "Of --smallest: each halves what is not known of eps. Default: 8.", min=1, max=40)
    search: bool = option(
        False, "The same with pgd, pgd-targeted as foolbox 2 did it: from 0.3, 40 steps of eps/30, 20 bisections.", "--search"
    )
    surrogate: str | None = option(
        None,
        "Transfer: make the examples on this network; with fgsm, pgd, pgd-targeted, pgd-l2, apgd, apgd-dlr.",
        metavar="RUN|CHECKPOINT|MODEL",
    )
    surrogate_weights: Path | None = option(None, "Of --surrogate, if that is from elsewhere.", metavar="FILE")
    save_images: int = option(0, "Keep examples of so many images as PNG.", min=0, max=10**6)


@dataclass(frozen=True)
class CorruptionOptions:
    """Measure top-1 under common corruptions: sanbench corrupt --kinds fog,jpeg --severity 1:5."""

    kinds: str = option(
        "all",
        "Names, or all. Of imagenet-c and cifar10-c also speckle-noise, gaussian-blur, spatter, saturate.",
    )
    severity: str = option("1:5", "1 to 5: ranges, both ends included, and lists.")


class Request(NamedTuple):
    """What a kind's `parse` may need beside its own options.

    load  finds a network by name, perhaps with a file of weights
    data  the data set that was named, if any
    """

    seed: int
    batch_size: int
    load: "Callable[[str, Path | None], EvaluatedModel]"
    data: str | None = None


def short_rotation(setting: Setting) -> str:
    angle = setting["angle"]
    return angle if isinstance(angle, str) else f"{angle}°"


def declared_rotation(setting: Setting) -> str:
    return listed({name: value for name, value in setting.items() if name != "angle"}, ", ")


def order_rotation(setting: Setting) -> tuple[Any, ...]:
    return isinstance(setting["angle"], str), setting["angle"]


def short_spatial(setting: Setting) -> str:
    limits = f"±{setting['degrees']}°" + (f", ±{setting['pixels']} px" if "pixels" in setting else "")
    told = {
        "random": "worst of {draws} draws",
        "grid": "worst of the grid {grid}",
        "smallest": "any rotation in steps of {step}°",
    }[setting["method"]]
    return f"{told.format(**setting)}, {limits}"


def declared_spatial(setting: Setting) -> str:
    return listed({name: setting[name] for name in ("interpolation", "fill")}, ", ")


def order_spatial(setting: Setting) -> tuple[Any, ...]:
    return SPATIAL_METHODS.index(setting["method"]), setting["degrees"], setting.get("pixels", 0), setting.get("draws", 0)


def short_attack(setting: Setting) -> str:
    return f"{setting['attack']}, {NORMS[setting['norm']]} ε = {setting['eps']}"


def shared_attack(setting: Setting) -> dict[str, Any]:
    """What all budgets of an attack share, by name."""
    shared = {name: value for name, value in setting.items() if name not in ("attack", "norm", "eps")}
    step = shared.get("step_size", "ε")  # of smallest perturbations a share of ε
    if "ε" not in step and math.isclose(budget(setting), 4 * Fraction(step)):
        shared["step_size"] = "ε/4"
    return shared


def declared_attack(setting: Setting) -> str:
    return listed(shared_attack(setting), "; ")


def order_attack(setting: Setting) -> tuple[Any, ...]:
    return setting["attack"], setting["norm"], budget(setting)


def short_transfer(setting: Setting) -> str:
    return f"{setting['attack']} from {setting['surrogate']}, {NORMS[setting['norm']]} ε = {setting['eps']}"


def short_smallest(setting: Setting) -> str:
    how = "searched as by foolbox 2" if "search" in setting else f"smallest {NORMS[setting['norm']]} ε up to {setting['eps']}"
    return f"{setting['attack']}, {how}"


def budget(setting: Setting) -> Fraction:
    """ε in pixels of [0, 1]."""
    return Fraction(setting["eps"])


def nested_attack(setting: Setting) -> tuple[str, Fraction]:
    return f"{setting['attack']} {setting['norm']} {declared_attack(setting)}", budget(setting)


def listed(values: Setting, separator: str) -> str:
    """`steps 10; restarts 1; apgd (steps 100)`; what is "none" is left out."""
    return separator.join(f"{name.replace('_', ' ')} {worded(value)}" for name, value in values.items() if value != "none")


def worded(value: Any) -> str:
    """A value of a setting: lists with commas, what belongs to a member of an ensemble in parentheses."""
    if isinstance(value, Mapping):
        return f"({listed(value, ', ')})"
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


@dataclass(frozen=True)
class Kind:
    """A kind of measurement.

    title     of its tables of paired tests
    section   module of `sanbench.report` whose function `section` makes its part of the report
    short     what was done to the images, in a few words, from a record's setting
    declared  what stands above a table whose columns share it
    full      whether a table that mixes conditions also says what is declared
    order     of its conditions in a table
    nested    (group, budget) where an image that falls within a smaller budget of the group has fallen within a larger one
    options   of its command, whose docstring is the command's help; None: another kind's command makes it
    command   name on the command line
    text      of its options those that a short text fills, in order: `rotate:90,180`
    parse     function (options, Request) -> (EvaluatedModel, Images) -> perturbations; what is typed wrong raises InputError
    """

    title: str
    section: str
    short: Callable[[Setting], str]
    declared: Callable[[Setting], str] = lambda setting: ""
    order: Callable[[Setting], tuple[Any, ...]] = lambda setting: ()
    nested: Callable[[Setting], tuple[str, Fraction] | None] = lambda setting: None
    full: bool = False
    options: type[Any] | None = None
    command: str = ""
    text: tuple[str, ...] = ()
    parse: str = ""


KINDS: dict[str, Kind] = {
    "accuracy": Kind(
        "Upright",
        "accuracy",
        lambda setting: "upright",
        options=AccuracyOptions,
        command="accuracy",
        parse="sanbench.evaluation.loop:parse_accuracy",
    ),
    "rotation": Kind(
        "Rotated",
        "rotations",
        short_rotation,
        declared_rotation,
        order_rotation,
        full=True,
        options=RotationOptions,
        command="rotate",
        text=("angles",),
        parse="sanbench.evaluation.rotations:parse",
    ),
    "spatial": Kind(
        "Rotated and shifted, worst case",
        "rotations",
        short_spatial,
        declared_spatial,
        order_spatial,
        full=True,
        options=SpatialOptions,
        command="spatial",
        text=("method",),
        parse="sanbench.evaluation.spatial:parse",
    ),
    "attack": Kind(
        "Under attack",
        "attacks",
        short_attack,
        declared_attack,
        order_attack,
        nested_attack,
        options=AttackOptions,
        command="attack",
        text=("attack", "eps"),
        parse="sanbench.evaluation.attacks.options:parse",
    ),
    "smallest": Kind("Smallest perturbations", "smallest", short_smallest, declared_attack, order_attack),
    "transfer": Kind("Under transferred attacks", "transfers", short_transfer, declared_attack, order_attack),
    "corruption": Kind(
        "Corrupted",
        "corruptions",
        lambda setting: f"{setting['corruption']} {setting['severity']}",
        options=CorruptionOptions,
        command="corrupt",
        text=("kinds", "severity"),
        parse="sanbench.evaluation.corruption_files:parse",
    ),
}


def kind_of(name: str) -> Kind:
    """The entry of KINDS; for records of another version's kind one that shows their settings as they are."""
    return KINDS.get(name) or Kind(name, "generic", lambda setting: listed(setting, ", "))


def condition(kind: str, setting: Setting) -> str:
    """`15°, interpolation bilinear, fill black`, `pgd, L∞ ε = 8/255`: what was done to the images."""
    entry = kind_of(kind)
    return ", ".join(filter(None, [entry.short(setting), entry.declared(setting) if entry.full else ""]))


def parse(kind: str, options: Any, request: Request) -> "Bind":
    """The perturbations that options ask for, once network and images are known. Raises InputError for what is typed wrong."""
    module, _, function = KINDS[kind].parse.partition(":")
    found: Bind = getattr(import_module(module), function)(options, request)
    return found
