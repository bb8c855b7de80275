"""TrainConfig and RECIPES: everything that decides a training, as frozen values."""

import re
from fractions import Fraction
from math import cos, pi
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from sanbench.data import ReadOptions, find_dataset
from sanbench.errors import unknown, validated
from sanbench.models import family_of, resolve
from sanbench.store.schema import ModelSpec

EPS = re.compile(r"\d{1,9}(/0*[1-9]\d{0,8})?|\d?\.\d{1,9}", re.ASCII)


class Recipe(BaseModel):
    """How a network is trained: `Recipe(epochs=100, batch_size=256, lr=0.1)`.

    lr            base learning rate: the rate rises to it linearly in `warmup_epochs`, then falls to 0 on a cosine
    cosine_steps  lower the rate at every step, not only at every epoch
    crops         pad and crop the images of data sets in memory; photographs always have the paper's crops
    zero_init     begin with every block as the identity: SANs then learn faster, patchwise ones most
    optimizer     SGD with momentum (PyTorch's, weight decay in the gradient) or AdamW
    decay_norms   decay the parameters of norms and biases too, as the paper does
    mixup, cutmix alpha of the Beta distribution of the mixing ratio; 0 is off, with both each step draws one of them
    randaugment   magnitude of two random operations on each image, up to 30; 0 is off
    ema           decay per step of an average of the weights, which is then validated and kept; 0 is off
    clip          largest norm of the gradient of all parameters; 0 is off
    sync_bn       batch normalisation over the images of all processes instead of each process's
    adversary     pgd: learn from the examples that this attack makes of each batch in `adversary_steps` steps within
                  `adversary_eps` in L-infinity, pixels in [0, 1] (Madry et al. 2018)
    select        the epoch that is evaluated: the best by validation top-1, or the last
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    epochs: int = Field(ge=1, le=100_000)
    batch_size: int = Field(ge=1, le=2**20)
    lr: float = Field(gt=0)
    optimizer: Literal["sgd", "adamw"] = "sgd"
    momentum: float = Field(default=0.9, ge=0, lt=1)
    weight_decay: float = Field(default=1e-4, ge=0, le=1000)
    label_smoothing: float = Field(default=0.1, ge=0, lt=1)
    warmup_epochs: float = Field(default=0, ge=0, le=100_000)
    cosine_steps: bool = False
    crops: bool = True
    zero_init: bool = False
    decay_norms: bool = True
    mixup: float = Field(default=0, ge=0, le=100)
    cutmix: float = Field(default=0, ge=0, le=100)
    randaugment: int = Field(default=0, ge=0, le=30)
    ema: float = Field(default=0, ge=0, lt=1)
    clip: float = Field(default=0, ge=0, le=10**9)
    sync_bn: bool = False
    adversary: Literal["", "pgd"] = ""
    adversary_eps: str = "8/255"
    adversary_steps: int = Field(default=10, ge=1, le=10_000)
    select: Literal["best", "last"] = "best"

    @field_validator("adversary_eps", mode="before")
    @classmethod
    def written(cls, value: Any) -> str:
        text = str(value).strip()
        if not EPS.fullmatch(text) or not 0 < Fraction(text) <= 1:
            accepted = "fractions such as 8/255 and decimals above 0, up to 1"
            raise ValueError(f"adversary_eps {text!r} is not accepted: accepted are {accepted}.")
        return text

    @model_validator(mode="after")
    def has_an_effect(self) -> Self:
        for field in ("adversary_eps", "adversary_steps"):
            value = getattr(self, field)
            if not self.adversary and value != type(self).model_fields[field].default:
                raise ValueError(f"{field} {value} is not accepted: without adversary=pgd it has no effect.")
        if self.adversary and (self.mixup or self.cutmix):
            raise ValueError(f"adversary {self.adversary} is not accepted with mixup or cutmix: it needs a class an image.")
        return self

    def learning_rate(self, epoch: int, step: int, steps: int) -> float:
        """At `step` of `steps` of `epoch`, all counted from 0."""
        progress = epoch + step / steps
        if progress < self.warmup_epochs:
            return self.lr * (progress + 1 / steps) / self.warmup_epochs
        passed = progress if self.cosine_steps else epoch
        return self.lr / 2 * (1 + cos(pi * (passed - self.warmup_epochs) / (self.epochs - self.warmup_epochs)))


RECIPES: dict[str, Recipe] = {
    # The paper's, and the configuration file's of its code. The authors chose the best epoch on the images that they report;
    # here it is the last one.
    "paper": Recipe(epochs=100, batch_size=256, lr=0.1, select="last"),
    # For small data sets on small machines.
    "short": Recipe(
        epochs=15, batch_size=64, lr=0.0025, optimizer="adamw", weight_decay=0.05, warmup_epochs=1, cosine_steps=True
    ),
}


class RuntimeOptions(BaseModel):
    """How a run is computed: options that a resume may change.

    workers          processes that decode images; None is `sanbench.data.default_workers`
    accumulate       parts of a process's share of a global batch, computed one after another
    skip_bad_images  leave out images that cannot be decoded, up to 0.1% of them
    save_minutes     minutes between two checkpoints within an epoch
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    data_root: Path = Path("data")
    download: bool = False
    workers: int | None = Field(default=None, ge=0, le=1024)
    accumulate: int = Field(default=1, ge=1, le=2**20)
    skip_bad_images: bool = False
    save_minutes: float = Field(default=30, gt=0, le=10**6)
    compile: bool = False
    tensorboard: bool = False


