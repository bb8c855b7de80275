"""The commands that measure, one for each kind of measurement that has one: accuracy, rotate, spatial, attack, corrupt."""

from collections.abc import Callable
from dataclasses import dataclass, fields
from inspect import Parameter, Signature, signature
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args, get_type_hints

import typer

from sanbench.evaluation.kinds import Kind, Request, parse
from sanbench_cli.applicable import check_data_options
from sanbench_cli.console import print_records, progress
from sanbench_cli.options import (
    BATCH,
    COUNT,
    DECODERS,
    PROCESSES,
    SEED,
    WORKERS,
    Crop,
    Device,
    Interpolation,
    Mean,
    Resize,
    Results,
    Root,
    Runs,
    Std,
    Weights,
    one_of,
    start,
)

if TYPE_CHECKING:
    from sanbench.runs.evaluated import EvaluatedModel
    from sanbench.store.schema import Record

Networks = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="RUN|CHECKPOINT|MODEL",
        help="Default: every finished run. MODEL is torchvision:NAME, timm:NAME or module.path:factory, with --weights.",
    ),
]
Data = Annotated[str | None, typer.Option(help="Data set, also such as imagenet-a; default: what a network was trained on.")]
ListOfImages = Annotated[
    str | None,
    typer.Option(
        metavar="FILE",
        help="Paths in the split's folder, or indices, one a line; or robustbench-imagenet-5000. Default: all of the split.",
    ),
]
Limit = Annotated[
    int | None, typer.Option(help="Measure a subset of so many images, drawn by --seed. Default: all images.", **COUNT)
]
Seed = Annotated[int, typer.Option(help="Of the subset and of an attack's random numbers.", **SEED)]
BatchSize = Annotated[
    int, typer.Option(help="Images that the network sees at once, at most; on a CPU 32 of 224 x 224.", **BATCH)
]
Decoder = Annotated[
    str | None,
    typer.Option(
        help="pil (default), torchvision or turbo; published figures were measured with PIL.",
        callback=one_of("decoder", DECODERS),
    ),
]
Workers = Annotated[int | None, typer.Option(help="Processes that decode images in files; default: one a CPU.", **WORKERS)]
Processes = Annotated[int, typer.Option("--nproc", help="Processes that measure, each its own images.", **PROCESSES)]
Force = Annotated[bool, typer.Option("--force", help="Measure again what the results hold already.")]


@dataclass(frozen=True)
class Evaluation:
    """What the commands have in common: which networks, on which images, and where results go."""

    networks: Networks = None
    data: Data = None
    data_root: Root = None
    images: ListOfImages = None
    limit: Limit = None
    seed: Seed = 0
    batch_size: BatchSize = 64
    workers: Workers = None
    decoder: Decoder = None
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

    def load(self, name: str, weights: Path | None) -> "EvaluatedModel":
        """One network by name, on the device."""
        from sanbench.runs.evaluated import load_evaluated

        (evaluated,) = load_evaluated([name], self.runs, *(([weights], self.preprocessing) if weights else ()))
        evaluated.model.to(start(self.device))
        return evaluated


def evaluation_command(name: str, kind: Kind) -> Callable[..., None]:
    """The command of a kind of measurement: its own options, then those of `Evaluation`.

    Where both have an option, as --crop of rotate, the shared one keeps its longer name: --network-crop.
    """
    assert kind.options is not None
    options_type = kind.options
    own, shared = own_options(options_type), list(signature(Evaluation).parameters.values())

    def run(**values: Any) -> None:
        options = options_type(**{option.name: values.pop(option.name) for option in own})
        asked = Evaluation(**values)
        request = Request(asked.seed, asked.batch_size, asked.load, asked.data)
        bind = parse(name, options, request)  # what is wrong is said before anything, and before torch is imported
        from sanbench.data import ReadOptions, find_dataset, read_list
        from sanbench.progress import within
        from sanbench.runs.evaluated import load_evaluated
        from sanbench.store.schema import now

        begun = now()
        listed = None if asked.images is None else read_list(asked.images)
        if asked.data is not None:
            find_dataset(asked.data, ReadOptions())
        with progress() as bar:
            networks = load_evaluated(asked.networks or [], asked.runs, asked.weights or (), asked.preprocessing)
            from sanbench.evaluation.api import Asked, evaluate
            from sanbench.evaluation.robust import Findings
            from sanbench.store.files import Store

            store, records = Store(asked.results), list["Record"]()
            names = [set_name for evaluated in networks if (set_name := asked.data or evaluated.data["name"])]
            check_data_options(names, {"data_root": asked.data_root, "decoder": asked.decoder})
            start(asked.device)
            shared_options = ("limit", "seed", "device", "data_root", "batch_size", "workers", "force", "nproc")
            for number, evaluated in enumerate(networks):
                found = evaluate(
                    evaluated,
                    asked.data,
                    Asked(options, bind),
                    **{option: getattr(asked, option) for option in shared_options},
                    images=listed,
                    decoder=asked.decoder or "pil",
                    save_images=getattr(options, "save_images", 0),
                    store=store,
                    progress=within(bar, number / len(networks), (number + 1) / len(networks)),
                )
                records += [record.model_copy(update={"run": evaluated.run}) for record in found.records]
        print_records(records, Findings.of(store), asked.results, begun)

    taken = {option.name for option in own}
    parameters = [shared[0], *own, *(renamed(option, taken) for option in shared[1:])]
    run.__doc__ = options_type.__doc__
    run.__signature__ = Signature([p.replace(kind=Parameter.KEYWORD_ONLY) for p in parameters])  # type: ignore[attr-defined]  # typer reads it
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return run


def own_options(options: type[Any]) -> list[Parameter]:
    """The fields of a kind's options as a command's parameters, see `sanbench.evaluation.kinds.option`."""
    types = get_type_hints(options)
    found = []
    for each in fields(options):
        described = typer.Option(*each.metadata["flags"], help=each.metadata["help"], **each.metadata["limits"])
        annotation = Annotated[types[each.name], described]  # type: ignore[valid-type, name-defined]  # made at run time
        found.append(Parameter(each.name, Parameter.KEYWORD_ONLY, default=each.default, annotation=annotation))
    return found


def renamed(option: Parameter, taken: set[str]) -> Parameter:
    """`option`, by its longer name alone where the shorter one is taken."""
    if option.name.removeprefix("network_") not in taken:
        return option
    kind, info = get_args(option.annotation)
    kept = {name: getattr(info, name) for name in ("help", "min", "max", "metavar", "callback")}
    return option.replace(annotation=Annotated[kind, typer.Option(f"--{option.name.replace('_', '-')}", **kept)])
