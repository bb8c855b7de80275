"""What people type, from hypothesis: a value or an InputError, never another exception, and never for long."""

import string
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sanbench.data.imagenet import NAMES_FILE, class_indices
from sanbench.errors import InputError
from sanbench.evaluation.attacks.budget import parse_budget
from sanbench.evaluation.attacks.table import ATTACKS, parse_attacks
from sanbench.evaluation.corruptions import CORRUPTIONS, parse_corruptions
from sanbench.evaluation.rotations import parse_angles
from sanbench.runs.config import Recipe, configure
from sanbench_cli.training import parse_settings

quick = settings(max_examples=200, deadline=2000, derandomize=True)
numbers = st.one_of(st.integers(-(10**20), 10**20), st.floats(), st.fractions()).map(str)
symbols = st.text(string.digits + ":,./-+eE _x", max_size=30)


def words(*known):
    """Lists of known words, numbers and anything else, as people type them."""
    part = st.one_of(st.sampled_from(known), numbers, symbols, st.text(max_size=12))
    return st.one_of(st.lists(part, max_size=4).map(",".join), st.lists(part, max_size=4).map(":".join), symbols)


def accepted(parse, *values):
    try:
        found = parse(*values)
    except InputError:
        return None
    return found


@quick
@given(words("flip", "mirror", "90", "0:360:15"))
def test_angles(text):
    found = accepted(parse_angles, text)
    assert found is None or 0 < len(found) <= 4 * 3600


@quick
@given(words("8/255", "0.03", "1e-3", "1e999999999"), st.sampled_from(["linf", "l2"]))
def test_budgets(text, norm):
    found = accepted(parse_budget, "eps", text, norm)
    assert found is None or (found >= 0 and (norm == "l2" or found <= 1))


options = {
    "names": words(*ATTACKS),
    "eps": words("8/255", "0"),
    "count": st.none() | st.integers(-3, 99),
    "step_size": st.none() | words("1/255", "0"),
    "target": st.none() | st.sampled_from(["next", "random", "none", ""]),
}


@quick
@given(**options)
def test_attacks(names, eps, count, step_size, target):
    found = accepted(lambda: parse_attacks(names, eps, count, step_size, restarts=count, targets=count, target=target))
    assert found is None or all(config.step_size > 0 or config.eps == 0 for _, config in found)


@quick
@given(words(*CORRUPTIONS, "all"), words("1", "1:5", "5:1", "1:999999999999"))
def test_corruptions(kinds, severities):
    found = accepted(parse_corruptions, kinds, severities, 0)
    assert found is None or 0 < len(found) <= 5 * len(CORRUPTIONS)


fields = st.sampled_from([*Recipe.model_fields, "width", "footprint", "blocks"])


@quick
@given(st.lists(st.text(max_size=20) | st.tuples(fields, numbers | symbols).map("=".join), max_size=3))
def test_settings(texts):
    changes = accepted(parse_settings, texts, {})
    if changes is not None:
        accepted(lambda: configure("san10", changes=changes))


lines = st.lists(st.tuples(st.sampled_from(["a", "b", "c"]), st.text(max_size=9)).map(" ".join), max_size=4)


@quick
@given(st.binary(max_size=60) | lines.map(lambda texts: "\n".join(texts).encode(errors="replace")))
def test_class_names(content):
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / NAMES_FILE).write_bytes(content)
        found = accepted(class_indices, ["a", "b"], Path(folder))
    assert found is None or (len(found[1]) == 2 and all(found[1]))


@pytest.mark.parametrize("content", [b"a caf\xe9\n", b"\xff\xfe"])
def test_class_names_in_another_encoding_are_refused(content, tmp_path):
    (tmp_path / NAMES_FILE).write_bytes(content)
    with pytest.raises(InputError, match=r"classes\.txt is not accepted: byte \d+ is not UTF-8"):
        class_indices(["a", "b"], tmp_path)
