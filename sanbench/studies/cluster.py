"""Jobs of a study on a cluster, by submitit: a job that trains for each network and seed, and jobs that measure.

A job runs an ordinary command, `sanbench study work`, see `sanbench.studies.job`.
"""

import importlib.util
from dataclasses import dataclass, replace
from pathlib import Path

from sanbench.errors import InputError
from sanbench.store.files import Store
from sanbench.studies.expand import Expansion, Training
from sanbench.studies.job import SAVE, Job
from sanbench.studies.status import look


@dataclass(frozen=True)
class Cluster:
    """`kind` is slurm or local; a job that trains has `gpus` and as many processes, one that measures has one GPU if any."""

    kind: str
    partition: str | None = None
    gpus: int = 0
    measuring: int = 1
    hours: float = 24


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
