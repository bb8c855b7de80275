"""EvaluatedModel: the networks that are evaluated, from runs, checkpoint files or other libraries, and their images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sanbench.data import ReadOptions, find_dataset, load_dataset
from sanbench.data.imagenet import wnids
from sanbench.errors import InputError, SanbenchError, unknown, validated
from sanbench.late import Late
from sanbench.models import FAMILIES, MODELS, SMALLEST_IMAGE, resolve
from sanbench.models.checkpoints import read_checkpoint, rebuild, weights_hash
from sanbench.models.external import Preprocessing, is_external, load_external
from sanbench.runs.run import all_runs, leave_out
from sanbench.store.schema import Network

if TYPE_CHECKING:
    from sanbench.data import Images
    from sanbench.models import Classifier, building, classifier, probe
else:
    building, classifier = Late("sanbench.models.building"), Late("sanbench.models.classifier")
    probe = Late("sanbench.models.probe")

TRAINING = ("recipe", "seed", "epoch", "train_images", "train_seconds", "imported")  # keys of a checkpoint that a record has


@dataclass(frozen=True)
class EvaluatedModel:
    """A trained network with what a record says of its training; what its file does not say is missing or None.

    data           the data set that it was trained on, name and root, and how photographs are shown to it: image_size, and
                   for an external network resize and interpolation
    preprocessing  those of resize, crop and interpolation that a command asked for
    findings       what a probe showed before anything is measured, names of `sanbench.models.probe.FINDINGS`
    """

    model: Classifier
    weights: str
    run: str
    data: dict[str, Any]
    training: dict[str, Any]
    selection: str
    preprocessing: dict[str, Any] = field(default_factory=dict)
    findings: tuple[str, ...] = ()

    @property
    def network(self) -> Network:
        """How a record names it."""
        return Network(**self.model.spec.model_dump(), weights=self.weights)

    def telling(self, images: Images) -> EvaluatedModel:
        """The network as it tells the classes of `images` apart: of a set with fewer classes than ImageNet by those alone.

        Raises InputError for such a set and a network of other classes than ImageNet's.
        """
        if images.among is None or isinstance(self.model, classifier.ClassesAmong):
            return self
        if self.model.outputs != len(wnids()):
            raise InputError(
                f"{images.name} counts {len(images.among)} of ImageNet's {len(wnids()):,} classes, but {self.run} tells "
                f"{self.model.outputs} apart."
            )
        return replace(self, model=classifier.ClassesAmong(self.model, images.among))

    @classmethod
    def load(cls, checkpoint: Path, run: str) -> EvaluatedModel:
        """The network of a checkpoint of training or import. Raises InputError or SanbenchError as `load_model` does."""
        content = read_checkpoint(checkpoint)
        model = rebuild(content, checkpoint)
        if not isinstance(data := content.get("data"), dict) or not isinstance(selection := content.get("selection"), str):
            raise SanbenchError(f"{checkpoint} does not say how it was trained: accepted is what `sanbench train` writes.")
        training = {name: content[name] for name in TRAINING if name in content}
        found = probe.probe(model, str(checkpoint), SMALLEST_IMAGE)
        return cls(model, weights_hash(model.state_dict()), run, data, training, selection, findings=found)

    @classmethod
    def external(cls, name: str, weights: Path, **preprocessing: Any) -> EvaluatedModel:
        """A network of another library, under its file's name. Raises as `load_external` does."""
        model, applied = load_external(name, weights, **preprocessing)
        data = {"name": None, "root": "data", "image_size": applied.crop}
        data |= applied.model_dump(include={"resize", "interpolation"})
        asked = {name: value for name, value in preprocessing.items() if name in ("resize", "crop", "interpolation")}
        found, digest = probe.probe(model, name, applied.crop), weights_hash(model.state_dict())
        return cls(model, digest, weights.stem, data, {}, "not told", asked, found)


def load_evaluated(
    names: Sequence[str], root: Path, weights: Sequence[Path] = (), preprocessing: Mapping[str, Any] | None = None
) -> list[EvaluatedModel]:
    """The networks of runs, of checkpoint files or of other libraries; without names, of every finished run under `root`
    that can be read.

    Each external network (see `load_external`) takes the next file of `weights`, and all of them `preprocessing`. Raises
    InputError for a name that is none of these and for too few or too many `weights`, SanbenchError for a file that cannot
    be used.
    """
    preprocessing = preprocessing or {}
    runs = {run.name: run for run in all_runs(root)}
    if not names:
        check_weights([], weights, preprocessing)
        return load_finished(root)
    external = [name for name in names if is_external(name) and name not in runs and not Path(name).is_file()]
    check_weights(external, weights, preprocessing)
    files = iter(weights)

    def load(name: str) -> EvaluatedModel:
        if name in external:
            return EvaluatedModel.external(name, next(files), **preprocessing)
        if name in runs:
            runs[name].lines()  # raises for a run whose metrics are broken: what became of it is not known
            return EvaluatedModel.load(runs[name].checkpoint, name)
        if Path(name).is_file():
            return EvaluatedModel.load(Path(name), Path(name).stem)
        raise unknown("run or checkpoint file", name, runs)

    return [load(name) for name in names]