class TrainConfig(RuntimeOptions):
    """Everything that decides a run.

    image_size     side of the crops of photographs, in pixels
    decoder        of photographs: turbo is the fastest, published networks were trained with pil
    precision      bf16 and fp16 are autocast; auto is bf16 on CUDA, fp32 elsewhere
    deterministic  use only operators that repeat bit for bit on CUDA
    """

    model: ModelSpec
    data: str
    image_size: int = Field(default=224, ge=32, le=4096)
    decoder: Literal["pil", "torchvision", "turbo"] = "turbo"
    recipe: Recipe
    seed: int = Field(default=0, ge=0, lt=2**63)
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    deterministic: bool = False

    @property
    def read_options(self) -> ReadOptions:
        return ReadOptions(self.data_root, self.image_size, self.download, self.decoder)


def configure(
    model: str,
    data: str = "fashion10k",
    *,
    recipe: str | None = None,
    changes: dict[str, Any] | None = None,
    **options: Any,
) -> TrainConfig:
    """A run from names. `changes` are fields of the recipe or of the network's family, `options` those of `TrainConfig`.

    `train` sets the number of classes when it has read the labels. Raises InputError for unknown names and fields.
    """
    changes = changes or {}
    entry, _ = find_dataset(data, ReadOptions())
    if recipe is not None and recipe not in RECIPES:
        raise unknown("recipe", recipe, RECIPES)
    base = RECIPES[recipe or entry.recipe]
    known = {*Recipe.model_fields, *family_of(resolve(model)[0]).fields}
    for field in changes:
        if field not in known:
            raise unknown("field", field, known)
    of_recipe = {field: value for field, value in changes.items() if field in Recipe.model_fields}
    chosen = validated(Recipe, "recipe", **{**base.model_dump(), **of_recipe})
    if chosen.warmup_epochs >= chosen.epochs:
        chosen = chosen.model_copy(update={"warmup_epochs": chosen.epochs / 2})
    name, variation = resolve(model, **{field: value for field, value in changes.items() if field not in of_recipe})
    spec = ModelSpec(name=name, variation=variation)
    return validated(TrainConfig, "training", model=spec, data=data, recipe=chosen, **options)


def reconfigure(
    base: TrainConfig,
    model: str | None = None,
    data: str | None = None,
    *,
    recipe: str | None = None,
    changes: dict[str, Any] | None = None,
    **options: Any,
) -> TrainConfig:
    """The run of `base` with other values where there are arguments. Raises InputError as `configure` does."""
    kept = {name: getattr(base, name) for name in TrainConfig.model_fields if name not in ("model", "data", "recipe")}
    before = {**({} if recipe else base.recipe.model_dump()), **base.model.variation}
    return configure(
        model or base.model.name,
        data or base.data,
        recipe=recipe,
        changes={**before, **(changes or {})},
        **{**kept, **options},
    )
