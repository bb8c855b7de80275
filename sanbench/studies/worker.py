"""A worker of a study: it trains and measures what is missing, beside any number of others that share the folders.

Networks and parts of measurements are claimed (`sanbench.store.claims`), so nothing is done twice; what the dead held is free.
"""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import FrameType

import torch

from sanbench.data import load_dataset
from sanbench.errors import Interrupted, SanbenchError, short_of_memory
from sanbench.evaluation.evaluate import evaluate
from sanbench.evaluation.loop import Perturbation
from sanbench.evaluation.parts import EvaluationOptions
from sanbench.progress import Progress, Report, silent, within
from sanbench.runs.evaluated import EvaluatedModel, test_images
from sanbench.runs.run import Run, differences
from sanbench.store.check import sound
from sanbench.store.claims import Claims
from sanbench.store.files import Store
from sanbench.store.schema import Failure, now
from sanbench.studies.expand import Expansion, Training
from sanbench.studies.status import DECODER, MEASURE, TRAIN, Standing, look
from sanbench.training.interruption import Interruption
from sanbench.training.launcher import launch
from sanbench.training.loop import train

LOOK = 1.0  # seconds between two looks at what others do


@dataclass
class Worker:
    """`Worker(expansion, store, runs, device).work()`: the sentences of the runs that failed, by name.

    nproc       processes that train a network together, on this machine
    train_only  leave all measuring to others
    """

    expansion: Expansion
    store: Store
    runs: Path
    device: torch.device
    progress: Report = silent
    nproc: int = 1
    train_only: bool = False
    failed: dict[str, str] = field(default_factory=dict)
    began: str = field(default_factory=now)

    def work(self) -> dict[str, str]:
        """Raises Interrupted after a signal: what was done is kept, and the same call goes on. InputError without images."""
        self.store.check_writable()
        with self.store.claims() as claims, heeding() as received:
            if not self.train_only:
                self.forget_broken()
            standing = look(self.expansion, self.store, self.runs)
            if left := [t for t in self.expansion.trainings if not self.is_over(standing, t)]:
                load_dataset(self.expansion.data, "test", left[0].config.read_options)  # raises at once, not for each network
            while self.step(claims):
                if received:  # a library may have kept the exception to itself
                    raise stopped(received[0])
        return self.failed

    def forget_broken(self) -> None:
        """Records whose rows are lost or others than theirs are no results: they are measured again, and that is told."""
        standing = look(self.expansion, self.store, self.runs)
        found = {record.key: record for own in standing.records.values() for record in own.values()}
        kept, problems = sound(self.store, list(found.values()))
        if broken := [found[key] for key in found.keys() - {record.key for record in kept}]:
            self.store.remove(broken)
        for problem in problems:
            self.progress(Progress("check records", 1, 1, notice=f"{problem} Now it is measured again."))

    def is_over(self, standing: Standing, training: Training) -> bool:
        return standing.is_trained(training) if self.train_only else standing.is_done(training)

    def step(self, claims: Claims) -> bool:
        """Do one thing that is left; whether there was any.

        Networks that are ready, and that nobody measures, come first: results are there early. But the last trainings, as many
        as there are others at work, are begun before: measuring is shared, and a training that is begun late is waited for.
        """
        standing = look(self.expansion, self.store, self.runs)
        self.failed |= {run: f.sentence for run, f in standing.failures.items() if f.created >= self.began}
        left = [t for t in self.expansion.trainings if not self.is_over(standing, t) and t.name not in self.failed]
        if not left:
            return False
        share = 1 - len(left) / len(self.expansion.trainings)
        told = within(self.progress, share, share + 1 / len(self.expansion.trainings))
        ready = [t for t in left if standing.is_trained(t)]
        untrained = [t for t in left if t not in ready and standing.states[t.name].word != "training"]
        kinds = [(MEASURE, ready, self.measure), (TRAIN, untrained, self.train)]
        if len(untrained) <= len({*standing.holders.values()}):
            kinds.reverse()
        for prefix, trainings, do in kinds:
            for training in trainings:
                if self.claimed(claims, f"{prefix}{training.name}", training, partial(do, training, told)):
                    return True
        if ready:  # all of them are measured by others: help, part by part
            self.guarded(ready[0], partial(self.measure, ready[0], told))
        else:
            self.progress(Progress("waiting for networks that other workers train", 0, 1, share=share))
            time.sleep(LOOK)
            claims.clean()
        return True

    def claimed(self, claims: Claims, name: str, training: Training, do: Callable[[], None]) -> bool:
        """Do it if nobody else does; whether it was this worker's to do."""
        if not claims.take([name]):
            return False
        try:
            if not self.is_over(look(self.expansion, self.store, self.runs), training):  # another may just have finished it
                self.guarded(training, do)
        finally:
            claims.release([name])
        return True

    def guarded(self, training: Training, do: Callable[[], None]) -> None:
        """What fails does not stop the others: it is kept, and told at the end."""
        try:
            do()
        except Interrupted:
            raise
        except Exception as error:
            if isinstance(error, SanbenchError):
                sentence = str(error)
            elif short_of_memory(error):
                sentence = "There is not enough memory."
            else:
                sentence = f"A fault of sanbench, please report it: {error} ({type(error).__name__})."
            self.failed[training.name] = sentence
            with suppress(SanbenchError):  # a full disk
                self.store.write_failure(Failure(run=training.name, sentence=sentence, owner=self.store.claims().owner))
        else:
            self.store.forget_failure(training.name)

    def train(self, training: Training, progress: Report) -> None:
        run = Run(self.runs / training.name)
        if run.exists():
            differences(run, training.config)
        with Interruption() as interruption:
            if self.nproc == 1:
                try:
                    train(training.config, run.folder, self.device, progress, resume=run.exists(), interruption=interruption)
                except Interrupted:  # which tells of an option of `sanbench train`
                    raise saved(training, interruption) from None
            else:
                words = [*training.words, "--runs", str(self.runs), "--resume", "auto", "--nproc", str(self.nproc)]
                code = launch(self.nproc, [*words, "--device", self.device.type], interruption)
                if code == Interrupted.exit_code:
                    raise saved(training, interruption)
                if code:
                    raise SanbenchError(f"Training ended with {code}: sanbench {' '.join(words)} says why.")
        if interruption:  # it came after the last step
            raise Interrupted(f"A signal came when {training.name} was trained: the same command goes on.")

    def measure(self, training: Training, progress: Report) -> None:
        standing = look(self.expansion, self.store, self.runs)
        run = standing.runs[training.name]
        differences(run, training.config)  # raises for another network by that name
        evaluated = EvaluatedModel.load(run.checkpoint, run.name)
        evaluated.model.to(self.device)
        images = test_images(evaluated, self.expansion.data, self.expansion.choice.data_root, DECODER)
        missing = set(standing.missing(training))
        groups: dict[tuple[int | None, int], list[Perturbation]] = {}
        for asked in self.expansion.asked:
            if asked.entry.networks is None or training.network in asked.entry.networks:
                for perturbation in asked.bind(evaluated, images):
                    if (told := asked.told(perturbation)) in missing:
                        missing.discard(told)
                        groups.setdefault((told.limit, told.seed), []).append(perturbation)
        for number, ((limit, seed), perturbations) in enumerate(groups.items()):
            bar = within(progress, number / len(groups), (number + 1) / len(groups))
            evaluate(evaluated, images, perturbations, self.store, self.device, EvaluationOptions(limit, seed), bar)
        if left := look(self.expansion, self.store, self.runs).missing(training):
            raise SanbenchError(
                f"{run.name} was measured, but not as the study asks: {left[0].about} is not in {self.store.root}."
            )


