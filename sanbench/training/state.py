"""TrainState: everything that changes while a network is trained, one step of it, saving and loading."""

import os
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import cache, partial
from inspect import unwrap
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from sanbench.models import Classifier, build_model, zero_residuals
from sanbench.models.checkpoints import read_checkpoint, write_whole
from sanbench.models.normalisation import synchronise
from sanbench.runs.config import Recipe, TrainConfig
from sanbench.training.augment import TrainBatch
from sanbench.training.distributed import ProcessGroup
from sanbench.training.profile import Stopwatch

FORMAT = "sanbench training 2"
FUSED = ("cpu", "cuda")  # devices on which torch has fused optimisers
WRAPPED = ("add_param_group", "zero_grad", "state_dict", "load_state_dict")  # methods of an optimiser, beside its step
PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def precision(config: TrainConfig, device: torch.device) -> torch.dtype:
    if config.precision == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    return PRECISIONS[config.precision]


@dataclass
class TrainState:
    """A network in training after `step` steps of `epoch`, both counted from 0.

    Random numbers depend on (seed, epoch, step), so that no generator's state has to be saved.
    parallel  `model` behind torch.compile and DistributedDataParallel, where they are used
    totals    of the epoch so far in this process: loss, right predictions, images, skipped images
    """

    model: Classifier
    parallel: nn.Module
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    ema: AveragedModel | None
    recipe: Recipe
    group: ProcessGroup
    device: torch.device
    dtype: torch.dtype
    totals: Tensor
    epoch: int = 0
    step: int = 0
    best: float = -1.0
    seconds: float = 0.0
    clock: Stopwatch = field(default_factory=Stopwatch)

    @classmethod
    def build(cls, config: TrainConfig, device: torch.device, group: ProcessGroup) -> "TrainState":
        """A network with fresh weights, drawn from the seed."""
        spec, recipe = config.model, config.recipe
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(config.seed)
            model = build_model(spec.name, spec.num_classes, mean=spec.mean, std=spec.std, **spec.variation)
        if recipe.zero_init:
            zero_residuals(model)
        if recipe.sync_bn and group.size > 1:
            synchronise(model)
        on_gpu = device.type == "cuda"
        model.to(device)
        if on_gpu:
            model.to(memory_format=torch.channels_last)
        if config.deterministic:
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
            torch.use_deterministic_algorithms(True)
        torch.backends.cudnn.benchmark = on_gpu and not config.deterministic
        parallel: nn.Module = torch.compile(model) if config.compile else model  # type: ignore[assignment]  # typed as a function
        if group.size > 1:
            match_strides(model)
            parallel = DistributedDataParallel(parallel, device_ids=[device.index] if on_gpu else None)
        dtype = precision(config, device)
        scaler = torch.amp.GradScaler(device.type, enabled=dtype == torch.float16)
        ema = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(recipe.ema), use_buffers=True) if recipe.ema else None
        totals = torch.zeros(4, dtype=torch.float64, device=device)
        optimizer = make_optimizer(model, recipe, fused=device.type in FUSED)
        return cls(model, parallel, optimizer, scaler, ema, recipe, group, device, dtype, totals)

    @property
    def averaged(self) -> Classifier:
        """The network that is validated and saved: the average of the weights, or without `ema` the model itself."""
        return self.model if self.ema is None else self.ema.module  # type: ignore[return-value]  # a copy of the model

    def train_step(self, parts: list[TrainBatch], count: int, rate: float) -> Tensor:
        """One step of the optimiser on this process's parts of a global batch of `count` images; the sum of their losses."""
        self.parallel.train()
        with self.clock("optimizer"):
            for group in self.optimizer.param_groups:
                group["lr"] = rate
            self.optimizer.zero_grad(set_to_none=True)
        loss = torch.zeros((), device=self.device)
        for number, part in enumerate(parts):
            is_last = number == len(parts) - 1
            plain = is_last or not isinstance(self.parallel, DistributedDataParallel)
            with nullcontext() if plain else self.parallel.no_sync():  # type: ignore[operator]  # DDP's, see `plain`
                with self.clock("forward"), torch.autocast(self.device.type, self.dtype, self.dtype != torch.float32):
                    logits = self.parallel(part.pixels)
                    part_loss = F.cross_entropy(
                        logits, part.targets, label_smoothing=self.recipe.label_smoothing, reduction="sum"
                    )
                with self.clock("backward"):  # DDP averages gradients over the processes: group.size makes it their sum
                    self.scaler.scale(part_loss * (self.group.size / count)).backward()
            loss += part_loss.detach()
            self.totals[1] += (logits.detach().argmax(1) == part.labels).sum()
        with self.clock("optimizer"):
            if self.recipe.clip:
                self.scaler.unscale_(self.optimizer)
                nn.utils.clip_grad_norm_(self.model.parameters(), self.recipe.clip)
            self.scaler.step(self.optimizer)
            self.scaler.update()
            if self.ema is not None:
                self.ema.update_parameters(self.model)
        self.totals[0] += loss
        self.totals[2] += sum(len(part.labels) for part in parts)
        self.totals[3] += sum(part.skipped for part in parts)
        self.step += 1
        return loss

    def reduce_totals(self) -> None:
        """Move the totals of all processes, which all call this, to rank 0."""
        total = self.group.all_reduce_sum(self.totals)
        self.totals.copy_(total) if self.group.is_rank_zero else self.totals.zero_()

    def write(self, path: Path) -> None:
        """Write the state to `path`, on rank 0 after `reduce_totals`. Raises SanbenchError as `write_whole` does."""
        parts: dict[str, Any] = {name: part.state_dict() for name, part in self._parts().items()}
        numbers = {name: getattr(self, name) for name in ("epoch", "step", "best", "seconds")}
        write_whole(path, {"format": FORMAT, **parts, **numbers, "totals": self.totals.cpu()})

    def load(self, path: Path) -> None:
        """Load the state in `path`. Raises SanbenchError if `write` has not written it."""
        name = path.parent.name
        content = read_checkpoint(
            path, FORMAT, f"Remove it, and --resume {name} trains from the beginning; best.pt and last.pt can be measured."
        )
        for name, part in self._parts().items():
            part.load_state_dict(content[name])
        for name in ("epoch", "step", "best", "seconds"):
            setattr(self, name, content[name])
        if self.group.is_rank_zero:  # the file has the sum of all processes
            self.totals.copy_(content["totals"])

    def _parts(self) -> dict[str, Any]:
        parts = {"model": self.model, "optimizer": self.optimizer, "scaler": self.scaler}
        return parts if self.ema is None else {**parts, "ema": self.ema}


