"""The training loop: a run is a folder with config.json, metrics.jsonl, last.pt and best.pt."""

import json
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from sanbench.data import Batch, Images, batches, load_dataset
from sanbench.errors import InputError, SanbenchError
from sanbench.evaluation.loop import Identity, measure
from sanbench.models import Classifier, build_model
from sanbench.models.checkpoints import save_checkpoint
from sanbench.progress import Progress, Report, silent
from sanbench.training.config import Recipe, TrainConfig
from sanbench.training.runs import Run

LOG_EVERY = 10  # steps between two looks at the loss: looking makes the host wait for the device


def train(config: TrainConfig, folder: Path, device: torch.device, progress: Report = silent) -> Run:
    """Train a network and keep it in `folder`, which must be new.

    Raises InputError if the folder is taken or the images are missing, SanbenchError if the loss is not finite.
    """
    images = load_dataset(config.data, "train", config.source)
    validation = load_dataset(config.data, "validation", config.source)
    images.seed = config.seed
    try:
        folder.mkdir(parents=True)
    except FileExistsError:
        raise InputError(f"The run {folder} is there already: name another with --run, or remove it.") from None
    except OSError as error:
        raise SanbenchError(f"Cannot make {folder}: {error.strerror}. Name another folder with --runs.") from error
    config = config.model_copy(update={"model": config.model.model_copy(update={"num_classes": len(images.classes)})})
    (folder / "config.json").write_text(config.model_dump_json(indent=1) + "\n")

    recipe = config.recipe
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(config.seed)
        spec = config.model
        model = build_model(spec.name, spec.num_classes, mean=spec.mean, std=spec.std, **spec.variation)
    model.to(device)
    optimizer = make_optimizer(model, recipe)
    best = -1.0
    started = time.perf_counter()
    for epoch in range(recipe.epochs):
        trained = train_epoch(model, optimizer, images, config, epoch, device, progress)
        top1 = validate(model, validation, recipe.batch_size, config.workers, device)
        line = {"epoch": epoch + 1, **trained, "validation_top1": top1, "seconds": time.perf_counter() - started}
        about = {
            "data": {"name": config.data, "root": str(config.data_root), "image_size": config.image_size},
            "classes": images.classes,
            "recipe": recipe.model_dump(),
            "seed": config.seed,
            "epoch": epoch + 1,
            "train_images": len(images),
            "train_seconds": line["seconds"],
            "selection": selection(recipe, validation.held_out),
        }
        save_checkpoint(folder / "last.pt", model, **about)
        if top1 > best:
            best = top1
            save_checkpoint(folder / "best.pt", model, **about)
        with (folder / "metrics.jsonl").open("a") as file:  # last: an epoch that is listed has its checkpoints
            file.write(json.dumps(line) + "\n")
    return Run(folder)


def selection(recipe: Recipe, held_out: bool) -> str:
    """On what the evaluated epoch was chosen: a record says so where it was the reported images."""
    if recipe.select == "last":
        return "last epoch"
    return "best epoch on validation images" if held_out else "best epoch ON THE REPORTED IMAGES"


def train_epoch(
    model: Classifier,
    optimizer: torch.optim.Optimizer,
    images: Images,
    config: TrainConfig,
    epoch: int,
    device: torch.device,
    progress: Report,
) -> dict[str, float]:
    """One pass over the images in an order drawn from (seed, epoch); the mean loss, top-1 and last learning rate."""
    recipe = config.recipe
    order = np.random.default_rng((config.seed, epoch)).permutation(len(images)) + epoch * len(images)
    steps = max(1, len(order) // recipe.batch_size)  # the rest of an epoch is another rest in the next
    chunks = [chunk.tolist() for chunk in np.array_split(order[: steps * recipe.batch_size], steps)]
    model.train()
    seen, losses, correct = 0, torch.zeros((), device=device), torch.zeros((), device=device)
    rate, started = recipe.lr, time.perf_counter()
    for step, batch in enumerate(batches(images, chunks, config.workers)):
        rate = recipe.learning_rate(epoch, step, steps)
        for group in optimizer.param_groups:
            group["lr"] = rate
        pixels = augment(
            batch, images.crop_padding if recipe.crops else 0, np.random.default_rng((config.seed, epoch, step)), device
        )
        labels = batch.labels.to(device)
        logits = model(pixels)
        loss = F.cross_entropy(logits, labels, label_smoothing=recipe.label_smoothing)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        seen += len(labels)
        losses += loss.detach() * len(labels)
        correct += (logits.detach().argmax(1) == labels).sum()
        if step % LOG_EVERY == LOG_EVERY - 1 or step == steps - 1:
            figures = {"loss": losses.item() / seen, "top1": correct.item() / seen}
            if not np.isfinite(figures["loss"]):
                raise SanbenchError(
                    f"The loss is not finite at epoch {epoch + 1}, step {step + 1}: lower --lr. "
                    "The checkpoints of the epochs before are whole."
                )
            speed = {"images_per_second": seen / (time.perf_counter() - started)}
            total = recipe.epochs * steps
            progress(
                Progress(
                    f"train {config.model.label}: epoch {epoch + 1} of {recipe.epochs}",
                    epoch * steps + step + 1,
                    total,
                    figures | speed,
                )
            )
    return {"loss": losses.item() / seen, "top1": correct.item() / seen, "lr": rate}


def validate(model: Classifier, images: Images, batch_size: int, workers: int, device: torch.device) -> float:
    """Top-1 in [0, 1], by the one evaluation loop."""
    chunks = [range(start, min(start + batch_size, len(images))) for start in range(0, len(images), batch_size)]
    stream = ((batch, [Identity()]) for batch in batches(images, chunks, workers))
    frames = [outcome.frame for (outcome,) in measure(model, stream, device)]
    return sum(int((frame["prediction"] == frame["label"]).sum()) for frame in frames) / len(images)


def make_optimizer(model: Classifier, recipe: Recipe) -> torch.optim.Optimizer:
    if recipe.optimizer == "adamw":
        return torch.optim.AdamW(model.parameters(), recipe.lr, weight_decay=recipe.weight_decay)
    return torch.optim.SGD(model.parameters(), recipe.lr, recipe.momentum, weight_decay=recipe.weight_decay)


def augment(batch: Batch, padding: int, generator: np.random.Generator, device: torch.device) -> Tensor:
    """Float pixels in [0, 1], mirrored with probability 1/2 and, padded with black, cropped at random to their size."""
    count, _, height, width = batch.images.shape
    mirrored = torch.from_numpy(generator.random(count) < 0.5).to(device)
    top, left = (torch.from_numpy(generator.integers(0, 2 * padding + 1, count)).to(device) for _ in range(2))
    images = batch.images.to(device, non_blocking=True)
    if padding:
        images = F.pad(images, (padding,) * 4)
        rows = top[:, None] + torch.arange(height, device=device)
        columns = left[:, None] + torch.arange(width, device=device)
        numbers = torch.arange(count, device=device)[:, None, None]
        images = images.permute(0, 2, 3, 1)[numbers, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)
    images = images.float() / 255
    return torch.where(mirrored[:, None, None, None], images.flip(3), images)
