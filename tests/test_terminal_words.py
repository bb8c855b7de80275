"""What the command line says is so: formats, plans, names, typos, comparisons, and what comes next."""

import json
import shutil
from pathlib import Path

import pytest

from sanbench.errors import InputError
from sanbench.evaluation.comparing import compare_networks, compare_stores, records_of
from sanbench.evaluation.robust import Findings
from sanbench.evaluation.statistics import paired_difference
from tests.support.commands import sanbench
from tests.support.made_records import attacked, record, store_with


def test_the_suffix_decides_what_is_exported(runs, tmp_path):
    path = tmp_path / "network.pt2"
    outcome = sanbench("export", "resnet26", "--output", path, "--runs", runs)  # which is exported sooner than a SAN
    assert outcome.exit_code == 0, outcome.output
    assert path.read_bytes()[:2] == b"PK" and "(pt2)" in outcome.output
    refused = sanbench("export", "san10", "--output", tmp_path / "x.onnx", "--format", "safetensors", "--runs", runs)
    assert refused.exit_code == 2 and "its suffix says onnx" in refused.stderr
    assert not (tmp_path / "x.onnx").exists()


def test_a_dry_run_tells_classes_and_side_of_the_data():
    outcome = sanbench("train", "san10", "--dry-run", "--set", "width=0.25")
    assert outcome.exit_code == 0, outcome.output
    told = json.loads(outcome.stdout[: outcome.stdout.rindex("}") + 1])
    assert (told["model"]["num_classes"], told["image_size"]) == (10, 32)


def test_a_measurement_from_cache_has_the_name_of_the_run_that_was_asked_for(runs, tmp_path):
    places = ["--runs", tmp_path / "runs", "--results", tmp_path / "results"]
    for name in ("first", "second"):  # of equal weights
        shutil.copytree(runs / "san10", tmp_path / "runs" / name)
    assert sanbench("accuracy", "first", *places).exit_code == 0
    both = sanbench("accuracy", "first", "second", *places, columns=200).stdout
    assert "(first)" in both and "(second)" in both
    alone = sanbench("accuracy", "second", *places, columns=200)
    assert "first" not in alone.stdout.replace(str(tmp_path), "")


@pytest.mark.parametrize(("typed", "meant"), [("san11", "san10"), ("san16", "san15"), ("resnet51", "resnet50")])
def test_a_typo_of_a_network_suggests_the_nearest(typed, meant, tmp_path):
    outcome = sanbench("train", typed, "--runs", tmp_path)
    assert outcome.exit_code == 2 and f"Did you mean '{meant}" in outcome.stderr


@pytest.mark.parametrize("command", [["report", "--results"], ["results", "check", "--results"], ["runs", "--runs"]])
def test_a_typo_of_a_folder_is_no_empty_success(command, tmp_path):
    outcome = sanbench(*command, tmp_path / "reslts")
    assert outcome.exit_code == 2 and "reslts" in outcome.stderr


def test_a_measurement_ends_with_where_all_is_and_what_comes_next(runs, tmp_path):
    places = ["--runs", runs, "--results", tmp_path]
    attack = ["attack", "san10", "--attack", "fgsm", "--limit", 4]
    plain = sanbench(*attack, *places, columns=200).stdout
    assert f"{tmp_path / 'rows'}" in plain and "sanbench report" in plain and "Pictures" not in plain
    assert f"{tmp_path / 'images'}" in sanbench(*attack, "--save-images", 2, *places, columns=200).stdout
    assert list(tmp_path.glob("images/*/*/*.png"))


@pytest.fixture
def two(tmp_path):
    """A SAN and a ResNet, upright and under two budgets, in one folder; the SAN again, otherwise trained, in another."""
    records = [record("san10_pairwise", correct=90), record("resnet26", correct=70, weights="b" * 64)]
    records += [attacked("san10_pairwise", eps, correct) for eps, correct in (("2/255", 40), ("8/255", 30))]
    records += [attacked("resnet26", eps, 20, weights="b" * 64) for eps in ("2/255", "8/255")]
    again = [record("san10_pairwise", correct=60, weights="c" * 64)]
    return store_with(tmp_path / "one", *records), store_with(tmp_path / "two", *again)


