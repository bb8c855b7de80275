"""The training loop. A run goes on after any interruption as if there had been none."""

import resource
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sanbench.data import Images, Loader, dead_workers_named, load_dataset
from sanbench.device import describe
from sanbench.errors import Interrupted, UnreadableImage
from sanbench.evaluation.loop import Identity, measure
from sanbench.models.checkpoints import save_checkpoint
from sanbench.progress import Progress, Report, silent
from sanbench.runs.config import Recipe, TrainConfig
from sanbench.runs.run import Run
from sanbench.training.augment import Place, Ready, prepare
from sanbench.training.distributed import SINGLE, ProcessGroup
from sanbench.training.guards import Watch
from sanbench.training.interruption import Interruption
from sanbench.training.log import Log, check_tensorboard
from sanbench.training.profile import Profile
from sanbench.training.state import Training

LOG_EVERY = 10  # steps between two looks at the loss: looking makes the host wait for the device


def train(
    config: TrainConfig,
    folder: Path,
    device: torch.device,
    progress: Report = silent,
    *,
    resume: bool = False,
    group: ProcessGroup = SINGLE,
    profile: int = 0,
) -> Run:
    """Train a network and keep it in `folder`, which must be new, or with `resume` go on with what is there.

    With `profile` a trace of so many steps goes to trace.json.gz in `folder`, and their shares of time to metrics.jsonl.

    Every process of the `group` calls it. Raises InputError if the folder is taken or the images are missing, SanbenchError
    if the loss is not finite or images cannot be read, Interrupted when a signal asked to stop and the state is saved.
    """
    images = load_dataset(config.data, "train", config.source)
    validation = load_dataset(config.data, "validation", config.source)
    images.seed = config.seed
    group.check(config.recipe.batch_size, config.accumulate)
    check_tensorboard(config.tensorboard)
    config = config.model_copy(update={"model": config.model.model_copy(update={"num_classes": len(images.classes)})})
    run = Run(folder)
    with ExitStack() as held, Interruption() as asked:
        group.lead(lambda: run.open(config, resume, held))
        if not run.is_finished():
            loop = Loop(config, run, images, validation, device, progress, group, asked)
            if profile and group.leads:
                loop.profile = Profile(profile, run.trace, loop.training.clock)
                held.callback(loop.profile.close)
            with dead_workers_named():
                loop.run_all()
    return run


