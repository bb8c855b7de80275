"""Records: what decides their key, and that they are written whole or not at all."""

import pytest

from sanbench.errors import SanbenchError
from sanbench.evaluation.loop import Identity
from sanbench.evaluation.rotations import Rotation
from sanbench.store.files import Measurement, Store
from tests.support.commands import snapshot
from tests.support.quick_measurements import measured


def test_every_parameter_decides_the_key():
    base = {
        "model": "m",
        "weights": "w",
        "data": {"name": "d", "images": 3},
        "experiment": "attack",
        "setting": {"eps": "8/255"},
    }
    changes = [{"model": "n"}, {"weights": "v"}, {"data": {"name": "d", "images": 4}}, {"setting": {"eps": "4/255"}}]
    keys = {Measurement(**{**base, **change}).key for change in [{}, *changes, {"experiment": "rotation"}]}
    assert len(keys) == 6


def test_results_are_written_whole_or_not_at_all(tmp_path, evaluated, images, monkeypatch):
    store = Store(tmp_path)
    measured(evaluated, images, store, [Identity()])
    before = snapshot(tmp_path)
    blocked = Store(tmp_path / "records" / next((tmp_path / "records").iterdir()).name / "results")
    with pytest.raises(SanbenchError, match=r"Cannot write .*--results"):
        measured(evaluated, images, blocked, [Rotation(90)])
    monkeypatch.setattr("pyarrow.parquet.write_table", lambda table, path: path.write_bytes(b"half") and 1 / 0)
    with pytest.raises(ZeroDivisionError):
        measured(evaluated, images, store, [Rotation(90)])
    after = snapshot(tmp_path)
    assert after == before


def test_a_stray_record_is_named(tmp_path):
    (tmp_path / "records").mkdir()
    (tmp_path / "records" / "odd.json").write_text("{}")
    with pytest.raises(SanbenchError, match=r"odd\.json is not a record"):
        Store(tmp_path).records()
