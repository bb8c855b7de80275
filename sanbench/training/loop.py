"""The training loop. An interrupted run is resumed with the weights that it would have had without the interruption."""

import resource
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import torch

from sanbench.data import Batch, Images, Loader, dead_workers_named, load_dataset
from sanbench.device import describe, processor
from sanbench.errors import Interrupted, UnreadableImage
from sanbench.evaluation.loop import Identity, measure
from sanbench.models.checkpoints import save_checkpoint
from sanbench.progress import Progress, Report, silent
from sanbench.runs.config import Recipe, TrainConfig
from sanbench.runs.run import Machine, Run
from sanbench.training.adversary import adversarial
from sanbench.training.augment import BatchSlice, TrainBatch, prepare
from sanbench.training.distributed import SINGLE, ProcessGroup
from sanbench.training.guards import FaultCheck
from sanbench.training.interruption import Interruption
from sanbench.training.log import Log, check_tensorboard
from sanbench.training.plan import check_memory, steps_per_epoch
from sanbench.training.profile import Profile
from sanbench.training.state import TrainState

TELL = 0.5  # seconds between two tellings of progress, at most about
LOG_EVERY = 10  # steps between two lines of the log, for each of which the host waits for the device


def train(
    config: TrainConfig,
    folder: Path,
    device: torch.device,
    progress: Report = silent,
    *,
    resume: bool = False,
    group: ProcessGroup = SINGLE,
    profile: int = 0,
    interruption: Interruption | None = None,
) -> Run:
    """Train a network in `folder`, which must be new; with `resume` go on with the run in it.

    With `profile` a trace of so many steps is written to trace.json.gz in `folder`, and their shares of time to metrics.jsonl.

    Every process of the `group` calls it. An `interruption` that is entered already tells of signals; without one, signals are
    received while it runs. Raises InputError if the folder is taken or the images are missing, SanbenchError
    if the loss is not finite or images cannot be read, Interrupted when the state was saved after a signal.
    """
    images = load_dataset(config.data, "train", config.read_options).with_options(seed=config.seed)
    validation = load_dataset(config.data, "validation", config.read_options)
    group.check(config.recipe.batch_size, config.accumulate)
    check_tensorboard(config.tensorboard)
    check_memory(config, images, group.size, device)
    config = config.model_copy(update={"model": config.model.model_copy(update={"num_classes": len(images.classes)})})
    run = Run(folder)
    with ExitStack() as stack:
        if interruption is None:
            interruption = stack.enter_context(Interruption())
        group.broadcast_from_rank_zero(lambda: run.open(config, resume, stack))
        if not run.is_finished():
            loop = Loop(config, run, images, validation, device, progress, group, interruption)
            if profile and group.is_rank_zero:
                loop.profile = Profile(profile, run.trace, loop.state.clock)
                stack.callback(loop.profile.close)
            group.all_reduce_any(False)  # so that all processes begin to heed signals at once
            interruption.begun = True
            with dead_workers_named():
                loop.run_all()
    return run


