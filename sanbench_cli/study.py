"""`sanbench study`: networks, seeds and measurements that belong together, trained and measured by any number of workers."""

import shlex
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from inspect import Parameter, Signature, signature
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sanbench.errors import InputError, SanbenchError
from sanbench_cli.applicable import Typer, check_data_options
from sanbench_cli.console import console, errors, progress
from sanbench_cli.options import COUNT, PROCESSES, Device, Results, Root, Runs, one_of, start
from sanbench_cli.tables import Table

if TYPE_CHECKING:
    from sanbench.store.files import Store
    from sanbench.studies.cost import Line
    from sanbench.studies.expand import Expansion
    from sanbench.studies.status import Standing

study = Typer(help="Networks, seeds and measurements that belong together, and their tables.")

CLUSTERS = ("slurm", "local")  # of submitit

Processes = Annotated[int, typer.Option("--nproc", help="Processes that train a network together.", **PROCESSES)]
Tables = Annotated[str | None, typer.Option(metavar="LIST", help="Those alone, as 4,9. Default: all of the study.")]
Networks = Annotated[str | None, typer.Option(metavar="LIST", help="Those alone, as resnet26,dot. Default: all of the study.")]


@dataclass(frozen=True)
class Part:
    """What the commands have in common: which study, how much of it, on which data, and where runs and results are."""

    name: Annotated[str, typer.Argument(metavar="STUDY", help="As `sanbench study list` names it, or a TOML file.")]
    tables: Tables = None
    networks: Networks = None
    seeds: Annotated[str | None, typer.Option(metavar="LIST", help="As 0,1,2. Default: the study's.")] = None
    data: Annotated[str | None, typer.Option(help="Data set to train on and to measure. Default: the study's.")] = None
    data_root: Root = None
    limit: Annotated[int | None, typer.Option(help="Measure at most so many images. Default: the study's.", **COUNT)] = None
    runs: Runs = Path("runs")
    results: Results = Path("results")

    @property
    def folders(self) -> list[str]:
        """The options of runs and results, where they are not the default's."""
        given = {"runs": self.runs, "results": self.results}
        return [word for name, path in given.items() if path != Path(name) for word in (f"--{name}", str(path))]

    @property
    def store(self) -> "Store":
        from sanbench.store.files import Store

        if self.results.exists() and not self.results.is_dir():
            raise InputError(f"--results {self.results} is not accepted: it is no folder.")
        return Store(self.results)

    @property
    def expansion(self) -> "Expansion":
        """Raises InputError for whatever has no meaning."""
        from sanbench.studies.study import read

        chosen = read(self.name)  # told before torch is imported
        from sanbench.studies.expand import Choice, expand

        numbers = words(self.seeds)
        for number in numbers or ():
            if not (number.isascii() and number.isdigit() and int(number) < 2**63):
                raise InputError(f"--seeds {number!r} is not accepted: accepted are whole numbers, as in 0,1,2.")
        seeds = None if numbers is None else list(dict.fromkeys(map(int, numbers)))
        lists = words(self.tables), words(self.networks)
        choice = Choice(*lists, seeds, self.data, self.data_root, self.limit, self.folders)
        found = expand(chosen, choice)
        check_data_options([found.data], {"data_root": self.data_root})
        if not found.trainings:
            raise InputError(
                f"--networks {self.networks} is not accepted with --tables {self.tables}: they have none of these."
            )
        return found


def words(text: str | None) -> list[str] | None:
    return None if text is None else [word.strip() for word in text.split(",")]


def of_study(command: Callable[..., None]) -> Callable[..., None]:
    """A command of its own options and, before them, those of `Part`, which it is given as one."""
    shared, (_, *own) = list(signature(Part).parameters.values()), signature(command).parameters.values()

    def run(**values: Any) -> None:
        command(Part(**{option.name: values.pop(option.name) for option in shared}), **values)

    parameters = [option.replace(kind=Parameter.KEYWORD_ONLY) for option in [*shared, *own]]
    run.__name__, run.__doc__ = command.__name__, command.__doc__
    run.__signature__ = Signature(parameters)  # type: ignore[attr-defined]  # typer reads it
    run.__annotations__ = {option.name: option.annotation for option in parameters}
    return run


@study.command("list")
def list_studies() -> None:
    """List the studies that ship: sanbench study list."""
    from sanbench.studies.study import read, shipped

    table = Table("study", "what", "networks", "seeds", "tables")
    for name in shipped():
        found = read(name)
        base = found.networks.content
        table.add_row(name, found.content.title, str(len(base.networks)), str(len(base.seeds)), ", ".join(found.content.tables))
    console.print(table)


