"""`sanbench results check`, and a report on a store that is not whole: what is broken is named and left out."""

import json

import pytest

from sanbench.report import write_report
from sanbench.store.files import Store, line_digest
from sanbench.store.rows import read_groups, write_groups
from tests.support.commands import sanbench
from tests.support.made_records import attacked, record, store_with
from tests.support.report_pages import pages


@pytest.fixture
def store(tmp_path) -> Store:
    return store_with(tmp_path, record(), record("resnet26", correct=70), attacked("san10_pairwise", "2/255", 40))


def test_a_whole_store_is_whole(store):
    outcome = sanbench("results", "check", "--results", store.root)
    assert outcome.exit_code == 0 and "3 records agree with their rows" in outcome.output


def rows_missing(store):
    (store.root / "rows" / "resnet26-aaaaaaaa" / "accuracy.parquet").unlink()


def rows_cut(store):
    path = store.root / "rows" / "resnet26-aaaaaaaa" / "accuracy.parquet"
    path.write_bytes(path.read_bytes()[:-40])


def rows_of_another(store):
    path = store.root / "rows" / "resnet26-aaaaaaaa" / "accuracy.parquet"
    ((id, _),) = read_groups(path).items()
    other = read_groups(store.root / "rows" / "san10_pairwise-aaaaaaaa" / "accuracy.parquet")
    write_groups(path, {id: next(iter(other.values()))})


def impossible_count(store):
    """Written by a program that counts otherwise: the line's own digest fits."""
    path = store.root / "records" / "resnet26-aaaaaaaa.jsonl"
    *shared, line = path.read_text().splitlines()
    content = json.loads(line)
    del content["digest"]
    content["counts"]["correct"] = 101
    path.write_text("\n".join([*shared, json.dumps(content | {"digest": line_digest(content)})]) + "\n")


def record_lost(store):
    (store.root / "records" / "resnet26-aaaaaaaa.jsonl").unlink()


BROKEN = {
    rows_missing: "accuracy.parquet cannot be read",
    rows_cut: "accuracy.parquet cannot be read",
    rows_of_another: "accuracy.parquet holds other rows than those of record",
    impossible_count: "counts 101 correct, but its rows have 70",
    record_lost: "which no record tells of",
}


@pytest.mark.parametrize("damage", BROKEN, ids=lambda damage: damage.__name__)
def test_what_is_broken_is_named(store, damage):
    damage(store)
    outcome = sanbench("results", "check", "--results", store.root, columns=400)
    assert outcome.exit_code == 1
    assert BROKEN[damage] in outcome.stderr and str(store.root) in outcome.stderr
    assert "2 records agree" in outcome.output


@pytest.mark.parametrize("damage", [rows_missing, rows_cut, rows_of_another, impossible_count])
def test_a_report_leaves_out_what_is_broken(store, damage):
    damage(store)
    written = write_report(store)
    assert len(written.problems) == 1 and BROKEN[damage] in written.problems[0]
    text = pages(store.root)
    assert "resnet26" not in text and "san10_pairwise" in text


def test_a_folder_without_results_is_a_typo(tmp_path):
    for words in (["results", "check"], ["report"]):
        outcome = sanbench(*words, "--results", tmp_path / "nosuch")
        assert outcome.exit_code == 2 and "There are no results in" in outcome.stderr
    assert not (tmp_path / "nosuch").exists()
