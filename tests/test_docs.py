"""What the documents take from the program: the README's table, the names of models, attacks, fields, and links.

`python -m tests.test_docs` writes the README's table anew from results/ (`make readme`).
"""

import re
import shutil
import subprocess
from functools import cache
from pathlib import Path

import pytest
from pyarrow.parquet import read_schema

from sanbench.data import DATASETS
from sanbench.evaluation.attacks.table import ATTACKS
from sanbench.evaluation.corruptions import CORRUPTIONS
from sanbench.evaluation.robust import Findings
from sanbench.evaluation.sanity_checks import FLAGS
from sanbench.models import MODELS
from sanbench.models.san import SANConfig
from sanbench.report.readme import summary
from sanbench.report.studies import page as study_page
from sanbench.runs.config import Recipe
from sanbench.store.check import check
from sanbench.store.files import Store
from sanbench.store.schema import Benchmark, ImageSet, Network, Record
from sanbench.studies.expand import expand
from sanbench.studies.status import look
from sanbench.studies.study import read
from sanbench.studies.tables import tables
from tests.support.made_records import attacked, record, rows_of
from tests.test_imports import ROOMS

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
PAGES = [README, *sorted((ROOT / "docs").glob("*.md")), ROOT / "CHANGELOG.md", ROOT / "CONTRIBUTING.md"]
BLOCK = re.compile(r"(?<=<!-- written by `make readme` -->\n).*?(?=<!-- end -->)", re.S)


def page(name: str) -> str:
    return (ROOT / "docs" / f"{name}.md").read_text()


def written() -> str:
    """The README's table as the committed results have it."""
    (rows,) = read("quick").content.tables["answer"].rows
    return "\n" + summary(Findings.of(Store(ROOT / "results")), [*rows.networks]) + "\n"


def test_the_readmes_table_is_that_of_the_results() -> None:
    assert BLOCK.findall(README.read_text()) == [written()]


@pytest.mark.parametrize("name", [path.parent.name for path in (ROOT / "results").glob("*/records")])
def test_the_tables_of_studies_are_those_of_their_results(name: str, tmp_path: Path) -> None:
    """results/STUDY/ has a page, and docs/studies.md rows of it."""
    store = Store(shutil.copytree(ROOT / "results" / name, tmp_path / "results"))
    standing = look(expand(read(name)), store, tmp_path / "runs")
    committed = (ROOT / "results" / name / "studies" / f"{name}.md").read_text()
    assert committed == study_page(standing, tables(standing, Findings.of(store)))
    rows = section(page("studies"), f"results/{name}/")
    assert rows and [row for row in rows if row not in committed.splitlines()] == []


def section(text: str, named: str) -> list[str]:
    """The lines of tables in the section that has `named`."""
    (found,) = (part for part in re.split(r"^## ", text, flags=re.M) if named in part)
    return [line for line in found.splitlines() if line.startswith("|")]


def test_the_readme_is_short() -> None:
    assert len(README.read_text().splitlines()) <= 120


def anchors(text: str) -> set[str]:
    """Of the headings, as GitHub makes them."""
    return {re.sub(r"[^\w\- ]", "", line.lower()).replace(" ", "-") for line in re.findall(r"^#+ (.*)$", text, re.M)}


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_pictures_links_and_files_are_there(path: Path) -> None:
    text = path.read_text()
    for target, anchor in re.findall(r"\]\(([^)#]*)#?([^)]*)\)", text):
        if not target.startswith("http"):
            page = path.parent / target if target else path
            assert page.exists(), target
            assert not anchor or anchor in anchors(page.read_text()), f"{target}#{anchor}"
    for name in re.findall(r"`((?:sanbench|sanbench_cli|tests)/[\w/.]+)`", text):
        assert (ROOT / name).exists(), name


@pytest.mark.parametrize("name", ["architecture", "extending", "results", "performance"])
def test_names_in_code_exist(name: str) -> None:
    """Of functions, classes and tests: each stands in the code, with its module where that is named."""
    for word in re.findall(r"`([A-Za-z_]\w+(?:\.\w+)*)(?:\([^`]*\))?`", page(name)):
        assert word.split(".")[-1] in words_in_code(), word


@cache
def words_in_code() -> set[str]:
    paths = (path for room in ("sanbench", "sanbench_cli", "tests") for path in (ROOT / room).rglob("*.py"))
    return {word for path in paths for word in re.findall(r"\w+", path.read_text())}


