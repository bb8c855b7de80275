"""The store: what decides a record's key, that files are written whole or not at all, and what is said of broken ones."""

import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from sanbench.errors import SanbenchError
from sanbench.evaluation.loop import Identity
from sanbench.evaluation.rotations import Rotation
from sanbench.store.files import Store
from sanbench.store.rows import from_table, joined, read_groups, to_table
from sanbench.store.schema import Benchmark, Measurement
from tests.support.commands import snapshot
from tests.support.made_records import attacked, image_set, network, record, rows_of, store_with
from tests.support.quick_measurements import measured


def test_every_parameter_decides_the_key():
    base = {"network": network(), "data": image_set(3), "kind": "attack", "setting": {"eps": "8/255"}}
    changes = [
        {"network": network("san15_pairwise")},
        {"network": network(weights="b" * 64)},
        {"network": network(width=0.5)},
        {"network": network().model_copy(update={"mean": (0.5, 0.5, 0.5)})},
        {"data": image_set(4)},
        {"data": image_set(3, decoder="PIL 12")},
        {"setting": {"eps": "4/255"}},
        {"kind": "rotation"},
    ]
    keys = {Measurement(**{**base, **change}).key for change in [{}, *changes]}
    assert len(keys) == 1 + len(changes)


def test_a_record_has_the_key_of_its_measurement():
    one = record()
    fields = {name: getattr(one, name) for name in Measurement.model_fields}
    assert Measurement(**fields).key == one.key


def test_results_are_written_whole_or_not_at_all(tmp_path, evaluated, images, monkeypatch):
    store = Store(tmp_path)
    measured(evaluated, images, store, [Identity()])
    before = snapshot(tmp_path)
    blocked = Store(next((tmp_path / "records").iterdir()) / "results")
    with pytest.raises(SanbenchError, match=r"Cannot write .*--results"):
        measured(evaluated, images, blocked, [Rotation(90)])
    monkeypatch.setattr("sanbench.store.files.write_groups", lambda path, groups: path.write_bytes(b"half") and 1 / 0)
    with pytest.raises(ZeroDivisionError):
        measured(evaluated, images, store, [Rotation(90)])
    assert snapshot(tmp_path) == before
    assert not list((tmp_path / "work" / "partial").iterdir())


ROWS = {
    "index": np.arange(20),
    "right": np.arange(20) % 3 == 0,
    "confidence": np.where(np.arange(20) < 5, np.nan, 0.5).astype(np.float32),
    "linf": np.linspace(0, 1, 20),
    "level": np.arange(20, dtype=np.uint8),
}


def test_columns_are_those_of_pandas():
    table = to_table(ROWS)
    assert table.equals(pa.Table.from_pandas(pd.DataFrame(ROWS), preserve_index=False).replace_schema_metadata(None))
    for part in (table, table.slice(3, 9), table.slice(4, 0), pa.concat_tables([table, table])):
        pd.testing.assert_frame_equal(pd.DataFrame(from_table(part)), part.to_pandas())
    pd.testing.assert_frame_equal(pd.DataFrame(joined([ROWS, ROWS])), pd.concat([pd.DataFrame(ROWS)] * 2, ignore_index=True))


def test_rows_are_written_and_read_without_pandas(tmp_path):
    code = "import sys\nimport numpy as np\nfrom sanbench.store.rows import *\n"
    code += "rows = {'index': np.arange(9), 'right': np.arange(9) > 3, 'linf': np.ones(9)}\n"
    code += f"path = Path({str(tmp_path / 'rows.parquet')!r})\nwrite_groups(path, {{'one': to_table(rows)}})\n"
    code += "assert digest(from_table(read_group(path, 'one'))) == digest(rows) and 'pandas' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[1])


def test_records_come_back_as_they_were(tmp_path):
    made = [record(), record("resnet26"), attacked("san10_pairwise", "8/255", 10), attacked("san10_pairwise", "2/255", 40)]
    store = store_with(tmp_path, *made)
    assert sorted(store.records(), key=lambda each: each.key) == sorted(made, key=lambda each: each.key)
    for each in made:
        pd.testing.assert_frame_equal(store.rows(each), rows_of(each))
    assert sorted(str(path.relative_to(tmp_path)) for path in tmp_path.glob("r*/**/*.*") if "work" not in path.parts) == [
        "records/resnet26-aaaaaaaa.jsonl",
        "records/san10_pairwise-aaaaaaaa.jsonl",
        "rows/resnet26-aaaaaaaa/accuracy.parquet",
        "rows/san10_pairwise-aaaaaaaa/accuracy.parquet",
        "rows/san10_pairwise-aaaaaaaa/attack.parquet",
    ]