def test_two_networks_are_compared_by_the_reports_statistics(two, tmp_path):
    findings = Findings.of(two[0])
    found = compare_networks(findings, "run-san10_pairwise", "run-resnet26")
    assert {kind: len(lines) for kind, lines in found.items()} == {"accuracy": 1, "attack": 2}
    (upright,) = found["accuracy"]
    first, second = records_of(findings, "san10_pairwise")[0], records_of(findings, "resnet26")[0]
    assert upright.difference == paired_difference(findings.right(first), findings.right(second))
    assert upright.difference.value == pytest.approx(0.2) and upright.p_holm == upright.difference.p and upright.clear
    p = sorted((line.difference.p, line.p_holm) for line in found["attack"])
    assert p[0][1] == pytest.approx(min(1, 2 * p[0][0]))  # of two tests
    turned = compare_networks(findings, "b" * 8, "a" * 8)
    assert turned["accuracy"][0].difference.value == pytest.approx(-0.2)
    outcome = sanbench("compare", "run-san10_pairwise", "run-resnet26", "--results", tmp_path / "one")
    assert outcome.exit_code == 0, outcome.output
    assert "+20.0 [" in outcome.stdout and "20 / 0" in outcome.stdout and "8/255" in outcome.stdout


@pytest.mark.parametrize(("width", "tables"), [(80, 2), (100, 1)])
def test_a_line_of_a_comparison_is_one_line(width, tables):
    """Of the committed results, whose rotations have four protocols."""
    folder = Path(__file__).parents[1] / "results"
    names = ("san10_pairwise width=0.375", "resnet26 width=0.375")
    outcome = sanbench("compare", *names, "--results", folder, columns=width)
    assert outcome.exit_code == 0, outcome.output
    text = outcome.stdout[outcome.stdout.index("Rotated:") : outcome.stdout.index("Under attack:")]
    conditions = [line.split("│")[1].strip() for line in text.splitlines() if line.startswith("│")]
    assert len(conditions) == tables * 73 and all(conditions)
    assert {"45°", "45°, crop inscribed", "45°, mask disc", "90°", "flip"} <= set(conditions)


def test_two_folders_are_compared_network_by_network(two, tmp_path):
    (line,) = compare_stores(*map(Findings.of, two))["accuracy"]
    assert (line.first.network.weights[0], line.second.network.weights[0]) == ("a", "c")
    assert line.difference.value == pytest.approx(0.3)
    outcome = sanbench("compare", tmp_path / "one", tmp_path / "two", columns=120)
    assert outcome.exit_code == 0, outcome.output
    assert "san10_pairwise" in outcome.stdout and "+30.0 [" in outcome.stdout


def test_what_cannot_be_compared_is_a_sentence(two, tmp_path):
    one, other = map(Findings.of, two)
    with pytest.raises(InputError, match=r"Unknown run or network 'run-resnet62'. Did you mean 'run-resnet26'"):
        compare_networks(one, "run-san10_pairwise", "run-resnet62")
    with pytest.raises(InputError, match="no network was measured on the same images"):
        compare_stores(other, Findings([record("resnet50")], one.rows))
    elsewhere = record("resnet50", images=50, correct=40, weights="d" * 64)
    with pytest.raises(InputError, match="nothing was measured on the same images for both"):
        compare_networks(Findings([*one.records, elsewhere], one.rows), "run-san10_pairwise", "run-resnet50")
    twins = [record(weights="a" * 64), record(weights="e" * 64)]
    with pytest.raises(InputError, match="names 2 networks"):
        records_of(Findings(twins, one.rows), "run-san10_pairwise")
    mixed = sanbench("compare", tmp_path / "one", "run-resnet26", "--results", tmp_path / "one", columns=300)
    assert mixed.exit_code == 2 and "no results folder" in mixed.stderr
