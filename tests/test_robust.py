"""One figure has one value: tables, pictures, CSV, console and flags read what is right from one place."""

import re
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from sanbench.evaluation.kinds import budget, declared_rotation
from sanbench.evaluation.robust import Findings
from sanbench.evaluation.statistics import wilson
from sanbench.report import attacks, by_data, newest, write_report
from sanbench.report.answer import answer, chosen_columns, measured
from sanbench.report.attacks import protocol, protocols
from sanbench.report.cells import cell, number_of_images
from sanbench.report.comparisons import comparisons
from sanbench.report.rendering import Picture, Table
from sanbench.report.rotations import EXACT
from sanbench.store.files import Store
from sanbench_cli.console import print_records
from sanbench_cli.tables import by_condition, by_images, column_names
from tests.support.made_records import attacked, record, store_with
from tests.support.report_pages import page, table

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
    known, read = {}, store.columns
    store.columns = lambda each: known[each.key] if each.key in known else known.setdefault(each.key, read(each))
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
    by_kind = {kind: [each for each in records if each.kind == kind] for kind in dict.fromkeys(each.kind for each in records)}
    for kind, own in by_kind.items():
        table = pd.read_csv(store.root / f"{kind}.csv")
        assert table["correct"].tolist() == [expected[each.key] for each in own]
        if kind == "attack":
            lost = [each.counts["right_before"] - expected[each.key] for each in own]
            assert table["success"].tolist() == lost
    shown = [each for kind, own in by_kind.items() if kind != "corruption" for each in own]
    wanted = {each.key: cell(wilson(expected[each.key], each.counts["images"])) for each in shown}
    cells = cells_of(store.root, records)
    assert wanted and {each.key: cells[place_of(each, records)] for each in shown} == wanted


def place_of(record, records) -> tuple[str, ...]:
    """Where the tables of the report have a record's figure: kind, row, n and network."""
    n, label = number_of_images(record.data), record.network.label
    if record.kind == "rotation":
        frame, turned = declared_rotation(record.setting) or EXACT, record.setting["angle"] or "upright"
        return frame, turned if isinstance(turned, str) else f"{turned}°", n, label
    if record.kind == "attack":
        called = protocols([each for each in records if each.kind == "attack"])
        return called[protocol(record)], record.setting["eps"], n, label
    return "accuracy", "", n, label


def cells_of(root: Path, records) -> dict[tuple[str, ...], str]:
    """The figures in the tables by place, without the marks of flags and the differences to upright."""
    found = {("accuracy", "", row["n"], row["network"]): row["top-1"] for row in table(page(root, "accuracy"), "Accuracy")}
    labels = {each.network.label for each in records}
    for frame in {declared_rotation(each.setting) or EXACT for each in records if each.kind == "rotation"}:
        for row in table(page(root, "rotations"), frame):
            found |= {(frame, row["turned"], row["n"], label): row[label] for label in labels}
    for row in table(page(root, "attacks"), "Robust accuracy"):
        found |= {(row["attack"], row["ε"], row["n"], label): row[label] for label in labels}
    return {place: re.sub(r" [†(].*", "", figure) for place, figure in found.items()}


def test_pictures_answer_and_pairs_have_that_figure(store):
    """Points of the curves, the answer's cells and means, and who is right alone, against counts by hand."""
    records = newest(store.records())
    findings = Findings(records, store.rows)
    expected = {each.key: by_hand(each, records, store) for each in records}
    (group,) = by_data(records).values()

    (picture,) = [block for block in attacks.section(group, findings) if isinstance(block, Picture)]
    panel = picture.panels[0]
    called = protocols([each for each in group if each.kind == "attack"])
    own = [each for each in group if each.kind == "attack" and called[protocol(each)] == panel.title.rpartition(", n")[0]]
    by_hits = {
        (each.network.label, 255 * float(budget(each.setting)), each.counts["images"]): expected[each.key] for each in own
    }
    drawn = {(one.name, at, p.total): p.hits for one in panel.series for at, p in one.points.items() if at}
    assert len(drawn) == 4 * len(panel.series) and drawn.items() <= by_hits.items()

    (lines, *_) = [block.rows for block in answer(group, findings) if isinstance(block, Table)]
    for title, conditions in chosen_columns(group).items():
        for own in measured(group, conditions).values():
            mean = sum(expected[each.key] for each in own) / sum(each.counts["images"] for each in own)
            (row,) = [row for row in lines if row["network"] == own[0].network.label]
            (shown,) = [text for head, text in row.items() if head.startswith(f"{title}, n {own[0].counts['images']:,}")]
            assert shown.split()[0] == f"{100 * mean:.1f}"
    assert len(lines) == len({each.network.label for each in records})

    for test in comparisons(group, findings):
        assert test.difference.only_first - test.difference.only_second == expected[test.first.key] - expected[test.second.key]


def test_the_console_prints_that_figure(store, capsys, monkeypatch):
    monkeypatch.setattr("sanbench_cli.console.console.width", 300, raising=False)
    records = [each for each in newest(store.records()) if each.kind == "attack"]
    findings = Findings(records, store.rows)
    print_records(records, findings, store.root)
    printed = capsys.readouterr().out
    expected = {r.key: f"{100 * wilson(by_hand(r, records, store), r.counts['images']).value:.1f}" for r in records}
    found = {}
    for title, group in by_images(records).items():
        names = column_names(group)
        block = printed[printed.index(title) :].split("└")[0].splitlines()
        cells = [[cell.strip() for cell in re.split("[│┃]", line)[1:-1]] for line in block if line[:1] in "│┃"]
        rows = {row[0]: dict(zip(cells[0], row, strict=True)) for row in cells[1:]}
        for condition, alike in by_condition(group).items():
            for each in alike:
                found[each.key] = rows[condition][names[each.network.label, each.run]].split(" [")[0]
    assert found == expected


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
    assert "Other measurements" in (tmp_path / "report.md").read_text()
    (row,) = [row for row in table(page(tmp_path, "generic"), "occlusion") if row["san10_pairwise"] == cell(wilson(33, 100))]
    assert row["condition"] == "size 8, fill grey"
    assert pd.read_csv(tmp_path / "occlusion.csv")["correct"].tolist() == [80, 33]
