"""The committed network of tests/reference, measured again by the commands of its README: the same records and rows."""

import re
import shlex
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from sanbench.store.files import Store
from tests.support.commands import sanbench

REFERENCE = Path(__file__).parent / "reference"
MEASURING = [
    shlex.split(line)
    for line in re.findall(r"^    sanbench (.* --results results)$", (REFERENCE / "README.md").read_text(), re.M)
]
DECIDED_ELSEWHERE = {"seconds", "waited", "created", "device", "versions", "rows", "extremes"}  # by machine and moment
ROUNDING = {"confidence", "linf", "l2"}  # the columns that another processor may round otherwise


@pytest.fixture(scope="module")
def again(tmp_path_factory):
    folder = tmp_path_factory.mktemp("again") / "results"
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(REFERENCE)
        for command in MEASURING:
            outcome = sanbench(*command[:-1], folder, "--device", "cpu")
            assert outcome.exit_code == 0, outcome.output
    return Store(folder)


def test_every_kind_of_measurement_is_measured_again():
    from sanbench.evaluation.kinds import KINDS

    records = Store(REFERENCE / "results").records()
    assert {record.kind for record in records} == set(KINDS)
    assert len(records) == 9  # rotated by quarter turns and resampled, with and without noise


def test_records_and_rows_are_found_again(again):
    committed = Store(REFERENCE / "results")
    wanted, found = ({record.key: record for record in store.records()} for store in (committed, again))
    assert found.keys() == wanted.keys()
    assert not committed.problems and not again.problems
    for key, record in wanted.items():
        assert found[key].model_dump(exclude=DECIDED_ELSEWHERE) == record.model_dump(exclude=DECIDED_ELSEWHERE)
        assert found[key].extremes == pytest.approx(record.extremes, abs=1e-6)
        before, after = committed.rows(record), again.rows(found[key])
        exact = [name for name in before if name not in ROUNDING]
        pd.testing.assert_frame_equal(after[exact], before[exact], check_exact=True)
        for name in ROUNDING & set(before):
            np.testing.assert_allclose(after[name], before[name], rtol=0, atol=1e-4)
        assert list(before) == list(after)
