"""What the command line prints: errors, progress and tables of records.

Names of runs, classes, files and networks may come from a stranger: `console` and `errors` print every text as it is.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer.core
from rich.console import Console
from rich.live import Live
from rich.text import Text

from sanbench.errors import SanbenchError, short_of_memory
from sanbench.evaluation.kinds import kind_of
from sanbench.printable import one_line, printable
from sanbench.progress import Progress, Report
from sanbench_cli.bars import Bar, lines
from sanbench_cli.help import page
from sanbench_cli.tables import Table, by_condition, record_tables, short_name

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sanbench.evaluation.comparing import Comparison
    from sanbench.evaluation.robust import Findings
    from sanbench.report import Written
    from sanbench.runs.config import TrainConfig
    from sanbench.runs.run import Run
    from sanbench.store.schema import Record
    from sanbench.training.plan import Plan


class PlainConsole(Console):
    """Prints text as it is: no markup, no `:emoji:`, no colours by content, and nothing that steers the terminal."""

    def __init__(self, **options: Any) -> None:
        super().__init__(markup=False, emoji=False, **options)

    def render_str(self, text: str, **options: Any) -> Text:
        return super().render_str(printable(text), **options)


console = PlainConsole()
errors = PlainConsole(stderr=True)
ClickException = typer.BadParameter.__mro__[2]  # of the click that this typer brings or needs
INTERRUPTED = 130
WIDEST = 120  # characters of a line of help


class Helpful:
    """A command or a group of them whose help is a `page`."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        formatter.write(page(self, ctx, min(console.width, WIDEST)) + "\n")


class Commands(Helpful, typer.core.TyperGroup):
    """Turns what went wrong into one sentence and an exit code: 2 for what was typed wrong, 1 for what failed."""

    def make_context(self, info_name: Any, args: Any, parent: Any = None, **extra: Any) -> Any:
        with self.sentences():
            return super().make_context(info_name, args, parent, **extra)

    def invoke(self, ctx: Any) -> Any:
        if ctx.params.get("debug"):
            return super().invoke(ctx)
        with self.sentences(ctx):
            return super().invoke(ctx)

    @contextmanager
    def sentences(self, ctx: Any = None) -> Iterator[None]:
        """Print what is raised in the block as a sentence, and end the program."""
        try:
            yield
        except (typer.Exit, typer.Abort, BrokenPipeError):  # typer ends the program
            raise
        except KeyboardInterrupt:
            errors.print("Interrupted. What was finished is kept; the same command measures only the rest.")
            raise typer.Exit(INTERRUPTED) from None
        except Exception as error:
            if type(error).__name__ == "NoArgsIsHelpError":  # typer prints the help
                raise
            sentence, code = self.explain(error, ctx)
            errors.print(Text.assemble(("Error:", "red"), " ", one_line(sentence)), soft_wrap=True)
            raise typer.Exit(code) from None

    def explain(self, error: Exception, ctx: Any) -> tuple[str, int]:
        """A sentence and an exit code. Only what nobody foresaw is called a fault of sanbench."""
        if isinstance(error, SanbenchError):
            return str(error), error.exit_code
        if isinstance(error, ClickException):
            return typed_wrong(error), 2
        if short_of_memory(error):
            return f"There is not enough memory{self.less_memory(ctx)}.", 1
        if isinstance(error, OSError) and error.strerror:
            return f"{error.filename or 'A file'} cannot be used: {error.strerror}.", 1
        reason = str(error).strip() or "no reason is given"
        return (
            f"A fault of sanbench, please report it: {reason} ({type(error).__name__}). "
            "`sanbench --debug ...` with the same words shows where.",
            1,
        )

    def less_memory(self, ctx: Any) -> str:
        """Which options of the command that was run take less."""
        command = self.commands.get(getattr(ctx, "invoked_subcommand", None) or "")
        options = {option for parameter in getattr(command, "params", ()) for option in parameter.opts}
        helping = [option for option in ("--batch-size", "--image-size") if option in options]
        return f": a smaller {' or '.join(helping)} takes less" if helping else ""


def typed_wrong(error: Any) -> str:
    """What typer says of an option, with the value: `--limit 0 is not accepted: it should be greater than or equal to 1.`"""
    parameter, cause = getattr(error, "param", None), error.__cause__
    command = error.ctx.command_path if getattr(error, "ctx", None) else "sanbench"
    if isinstance(error, typer.BadParameter) and parameter is not None:
        name = parameter.opts[-1] if parameter.opts[0].startswith("-") else (parameter.metavar or parameter.name.upper())
        message = error.message.rstrip(".")
        if not message:
            return f"{name} is missing: `{command} --help` tells what it is."
        if hasattr(cause, "errors"):  # pydantic's, in newer typers: its message does not hold the value
            value = cause.errors()[0]["input"]
            return f"{name} {value} is not accepted: {message.replace('Input', 'it', 1)}."
        value, _, wanted = message.partition(" is not ")
        return f"{name} {value} is not accepted: it is not {wanted}."
    return f"{error.format_message().rstrip('.?')}: `{command} --help` lists what is accepted."


@contextmanager
def progress() -> Iterator[Report]:
    """A bar on a terminal; elsewhere a line for each epoch and task, and one a minute."""
    terminal, bar = console.is_terminal, Bar()
    draw = bar.show if terminal else lines(lambda text: console.print(text, soft_wrap=True))

    def show(now: Progress) -> None:
        if now.notice:
            errors.print(now.notice, soft_wrap=True)
        draw(now)

    with Live(console=console, transient=True, refresh_per_second=2, get_renderable=lambda: bar) if terminal else nullcontext():
        yield show