class Loop:
    """All epochs of one process, each of `steps` steps where that is fewer than the images give."""

    def __init__(
        self,
        config: TrainConfig,
        run: Run,
        images: Images,
        validation: Images,
        device: torch.device,
        progress: Report,
        group: ProcessGroup,
        interruption: Interruption,
        steps: int | None = None,
    ) -> None:
        self.config, self.recipe, self.run = config, config.recipe, run
        self.images, self.validation = images, validation
        self.reader, self.validation_reader = (
            Loader(split, config.workers, config.skip_bad_images) for split in (images, validation)
        )
        self.progress, self.group, self.interruption = progress, group, interruption
        self.steps = steps_per_epoch(len(images), config.recipe)
        if steps is not None:
            self.steps = min(self.steps, steps)
        self.state = TrainState.build(config, device, group)
        self.faults = FaultCheck(images, run)
        if run.resume.is_file():
            self.state.load(run.resume)
        self.saved = time.monotonic()
        self.began = time.perf_counter() - self.state.seconds
        self.log: Log | None = None
        self.told, self.figures = 0.0, dict[str, float]()  # when progress was told last, and with which figures
        self.profile: Profile | None = None
        if group.is_rank_zero:
            run.rewind(self.state.epoch, self.state.step)
            run.start_line(self.state.epoch, self.state.step, machine(group.size, device))
            self.log = Log(run, config.tensorboard, self.steps)

    def run_all(self) -> None:
        while self.state.epoch < self.recipe.epochs:
            trained = self.train_epoch()
            self.finish_epoch(trained)

    def time_epoch(self) -> dict[str, float]:
        """Train an epoch that is neither validated nor kept; the shares of its time, as `Stopwatch.stop`."""
        self.state.clock.start()
        self.train_epoch()
        shares = self.state.clock.stop()
        self.next_epoch()
        return shares

    def train_epoch(self) -> dict[str, float]:
        """The steps of an epoch that are not done yet; loss, top-1 and last learning rate of the whole epoch."""
        state, first = self.state, self.state.step
        waited, started = 0.0, time.perf_counter()
        figures = {"lr": self.recipe.learning_rate(state.epoch, self.steps - 1, self.steps)}
        self.tell("", {})
        for slices, stream in self.slices(first):
            reading = time.perf_counter()
            with state.clock("data"):
                parts, sentence = self.read(slices, stream)
            waited += time.perf_counter() - reading
            stop, save, failed = self.group.all_reduce_any(bool(self.interruption), self.is_due(), sentence is not None)
            if failed:
                self.group.raise_if_any(sentence, UnreadableImage)
            if stop or save:
                self.save()
            if stop:
                self.interrupt()
            parts = [self.attacked(part) for part in parts] if self.recipe.adversary else parts
            step = state.step
            rate = self.recipe.learning_rate(state.epoch, step, self.steps)
            loss = state.train_step(parts, slices[0].total, rate)
            self.faults.add(step, loss, [part.indices for part in parts])
            if step % LOG_EVERY == LOG_EVERY - 1 or state.step == self.steps:
                self.faults.check(state)
                elapsed = time.perf_counter() - started
                speed = (state.step - first) * slices[0].total / elapsed
                figures = {**self.totals(), "lr": rate, "images_per_second": speed, "data_wait": waited / elapsed}
                self.log_step(figures | {"memory_mib": peak_memory(state.device)})
            elif time.monotonic() - self.told > TELL:
                self.tell(f"step {state.step:,} of {self.steps:,}", self.figures)
            self.log_profile()
        return {**self.totals(), **figures}

    def log_profile(self) -> None:
        shares = self.profile.step() if self.profile else None
        if shares:
            self.run.append({"epoch": self.state.epoch + 1, "step": self.state.step, "profile": shares})

    def slices(self, first: int) -> Iterator[tuple[list[BatchSlice], Iterator[Batch]]]:
        """For each step from `first` on, this process's slices of the global batch, and the reader that gives their images.

        (seed, epoch) decides the order of the images.
        """
        epoch, count = self.state.epoch, len(self.images)
        order = np.random.default_rng((self.config.seed, epoch)).permutation(count) + epoch * count
        chunks = np.array_split(order[: self.steps * self.recipe.batch_size], self.steps)[first:]
        slices = [
            [
                BatchSlice(self.config.seed, epoch, step, part, len(chunk))
                for part in self.group.share(len(chunk), self.config.accumulate)
            ]
            for step, chunk in enumerate(chunks, first)
        ]
        draws = [
            chunk[part.images.start : part.images.stop].tolist()
            for chunk, of_step in zip(chunks, slices, strict=True)
            for part in of_step
        ]
        stream = self.reader.read(draws)
        for of_step in slices:
            yield of_step, stream

    def read(self, slices: list[BatchSlice], stream: Iterator[Batch]) -> tuple[list[TrainBatch], str | None]:
        """The augmented slices of a step on the device, or the sentence of an error."""
        parts, classes = [], len(self.images.classes)
        padding = self.images.crop_padding if self.recipe.crops else 0
        try:
            for part in slices:
                parts.append(prepare(next(stream), part, padding, self.recipe, classes, self.state.device))
        except UnreadableImage as error:
            return [], str(error)
        return parts, None

    def attacked(self, part: TrainBatch) -> TrainBatch:
        """Its adversarial examples. All processes attack the network of rank 0: until the next forward pass each has its own
        running statistics, and after a resume those of the file, which are rank 0's."""
        self.group.broadcast(self.state.model.buffers())
        return adversarial(self.state.model, part, self.recipe, self.config.seed, self.state.epoch)

    def is_due(self) -> bool:
        return self.group.is_rank_zero and time.monotonic() - self.saved > 60 * self.config.save_minutes

    def save(self) -> None:
        """Write the state after the last step to resume.pt, all or nothing. All processes call it."""
        self.faults.check(self.state)
        self.write()

    def write(self) -> None:
        self.saved = time.monotonic()
        self.state.seconds = time.perf_counter() - self.began
        if self.group.is_rank_zero:
            self.state.write(self.run.resume)

    def interrupt(self) -> None:
        """Raises Interrupted."""
        signal = self.interruption.signal
        name = "A signal" if signal is None else signal.name
        raise Interrupted(
            f"{name} stopped the run after {self.state.step} steps of epoch {self.state.epoch + 1}, and all is saved: "
            f"go on with --resume {self.run.name}."
        )

    def totals(self) -> dict[str, float]:
        loss, correct, seen, skipped = self.state.totals.tolist()
        figures = {"loss": loss / max(seen, 1), "top1": correct / max(seen, 1)}
        return figures | ({"skipped_images": skipped} if skipped else {})

    def log_step(self, figures: dict[str, float]) -> None:
        if self.log is None:
            return
        state = self.state
        self.log.write({"epoch": state.epoch + 1, "step": state.step, **figures})
        self.tell(f"step {state.step:,} of {self.steps:,}", figures)

    def tell(self, detail: str, figures: dict[str, float]) -> None:
        if self.log is None:
            return
        self.told, self.figures, state = time.monotonic(), figures, self.state
        task = f"train {self.config.model.label}: epoch {state.epoch + 1} of {self.recipe.epochs}"
        done = state.epoch * self.steps + state.step
        self.progress(Progress(task, done, self.recipe.epochs * self.steps, figures, detail=detail))

    def finish_epoch(self, trained: dict[str, float]) -> None:
        """Validate, save the network, and begin the next epoch. After a kill in here a resume repeats all of it."""
        state = self.state
        try:
            top1, count = self.validate()
        except Interrupted:
            self.write()
            raise
        is_best, state.best = top1 > state.best, max(top1, state.best)
        state.seconds = time.perf_counter() - self.began
        if self.log is not None:
            self.save_network("last.pt")
            if is_best:
                self.save_network("best.pt")
            seconds = {"validation_top1": top1, "validation_images": count, "seconds": state.seconds}
            self.log.write({"epoch": state.epoch + 1, **trained, **seconds})
        self.next_epoch()
        if state.epoch < self.recipe.epochs:
            self.write()
        elif self.group.is_rank_zero:
            self.run.resume.unlink(missing_ok=True)

    def next_epoch(self) -> None:
        self.state.epoch, self.state.step = self.state.epoch + 1, 0
        self.state.totals.zero_()

    def save_network(self, name: str) -> None:
        config, state = self.config, self.state
        save_checkpoint(
            self.run.folder / name,
            state.averaged,
            data={"name": config.data, "root": str(config.data_root), "image_size": config.image_size},
            classes=self.images.classes,
            recipe=self.recipe.model_dump(),
            seed=config.seed,
            epoch=state.epoch + 1,
            train_images=len(self.images),
            train_seconds=state.seconds,
            selection=selection(self.recipe, self.validation.held_out),
        )

    def validate(self) -> tuple[float, int]:
        """Top-1 in [0, 1] and the number of images. The processes share the images; each goes through the evaluation loop."""
        size, count = self.recipe.batch_size, len(self.validation)
        chunks = [range(start, min(start + size, count)) for start in range(0, count, size)][self.group.rank :: self.group.size]
        found = torch.zeros(2, dtype=torch.float64, device=self.state.device)
        sentence, validated = None, 0
        stream = self.validation_reader.read(chunks)
        try:
            measured = measure(self.state.averaged, ((batch, [Identity()]) for batch in stream), self.state.device)
            for (outcome,) in measured:
                right = outcome.rows["prediction"] == outcome.rows["label"]
                found += torch.tensor([right.sum(), len(right)], device=found.device)
                validated += len(right)
                if time.monotonic() - self.told > TELL:
                    self.tell(f"validating, {validated:,} of {sum(map(len, chunks)):,} images", self.figures)
                if self.interruption:
                    self.interrupt()
        except UnreadableImage as error:
            sentence = str(error)
        self.group.raise_if_any(sentence, UnreadableImage)
        correct, seen = self.group.all_reduce_sum(found).tolist()
        return correct / max(seen, 1), int(seen)


def selection(recipe: Recipe, held_out: bool) -> str:
    """How the evaluated epoch is chosen, as records say it. Without held-out images it is chosen on the reported ones."""
    if recipe.select == "last":
        return "last epoch"
    return "best epoch on validation images" if held_out else "best epoch ON THE REPORTED IMAGES"


def machine(processes: int, device: torch.device) -> Machine:
    """What a run says of the processes that train it."""
    name = describe(device) if device.type == "cuda" else f"cpu, {processor()}"
    return Machine(processes, torch.get_num_threads(), name)


def peak_memory(device: torch.device) -> float:
    """The largest memory in use so far, in MiB, on the GPU or by this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
