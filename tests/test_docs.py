"""What the documents take from the program: the README's table, the names of models, attacks, fields, and links.

`python -m tests.test_docs` writes the README's table anew from results/ (`make readme`).
"""

import re
from pathlib import Path

import pytest

from sanbench.data import DATASETS
from sanbench.evaluation.attacks.table import ATTACKS
from sanbench.evaluation.corruptions import CORRUPTIONS
from sanbench.evaluation.robust import Findings
from sanbench.models import MODELS
from sanbench.models.san import SANConfig
from sanbench.report.readme import summary
from sanbench.runs.config import Recipe
from sanbench.store.files import Store
from sanbench.store.schema import Benchmark, ImageSet, Network, Record
from sanbench.studies.presets import NETWORKS

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
PAGES = [README, *sorted((ROOT / "docs").glob("*.md")), ROOT / "CHANGELOG.md", ROOT / "CONTRIBUTING.md"]
BLOCK = re.compile(r"(?<=<!-- written by `make readme` -->\n).*?(?=<!-- end -->)", re.S)


def page(name: str) -> str:
    return (ROOT / "docs" / f"{name}.md").read_text()


def written() -> str:
    """The README's table as the committed results have it."""
    return "\n" + summary(Findings.of(Store(ROOT / "results")), NETWORKS) + "\n"


def test_the_readmes_table_is_that_of_the_results() -> None:
    assert BLOCK.findall(README.read_text()) == [written()]


def test_the_readme_is_short() -> None:
    assert len(README.read_text().splitlines()) <= 120


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_pictures_links_and_files_are_there(path: Path) -> None:
    text = path.read_text()
    for target in re.findall(r"\]\(([^)#]+)\)", text):
        assert target.startswith("http") or (path.parent / target).exists(), target
    for name in re.findall(r"`((?:sanbench|sanbench_cli|tests|docs|results)/[\w/.]+\.\w+)`", text):
        assert (ROOT / name).is_file(), name


@pytest.mark.parametrize("name", ["README", "training"])
def test_every_page_is_linked(name: str) -> None:
    text = README.read_text()
    assert [path.name for path in PAGES if path.parent.name == "docs" and f"(docs/{path.name})" not in text] == []


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
    assert first_cells(page("data"), "name") == set(DATASETS)
    assert [name for name in CORRUPTIONS if f"`{name}`" not in page("attacks")] == []


def test_every_field_of_the_results_is_described() -> None:
    text = page("results")
    described = (
        first_cells(text, "field of a record") | first_cells(text, "field of the network") | first_cells(text, "field of data")
    )
    assert described == {*Record.model_fields, *Network.model_fields, *ImageSet.model_fields}
    assert first_cells(text, "field of a benchmark") == set(Benchmark.model_fields)


def test_every_column_of_the_rows_is_described() -> None:
    store = Store(ROOT / "results")
    columns = {column for record in store.records() for column in store.rows(record).columns}
    assert columns <= first_cells(page("results"), "column")
    counts = {name for record in store.records() for name in record.counts if not name.startswith("fell_to_")}
    assert counts <= first_cells(page("results"), "count")


if __name__ == "__main__":
    README.write_text(BLOCK.sub(lambda _: written(), README.read_text()))