def test_what_records_share_is_written_once_and_one_more_record_is_lines_at_the_end(tmp_path):
    made = [attacked("san10_pairwise", f"{eps}/255", 10) for eps in range(1, 9)]
    store_with(tmp_path, *made[:-1])
    path = tmp_path / "records" / "san10_pairwise-aaaaaaaa.jsonl"
    before = path.read_text()
    assert before.count("learning") == 0 and before.count("label_smoothing") == 1 and before.count("a" * 64) == 1
    store_with(tmp_path, made[-1])
    assert path.read_text().startswith(before) and path.read_text().count("\n") == before.count("\n") + 1


def test_a_measurement_that_is_made_again_takes_the_place_of_the_old_one(tmp_path):
    old, new = record(correct=10), record(correct=90, created="2026-02-01T00:00:00+00:00")
    store = store_with(tmp_path, old)
    store_with(tmp_path, new)
    assert store.records() == [new]
    assert list(read_groups(tmp_path / "rows" / new.network.stem / "accuracy.parquet")) == [new.id]


def test_files_that_git_has_joined_by_lines_are_read(tmp_path):
    """Two branches that each measured something: the union of their lines, in any order of the branches."""
    first = store_with(tmp_path / "a", record(), attacked("san10_pairwise", "2/255", 40))
    second = store_with(tmp_path / "b", record(), attacked("san10_pairwise", "8/255", 10))
    name = "records/san10_pairwise-aaaaaaaa.jsonl"
    ours, theirs = ((store.root / name).read_text() for store in (first, second))
    (second.root / name).write_text(ours + theirs)
    assert len(second.records()) == 3 and not second.problems


@pytest.mark.parametrize("seed", range(20))
def test_a_flipped_bit_in_a_record_is_seen(tmp_path, seed):
    made = [record(), attacked("san10_pairwise", "2/255", 40)]
    store = store_with(tmp_path, *made)
    path = tmp_path / "records" / "san10_pairwise-aaaaaaaa.jsonl"
    content = bytearray(path.read_bytes())
    draw = random.Random(seed)
    content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
    path.write_bytes(content)
    found = store.records()
    assert all(each in made for each in found)
    assert len(found) < len(made) and store.problems
    assert all(str(path) in problem for problem in store.problems)


@pytest.mark.parametrize("seed", range(20))
def test_a_flipped_bit_in_rows_is_seen(tmp_path, seed):
    one = record()
    store = store_with(tmp_path, one)
    path = tmp_path / "rows" / one.network.stem / "accuracy.parquet"
    content = bytearray(path.read_bytes())
    draw = random.Random(seed)
    content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
    path.write_bytes(content)
    try:
        rows = store.rows(one)
    except SanbenchError as error:
        assert str(path) in str(error)  # noqa: PT017  either is right
    else:
        pd.testing.assert_frame_equal(rows, rows_of(one))  # a bit that says nothing of the rows


def test_missing_rows_are_named(tmp_path):
    one, other = record(), attacked("san10_pairwise", "2/255", 40)
    store = store_with(tmp_path, one)
    with pytest.raises(SanbenchError, match=r"attack\.parquet cannot be read"):
        store.rows(other)
    with pytest.raises(SanbenchError, match="holds no rows of record"):
        store.rows(one.model_copy(update={"setting": {"other": 1}}))
    with pytest.raises(SanbenchError, match="holds other rows"):
        store.rows(one.model_copy(update={"rows": "0" * 64}))


def test_a_stray_line_is_named_and_left_out(tmp_path):
    store = store_with(tmp_path, record())
    (tmp_path / "records" / "odd.jsonl").write_text("{}\n[]\nnothing\n")
    assert store.records() == [record()]
    assert [problem.split(",")[1] for problem in store.problems] == [" line 1", " line 2", " line 3"]
    assert all("odd.jsonl" in problem for problem in store.problems)


def test_a_benchmark_takes_the_place_of_the_same_one(tmp_path):
    store = Store(tmp_path)
    common = {"kind": "model", "device": "cpu", "versions": {}}
    for n, seconds in ((1, 1.0), (2, 2.0), (1, 3.0)):
        store.write_benchmark(Benchmark(setting={"n": n}, seconds={"san": seconds}, **common))
    assert [benchmark.seconds["san"] for benchmark in store.benchmarks()] == [2.0, 3.0]
    (tmp_path / "benchmarks.jsonl").write_text("{}\n")
    with pytest.raises(SanbenchError, match="no benchmark of this version"):
        store.benchmarks()