@contextmanager
def heeding() -> Iterator[list[int]]:
    """SIGTERM and SIGUSR1 raise Interrupted where they meet the program, SIGINT KeyboardInterrupt: parts are kept whole.

    While a network is trained, `Interruption` receives them instead.
    """

    received: list[int] = []

    def receive(number: int, frame: FrameType | None) -> None:
        received.append(number)
        raise stopped(number)

    is_main = threading.current_thread() is threading.main_thread()  # Python delivers signals to no other
    handlers = {signal.SIGTERM: receive, signal.SIGUSR1: receive, signal.SIGINT: signal.default_int_handler}
    before = {number: signal.signal(number, handler) for number, handler in handlers.items() if is_main}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def saved(training: Training, interruption: Interruption) -> Interrupted:
    name = "A signal" if interruption.signal is None else interruption.signal.name
    return Interrupted(f"{name} stopped the training of {training.name}, and all is saved: the same command goes on.")


def stopped(number: int) -> Interrupted:
    name = signal.Signals(number).name
    return Interrupted(f"{name} stopped the study. What was finished is kept; the same command goes on.")


def own_device(device: torch.device) -> torch.device:
    """Of several workers on a machine, each its own GPU: by the number that torchrun or srun gives it."""
    if device.type != "cuda":
        return device
    rank = int(os.environ.get("LOCAL_RANK", os.environ.get("SLURM_LOCALID", "0")))
    found = torch.device("cuda", rank % torch.cuda.device_count())
    torch.cuda.set_device(found)
    return found
