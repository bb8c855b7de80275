"""Reports and pictures come from the records and from nothing else."""

import os
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pandas as pd
import pytest

from sanbench.errors import InputError
from sanbench.evaluation.robust import Findings
from sanbench.evaluation.statistics import wilson
from sanbench.models import MODELS
from sanbench.report import attacks, write_report
from sanbench.report.cells import cell
from sanbench.report.rendering import Picture, Table
from sanbench.report.rotations import EXACT
from sanbench.store.files import Store
from sanbench.store.rows import digest
from sanbench_cli.console import print_records
from tests.support import made_records
from tests.support.made_records import attacked, image_set, network, record, store_with
from tests.support.report_pages import page, pages, table, tables


def full(tmp_path):
    records = []
    for model in ("san10_patchwise", "resnet26", "san10_pairwise"):
        records.append(record(model))
        records += [record(model, "rotation", correct=30, setting={"angle": angle}) for angle in ("flip", 90, 180)]
        records += [attacked(model, eps, correct) for eps, correct in (("8/255", 10), ("2/255", 40))]
        records.append(attacked(model, "8/255", 20, "pgd-targeted"))
    return store_with(tmp_path, *records)


def test_the_report_is_derived_and_comes_back(tmp_path):
    store = full(tmp_path)
    paths = write_report(store).paths
    first = {path: open(path, "rb").read() for path in paths}
    subjects = {"accuracy", "rotations", "attacks", "comparisons", "provenance"}
    assert {str(Path(path).relative_to(tmp_path)) for path in paths} == {
        "report.md",
        *(f"report/{subject}.md" for subject in subjects),
        *("report/rotations.svg", "report/attacks.svg"),
        *("accuracy.csv", "rotation.csv", "attack.csv"),
    }
    for path in paths:
        os.remove(path)
    write_report(store)
    assert {path: open(path, "rb").read() for path in paths} == first


def test_tables_hold_the_counts(tmp_path):
    write_report(full(tmp_path))
    accuracy = table(page(tmp_path, "accuracy"), "Accuracy")
    assert [row["network"] for row in accuracy] == ["resnet26", "san10_pairwise", "san10_patchwise"]
    assert list(accuracy[0].values())[1:] == [cell(wilson(80, 100)), cell(wilson(100, 100)), "100 of 2,000", "7", "aaaaaaaa"]
    rotated = table(page(tmp_path, "rotations"), EXACT)
    assert [row["turned"] for row in rotated] == ["upright", "90°", "180°", "flip"]
    assert list(rotated[0]) == ["turned", "n", "resnet26", "san10_pairwise", "san10_patchwise"]
    assert rotated[1]["resnet26"] == f"{cell(wilson(30, 100))} (-50.0)"
    text = page(tmp_path, "attacks")
    robust = {(row["attack"], row["ε"]): row["resnet26"] for row in table(text, "Robust accuracy")}
    assert robust == {
        ("none", "0"): cell(wilson(80, 100)),
        ("pgd", "2/255"): cell(wilson(40, 100)),
        ("pgd", "8/255"): cell(wilson(10, 100)),
        ("pgd-targeted", "8/255"): f"{cell(wilson(20, 100))}",
    }
    did = {(row["attack"], row["ε"], row["network"]): row for row in table(text, "What each attack did")}
    assert did["pgd", "2/255", "resnet26"]["success"] == cell(wilson(40, 80))
    assert did["pgd", "8/255", "resnet26"]["success"] == cell(wilson(70, 80))
    assert did["pgd-targeted", "8/255", "resnet26"]["target hit"] == cell(wilson(3, 80))
    protocols = {row["attack"]: row for row in table(text, "Protocols")}
    assert protocols["pgd"]["step size"] == "ε/4" and protocols["pgd"]["steps"] == "10"
    assert "best epoch on validation images" in page(tmp_path, "provenance")


def test_csv_is_not_rounded(tmp_path):
    write_report(store_with(tmp_path, record(correct=2, images=3)))
    table = pd.read_csv(tmp_path / "accuracy.csv", float_precision="round_trip")
    assert table.loc[0, "top1"] == 2 / 3
    assert table.loc[0, "top1_low"] == wilson(2, 3).low
    assert table.loc[0, "weights"] == "a" * 64


def test_a_run_trained_again_shows_its_newest_weights(tmp_path):
    old, new = record(correct=10), record(correct=90, weights="b" * 64, created="2026-02-01T00:00:00+00:00")
    write_report(store_with(tmp_path, new, old))
    assert "bbbbbbbb" in pages(tmp_path)
    assert "aaaaaaaa" not in pages(tmp_path)