def fresh_or_evaluated(name: str, root: Path) -> EvaluatedModel:
    """A run or checkpoint file, or a name of `sanbench.models.MODELS` with fresh weights, which cost as much as trained ones.

    Raises InputError for a name that is none of these, SanbenchError for a file that cannot be used.
    """
    if has_weights(name, root):
        (found,) = load_evaluated([name], root)
        return found
    model = building.build_model(name).eval()
    data = {"name": None, "root": "data", "image_size": 224}
    return EvaluatedModel(model, weights_hash(model.state_dict()), name, data, {}, "not trained")


def has_weights(name: str, root: Path) -> bool:
    """Whether `name` is a run or checkpoint file, not a model. Raises InputError for what is none of these."""
    runs = [run.name for run in all_runs(root)]
    if name in runs or Path(name).is_file():
        return True
    try:
        resolve(name)
    except InputError:
        aliases = [alias for family in FAMILIES.values() for alias in family.aliases]
        raise unknown("run, checkpoint file or model", name, [*runs, *MODELS, *aliases]) from None
    return False


def load_finished(root: Path) -> list[EvaluatedModel]:
    """The networks of all finished runs; one that cannot be loaded is left out, and named on standard error."""
    found = []
    for run in all_runs(root):
        try:
            if run.is_finished():
                found.append(EvaluatedModel.load(run.checkpoint, run.name))
        except SanbenchError as error:
            leave_out(run, str(error))
    if not found:
        raise InputError(f"There is no finished run under {root} that can be read: `sanbench train san10` makes one.")
    return found


def check_weights(external: Sequence[str], weights: Sequence[Path], preprocessing: Mapping[str, Any]) -> None:
    """Raises InputError unless there is one file of weights for each external network, and for a mean or std that is none."""
    if not external and (weights or preprocessing):
        options = ", ".join(f"--{name}" for name in ["weights"] * bool(weights) + [*preprocessing])
        raise InputError(f"{options} is not accepted for a run: it is for networks from elsewhere, as torchvision:resnet50 is.")
    if len(external) != len(weights):
        raise InputError(
            f"{', '.join(external)} with {len(weights)} --weights is not accepted: each network from elsewhere takes one "
            "--weights FILE, in the same order."
        )
    for path in weights:
        if not path.is_file():
            raise InputError(f"There is no file {path}.")
    named = {name: preprocessing[name] for name in ("mean", "std") if name in preprocessing}
    validated(Preprocessing, "preprocessing", **named)


def test_images(
    evaluated: EvaluatedModel,
    name: str | None,
    root: Path | None,
    decoder: str,
    corruption: tuple[str, int] | None = None,  # noqa: PT028  no test, but the test split
) -> Images:
    """The test split of the data set that the network was trained on, or of the data set `name`, in `root`.

    `corruption` is the kind and severity of the image set where the data set has one for each. Raises
    InputError if neither is known, and for preprocessing that was asked for and that these images do not have.
    """
    name = name or evaluated.data["name"]
    if name is None:
        raise InputError(f"{evaluated.model.spec.name} does not say what it was trained on: name a data set with --data.")
    shown = {option: evaluated.data[option] for option in ("image_size", "resize", "interpolation") if option in evaluated.data}
    options = ReadOptions(root or Path(evaluated.data["root"]), decoder=decoder, **shown)
    images = load_dataset(name, "test", options, corruption)
    if not images.fitted:
        side = images.read([0]).shape[-1]
        for option, value in evaluated.preprocessing.items():
            if (option, value) != ("crop", side):
                raise InputError(f"{option} {value} is not accepted: the images of {name} stay as they are, {side} x {side}.")
    return images


def image_side(evaluated: EvaluatedModel) -> int:
    """The side in pixels of the images that the network was trained on; `image_size` where the data set is not known."""
    name = evaluated.data["name"]
    if name is None or find_dataset(name, ReadOptions())[0].photographs:
        return int(evaluated.data["image_size"])
    return test_images(evaluated, None, None, "pil").read([0]).shape[-1]
