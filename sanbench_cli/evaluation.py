"""The commands that measure: accuracy, rotate, attack, corrupt."""

from dataclasses import dataclass
from functools import wraps
from inspect import Parameter, Signature, signature
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args

import typer

from sanbench_cli.console import print_records, progress
from sanbench_cli.options import Crop, Device, Interpolation, Mean, Resize, Results, Root, Runs, Std, Weights, start

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from sanbench.data import Images
    from sanbench.evaluation.attacks.attack import Source
    from sanbench.evaluation.loop import Perturbation
    from sanbench.runs.evaluated import EvaluatedModel

Networks = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="RUN|CHECKPOINT|MODEL",
        help="Default: every finished run. MODEL is torchvision:NAME, timm:NAME or module.path:factory, with --weights.",
    ),
]
Data = Annotated[str | None, typer.Option(help="Data set; default: the one a network was trained on.")]
Limit = Annotated[int | None, typer.Option(help="Measure a subset of so many images, drawn by --seed.")]
Seed = Annotated[int, typer.Option(help="Of the subset and of an attack's random numbers.")]
BatchSize = Annotated[int, typer.Option(min=1)]
Decoder = Annotated[str, typer.Option(help="pil, torchvision or turbo; published figures were measured with PIL.")]
Workers = Annotated[int | None, typer.Option(min=0, help="Processes that decode images in files; default: one a CPU.")]
Processes = Annotated[int, typer.Option("--nproc", min=1, help="Processes that measure, each its own images.")]
Force = Annotated[bool, typer.Option("--force", help="Measure again what the results hold already.")]


@dataclass(frozen=True)
class Evaluation:
    """What accuracy, rotate and attack have in common: which networks, on which images, and where results go."""

    networks: Networks = None
    data: Data = None
    data_root: Root = None
    limit: Limit = None
    seed: Seed = 0
    batch_size: BatchSize = 64
    workers: Workers = None
    decoder: Decoder = "pil"
    nproc: Processes = 1
    force: Force = False
    weights: Weights = None
    mean: Mean = None
    std: Std = None
    resize: Resize = None
    network_crop: Crop = None
    network_interpolation: Interpolation = None
    device: Device = "auto"
    runs: Runs = Path("runs")
    results: Results = Path("results")

    @property
    def preprocessing(self) -> dict[str, Any]:
        """What is named of it, for networks from elsewhere."""
        view = {"mean": self.mean, "std": self.std, "resize": self.resize}
        view |= {"crop": self.network_crop, "interpolation": self.network_interpolation}
        return {name: value for name, value in view.items() if value is not None}

    def source(self, name: str, weights: Path | None) -> "Source":
        """The network that a transfer's examples are made on."""
        from sanbench.evaluation.attacks.attack import Source
        from sanbench.runs.run import load_evaluated

        (evaluated,) = load_evaluated([name], self.runs, *(([weights], self.preprocessing) if weights else ()))
        return Source(
            evaluated.model.to(start(self.device)), f"{evaluated.model.spec.label} ({evaluated.run})", evaluated.weights
        )

    def run(self, perturbations: "Callable[[EvaluatedModel, Images], Sequence[Perturbation]]", save_images: int = 0) -> None:
        """The one way from a command to the evaluation loop."""
        from sanbench.evaluation.experiments import Protocol, evaluate
        from sanbench.runs.evaluated import test_images
        from sanbench.runs.run import load_evaluated
        from sanbench.store.files import Store

        device = start(self.device)
        protocol = Protocol(self.limit, self.seed, self.batch_size, self.workers, self.force, self.nproc, save_images)
        records = []
        with progress() as bar:
            for evaluated in load_evaluated(self.networks or [], self.runs, self.weights or (), self.preprocessing):
                evaluated.model.to(device)
                images = test_images(evaluated, self.data, self.data_root, self.decoder)
                records += evaluate(
                    evaluated, images, perturbations(evaluated, images), Store(self.results), device, protocol, bar
                )
        print_records(records)


def evaluation_command(command: "Callable[..., None]") -> "Callable[..., None]":
    """`command(evaluation, ...)` as a command with its own options, then those of `Evaluation`.

    Where both have an option, as --crop of rotate, the shared one keeps its longer name: --network-crop.
    """
    own = list(signature(command).parameters.values())[1:]
    shared = list(signature(Evaluation).parameters.values())

    @wraps(command)
    def run(**options: Any) -> None:
        evaluation = Evaluation(**{option.name: options.pop(option.name) for option in shared})
        command(evaluation, **options)

    taken = {option.name for option in own}
    options = [shared[0], *own, *(renamed(option, taken) for option in shared[1:])]
    run.__signature__ = Signature([option.replace(kind=Parameter.KEYWORD_ONLY) for option in options])  # type: ignore[attr-defined]  # typer reads it
    run.__annotations__ = {option.name: option.annotation for option in options}
    return run