def steps_per_epoch(images: int, recipe: Recipe) -> int:
    return max(1, images // recipe.batch_size)  # the rest of an epoch is another rest in the next


class Loop:
    """One process's way through all epochs, each of `steps` steps where that is fewer than the images give."""

    def __init__(
        self,
        config: TrainConfig,
        run: Run,
        images: Images,
        validation: Images,
        device: torch.device,
        progress: Report,
        group: ProcessGroup,
        asked: Interruption,
        steps: int | None = None,
    ) -> None:
        self.config, self.recipe, self.run = config, config.recipe, run
        self.images, self.validation = images, validation
        self.reader, self.validation_reader = (
            Loader(split, config.workers, config.skip_bad_images) for split in (images, validation)
        )
        self.progress, self.group, self.asked = progress, group, asked
        self.steps = steps_per_epoch(len(images), config.recipe)
        if steps is not None:
            self.steps = min(self.steps, steps)
        self.training = Training.build(config, device, group)
        self.watch = Watch(images, run)
        if run.resume.is_file():
            self.training.load(run.resume)
        self.saved = time.monotonic()
        self.began = time.perf_counter() - self.training.seconds
        self.log: Log | None = None
        self.profile: Profile | None = None
        if group.leads:
            run.rewind(self.training.epoch, self.training.step)
            run.start_line(self.training.epoch, self.training.step, group.size, describe(device))
            self.log = Log(run, config.tensorboard, self.steps)

    def run_all(self) -> None:
        while self.training.epoch < self.recipe.epochs:
            trained = self.train_epoch()
            self.finish_epoch(trained)

    def time_epoch(self) -> dict[str, float]:
        """Train an epoch that is neither validated nor kept; the shares of its time, as `Stopwatch.stop`."""
        self.training.clock.start()
        self.train_epoch()
        shares = self.training.clock.stop()
        self.next_epoch()
        return shares

    def train_epoch(self) -> dict[str, float]:
        """The steps of an epoch that are not done yet; loss, top-1 and last learning rate of the whole epoch."""
        training, first = self.training, self.training.step
        waited, started = 0.0, time.perf_counter()
        figures = {"lr": self.recipe.learning_rate(training.epoch, self.steps - 1, self.steps)}
        for places, stream in self.parts(first):
            asked = time.perf_counter()
            with training.clock("data"):
                parts, sentence = self.read(places, stream)
            waited += time.perf_counter() - asked
            stop, save, failed = self.group.any(bool(self.asked), self.is_due(), sentence is not None)
            if failed:
                self.group.fail(sentence, UnreadableImage)
            if stop or save:
                self.save()
            if stop:
                self.leave()
            step = training.step
            rate = self.recipe.learning_rate(training.epoch, step, self.steps)
            loss = training.learn(parts, places[0].total, rate)
            self.watch.add(step, loss, [part.indices for part in parts])
            if step % LOG_EVERY == LOG_EVERY - 1 or training.step == self.steps:
                self.watch.look(training)
                elapsed = time.perf_counter() - started
                speed = (training.step - first) * places[0].total / elapsed
                figures = {**self.totals(), "lr": rate, "images_per_second": speed, "data_wait": waited / elapsed}
                self.tell(figures | {"memory_mib": memory(training.device)})
            self.look_at_time()
        return {**self.totals(), **figures}

    def look_at_time(self) -> None:
        shares = self.profile.step() if self.profile else None
        if shares:
            self.run.append({"epoch": self.training.epoch + 1, "step": self.training.step, "profile": shares})

    def parts(self, first: int) -> Iterator[tuple[list[Place], Iterator[Any]]]:
        """For each step from `first` on, this process's places in the global batch, and where their images are read from.

        The order of the images is drawn from (seed, epoch).
        """
        epoch, count = self.training.epoch, len(self.images)
        order = np.random.default_rng((self.config.seed, epoch)).permutation(count) + epoch * count
        chunks = np.array_split(order[: self.steps * self.recipe.batch_size], self.steps)[first:]
        places = [
            [
                Place(self.config.seed, epoch, step, part, len(chunk))
                for part in self.group.share(len(chunk), self.config.accumulate)
            ]
            for step, chunk in enumerate(chunks, first)
        ]
        draws = [
            chunk[place.images.start : place.images.stop].tolist()
            for chunk, own in zip(chunks, places, strict=True)
            for place in own
        ]
        stream = self.reader.read(draws)
        for own in places:
            yield own, stream

    def read(self, places: list[Place], stream: Iterator[Any]) -> tuple[list[Ready], str | None]:
        """The parts of a step on the device, or why one cannot be read."""
        training, parts = self.training, []
        padding = self.images.crop_padding if self.recipe.crops else 0
        try:
            for place in places:
                batch = next(stream)
                ready = prepare(batch, place, padding, self.recipe, len(self.images.classes), training.device)
                parts.append(ready)
        except UnreadableImage as error:
            return [], str(error)
        return parts, None

    def is_due(self) -> bool:
        return self.group.leads and time.monotonic() - self.saved > 60 * self.config.save_minutes

    def save(self) -> None:
        """The state after the last step, in one file, whole or not at all."""
        self.watch.look(self.training)
        self.write()

    def write(self) -> None:
        self.saved = time.monotonic()
        self.training.seconds = time.perf_counter() - self.began
        if self.group.leads:
            self.training.write(self.run.resume)

    def leave(self) -> None:
        name = "A signal" if self.asked.signal is None else self.asked.signal.name
        raise Interrupted(
            f"{name} stopped the run after {self.training.step} steps of epoch {self.training.epoch + 1}, and all is saved: "
            f"go on with --resume {self.run.name}."
        )

    def totals(self) -> dict[str, float]:
        loss, correct, seen, skipped = self.training.totals.tolist()
        figures = {"loss": loss / max(seen, 1), "top1": correct / max(seen, 1)}
        return figures | ({"skipped_images": skipped} if skipped else {})

    def tell(self, figures: dict[str, float]) -> None:
        if self.log is None:
            return
        training = self.training
        self.log.write({"epoch": training.epoch + 1, "step": training.step, **figures})
        task = f"train {self.config.model.label}: epoch {training.epoch + 1} of {self.recipe.epochs}"
        self.progress(Progress(task, training.epoch * self.steps + training.step, self.recipe.epochs * self.steps, figures))

    def finish_epoch(self, trained: dict[str, float]) -> None:
        """Validate, keep the network, and go over to the next epoch. A kill anywhere in here repeats it from the start."""
        training = self.training
        try:
            top1, count = self.validate()
        except Interrupted:
            self.write()
            raise
        is_best, training.best = top1 > training.best, max(top1, training.best)
        training.seconds = time.perf_counter() - self.began
        if self.log is not None:
            self.keep("last.pt")
            if is_best:
                self.keep("best.pt")
            seconds = {"validation_top1": top1, "validation_images": count, "seconds": training.seconds}
            self.log.write({"epoch": training.epoch + 1, **trained, **seconds})
        self.next_epoch()
        if training.epoch < self.recipe.epochs:
            self.write()
        elif self.group.leads:
            self.run.resume.unlink(missing_ok=True)

    def next_epoch(self) -> None:
        self.training.epoch, self.training.step = self.training.epoch + 1, 0
        self.training.totals.zero_()

    def keep(self, name: str) -> None:
        config, training = self.config, self.training
        save_checkpoint(
            self.run.folder / name,
            training.evaluated,
            data={"name": config.data, "root": str(config.data_root), "image_size": config.image_size},
            classes=self.images.classes,
            recipe=self.recipe.model_dump(),
            seed=config.seed,
            epoch=training.epoch + 1,
            train_images=len(self.images),
            train_seconds=training.seconds,
            selection=selection(self.recipe, self.validation.held_out),
        )

    def validate(self) -> tuple[float, int]:
        """Top-1 in [0, 1] and the number of images, by the one evaluation loop: each image once, by one process."""
        size, count = self.recipe.batch_size, len(self.validation)
        chunks = [range(start, min(start + size, count)) for start in range(0, count, size)][self.group.rank :: self.group.size]
        found = torch.zeros(2, dtype=torch.float64, device=self.training.device)
        sentence = None
        stream = self.validation_reader.read(chunks)
        try:
            measured = measure(self.training.evaluated, ((batch, [Identity()]) for batch in stream), self.training.device)
            for (outcome,) in measured:
                right = (outcome.rows["prediction"] == outcome.rows["label"]).sum()
                found += torch.tensor([right, len(outcome.rows)], device=found.device)
                if self.asked:
                    self.leave()
        except UnreadableImage as error:
            sentence = str(error)
        self.group.fail(sentence, UnreadableImage)
        correct, seen = self.group.total(found).tolist()
        return correct / max(seen, 1), int(seen)


def selection(recipe: Recipe, held_out: bool) -> str:
    """On what the evaluated epoch was chosen: a record says so where it was the reported images."""
    if recipe.select == "last":
        return "last epoch"
    return "best epoch on validation images" if held_out else "best epoch ON THE REPORTED IMAGES"


def memory(device: torch.device) -> float:
    """The most that was in use so far, in MiB: on the GPU, or of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