def match_strides(model: nn.Module) -> None:
    """Have gradients come with the strides of their parameters, which DistributedDataParallel copies them by and warns of.

    A weight of 1x1 lies in memory alike as C x K x 1 x 1 and in channels last; a convolution's backward pass gives the latter.
    """

    def matched(gradient: Tensor, parameter: nn.Parameter) -> Tensor:
        if gradient.is_contiguous() and parameter.is_contiguous():  # lengths of 1 do not count
            return gradient.as_strided(parameter.shape, parameter.stride())
        return gradient

    for parameter in model.parameters():
        if parameter.dim() == 4:
            parameter.register_hook(partial(matched, parameter=parameter))


def make_optimizer(model: Classifier, recipe: Recipe, fused: bool = False) -> torch.optim.Optimizer:
    """The recipe's optimiser. Without `decay_norms` parameters of one dimension, norms and biases, have no weight decay."""
    parameters = list(model.parameters())
    groups: list[dict[str, Any]] = [{"params": parameters}]
    if not recipe.decay_norms:
        groups = [
            {"params": [parameter for parameter in parameters if parameter.dim() > 1]},
            {"params": [parameter for parameter in parameters if parameter.dim() <= 1], "weight_decay": 0.0},
        ]
    if recipe.optimizer == "adamw":
        return uncompiled(torch.optim.AdamW)(groups, recipe.lr, weight_decay=recipe.weight_decay, fused=fused)
    return uncompiled(torch.optim.SGD)(groups, recipe.lr, recipe.momentum, weight_decay=recipe.weight_decay, fused=fused)


@cache
def uncompiled(optimizer: Any) -> Any:
    """The optimiser, with its methods as they were written.

    torch wraps them so that its compiler leaves them alone, and imports the compiler at the first call, which takes as long
    as the rest of torch. Here no step of an optimiser is compiled.
    """
    methods = {name: unwrap(getattr(optimizer, name)) for name in WRAPPED}
    return type(optimizer.__name__, (optimizer,), {**methods, "step": torch.no_grad()(unwrap(optimizer.step))})
