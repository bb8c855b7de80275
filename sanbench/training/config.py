"""RECIPES: how a network is trained, as values."""

from math import cos, pi
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from sanbench.data import Source, find_dataset
from sanbench.errors import unknown, validated
from sanbench.models import ModelSpec, model_config, resolve
from sanbench.models.san import SANConfig


class Recipe(BaseModel):
    """`Recipe(epochs=100, batch_size=256, lr=0.1)`.

    lr            base learning rate, reached after `warmup_epochs` of linear rise, then falls to 0 on a cosine
    cosine_steps  lower the rate at every step, not only at every epoch
    crops         pad and crop the images of sets that fit in memory; those in folders always have the paper's crops
    optimizer     SGD with momentum (PyTorch's, weight decay in the gradient) or AdamW; decay on every parameter
    select        which epoch is evaluated: the best by validation top-1, or the last
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    epochs: int = Field(ge=1)
    batch_size: int = Field(ge=1)
    lr: float = Field(gt=0)
    optimizer: Literal["sgd", "adamw"] = "sgd"
    momentum: float = Field(default=0.9, ge=0, lt=1)
    weight_decay: float = Field(default=1e-4, ge=0)
    label_smoothing: float = Field(default=0.1, ge=0, lt=1)
    warmup_epochs: float = Field(default=0, ge=0)
    cosine_steps: bool = False
    crops: bool = True
    select: Literal["best", "last"] = "best"

    def learning_rate(self, epoch: int, step: int, steps: int) -> float:
        """At `step` of `steps` of `epoch`, all counted from 0."""
        progress = epoch + step / steps
        if progress < self.warmup_epochs:
            return self.lr * (progress + 1 / steps) / self.warmup_epochs
        passed = progress if self.cosine_steps else epoch
        return self.lr / 2 * (1 + cos(pi * (passed - self.warmup_epochs) / (self.epochs - self.warmup_epochs)))


RECIPES: dict[str, Recipe] = {
    # The paper's and the released configuration's. They chose the epoch on the images they report; here the last is taken.
    "paper": Recipe(epochs=100, batch_size=256, lr=0.1, select="last"),
    # For small sets on small machines.
    "short": Recipe(
        epochs=15, batch_size=64, lr=0.0025, optimizer="adamw", weight_decay=0.05, warmup_epochs=1, cosine_steps=True
    ),
}


class TrainConfig(BaseModel):
    """All that decides a run."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: ModelSpec
    data: str
    data_root: Path = Path("data")
    image_size: int = Field(default=224, ge=32)
    download: bool = False
    recipe: Recipe
    seed: int = Field(default=0, ge=0)
    workers: int = Field(default=0, ge=0)

    @property
    def source(self) -> Source:
        return Source(self.data_root, self.image_size, self.download)


def configure(
    model: str,
    data: str = "fashion10k",
    *,
    recipe: str | None = None,
    changes: dict[str, Any] | None = None,
    **options: Any,
) -> TrainConfig:
    """A run from names. `changes` are fields of the recipe or of the network, `options` those of `TrainConfig`.

    The classes are filled in by `train`, which sees the images. Raises InputError for unknown names and fields.
    """
    changes = dict(changes or {})
    entry, _ = find_dataset(data, Source())
    if recipe is not None and recipe not in RECIPES:
        raise unknown("recipe", recipe, RECIPES)
    base = RECIPES[recipe or entry.recipe]
    name, _ = resolve(model)
    known = {*Recipe.model_fields, *SANConfig.model_fields} - {"blocks"}
    for field in changes:
        if field not in known:
            raise unknown("field", field, known)
    ours = {field: changes.pop(field) for field in list(changes) if field in Recipe.model_fields}
    chosen = validated(Recipe, "recipe", **{**base.model_dump(), **ours})
    if chosen.warmup_epochs >= chosen.epochs:
        chosen = chosen.model_copy(update={"warmup_epochs": chosen.epochs / 2})
    name, variation = resolve(model, **changes)
    config = model_config(name, **variation)
    spec = ModelSpec(name=name, variation={field: getattr(config, field) for field in sorted(variation)})
    return validated(TrainConfig, "training", model=spec, data=data, recipe=chosen, **options)