@pytest.mark.parametrize("name", ["imagenet", "fashion10k"])
def test_published_figures_stand_beside_imagenet_only(name, tmp_path):
    data = image_set(name=name)
    write_report(store_with(tmp_path, record(data=data), record("resnet26", data=data)))
    text = pages(tmp_path)
    paper = MODELS["san10_pairwise"].published
    assert (f"{paper.top1} / {paper.top5}" in text) == (name == "imagenet")


def test_subsets_are_compared_with_their_own_upright_images(tmp_path):
    whole, part = record(correct=1500, images=2000), record(correct=50)
    turned = record("san10_pairwise", "rotation", correct=40, setting={"angle": 90})
    write_report(store_with(tmp_path, whole, part, turned))
    upright, quarter = table(page(tmp_path, "rotations"), EXACT)
    assert upright["san10_pairwise"] == cell(wilson(50, 100))
    assert quarter["san10_pairwise"].endswith("(-10.0)")


def test_no_records_say_so(tmp_path):
    with pytest.raises(InputError, match="There are no results in"):
        write_report(Store(tmp_path))
    assert not list(tmp_path.iterdir())


def test_the_picture_has_every_network(tmp_path):
    write_report(full(tmp_path))
    for name in ("rotations", "attacks"):
        root = ElementTree.parse(tmp_path / "report" / f"{name}.svg").getroot()
        told = [element.text for element in root.iter("{http://www.w3.org/2000/svg}title")]
        for network_name in ("resnet26", "san10_pairwise", "san10_patchwise"):
            assert any(text.startswith(network_name) for text in told)
    assert "resnet26, 2 L∞ budget ε in 1/255: 40.0 [30.9, 49.8]" in told


def test_a_curve_over_budgets_has_one_protocol():
    short = [attacked("san10_pairwise", eps, correct) for eps, correct in (("2/255", 60), ("8/255", 30))]
    long = attacked("san10_pairwise", "8/255", 10)
    long = long.model_copy(update={"setting": {**long.setting, "steps": 100}})
    findings = Findings([long, *short], made_records.rows_of)
    blocks = attacks.section([long, *short], findings)
    (curve, single) = next(block for block in blocks if isinstance(block, Picture)).panels
    assert {at: point.hits for at, point in curve.series[0].points.items()} == {0: 80, 2: 60, 8: 30}
    assert [point.hits for point in single.series[0].points.values()] == [10]
    robust = next(block for block in blocks if isinstance(block, Table) and block.title == "Robust accuracy")
    assert [row["attack"] for row in robust.rows] == ["none", "pgd (steps 10)", "pgd (steps 10)", "pgd (steps 100)"]


def test_pairs_are_tested_and_bold_only_where_the_interval_excludes_zero(tmp_path):
    clearly, hardly = record(correct=80), record("san10_patchwise", correct=52)
    store = store_with(tmp_path, clearly, hardly, record("resnet26", correct=50))
    write_report(store, "md,tex,html")
    rows = {row["network"]: row for row in table(page(tmp_path, "comparisons"), "Upright")}
    assert set(rows) == {"san10_pairwise", "san10_patchwise"}
    assert rows["san10_pairwise"]["difference"].startswith("**+30.0 [")
    assert rows["san10_patchwise"]["difference"].startswith("+2.0 [-")
    assert rows["san10_pairwise"]["right alone"] == "30 / 0"
    assert float(rows["san10_pairwise"]["p"]) == pytest.approx(2 * 0.5**30, rel=0.1)
    assert float(rows["san10_pairwise"]["p, Holm"]) == pytest.approx(4 * 0.5**30, rel=0.1)  # of two tests
    assert float(rows["san10_patchwise"]["p, Holm"]) == 0.5
    assert "<b>+30.0" in (tmp_path / "report.html").read_text()
    tex = (tmp_path / "report.tex").read_text()
    assert r"\textbf{+30.0" in tex and r"san10\_\allowbreak{}pairwise" in tex
    assert tex.count(r"\begin{tabular}") == tex.count(r"\end{tabular}") >= 4


def test_networks_on_other_images_are_not_compared(tmp_path):
    write_report(store_with(tmp_path, record(), record("resnet26", images=90, correct=50)))
    assert "against ResNet" not in pages(tmp_path)


def test_flags_are_marked_with_a_footnote(tmp_path):
    masked = attacked("san10_pairwise", "8/255", 40).model_copy(update={"flags": ["dead-gradients", "noisy-logits"]})
    write_report(store_with(tmp_path, masked, attacked("resnet26", "8/255", 10)))
    text = page(tmp_path, "attacks")
    row = table(text, "Robust accuracy")[1]
    assert "†" not in row["resnet26"]
    assert row["san10_pairwise"].endswith("†1 †2")
    assert "†1 Gradients were all zero" in text and "†2 Logits differed" in text


