"""Jobs of a study on a cluster, by submitit: a job that trains for each network and seed, and jobs that measure.

A job runs an ordinary command, `sanbench study work`. One handler queues it again: that of submitit, which has `Job.checkpoint`
end the command; the command saves and exits with 75, and goes on when the job runs again.
"""

import importlib.util
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sanbench.errors import InputError, Interrupted, SanbenchError
from sanbench.store.claims import start_of
from sanbench.store.files import Store
from sanbench.studies.expand import Expansion, Training
from sanbench.studies.status import look

SAVE = 300  # seconds before its end in which Slurm tells a job
LOOK = 0.1


@dataclass(frozen=True)
class Cluster:
    """`kind` is slurm or local; a job that trains has `gpus` and as many processes, one that measures has one GPU if any."""

    kind: str
    partition: str | None = None
    gpus: int = 0
    measuring: int = 1
    hours: float = 24


class Job:
    """What submitit pickles: `sanbench WORDS` as a process of its own."""

    def __init__(self, words: Sequence[str]) -> None:
        self.words = list(words)
        self.process: subprocess.Popen[bytes] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {"words": self.words, "process": None}

    def __call__(self) -> None:
        """Raises SanbenchError where the command failed. What it saved after a signal of its own is queued again."""
        from submitit import JobEnvironment

        told = JobEnvironment._usr_sig()

        def deaf() -> None:
            signal.signal(told, signal.SIG_IGN)  # Slurm signals every process of a job, and this one is told by `checkpoint`

        command = [sys.executable, "-m", "sanbench_cli", *self.words]
        self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, preexec_fn=deaf)
        while (code := self.process.poll()) is None:  # `wait` would hold a lock that `checkpoint` needs
            time.sleep(LOOK)
        if code == Interrupted.exit_code:
            os.kill(os.getpid(), told)
            time.sleep(SAVE)  # submitit's handler ends this process
        if code:
            raise SanbenchError(f"sanbench {' '.join(self.words)} ended with {code}.")

    def checkpoint(self) -> Any:
        """For submitit's handler: what is queued again, after the command has saved."""
        from submitit.helpers import DelayedSubmission

        process = self.process
        if process is not None and start_of(process.pid) is not None:
            os.kill(process.pid, signal.SIGTERM)
            while start_of(process.pid) is not None:
                time.sleep(LOOK)
        return DelayedSubmission(Job(self.words))


def submit(expansion: Expansion, store: Store, runs: Path, device: str, cluster: Cluster) -> list[str]:
    """Submit a job for each training that is left and `measuring` jobs after them; their ids. Of `local` after they have ended.

    Raises InputError without submitit, and without Slurm where that is asked for.
    """
    if importlib.util.find_spec("submitit") is None:
        raise InputError("--cluster is not accepted here: submitit is missing, pip install 'sanbench[slurm]'.")
    import submitit

    standing = look(expansion, store, runs)
    left = [t for t in expansion.trainings if not standing.is_trained(t) and not standing.is_done(t)]
    places = ["--device", device, "--runs", str(runs.absolute()), "--results", str(store.root.absolute())]
    store.check_writable()
    try:
        executor = submitit.AutoExecutor(folder=store.work / "jobs", cluster=cluster.kind, slurm_max_num_timeout=1000)
    except RuntimeError as error:
        raise InputError(f"--cluster {cluster.kind} is not accepted here: {error}.") from None
    executor.update_parameters(timeout_min=round(60 * cluster.hours), name=f"sanbench-{expansion.study.name}")
    if cluster.kind == "slurm":
        executor.update_parameters(
            slurm_signal_delay_s=SAVE, **({} if cluster.partition is None else {"slurm_partition": cluster.partition})
        )
    jobs = []
    if cluster.gpus:
        executor.update_parameters(gpus_per_node=cluster.gpus)
    together = ["--nproc", str(cluster.gpus)] if cluster.gpus > 1 else []
    with executor.batch():
        for training in left:
            words = [*part_of(expansion, training), "--train-only", *together, *places]
            jobs.append(executor.submit(Job(["study", "work", expansion.study.word, *words])))
    if cluster.gpus:
        executor.update_parameters(gpus_per_node=1)
    if jobs and cluster.kind == "slurm":
        trained = ":".join(dict.fromkeys(job.job_id.partition("_")[0] for job in jobs))
        executor.update_parameters(slurm_additional_parameters={"dependency": f"afterany:{trained}"})
    with executor.batch():
        for _ in range(cluster.measuring):
            jobs.append(executor.submit(Job(["study", "work", expansion.study.word, *whole(expansion), *places])))
    if cluster.kind == "local":
        for job in jobs:
            job.wait()
    return [job.job_id for job in jobs]


def part_of(expansion: Expansion, training: Training) -> list[str]:
    """The options of one training of the study."""
    return ["--networks", training.network, *replace(expansion.choice, seeds=[training.config.seed]).words]


def whole(expansion: Expansion) -> list[str]:
    """The options of all of it."""
    chosen = {"tables": expansion.choice.tables, "networks": expansion.choice.networks}
    lists = [word for name, words in chosen.items() if words is not None for word in (f"--{name}", ",".join(words))]
    return [*lists, *expansion.choice.words]
