"""Tables on the terminal: at 80, 100 and 120 columns no word is broken, no name cut, no figure apart from its interval."""

import io
import re
from pathlib import Path

import pytest

from sanbench.evaluation.robust import Findings
from sanbench.store.files import Store
from sanbench_cli.console import PlainConsole
from sanbench_cli.tables import Table, by_images, record_tables, short_name
from tests.support.commands import sanbench

RESULTS = Path(__file__).parents[1] / "results"
WIDTHS = (80, 100, 120)


def drawn(width, *tables):
    console = PlainConsole(width=width, file=io.StringIO())
    for table in tables:
        console.print(table)
    return console.file.getvalue()


def words(text):
    return set(re.sub(r"[│┃┏┓┡┩└┘┌┐├┤━─┴┬╇┳╋┼╂]", " ", text).split())


def check(table, width):
    text = drawn(width, table)
    assert all(len(line) <= width for line in text.splitlines())
    given = {word for cell in (*table.headings, *(cell for row in table.rows for cell in row)) for word in cell.split()}
    titles = [table.title or "", f"{table.title}, continued"][: len(list(table.groups(width))) if table.title else 1]
    assert words(text) == given | words(" ".join(titles))
    return text


@pytest.mark.parametrize("width", WIDTHS)
def test_committed_results_break_no_word(width):
    findings = Findings.of(Store(RESULTS))
    tables = list(record_tables(findings.records, findings, width))
    assert len(tables) == len(by_images(findings.records))
    for table in tables:
        text = check(table, width)
        for row in table.rows:
            for figure in row[1:]:
                assert figure in text  # an interval stays beside its figure


@pytest.mark.parametrize("width", [40, *WIDTHS])
@pytest.mark.parametrize("networks", [1, 2, 7, 40])
def test_any_number_of_networks_breaks_no_word(width, networks):
    table = Table("top-1 in %", *(f"san19_patchwise x0.375 footprint=3 ({n})" for n in range(networks)))
    for condition in ("upright", "pgd-targeted, L∞ ε = 8/255", "gaussian-noise 5"):
        table.add_row(condition, *(f"{n}.5 [{n}.1, {n}.9]" for n in range(networks)))
    text = check(table, width)
    assert text.count("upright") >= 1


def test_there_are_intervals_where_there_is_room():
    findings = Findings.of(Store(RESULTS))
    upright = [record for record in findings.records if record.kind == "accuracy"]
    (wide,), (narrow,) = (list(record_tables(upright, findings, width)) for width in (100, 45))
    for record in upright:
        value, low, high = (100 * figure for figure in findings.top1(record)[2:])
        assert f"{value:.1f} [{low:.1f}, {high:.1f}]" in wide.rows[0]
        assert f"{value:.1f}" in narrow.rows[0]


def test_a_width_is_a_factor_and_other_fields_stay():
    (record, *_) = Store(RESULTS).records()
    network = record.network.model_copy(update={"name": "san10_pairwise", "variation": {"width": 0.375, "footprint": 5}})
    assert short_name(network) == "san10_pairwise footprint=5 x0.375"


def test_two_protocols_of_one_attack_are_two_rows():
    findings = Findings.of(Store(RESULTS))
    (one, *_) = [record for record in findings.records if record.setting.get("attack") == "pgd"]
    other = one.model_copy(update={"setting": {**one.setting, "steps": 77}})
    (table,) = record_tables([one, other], Findings([one, other], lambda record: findings.rows(one)), 120)
    assert any("steps 77" in row[0] for row in table.rows)
    assert len([row for row in table.rows if row[0].startswith("pgd")]) == 2


def test_a_run_is_listed_by_the_name_that_has_to_be_typed(tmp_path, runs, monkeypatch):
    name = "a-run-of-a-name-that-takes-up-the-most-part-of-a-line-0123456789"
    (tmp_path / name).symlink_to(runs / "san10")
    monkeypatch.setenv("COLUMNS", "80")
    assert name in sanbench("runs", "--runs", tmp_path).stdout


@pytest.mark.parametrize("width", [30, 60, 120])
def test_rows_that_are_given_together_look_as_each_alone(width, monkeypatch):
    table = Table("run", "what", "figure", title="of a stranger")
    for number in range(12):
        table.add_row(
            ["plain", "網絡" * 9, "es\x1b[31mcaped", "", "two\nlines", "a\tb", "  indented"][number % 7],
            "word " * number,
            f"{number}",
        )
        if number % 5 == 4:
            table.add_section()
    together = drawn(width, table)

    def one_by_one(self, group, widths):
        return (([row[n] for n in group], number in self.sections) for number, row in enumerate(self.rows))

    monkeypatch.setattr(Table, "runs", one_by_one)
    assert drawn(width, table) == together
