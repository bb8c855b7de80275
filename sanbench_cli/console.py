"""What the command line prints: errors, progress and tables of records."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import typer.core
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bars
from rich.table import Column, Table

from sanbench.errors import SanbenchError
from sanbench.evaluation.kinds import kind_of
from sanbench.progress import Progress, Report

if TYPE_CHECKING:
    from sanbench.evaluation.robust import Findings
    from sanbench.runs.config import TrainConfig
    from sanbench.runs.run import Run
    from sanbench.store.schema import Record
    from sanbench.training.plan import Plan

console = Console()
errors = Console(stderr=True)
INTERRUPTED = 130
FIGURES = {
    "loss": "loss {:.3f}",
    "top1": "top-1 {:.1%}",
    "lr": "lr {:.4f}",
    "images_per_second": "{:.0f} images/s",
    "data_wait": "waiting {:.0%}",
    "memory_mib": "{:.0f} MiB",
    "skipped_images": "{:.0f} skipped",
}


class Commands(typer.core.TyperGroup):
    """Turns what went wrong into one sentence and an exit code: 2 for what was typed wrong, 1 for what failed."""

    def invoke(self, ctx: Any) -> Any:
        if ctx.params.get("debug"):
            return super().invoke(ctx)
        try:
            return super().invoke(ctx)
        except typer.Exit:  # it is a RuntimeError
            raise
        except SanbenchError as error:
            errors.print(f"[red]Error:[/red] {escape(str(error))}", highlight=False, markup=True, soft_wrap=True)
            raise typer.Exit(error.exit_code) from None
        except KeyboardInterrupt:
            errors.print("Interrupted. What was finished is kept; the same command measures only the rest.")
            raise typer.Exit(INTERRUPTED) from None
        except (OSError, RuntimeError, ArithmeticError, LookupError, TypeError, ValueError, AttributeError) as error:
            errors.print(
                f"[red]Error:[/red] {type(error).__name__}: {escape(str(error))} (sanbench --debug shows where)", soft_wrap=True
            )
            raise typer.Exit(1) from None


@contextmanager
def progress() -> Iterator[Report]:
    """Bars on a terminal; elsewhere a line for each epoch and task."""
    if not console.is_terminal:
        yield plain_lines()
        return
    columns = [TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[figures]}")]
    with Bars(*columns, TimeRemainingColumn(), console=console, transient=True) as bars:
        task = bars.add_task("", total=None, figures="")
        latest = Progress("", 0, 0)

        def show(now: Progress) -> None:
            nonlocal latest
            if now.total != latest.total or now.done < latest.done:  # another job: its time left is its own
                bars.reset(task, total=now.total)
            bars.update(task, description=now.task, completed=now.done, figures=figures(now))
            latest = now

        yield show


def plain_lines() -> Report:
    """Prints what was told last about a task when another begins, or when it is done."""
    latest: Progress | None = None

    def show(now: Progress) -> None:
        nonlocal latest
        if latest is not None and latest.task != now.task:
            console.print(f"{latest.task} {figures(latest)}".rstrip(), highlight=False, soft_wrap=True)
        latest = now
        if now.done == now.total:
            console.print(f"{now.task} done {figures(now)}".rstrip(), highlight=False, soft_wrap=True)
            latest = None

    return show


def figures(now: Progress) -> str:
    """`loss 0.612  top-1 79.3%  412 images/s`."""
    return "  ".join(FIGURES[name].format(value) for name, value in now.figures.items())


def print_records(records: "Sequence[Record]", findings: "Findings") -> None:
    """One line a record: network, condition, top-1 with its interval, attack success; then what its flags mean."""
    from sanbench.evaluation.sanity_checks import FLAGS

    attacked = any(findings.success(record) for record in records)
    names = ["network", "run", "setting", "top-1 [95% interval]", "n", *(["attack success"] if attacked else [])]
    table = Table(*(Column(name, overflow="fold") for name in names))  # a name that is cut is none
    for record in records:
        accuracy, success = findings.top1(record), findings.success(record)
        images = f"{record.data.images:,}" + ("" if record.data.images == record.data.of else f" of {record.data.of:,}")
        interval = f"{accuracy.value:.1%} [{accuracy.low:.1%}, {accuracy.high:.1%}]"
        cells = [record.network.label, record.run, short(record), interval, images]
        if attacked:
            cells.append(f"{success.value:.1%}" if success and success.total else "")
        table.add_row(*cells)
    console.print(table)
    for flag in FLAGS:
        flagged = [f"{record.network.label} {short(record)}" for record in records if flag in findings.flags(record)]
        if flagged:
            console.print(f"{', '.join(flagged)}: {FLAGS[flag]}", highlight=False, soft_wrap=True)


def short(record: "Record") -> str:
    return kind_of(record.kind).short(record.setting)


def print_plan(config: "TrainConfig", plan: "Plan", processes: int) -> None:
    """The resolved configuration as JSON, then what it will take."""
    console.print(config.model_dump_json(indent=1), highlight=False, markup=False)
    console.print(
        f"{plan.parameters:,} parameters; {plan.images:,} images, {plan.steps:,} steps an epoch, {plan.all_steps:,} in all; "
        f"{processes} x {plan.part} images at once, about {plan.memory / 2**20:,.0f} MiB a process in float32.",
        highlight=False,
        soft_wrap=True,
    )


def print_profile(run: "Run", steps: int) -> None:
    """`20 steps: data 1.2%, forward 30.1%, ...`, or why there is nothing to tell."""
    shares = run.profile()
    if shares is None:
        console.print(f"Nothing was profiled: the training ended before {steps} steps beyond its first were done.")
        return
    told = ", ".join(f"{part} {share:.1%}" for part, share in shares.items())
    console.print(f"Time of {steps} steps: {told}. Trace: {run.trace}", highlight=False, soft_wrap=True)


def print_runs(runs: "Sequence[Run]") -> None:
    """State, epoch, best top-1 and last change of each run."""
    from datetime import datetime

    table = Table("run", "network", "state", "epoch", "best top-1", "last change")
    broken = []
    for run in runs:
        if problem := run.problem():
            table.add_row(escape(run.name), "", "broken", "", "", "")
            broken.append(f"{run.name!r} is broken: {problem}")
            continue
        config, epochs = run.config(), run.epochs()
        best = max((line["validation_top1"] for line in epochs), default=None)
        changed = max(path.stat().st_mtime for path in run.folder.iterdir())
        table.add_row(
            run.name,
            config.model.label,
            run.state(),
            f"{len(epochs)} of {config.recipe.epochs}",
            "" if best is None else f"{best:.1%}",
            f"{datetime.fromtimestamp(changed):%Y-%m-%d %H:%M}",
        )
    console.print(table)
    for sentence in broken:
        console.print(sentence, highlight=False, markup=False, soft_wrap=True)
