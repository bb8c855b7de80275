"""RULES: where an option has an effect. An option that is typed where it has none is refused, never ignored.

Which data set reads --data-root, --download, --image-size, --decoder and --skip-bad-images stands in its entry of
`sanbench.data.DATASETS`; that `attack` uses --steps, --step-size, --restarts, --target and --targets in the entry of
`sanbench.evaluation.attacks.table.ATTACKS`. All other options have an effect always.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import typer
import typer.core

from sanbench.errors import InputError
from sanbench_cli.console import Helpful
from sanbench_cli.options import export_format

Values = Mapping[str, Any]


class Rule(NamedTuple):
    """`option` of `commands` has an effect where `matters` is true of the command's values, and `otherwise` says why not."""

    commands: tuple[str, ...]
    option: str
    matters: Callable[[Values], bool]
    otherwise: str


def resampled(values: Values) -> bool:
    """Whether any angle is not a multiple of 90 degrees, as far as can be told; what is no angle is refused elsewhere."""
    for word in str(values["angles"]).split(","):
        try:
            numbers = [float(part) for part in word.split(":")]
        except ValueError:
            if word.strip() in ("flip", "mirror"):
                continue
            return True
        if any(number % 90 for number in (numbers[:1] + numbers[2:])):
            return True
    return False


def filled(values: Values) -> bool:
    return values["mask"] != "none" or (values["crop"] == "none" and resampled(values))


def searched(*methods: str) -> Callable[[Values], bool]:
    """Whether `sanbench spatial` searches in one of these ways; what is none is refused elsewhere."""
    return lambda values: any(word.strip() in methods for word in str(values["method"]).split(","))


def drawn(values: Values) -> bool:
    """Whether `sanbench corrupt` draws anything: images, or noise, which files hold already."""
    from sanbench.evaluation.corruption_files import is_stored

    return values["limit"] is not None or not is_stored(values["data"])


def sided(values: Values) -> bool:
    """Whether a network is exported for images of one size."""
    return export_format(values["form"], values["output"]) != "safetensors"


RULES: tuple[Rule, ...] = (
    Rule(("train",), "run", lambda v: v["resume"] in (None, "auto"), "--resume names the run"),
    Rule(("train",), "profile", lambda v: not v["dry_run"], "--dry-run trains nothing"),
    Rule(("export",), "image_size", sided, "safetensors holds weights, for images of any size"),
    Rule(("check",), "journal", lambda v: bool(v.get("decode", True)), "it is kept while --decode runs"),
    Rule(("rotate",), "interpolation", resampled, "multiples of 90 degrees are exact, and so are flip and mirror"),
    Rule(("rotate",), "fill", filled, "no angle leaves anything to fill"),
    Rule(("accuracy", "rotate"), "seed", lambda v: v["limit"] is not None, "without --limit nothing is drawn"),
    Rule(("spatial",), "draws", searched("random"), "--method random draws"),
    Rule(("spatial",), "grid", searched("grid"), "--method grid has one"),
    Rule(("spatial",), "step", searched("smallest"), "--method smallest has steps"),
    Rule(("spatial",), "pixels", searched("random", "grid"), "--method smallest shifts nothing"),
    Rule(
        ("spatial",),
        "seed",
        lambda v: v["limit"] is not None or searched("random")(v),
        "without --limit and --method random nothing is drawn",
    ),
    Rule(("evaluate",), "width", lambda v: v["attack"] is None, "--attack takes the network as it is"),
    Rule(("evaluate",), "eps", lambda v: v["attack"] is not None, "it is the budget of --attack, which is missing"),
    Rule(("evaluate",), "norm", lambda v: v["attack"] is not None, "it is that of --attack, which is missing"),
    Rule(("evaluate",), "runs", lambda v: v["attack"] is not None, "without --attack a network has fresh weights"),
    Rule(("corrupt",), "seed", drawn, "without --limit nothing is drawn: the files are corrupted already"),
    Rule(("attack",), "bisections", lambda v: v["smallest"], "it belongs to --smallest, which is missing"),
    Rule(("attack",), "eps", lambda v: not v["search"], "--search begins at 0.3"),
    Rule(("attack",), "surrogate_weights", lambda v: v["surrogate"] is not None, "it belongs to --surrogate, which is missing"),
    Rule(("run",), "partition", lambda v: v["cluster"] == "slurm", "it belongs to --cluster slurm"),
    *(
        Rule(("run",), option, lambda v: v["cluster"] is not None, "it belongs to --cluster, which is missing")
        for option in ("gpus_per_node", "jobs", "hours")
    ),
    Rule(
        ("attack",),
        "surrogate_weights",
        lambda v: ":" in (v["surrogate"] or ":"),
        "a run has its weights: --surrogate has to be torchvision:NAME, timm:NAME or module:function",
    ),
)


class Command(Helpful, typer.core.TyperCommand):
    """A command that refuses options without an effect before it does anything."""

    def invoke(self, ctx: Any) -> Any:
        for parameter in self.params:
            source = ctx.get_parameter_source(parameter.name)
            if source is not None and source.name == "COMMANDLINE":
                for rule in RULES:
                    if self.name in rule.commands and rule.option == parameter.name and not rule.matters(ctx.params):
                        raise no_effect(parameter.opts[-1], ctx.params[parameter.name], rule.otherwise)
        return super().invoke(ctx)


class Group(Helpful, typer.core.TyperGroup):
    """Commands under a name of their own."""


class Typer(typer.Typer):
    """Commands that are a `Command` each."""

    def __init__(self, *, cls: Any = Group, **options: Any) -> None:
        super().__init__(cls=cls, no_args_is_help=True, **options)

    def command(self, name: str | None = None, *, cls: Any = Command, **options: Any) -> Any:
        return super().command(name, cls=cls, **options)


def check_data_options(data: Iterable[str], options: Values) -> None:
    """Raises InputError for one of `options` that was typed (is not None) and that none of the data sets reads."""
    from sanbench.data import ReadOptions, find_dataset

    names = list(dict.fromkeys(data))
    read = {option for name in names for option in find_dataset(name, ReadOptions())[0].options}
    for option, value in options.items():
        if value is not None and option not in read:
            raise no_effect(f"--{option.replace('_', '-')}", value, f"{', '.join(names)} does not read it")


def no_effect(option: str, value: Any, otherwise: str) -> InputError:
    shown = option if value is True else f"{option} {value}"
    return InputError(f"{shown} is not accepted here: it would have no effect, as {otherwise}.")