def test_guessing_is_marked_and_said_on_the_terminal(tmp_path, capsys):
    guessed = record(correct=11).model_copy(update={"flags": ["near-chance"]})
    write_report(store_with(tmp_path, guessed))
    text = (tmp_path / "report.md").read_text()
    assert text.count("†1 Accuracy does not differ") == page(tmp_path, "accuracy").count("†1 Accuracy does not differ") == 1
    assert "11.0 [6.3, 18.6] †1" in text and "†1 Accuracy does not differ from guessing" in text
    records = [guessed, record(correct=80, model="resnet26")]
    print_records(records, Findings(records, made_records.rows_of), tmp_path)
    assert "san10_pairwise upright: Accuracy does not differ from guessing" in capsys.readouterr().out


def test_what_fell_within_a_smaller_budget_has_fallen_within_a_larger(tmp_path):
    small, large = attacked("san10_pairwise", "2/255", 20), attacked("san10_pairwise", "8/255", 30)
    write_report(store_with(tmp_path, small, large))
    _, first, second = (row["san10_pairwise"] for row in table(page(tmp_path, "attacks"), "Robust accuracy"))
    assert first == cell(wilson(20, 100)) and second == f"{first} †1"  # and that nothing more fell is a flag


def test_mean_corruption_error_is_relative_to_the_resnet(tmp_path):
    records = [record(), record("resnet26")]
    for model, errors in (("resnet26", (20, 40)), ("san10_pairwise", (10, 30))):
        for kind in ("fog", "jpeg"):
            for severity, error in zip((1, 2), errors):
                setting = {"corruption": kind, "severity": severity, "definition": "as in the original benchmark"}
                records.append(record(model, "corruption", correct=100 - error, setting=setting))
    write_report(store_with(tmp_path, *records))
    first = table(page(tmp_path, "corruptions"), "Top-1 by corruption")[0]
    assert first["corruption"] == "mCE (against resnet26)" and (first["resnet26"], first["san10_pairwise"]) == (
        "100.0",
        f"{100 * 40 / 60:.1f}",
    )
    assert "Defined otherwise" not in pages(tmp_path)


def test_definitions_and_sources_of_a_corruption_do_not_mix(tmp_path):
    """Made on the fly, read from files, and made at another strength: three rows, and no mean error across them."""
    fog = {"corruption": "fog", "severity": 1, "strength": 0.1, "definition": "as in the original benchmark"}
    settings = [fog, fog | {"source": "files"}, fog | {"definition": "ours"}, fog | {"strength": 0.2}]
    records = [record(kind="corruption", correct=10 * n, setting=setting) for n, setting in enumerate(settings, start=1)]
    records.append(record("resnet26", "corruption", correct=50, setting=settings[1]))
    write_report(store_with(tmp_path, *records), "md")
    every = table(page(tmp_path, "corruptions"), "Top-1 by corruption")
    means, rows = ([row for row in every if ("mCE" in row["corruption"]) == mean] for mean in (True, False))
    assert [row["san10_pairwise"] for row in means if row["san10_pairwise"] != "—"] == [
        f"{100 * 80 / 50:.1f}"
    ]  # of files alone
    assert sorted(row["san10_pairwise"] for row in rows) == [cell(wilson(10 * n, 100)) for n in range(1, 5)]
    assert [row["resnet26"] for row in rows if row["resnet26"] != "—"] == [cell(wilson(50, 100))]
    assert len({row["corruption"] for row in rows}) == 4


def test_accuracy_by_class(tmp_path):
    write_report(store_with(tmp_path, record(classes=["a", "b"])))
    rows = table(page(tmp_path, "accuracy"), "Accuracy by class")
    assert rows == [
        {"class": "a", "san10_pairwise, n 100 of 2,000": "80.0 (100)"},
        {"class": "b", "san10_pairwise, n 100 of 2,000": "—"},
    ]


def test_pairs_count_the_same_worst_case_as_the_tables(tmp_path):
    """What fell within 2/255 has fallen within 8/255, in the pairs too."""
    small, large = attacked("san10_pairwise", "2/255", 20), attacked("san10_pairwise", "8/255", 30)
    resnet = [attacked("resnet26", eps, 10) for eps in ("2/255", "8/255")]
    write_report(store_with(tmp_path, small, large, *resnet))
    pairs = table(page(tmp_path, "comparisons"), "Under attack")
    assert [row["right alone"] for row in pairs] == ["10 / 0", "10 / 0"]


