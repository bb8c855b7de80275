"""Commands in the tests' own process: what they print, how they end, and which files they leave."""

from functools import cache
from pathlib import Path

import typer.testing
from typer.testing import CliRunner, Result

from sanbench_cli.console import console, errors
from sanbench_cli.main import app

typer.testing._get_command = cache(typer.main.get_command)  # made anew for each run, the commands take longer than the run


def sanbench(*arguments: object, columns: int = 80) -> Result:
    """As typed on a terminal of so many columns. Rich reads COLUMNS when a console is made, which an earlier test has done."""
    for each in (console, errors):
        each.width = columns
    return CliRunner().invoke(app, [str(argument) for argument in arguments], env={"COLUMNS": str(columns)})


def snapshot(folder: str | Path) -> dict[Path, bytes]:
    """All files but those of work in progress."""
    return {path: path.read_bytes() for path in Path(folder).rglob("*") if path.is_file() and "work" not in path.parts}