def print_records(records: "Sequence[Record]", findings: "Findings", results: Path, since: str = "") -> None:
    """Conditions as rows, networks as columns; then what flags mean, and where rows and report are.

    Records that were created before `since` were there already, which is said.
    """
    from sanbench.evaluation.sanity_checks import FLAGS
    from sanbench.store.files import Store

    for table in record_tables(records, findings, console.width):
        console.print(table)
    told = [record for record in records if record.waited is not None and record.created >= since]
    if waited := sum(record.waited or 0 for record in told):
        share = waited / (waited + sum(record.seconds for record in told))
        console.print(f"{share:.1%} of the time was spent waiting for images.", soft_wrap=True)
    if there := sum(record.created < since for record in records):
        number = "All" if there == len(records) else f"{there:,} of {len(records):,}"
        console.print(f"{number} measurements were in {results} already and were not repeated.", soft_wrap=True)
    for flag in FLAGS:
        flagged = [f"{short_name(record.network)} {short(record)}" for record in records if flag in findings.flags(record)]
        if flagged:
            console.print(f"{', '.join(flagged)}: {FLAGS[flag]}", soft_wrap=True)
    store = Store(results)
    if any(store.has_pictures(record) for record in records):
        console.print(f"Pictures of attacked images are in {results / 'images'}.", soft_wrap=True)
    where = "" if results == Path("results") else f" --results {results}"
    console.print(f"A row an image is in {results / 'rows'}. The report: sanbench report{where}", soft_wrap=True)


def print_comparison(found: "Mapping[str, Sequence[Comparison]]", first: str, second: str, networks: bool) -> None:
    """A table a kind of measurement; with `networks` each line names its own."""
    for kind, compared in found.items():
        heading = f"{kind_of(kind).title}: top-1 of {first} minus {second}, in points"
        table = Table(*["network"] * networks, "condition", "n", "difference", "right alone", "p", "p, Holm", title=heading)
        words = {record.key: text for text, own in by_condition([line.first for line in compared]).items() for record in own}
        for line in compared:
            d, data = line.difference, line.first.data
            text = f"{100 * d.value:+.1f} [{100 * d.low:+.1f}, {100 * d.high:+.1f}]{' *' * line.clear}"
            n = f"{data.images:,}" + ("" if data.images == data.of else f" of {data.of:,}")
            figures = [n, text, f"{d.only_first} / {d.only_second}", f"{d.p:.2g}", f"{line.p_holm:.2g}"]
            table.add_row(*[short_name(line.first.network)] * networks, words[line.first.key], *figures)
        console.print(table)
    console.print(
        "Same images, Newcombe's 95% interval for pairs. Right alone: images that only the first / only the second has right. "
        "p: exact McNemar, and after Holm's correction for the tests of its table. *: the interval excludes 0 and the "
        "corrected p is below 0.05. Under attack: right within this and every smaller budget that was measured.",
        soft_wrap=True,
    )


def print_report(written: "Written") -> None:
    """The files of a report, and on stderr what it leaves out."""
    for problem in written.problems:
        errors.print(problem, soft_wrap=True)
    pages = [path for path in written.paths if "/images/" in path]
    for path in written.paths:
        if path not in pages:
            console.print(path, soft_wrap=True)
    if pages:
        console.print(f"{len(pages):,} pages of images in {pages[0].rpartition('/')[0]}", soft_wrap=True)


def short(record: "Record") -> str:
    return kind_of(record.kind).short(record.setting)


def print_plan(config: "TrainConfig", plan: "Plan", processes: int) -> None:
    """The resolved configuration as JSON, then what it will take."""
    console.print(config.model_dump_json(indent=1))
    console.print(
        f"{plan.parameters:,} parameters; {plan.images:,} images, {plan.steps:,} steps an epoch, {plan.all_steps:,} in all; "
        f"{processes} x {plan.part} images at once, about {plan.memory / 2**20:,.0f} MiB a process in float32.",
        soft_wrap=True,
    )


def print_profile(run: "Run", steps: int) -> None:
    """`20 steps: data 1.2%, forward 30.1%, ...`, or why there is nothing to tell."""
    shares = run.profile()
    if shares is None:
        console.print(f"Nothing was profiled: the training ended before {steps} steps beyond its first were done.")
        return
    told = ", ".join(f"{part} {share:.1%}" for part, share in shares.items())
    console.print(f"Time of {steps} steps: {told}. Trace: {run.trace}", soft_wrap=True)


def print_runs(runs: "Sequence[Run]") -> None:
    """State, epoch, best validation top-1 and last change of each run."""
    from datetime import datetime

    table = Table("run", "network", "state", "epoch", "validation top-1", "last change")
    broken = []
    for run in runs:
        if problem := run.problem():
            table.add_row(run.name, "", "broken", "", "", "")
            broken.append(f"{run.name!r} is broken: {problem}")
            continue
        config, epochs = run.config(), run.epochs()
        best = max(epochs, key=lambda line: line["validation_top1"], default=None)
        changed = max(path.stat().st_mtime for path in run.folder.iterdir())
        table.add_row(
            run.name,
            config.model.label,
            run.state(),
            f"{len(epochs)} of {config.recipe.epochs}",
            "" if best is None else f"{best['validation_top1']:.1%} at epoch {best['epoch']}",
            f"{datetime.fromtimestamp(changed):%Y-%m-%d %H:%M}",
        )
    console.print(table)
    for sentence in broken:
        console.print(sentence, highlight=False, markup=False, soft_wrap=True)
