"""`sanbench results`: is what was measured whole?"""

from pathlib import Path

from sanbench.errors import SanbenchError
from sanbench_cli.applicable import Typer
from sanbench_cli.console import console, errors, progress
from sanbench_cli.options import Results

results = Typer(help="Look after the folder of records and rows.")


@results.command()
def check(results: Results = Path("results")) -> None:
    """Read every record and its rows, compare their digests, and count again: sanbench results check."""
    from sanbench.store.check import check as check_store
    from sanbench.store.files import Store

    store = Store(results)
    store.must_exist()
    with progress() as bar:
        whole, problems = check_store(store, bar)
    for problem in problems:
        errors.print(problem, soft_wrap=True)
    console.print(f"{results}: {whole:,} records agree with their rows.", soft_wrap=True)
    if problems:
        raise SanbenchError(f"{results} has {len(problems):,} problems.")