def test_angles_stand_in_rows(tmp_path):
    turned = [record("resnet26", "rotation", correct=30, setting={"angle": angle}) for angle in range(15, 151, 15)]
    write_report(store_with(tmp_path, record("resnet26"), *turned), "md")
    rows = table(page(tmp_path, "rotations"), EXACT)
    assert [row["turned"] for row in rows] == ["upright", *(f"{angle}°" for angle in range(15, 151, 15))]
    assert rows[1] == {"turned": "15°", "n": "100 of 2,000", "resnet26": f"{cell(wilson(30, 100))} (-50.0)"}


def test_of_many_classes_the_best_and_the_worst_are_named(tmp_path):
    classes = [f"thing {n}" for n in range(30)]
    each = record(images=120, correct=90, classes=classes)
    rows = pd.DataFrame({"index": range(120), "label": [n // 5 for n in range(120)]})  # 24 classes have images
    rows["prediction"] = np.where(rows["index"] % 5 < rows["label"] % 6, rows["label"], 29)
    store = Store(tmp_path)
    counts = each.counts | {"correct": int((rows["prediction"] == rows["label"]).sum())}
    store.add([(each.model_copy(update={"rows": digest(rows), "counts": counts}), rows)])
    write_report(store)
    (row,) = table(page(tmp_path, "accuracy"), "Accuracy by class")
    assert row["worst 5"].split("; ") == [
        f"thing {n} {n}: {100 * hits / 5:.1f} (5)" for n, hits in ((0, 0), (6, 0), (12, 0), (18, 0), (1, 1))
    ]
    assert row["best 5"].split("; ")[0] == "thing 23 23: 100.0 (5)"
    assert row["n"] == "120 of 2,000"


EXPERIMENTS = {
    "Accuracy, upright": record(),
    "Rotated images, zero-shot": record(kind="rotation", setting={"angle": 90}),
    "Under attack": attacked("san10_pairwise", "8/255", 10),
    "Corrupted images": record(
        kind="corruption", setting={"corruption": "fog", "severity": 1, "definition": "as in the original benchmark"}
    ),
    "Accuracy by class": record(classes=["a", "b"]),
    "Self-attention against ResNet, paired": record(),
}


@pytest.mark.parametrize("title", EXPERIMENTS)
def test_every_table_says_that_images_were_limited(title, tmp_path):
    one = EXPERIMENTS[title]
    write_report(store_with(tmp_path, one, one.model_copy(update={"network": network("resnet26"), "run": "resnet"})))
    found = [each for path in (tmp_path / "report").glob("*.md") for each in tables(path.read_text())]
    figures = [(head, row) for head, *rows in found for row in rows if any("[" in c or "(" in c for c in row)]
    assert figures
    for head, row in figures:
        assert "100 of 2,000" in " ".join([*head, *row]) or "recipe" in head
    assert title in pages(tmp_path)


def test_shrunk_images_have_sections_of_their_own_and_decoders_rows(tmp_path):
    one = record()
    kinds = [
        {"decoder": "PIL 12"},
        {"decoder": "simplejpeg 1.9"},
        {"decoder": "PIL 12", "fingerprint": "shrunk-256-abcdef0123"},
    ]
    kinds[1]["preprocessing"] = kinds[0]["preprocessing"] = "shorter side 256, centre crop 224"
    write_report(store_with(tmp_path, *(one.model_copy(update={"data": image_set(**kind)}) for kind in kinds)))
    text = page(tmp_path, "accuracy")
    assert [len(rows) for _, *rows in tables(text)] == [2, 1]
    assert "| san10_pairwise, PIL 12 |" in text and "| san10_pairwise, simplejpeg 1.9 |" in text
    for shown in (text, (tmp_path / "report.md").read_text()):
        assert "## fashion10k, shrunk-256: test" in shown
    assert "| simplejpeg 1.9 | shorter side 256, centre crop 224, mean" in page(tmp_path, "provenance")


def test_a_san_is_compared_with_the_resnet_of_its_width_alone(tmp_path):
    """What is paired with what stands in the table."""
    narrow = {"width": 0.375}
    store = store_with(tmp_path, record(variation=narrow), record("resnet26", correct=50))
    write_report(store)
    assert "against ResNet" not in pages(tmp_path)
    store_with(tmp_path, record("resnet26", correct=60, variation=narrow, weights="c" * 64))
    write_report(store)
    (row,) = table(page(tmp_path, "comparisons"), "Upright")
    assert (row["network"], row["against"]) == ("san10_pairwise width=0.375", "resnet26 width=0.375")
    assert row["right alone"] == "20 / 0"