def renamed(option: Parameter, taken: set[str]) -> Parameter:
    """`option`, by its longer name alone where the shorter one is taken."""
    if option.name.removeprefix("network_") not in taken:
        return option
    kind, info = get_args(option.annotation)
    return option.replace(annotation=Annotated[kind, typer.Option(f"--{option.name.replace('_', '-')}", help=info.help)])


@evaluation_command
def accuracy(evaluation: Evaluation) -> None:
    """Measure top-1 and top-5 on upright test images."""
    from sanbench.evaluation.loop import Identity

    evaluation.run(lambda *_: [Identity()])


@evaluation_command
def rotate(
    evaluation: Evaluation,
    angles: Annotated[
        str, typer.Option(help="Clockwise degrees, ranges start:stop:step, flip (upside down), mirror.")
    ] = "90,180,270,flip",
    interpolation: Annotated[str, typer.Option(help="nearest or bilinear; multiples of 90 are exact.")] = "bilinear",
    fill: Annotated[str, typer.Option(help="black, grey or white.")] = "black",
    crop: Annotated[str, typer.Option(help="none, or inscribed: the square that no angle has to fill.")] = "none",
    mask: Annotated[str, typer.Option(help="none, or disc: nothing but the inscribed circle is shown.")] = "none",
    order: Annotated[
        str, typer.Option(help="crop-first, or rotate-first: with the pixels around the input that folders and ImageNet have.")
    ] = "crop-first",
) -> None:
    """Measure top-1 on rotated test images, beside the upright ones: sanbench rotate --angles 90,180."""
    from sanbench.evaluation.rotations import Frame, parse_angles, parse_order

    frame = Frame(interpolation, fill, crop, mask)
    parse_angles(angles, frame)  # what is wrong is said before anything is loaded
    evaluation.run(lambda _, images: parse_angles(f"0,{angles}", parse_order(order, frame, images.name, images.widest)))


@evaluation_command
def attack(
    evaluation: Evaluation,
    eps: Annotated[str, typer.Option(help="L-infinity budgets in [0, 1] pixels: fractions or decimals.")] = "8/255",
    attacks: Annotated[
        str,
        typer.Option(
            "--attack",
            help="fgsm, pgd, pgd-targeted, pgd-l2, apgd, apgd-dlr, apgd-targeted, fab, square, standard (the ensemble).",
        ),
    ] = "pgd,pgd-targeted",
    norm: Annotated[str | None, typer.Option(help="linf or l2; default: linf, for pgd-l2 l2.")] = None,
    steps: Annotated[int | None, typer.Option(help="Steps, or queries of square; default: the attack's own.")] = None,
    step_size: Annotated[str | None, typer.Option(help="Default: a quarter of eps.")] = None,
    restarts: Annotated[int | None, typer.Option(help="Starts; an image has to withstand all. Default: 1.")] = None,
    target: Annotated[str, typer.Option(help="Of pgd-targeted: random, least-likely or next.")] = "random",
    targets: Annotated[int | None, typer.Option(help="Classes that apgd-targeted and fab try. Default: 9.")] = None,
    made_on: Annotated[
        str | None,
        typer.Option(
            "--source",
            metavar="RUN|CHECKPOINT|MODEL",
            help="Transfer: make the examples on this network; with fgsm, pgd, pgd-targeted, pgd-l2, apgd, apgd-dlr.",
        ),
    ] = None,
    source_weights: Annotated[Path | None, typer.Option(metavar="FILE", help="Of --source, if that is from elsewhere.")] = None,
    save_images: Annotated[int, typer.Option(min=0, help="Keep examples of so many images as PNG.")] = 0,
) -> None:
    """Measure top-1 under attack and attack success: sanbench attack --eps 2/255,8/255 --limit 500."""
    from sanbench.evaluation.attacks.attack import bind
    from sanbench.evaluation.attacks.table import parse_attacks

    wanted = parse_attacks(attacks, eps, steps, step_size, evaluation.seed, norm, restarts, target, targets)
    source = evaluation.source(made_on, source_weights) if made_on else None
    evaluation.run(lambda evaluated, _: bind(evaluated.model, wanted, evaluation.batch_size, source), save_images)


@evaluation_command
def corrupt(
    evaluation: Evaluation,
    kinds: Annotated[str, typer.Option(help="gaussian-noise, fog, jpeg, ...: see the report; or all fifteen.")] = "all",
    severity: Annotated[str, typer.Option(help="1 to 5: ranges, both ends included, and lists.")] = "1:5",
) -> None:
    """Measure top-1 under common corruptions: sanbench corrupt --kinds fog,jpeg --severity 1:5."""
    from sanbench.evaluation.corruptions import parse_corruptions
    from sanbench.evaluation.loop import Identity

    corrupted = [Identity(), *parse_corruptions(kinds, severity, evaluation.seed)]
    evaluation.run(lambda *_: corrupted)
