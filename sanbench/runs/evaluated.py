"""Subjects: trained networks under test, and the images that each is shown."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sanbench.data import Images, Source, load_dataset
from sanbench.errors import InputError
from sanbench.models import Classifier
from sanbench.models.checkpoints import read_checkpoint, rebuild, weights_hash
from sanbench.models.external import load_external


@dataclass(frozen=True)
class EvaluatedModel:
    """A trained network under test and what a record must say of its past; what a file does not tell is missing or None.

    data   what it was trained on, name and root, and how photographs are shown to it: image_size and where stated
           resize and interpolation
    asked  what of resize, crop and interpolation a command asked for
    """

    model: Classifier
    weights: str
    run: str
    data: dict[str, Any]
    training: dict[str, Any]
    selection: str
    asked: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def load(cls, checkpoint: Path, run: str) -> "EvaluatedModel":
        """From a checkpoint that training or an import wrote. Raises InputError or SanbenchError as `load_model`."""
        content = read_checkpoint(checkpoint)
        model = rebuild(content, checkpoint)
        told = ("recipe", "seed", "epoch", "train_images", "train_seconds", "imported")
        training = {name: content[name] for name in told if name in content}
        return cls(model, weights_hash(model.state_dict()), run, content["data"], training, content["selection"])

    @classmethod
    def foreign(cls, name: str, weights: Path, **chosen: Any) -> "EvaluatedModel":
        """Another's network, see `load_external`, which raises; the weights' file gives it the name of a run."""
        model, view = load_external(name, weights, **chosen)
        data = {"name": None, "root": "data", "image_size": view.crop, **view.model_dump(include={"resize", "interpolation"})}
        asked = {name: value for name, value in chosen.items() if name in ("resize", "crop", "interpolation")}
        return cls(model, weights_hash(model.state_dict()), weights.stem, data, {}, "not told", asked)


def test_images(evaluated: EvaluatedModel, name: str | None, root: Path | None, decoder: str) -> Images:
    """The test split of the data that the evaluated was trained on, or of another set or place.

    Raises InputError if neither is known, and for images that cannot be shown as the evaluated asks for.
    """
    place = root or Path(evaluated.data["root"])
    name = name or evaluated.data["name"]
    if name is None:
        raise InputError(f"{evaluated.model.spec.name} does not say what it was trained on: name a data set with --data.")
    stated = {option: evaluated.data[option] for option in ("image_size", "resize", "interpolation") if option in evaluated.data}
    images = load_dataset(name, "test", Source(place, decoder=decoder, **stated))
    if not images.preprocessing:
        side = images.read([0]).shape[-1]
        for option, value in evaluated.asked.items():
            if (option, value) != ("crop", side):
                raise InputError(f"{option} {value} is not accepted: the images of {name} stay as they are, {side} x {side}.")
    return images


def image_side(evaluated: EvaluatedModel) -> int:
    """Of the images that the evaluated was trained on; what photographs are cropped to, where the data is not told."""
    name = evaluated.data["name"]
    if name is None or name == "imagenet" or name.startswith("folder:"):
        return int(evaluated.data["image_size"])
    return test_images(evaluated, None, None, "pil").read([0]).shape[-1]