@study.command()
@of_study
def show(
    part: Part,
) -> None:
    """Tables, networks, runs, measurements, and what is missing: sanbench study show paper."""
    expansion, store, runs = part.expansion, part.store, part.runs
    standing = looked(expansion, store, runs)
    title = expansion.study.content.title
    console.print(f"{title}{'' if title[-1:] in '.?!' else '.'} Data: {expansion.data}.", soft_wrap=True)
    found = Table("run", "network", "in tables", "state", "measured")
    for training in expansion.trainings:
        wanted = expansion.wanted[training.name]
        of = ", ".join(table.key for table in expansion.tables if training.network in table.networks)
        done = f"{len(wanted) - len(standing.missing(training))} of {len(wanted)}"
        found.add_row(training.name, training.config.model.label, of, standing.states[training.name].word, done)
    console.print(found)
    measured = Table("measurement", "images", "networks")
    conditions: dict[tuple[str, int | None], int] = {}
    for each in (each for own in expansion.wanted.values() for each in own):
        conditions[each.about, each.limit] = conditions.get((each.about, each.limit), 0) + 1
    for (about, images), number in conditions.items():
        measured.add_row(about, "all" if images is None else f"{images:,}", str(number))
    console.print(measured)


@study.command()
@of_study
def run(
    part: Part,
    nproc: Processes = 1,
    workers: Annotated[
        int, typer.Option(help="Processes of this machine that share the work, and its processors.", **PROCESSES)
    ] = 1,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print what it would take, and end.")] = False,
    cluster: Annotated[
        str | None,
        typer.Option(help="slurm or local: submit jobs instead, by submitit.", callback=one_of("cluster", CLUSTERS)),
    ] = None,
    partition: Annotated[str | None, typer.Option(help="Of Slurm. Default: the cluster's.")] = None,
    gpus_per_node: Annotated[int, typer.Option(help="GPUs of a job that trains; each is a process.", min=0, max=1024)] = 0,
    jobs: Annotated[int, typer.Option(help="Jobs that measure.", **PROCESSES)] = 1,
    hours: Annotated[float, typer.Option(help="Of a job, until it is queued again.", min=0.05, max=10_000)] = 24,
    device: Device = "auto",
) -> None:
    """Train and measure what is missing, and write the tables: sanbench study run paper --tables 4,9 --data-root DIR."""
    refused = {"--dry-run": dry_run, "--nproc": nproc != 1, "--workers": workers != 1}
    if cluster is not None and any(refused.values()):
        raise InputError(f"{next(name for name in refused if refused[name])} is not accepted with --cluster.")
    expansion, store, runs = part.expansion, part.store, part.runs
    if dry_run:
        print_cost(expansion, store, runs, device, nproc)
        return
    if cluster is not None:
        from sanbench.studies.cluster import Cluster, submit

        where = Cluster(cluster, partition, gpus_per_node, jobs, hours)
        submitted = submit(expansion, store, runs, device, where)
        console.print(f"{len(submitted)} jobs: {', '.join(submitted)}. Next: sanbench study status {part.name}", soft_wrap=True)
        if cluster == "slurm":
            return
        failed = {run: f.sentence for run, f in store.failures().items() if any(t.name == run for t in expansion.trainings)}
    else:
        failed = worked(expansion, store, runs, device, nproc, workers=workers)
    print_tables(expansion, store, runs)
    end(failed)


@study.command()
@of_study
def work(
    part: Part,
    nproc: Processes = 1,
    train_only: Annotated[bool, typer.Option("--train-only", help="Leave measuring to other workers.")] = False,
    device: Device = "auto",
) -> None:
    """Help with a study, on any machine that shares its folders; ends when all is done: sanbench study work paper."""
    expansion, store, runs = part.expansion, part.store, part.runs
    end(worked(expansion, store, runs, device, nproc, train_only))


@study.command()
@of_study
def status(
    part: Part,
) -> None:
    """By table what is done, what runs and where, and what failed: sanbench study status paper."""
    expansion, store, runs = part.expansion, part.store, part.runs
    standing = looked(expansion, store, runs)
    found = Table("table", "runs done", "measured", "running", "failed")
    for table in expansion.tables:
        trainings, shown = standing.trainings(table), standing.shown(table)
        states = [standing.states[training.name].word for training in trainings]
        measured = sum(wanted in standing.records[training.name] for training, wanted in shown)
        cells = [f"{states.count('done')} of {len(states)}", f"{measured} of {len(shown)}"]
        running = states.count("training") + states.count("measuring")
        found.add_row(f"{table.key} {table.entry.title}", *cells, str(running), str(states.count("failed")))
    every = sum(map(len, expansion.wanted.values()))
    left = sum(len(standing.missing(training)) for training in expansion.trainings)
    done = sum(standing.states[training.name].word == "done" for training in expansion.trainings)
    found.add_section()
    found.add_row("all", f"{done} of {len(expansion.trainings)}", f"{every - left:,} of {every:,}")
    console.print(found)
    for training in expansion.trainings:
        state = standing.states[training.name]
        if state.word in ("training", "measuring", "interrupted"):
            console.print(f"{training.name}: {state.word}, {state.detail}", soft_wrap=True)
        if state.word == "failed":
            choice = expansion.choice
            again = [expansion.study.word, "--networks", training.network, *choice.words, *choice.folders]
            told = f"{training.name} failed: {state.detail} To go on: sanbench study run {shlex.join(again)}"
            errors.print(told, soft_wrap=True)