def test_every_page_is_linked() -> None:
    assert [path.name for path in (ROOT / "docs").glob("*.md") if f"(docs/{path.name})" not in README.read_text()] == []


def test_every_room_is_drawn_in_the_order_of_imports() -> None:
    drawn = re.findall(r"`sanbench/(\w+)(?:\.py|/)`", page("architecture").split("## An image")[0])
    assert drawn == ROOMS


def test_make_targets_exist() -> None:
    makefile = (ROOT / "Makefile").read_text()
    targets = {name for path in PAGES for name in re.findall(r"(?:^    |`)make ([\w-]+)", path.read_text(), re.M)}
    assert "reproduce" in targets
    assert [name for name in sorted(targets) if f"\n{name}: " not in makefile] == []


def test_the_readme_names_every_network() -> None:
    assert [name for name in MODELS if f"`{name}`" not in README.read_text()] == []


def first_cells(text: str, heading: str) -> set[str]:
    """The words in code in the first column of the table whose first heading is `heading`."""
    table = text.split(f"| {heading} |")[1].split("\n\n")[0]
    cells = re.findall(r"^\| (`[^|]*) \|", table, re.M)
    return {word for cell in cells for word in re.findall(r"`([^`]+)`", cell)}


def test_tables_of_fields_are_complete() -> None:
    assert first_cells(page("training"), "field of the network") | {"blocks"} == set(SANConfig.model_fields)
    assert first_cells(page("training"), "field of the recipe") == set(Recipe.model_fields)
    assert first_cells(page("attacks"), "attack") == set(ATTACKS)
    assert first_cells(page("data"), "name") | first_cells(page("data"), "test set") == set(DATASETS)
    assert first_cells(page("data"), "test set") == {name for name, entry in DATASETS.items() if entry.test_only}
    assert [name for name in (*CORRUPTIONS, *FLAGS) if f"`{name}`" not in page("attacks")] == []


def test_every_field_of_the_results_is_described() -> None:
    text = page("results")
    described = (
        first_cells(text, "field of a record") | first_cells(text, "field of the network") | first_cells(text, "field of data")
    )
    assert described == {*Record.model_fields, *Network.model_fields, *ImageSet.model_fields}
    assert first_cells(text, "field of a benchmark") == set(Benchmark.model_fields)


def test_every_column_of_the_rows_is_described() -> None:
    store = Store(ROOT / "results")
    columns = {name for path in (ROOT / "results" / "rows").rglob("*.parquet") for name in read_schema(path).names}
    assert {"prediction", "linf", "member"} <= columns <= first_cells(page("results"), "column")
    counts = {name for record in store.records() for name in record.counts if not name.startswith("fell_to_")}
    assert counts <= first_cells(page("results"), "count")


def test_git_joins_the_records_of_two_branches(tmp_path: Path) -> None:
    """As docs/results.md says: other kinds and networks without a conflict; rows of one file with one, which has a way out."""
    shutil.copy(ROOT / ".gitattributes", tmp_path)
    store = Store(tmp_path / "results")

    def git(*words: str) -> int:
        command = ["git", "-c", "user.name=a", "-c", "user.email=a@b", *words]
        return subprocess.run(command, cwd=tmp_path, capture_output=True).returncode

    def branch(name: str, start: str, *records: Record) -> None:
        assert git("checkout", "-b", name, start) == 0
        store.add([(each, rows_of(each)) for each in records])
        assert git("add", "-A") == git("commit", "-m", name) == 0

    assert git("init", "-b", "main") == git("add", "-A") == git("commit", "-m", "begin") == 0
    branch("base", "main", record())
    branch("rotation", "base", record(kind="rotation", setting={"angle": 90}))
    branch("attack", "base", attacked("san10_pairwise", "8/255", 10), record("resnet26"))
    assert git("merge", "rotation", "-m", "joined") == 0
    assert (len(store.records()), store.problems) == (4, [])
    assert [len(store.rows(each)) for each in store.records()] == [100] * 4

    branch("here", "attack", record(kind="rotation", setting={"angle": 180}))
    branch("there", "attack", record(kind="rotation", setting={"angle": 270}))
    assert git("merge", "here", "-m", "joined") == 1
    assert git("checkout", "--ours", "results/rows") == 0
    assert (len(store.records()), store.problems) == (6, [])
    problems = [problem for problem in check(store)[1] if "holds no rows" in problem]  # made rows lack other columns
    assert len(problems) == 1


if __name__ == "__main__":
    README.write_text(BLOCK.sub(lambda _: written(), README.read_text()))
