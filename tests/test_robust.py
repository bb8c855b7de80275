"""One figure has one value: tables, pictures, CSV, console and flags read what is right from one place."""

import re
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from sanbench.evaluation.kinds import KINDS, budget, kind_of
from sanbench.evaluation.robust import Findings
from sanbench.evaluation.statistics import wilson
from sanbench.report import newest, write_report
from sanbench.report.cells import cell
from sanbench.report.pictures import budgets, largest
from sanbench.store.files import Store
from sanbench_cli.console import print_records
from tests.support.made_records import attacked, record, store_with

COMMITTED = Path(__file__).parents[1] / "results"
EPS = ("1/255", "2/255", "4/255", "8/255")


@pytest.fixture(params=["made", "committed"])
def store(request, tmp_path) -> Store:
    """Two networks whose raw counts rise from a budget to a larger one, and the results that are committed."""
    if request.param == "made":
        sizes = {"resnet26": (60, 40, 50, 20), "san10_pairwise": (50, 55, 10, 12)}
        attacks = [attacked(model, eps, correct) for model in sizes for eps, correct in zip(EPS, sizes[model])]
        rest = [make(model) for model in sizes for make in (record, turned)]
        return reading_once(store_with(tmp_path, *attacks, *rest))
    for part in ("records", "rows"):
        shutil.copytree(COMMITTED / part, tmp_path / part)
    return reading_once(Store(tmp_path))


def reading_once(store: Store) -> Store:
    """The store, but that the rows of a record are read once: here they are wanted by each reader, for each budget."""
    known, read = {}, store.rows
    store.rows = lambda each: known[each.key] if each.key in known else known.setdefault(each.key, read(each))
    return store


def turned(model):
    return record(model, "rotation", correct=30, setting={"angle": 90})


def by_hand(record, records, store) -> int:
    """How many images are right in this and in every smaller budget of the same attack, counted without the library."""
    standing = None
    for other in records:
        if other.kind != record.kind or (record.kind != "attack" and other is not record):
            continue
        same = {name: value for name, value in other.setting.items() if name not in ("eps", "step_size")}
        own = {name: value for name, value in record.setting.items() if name not in ("eps", "step_size")}
        if (other.network, other.data, same) != (record.network, record.data, own):
            continue
        if other is not record and budget(other.setting) >= budget(record.setting):
            continue
        rows = store.rows(other).sort_values("index")
        right = (rows["prediction"] == rows["label"]).to_numpy()
        standing = right if standing is None else np.minimum(standing, right)
    return int(standing.sum())


def test_every_reader_has_the_same_figure(store, monkeypatch):
    monkeypatch.setenv("COLUMNS", "400")
    records = newest(store.records())
    findings = Findings(records, store.rows)
    expected = {each.key: by_hand(each, records, store) for each in records}
    assert {each.key: findings.correct(each) for each in records} == expected

    write_report(store, "md,csv")
    report = (store.root / "report.md").read_text()
    for kind in dict.fromkeys(each.kind for each in records):
        of_kind = [each for each in records if each.kind == kind]
        table = pd.read_csv(store.root / f"{kind}.csv")
        assert table["correct"].tolist() == [expected[each.key] for each in of_kind]
        if kind == "attack":
            lost = [each.counts["right_before"] - expected[each.key] for each in of_kind]
            assert table["success"].tolist() == lost
    for one in records:
        if kind_of(one.kind).nested(one.setting):
            assert cell_of(report, one) == cell(wilson(expected[one.key], one.counts["images"]))
            of_network = [each for each in largest(records) if each.network == one.network]
            points = budgets(of_network, findings, one.setting["attack"], one.setting["norm"])
            drawn = points.get(255 * float(budget(one.setting)))
            if drawn is not None and drawn.total == one.counts["images"] and one in of_network:
                assert drawn.hits in {
                    expected[each.key] for each in of_network if each.setting.get("eps") == one.setting["eps"]
                }


def cell_of(report: str, record) -> str:
    """The figure of an attack in the tables of the report, without the marks of its flags."""
    declared = KINDS["attack"].declared(record.setting)
    (section,) = [
        part for part in report.split("\n### ") if f"Attack: {record.setting['attack']}\n" in part and declared in part
    ]
    lines = [[word.strip() for word in line.strip("|").split("|")] for line in section.splitlines() if line.startswith("|")]
    column = lines[0].index(f"robust, ε = {record.setting['eps']}")
    (row,) = [
        line
        for line in lines[2:]
        if line[0] == record.network.label and line[lines[0].index("n")].startswith(f"{record.data.images:,}")
    ]
    return re.sub(r" †.*", "", row[column])


def test_the_console_prints_that_figure(store, capsys, monkeypatch):
    monkeypatch.setattr("sanbench_cli.console.console.width", 300, raising=False)
    records = [each for each in newest(store.records()) if each.kind == "attack"]
    findings = Findings(records, store.rows)
    print_records(records, findings)
    printed = re.findall(r"([\d.]+%) \[[\d.]+%, ", capsys.readouterr().out)
    wanted = [f"{wilson(by_hand(r, records, store), r.counts['images']).value:.1%}" for r in records]
    assert printed == wanted


def test_flags_compare_the_same_figure():
    """Raw counts that rise with the budget hide what the nested ones show: nothing more fell."""
    small, large = attacked("san10_pairwise", "2/255", 40), attacked("san10_pairwise", "8/255", 30)
    findings = Findings([small, large], lambda each: frame(40 if each is small else range(30, 100)))
    assert findings.correct(large) == 10
    assert findings.flags(large) == []
    stands = Findings([small, large], lambda each: frame(40 if each is small else 80))
    assert stands.correct(large) == 40
    assert stands.flags(large) == ["flat-in-eps"]


def frame(right):
    standing = set(range(right)) if isinstance(right, int) else set(right)
    predictions = [0 if index in standing else 1 for index in range(100)]
    return pd.DataFrame({"index": range(100), "label": 0, "prediction": predictions})


def test_a_record_of_an_unknown_kind_has_a_table_of_its_own(tmp_path):
    strange = record(kind="occlusion", correct=33, setting={"size": 8, "fill": "grey"})
    store = store_with(tmp_path, record(), strange, record("resnet26", "occlusion", setting=strange.setting))
    write_report(store, "md,csv,html,tex")
    text = (tmp_path / "report.md").read_text()
    assert "### occlusion" in text and "size 8, fill grey" in text and cell(wilson(33, 100)) in text
    assert pd.read_csv(tmp_path / "occlusion.csv")["correct"].tolist() == [80, 33]
