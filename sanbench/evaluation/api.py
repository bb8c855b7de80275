"""`sanbench.evaluate` and `sanbench.attack`: any network on any images, in a line. The commands measure through here."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from sanbench.data import ImageList, Images, ReadOptions, find_dataset, load_dataset, read_list
from sanbench.data.given import check_source, given_images
from sanbench.device import select_device
from sanbench.errors import InputError, validated
from sanbench.evaluation.attacks.attack import Attack
from sanbench.evaluation.attacks.options import check_gradients
from sanbench.evaluation.attacks.table import ATTACKS, parse_attacks
from sanbench.evaluation.comparing import alike
from sanbench.evaluation.corruption_files import image_sets
from sanbench.evaluation.evaluate import evaluate as evaluate_conditions
from sanbench.evaluation.kinds import KINDS, AttackOptions, Request, condition, parse
from sanbench.evaluation.loop import evaluating
from sanbench.evaluation.measurements import options_of
from sanbench.evaluation.parts import EvaluationOptions
from sanbench.evaluation.robust import Findings
from sanbench.evaluation.statistics import holm, paired_difference
from sanbench.late import Late
from sanbench.models import Classifier
from sanbench.models.checkpoints import weights_hash
from sanbench.models.external import Preprocessing, count_classes
from sanbench.models.probe import probe
from sanbench.progress import Report, silent, within
from sanbench.runs.evaluated import EvaluatedModel, load_evaluated, test_images
from sanbench.store.files import Store
from sanbench.store.rows import Rows
from sanbench.store.schema import ModelSpec, Record

if TYPE_CHECKING:
    import pandas as pd
else:
    pd = Late("pandas")

Data = str | Images | Dataset[Any] | DataLoader[Any] | tuple[Tensor, Tensor]
Triple = Sequence[float]


class Asked(NamedTuple):
    """A kind of measurement with its options, and what makes its perturbations: `sanbench.evaluation.kinds.parse`."""

    options: Any
    bind: Any


@dataclass(frozen=True)
class Results:
    """What was found: a record a condition, in the order in which they were asked for, and a row an image of each."""

    records: list[Record]
    columns: dict[str, Rows]  # by key of the record

    @cached_property
    def findings(self) -> Findings:
        return Findings(self.records, lambda record: self.columns[record.key])

    @property
    def frames(self) -> dict[str, pd.DataFrame]:
        """By key of the record, its rows in the order in which they were measured."""
        return {key: pd.DataFrame(rows) for key, rows in self.columns.items()}

    @property
    def table(self) -> pd.DataFrame:
        """A line a condition: top-1 in [0, 1] with its 95% Wilson interval, hits, images, and of attacks the success.

        Under attack top-1 is robust accuracy: right within this and every smaller budget that was measured. Of smallest
        perturbations it is of images without an example, and their median, of all images, is in pixels.
        """
        lines = []
        for record in self.records:
            top1, success = self.findings.top1(record), self.findings.success(record)
            line = {"condition": condition(record.kind, record.setting), "top1": top1.value, "low": top1.low}
            line |= {"high": top1.high, "correct": top1.hits, "n": top1.total}
            line |= {} if success is None else {"success": success.value}
            lines.append(line | ({"median_eps": self.findings.smallest(record)[0].value} if record.kind == "smallest" else {}))
        return pd.DataFrame(lines).set_index("condition")

    @property
    def rows(self) -> pd.DataFrame:
        """A row an image and condition, by ascending index: label, prediction, top5, confidence, and what an attack tells."""
        frames = [self.findings.rows(record) for record in self.records]
        names = [condition(record.kind, record.setting) for record in self.records]
        return pd.concat([frame.assign(condition=name) for frame, name in zip(frames, names, strict=True)], ignore_index=True)

    @property
    def flags(self) -> dict[str, list[str]]:
        """By condition, names of `sanbench.evaluation.sanity_checks.FLAGS`: figures not to be trusted as they are."""
        return {condition(r.kind, r.setting): found for r in self.records if (found := self.findings.flags(r))}

    def compare(self, other: Results) -> pd.DataFrame:
        """This network minus the `other`, on the same images: a line for each condition that both have.

        difference with Newcombe's 95% interval for pairs, in [-1, 1]; images that only one has right; exact McNemar p, and
        after Holm's correction for all lines. Raises InputError where nothing was measured alike.
        """
        theirs = {alike(record): record for record in other.records}
        both = [(record, theirs[alike(record)]) for record in self.records if alike(record) in theirs]
        if not both:
            raise InputError("These results are not comparable: no condition was measured on the same images in both.")
        found = []
        for one, two in both:
            difference = paired_difference(self.findings.right(one), other.findings.right(two))
            found.append({"condition": condition(one.kind, one.setting), **difference._asdict()})
        table = pd.DataFrame(found).rename(columns={"value": "difference"}).set_index("condition")
        return table.assign(p_holm=holm(table["p"].tolist()))

    def __repr__(self) -> str:
        return self.table.to_string(float_format="{:.3f}".format)


def evaluate(
    model: nn.Module | EvaluatedModel | str | Path,
    data: Data | None,
    *measurements: Any,
    limit: int | None = None,
    seed: int = 0,
    mean: Triple | None = None,
    std: Triple | None = None,
    name: str | None = None,
    store: Store | str | Path | None = None,
    device: str = "auto",
    data_root: Path | str | None = None,
    images: ImageList | str | None = None,
    runs: Path | str = "runs",
    decoder: str = "pil",
    progress: Report = silent,
    **options: Any,
) -> Results:
    """`evaluate(model, data, "accuracy", "rotate:90,180", "pgd:8/255", limit=500)`: what a network has right, and how surely.

    model         any nn.Module from images in [0, 1], N x 3 x H x W, to logits N x classes; with `mean` and `std`, one from
                  images that were normalised by them; the name of a run in `runs`, or a checkpoint file
    data          a data set's name; (images, labels), N x 3 x H x W in [0, 1] and N; a Dataset of such pairs, or a
                  DataLoader over one. None: what the run was trained on
    measurements  a command's name and the values of its first options, separated by colons (`rotate:90,180`,
                  `corrupt:fog,jpeg:1:3`, `attack:fab:1/255,2/255`), an attack and its budgets (`pgd:8/255`), or options such
                  as `sanbench.evaluation.kinds.RotationOptions(angles="30", mask="disc")`; without any, accuracy
    limit, seed   measure so many images, drawn by `seed`, from which an attack's random numbers come too
    images        a list of images: a file, or the name of one that ships
    store         a folder of results: what it holds is not measured again, and all is kept as the commands keep it. Without
                  it nothing is left behind
    name          what records call the network
    options       batch_size, workers, nproc, force: of `sanbench.evaluation.evaluate.EvaluationOptions`

    The module's modes, device and gradients are afterwards as they were. Raises InputError for whatever is passed wrong,
    with the sentence that the command line prints.
    """
    listed = read_list(images) if isinstance(images, str) else images
    chosen = EvaluationOptions(limit=limit, seed=seed, images=listed, **options)
    set_name = data if isinstance(data, str) else None
    request = Request(seed, chosen.batch_size, partial(load_named, Path(runs)), set_name)
    wanted = [ask(measurement, request) for measurement in measurements or ("accuracy",)]
    where = select_device(device)
    with ExitStack() as stack:
        kept = store if isinstance(store, Store) else Store(store or stack.enter_context(TemporaryDirectory()))
        evaluated = as_evaluated(model, data, mean, std, name, Path(runs), where)
        stack.enter_context(on_device(evaluated.model, where))
        root = None if data_root is None else Path(data_root)
        given: Images | None = None
        if data is not None and not isinstance(data, str):
            given = given_images(data, evaluated.model.outputs, whole=store is not None)
        records: dict[str, Record] = {}
        every = [(asked, image_set) for asked in wanted for image_set in image_sets(set_name, asked.options)]
        for number, (asked, image_set) in enumerate(every):
            shown = test_images(evaluated, set_name, root, decoder, image_set) if given is None else given
            telling = evaluated.telling(shown)
            told = within(progress, number / len(every), (number + 1) / len(every))
            found = evaluate_conditions(telling, shown, asked.bind(telling, shown), kept, where, chosen, told)
            records |= {record.key: record for record in found}
        return Results(list(records.values()), {key: kept.columns(record) for key, record in records.items()})


def attack(
    model: nn.Module | EvaluatedModel | str | Path,
    images: Tensor,
    labels: Tensor,
    measurement: str = "pgd:8/255",
    *,
    seed: int = 0,
    mean: Triple | None = None,
    std: Triple | None = None,
    batch_size: int = 64,
    device: str = "auto",
    runs: Path | str = "runs",
) -> Tensor:
    """Adversarial images, N x 3 x H x W in [0, 1] on the device of `images`: `attack(model, images, labels, "pgd:8/255")`.

    Images that the network has wrong, and those that withstand, are given too: the first as they are, the others as the
    attack left them. An image's random numbers come from `seed` and its place. Raises InputError as `evaluate` does.
    """
    options = options_of(measurement)
    if not isinstance(options, AttackOptions):
        raise InputError(f"attack {measurement!r} is not accepted: accepted are {', '.join(ATTACKS)}, as in pgd:8/255.")
    found = parse_attacks(options.attack, options.eps, seed=seed)
    if len(found) != 1:
        raise InputError(f"attack {measurement!r} is not accepted: name one attack and one budget, as in pgd:8/255.")
    where = select_device(device)
    evaluated = as_evaluated(model, (images, labels), mean, std, None, Path(runs), where)
    given = given_images((images, labels), evaluated.model.outputs, whole=False)
    check_gradients(evaluated, found)
    ((name, config),) = found
    with on_device(evaluated.model, where), evaluating(evaluated.model):
        step = Attack(name, evaluated.model, config, batch_size)
        batch = given.__getitems__(range(len(given)))
        return step(batch.images.to(where), batch.labels.to(where), batch.indices).images.to(images.device)


def ask(measurement: Any, request: Request) -> Asked:
    """What a text or options ask for. Raises InputError that names what is wrong."""
    if isinstance(measurement, Asked):
        return measurement
    options = options_of(measurement) if isinstance(measurement, str) else measurement
    types = {entry.options: name for name, entry in KINDS.items() if entry.options is not None}
    kind = types.get(type(options))
    if kind is None:
        accepted = ", ".join(each.__name__ for each in types)
        raise InputError(f"measurement {type(options).__name__} is not accepted: accepted are texts, and {accepted}.")
    return Asked(options, parse(kind, options, request))


def as_evaluated(
    model: Any, data: Any, mean: Triple | None, std: Triple | None, name: str | None, runs: Path, device: torch.device
) -> EvaluatedModel:
    """Whatever is evaluated, by its name in records. Raises InputError for what is no network."""
    if isinstance(model, str | Path | EvaluatedModel | Classifier) and not (mean is None and std is None):
        raise InputError("mean and std are not accepted here: the network has its own normalisation.")
    if isinstance(model, str | Path):
        (model,) = load_evaluated([str(model)], runs)
    if isinstance(model, EvaluatedModel):
        return model if name is None else replace(model, run=name)
    if not isinstance(model, nn.Module):
        raise InputError(
            f"model {type(model).__name__} is not accepted: accepted are a torch.nn.Module, a run and a checkpoint."
        )
    side = side_of(data)
    name = name or (model.spec.label if isinstance(model, Classifier) else type(model).__name__)
    if not isinstance(model, Classifier):
        applied = validated(Preprocessing, "preprocessing", mean=mean or (0, 0, 0), std=std or (1, 1, 1))
        with on_device(model, torch.device("cpu")), evaluating(model):
            classes = count_classes(name, model, side)
        model = Classifier(ModelSpec(name=name, num_classes=classes, mean=applied.mean, std=applied.std), model, smallest=1)
    with on_device(model, torch.device("cpu")), evaluating(model):
        findings = probe(model, name, side)
    about = {"name": None, "root": "data", "image_size": side}
    return EvaluatedModel(model, weights_hash(model.state_dict()), name, about, {}, "not told", findings=findings)


def side_of(data: Any) -> int:
    """Of the images that the network is given, in pixels."""
    if data is None:
        raise InputError("data is missing: name a data set, or give images and labels.")
    if isinstance(data, str):
        options = ReadOptions()
        return options.image_size if find_dataset(data, options)[0].photographs else load_dataset(data, "test", options).side
    if isinstance(data, Images):
        return data.side
    source = data.dataset if isinstance(data, DataLoader) else data
    check_source(source)
    first = source[0][0]
    return int(first.shape[-1]) if isinstance(first, Tensor) and first.dim() else 224


def load_named(runs: Path, name: str, weights: Path | None) -> EvaluatedModel:
    (found,) = load_evaluated([name], runs, [weights] if weights else [])
    return found


@contextmanager
def on_device(model: nn.Module, device: torch.device) -> Iterator[None]:
    """On `device` for the block, afterwards where it was."""
    before = next((tensor.device for tensor in model.state_dict().values()), device)
    model.to(device)
    try:
        yield
    finally:
        model.to(before)