def looked(expansion: "Expansion", store: "Store", runs: Path) -> "Standing":
    from sanbench.studies.status import look

    return look(expansion, store, runs)


def worked(
    expansion: "Expansion",
    store: "Store",
    runs: Path,
    device: str,
    nproc: int = 1,
    train_only: bool = False,
    workers: int | None = 1,
) -> dict[str, str]:
    """By so many workers; None is as many as there are processors and networks that are not done, and one on a GPU."""
    from sanbench.data.loading import available_cpus
    from sanbench.studies.beside import workers_beside
    from sanbench.studies.worker import Worker, own_device

    used = own_device(start(device))
    standing = looked(expansion, store, runs)
    left = sum(not standing.is_done(training) for training in expansion.trainings)
    workers = workers or (min(available_cpus(), left) if used.type == "cpu" else 1)
    words = [expansion.study.word, *expansion.choice.words, "--runs", str(runs), "--results", str(store.root)]
    words += ["--device", used.type, "--nproc", str(nproc)]
    beside = workers_beside(workers - 1 if left else 0, words, available_cpus(), partial(errors.print, soft_wrap=True))
    with progress() as bar, beside:
        return Worker(expansion, store, runs, used, bar, nproc, train_only).work()


def end(failed: dict[str, str]) -> None:
    """Raises SanbenchError where a run failed, after a sentence for each."""
    for name, sentence in failed.items():
        errors.print(f"{name} failed: {sentence}", soft_wrap=True)
    if failed:
        raise SanbenchError(f"{len(failed)} of the study's runs failed; the same command tries them again.")


def print_tables(expansion: "Expansion", store: "Store", runs: Path) -> None:
    """The chosen tables on the terminal, and all of the study in a file."""
    from sanbench.evaluation.robust import Findings
    from sanbench.report.studies import page
    from sanbench.studies.expand import expand
    from sanbench.studies.tables import ABOUT, DIFFERENCE, tables

    standing = looked(expand(expansion.study, replace(expansion.choice, tables=None, networks=None)), store, runs)
    found = tables(standing, Findings.of(store))
    chosen = {table.key for table in expansion.tables}
    for shown in (each for each in found if each.key in chosen):
        beside = [number for number, heading in enumerate(shown.headings) if heading != DIFFERENCE]  # those stand below
        table = Table(*(shown.headings[number] for number in beside), title=f"{shown.key}: {shown.title}")
        for row in shown.rows:
            texts = [cell.text + " *" * cell.differs for cell in row]
            table.add_row(*("\n".join([texts[n], *texts[n + 1 : n + 2 * (n + 1 not in beside)]]) for n in beside))
        console.print(table)
        for note in shown.notes:
            console.print(note, soft_wrap=True)
    if found:
        console.print(f"{ABOUT} An asterisk: it is more than noise.", soft_wrap=True)
        console.print(str(store.write_study(expansion.title, page(standing, found))), soft_wrap=True)


def print_cost(expansion: "Expansion", store: "Store", runs: Path, device: str, nproc: int) -> None:
    """A line a training and a kind of measurement, then the total of each table."""
    from sanbench.studies.cost import estimate, totals

    standing = looked(expansion, store, runs)
    found = estimate(standing, store, start(device), nproc)
    table = Table("run", "what", "device-hours", "memory, MiB", "disk, MB")

    def size(value: int | None, unit: float) -> str:
        return "" if value is None else f"{value / unit:,.1f}"

    for line in (line for lines in found.values() for line in lines):
        table.add_row(line.name, line.what, duration(line), size(line.memory, 2**20), size(line.disk, 1e6))
    console.print(table)
    by_table = Table("table", "device-hours")
    for plan in expansion.tables:
        seconds, unknown = totals(found, standing, plan)
        by_table.add_row(f"{plan.key} {plan.entry.title}", summed(seconds, unknown))
    every = [line for lines in found.values() for line in lines]
    known = sum(line.seconds or 0 for line in every)
    by_table.add_row("all", summed(known, sum(line.seconds is None for line in every)))
    console.print(by_table)
    console.print(
        "From benchmarks of this device in the results: `sanbench bench train` tells what training takes, `sanbench bench "
        "protocol` what measuring does. Networks that several tables share count in each. Disk: "
        f"{sum(line.disk or 0 for line in every) / 1e9:,.2f} GB in all that is known.",
        soft_wrap=True,
    )


def duration(line: "Line") -> str:
    return "unknown" if line.seconds is None else f"{'at most ' * line.at_most}{line.seconds / 3600:.2f}"


def summed(seconds: float, unknown: int) -> str:
    if not unknown:
        return f"{seconds / 3600:.2f}"
    return f"{seconds / 3600:.2f} and {unknown} unknown" if seconds else "unknown"
