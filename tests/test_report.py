"""Reports and pictures come from the records and from nothing else."""

import re
import shutil

import matplotlib.image
import numpy as np
import pandas as pd
import pytest

from sanbench.errors import InputError
from sanbench.evaluation.robust import Findings
from sanbench.evaluation.statistics import wilson
from sanbench.models import MODELS
from sanbench.report import write_report
from sanbench.report.cells import cell
from sanbench.report.pictures import budgets
from sanbench.store.files import Store
from sanbench.store.rows import digest
from sanbench_cli.console import print_records
from tests.support import made_records
from tests.support.made_records import attacked, image_set, network, record, store_with


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
    assert {path.rsplit("/", 1)[1] for path in paths} == {
        "report.md",
        "accuracy.csv",
        "rotation.csv",
        "attack.csv",
        "robustness-fashion10k.png",
    }
    for path in paths:
        shutil.os.remove(path)
    write_report(store)
    assert {path: open(path, "rb").read() for path in paths} == first


def rows_of(text, heading):
    section = text.split(f"### {heading}")[1].split("###")[0]
    return [[c.strip() for c in line.strip("|").split("|")] for line in section.splitlines() if line.startswith("|")]


def test_tables_hold_the_counts(tmp_path):
    text = (full(tmp_path).root / "report.md", write_report(Store(tmp_path)))[0].read_text()
    accuracy = rows_of(text, "Accuracy")
    assert [row[0] for row in accuracy[2:]] == ["resnet26", "san10_pairwise", "san10_patchwise"]
    assert accuracy[2][1:] == [cell(wilson(80, 100)), cell(wilson(100, 100)), "100 of 2,000", "7", "aaaaaaaa"]
    rotated = rows_of(text, "Rotated")
    assert rotated[0][:5] == ["network", "upright", "90°", "180°", "flip"]
    assert rotated[2][2] == f"{cell(wilson(30, 100))} (-50.0)"
    attack = rows_of(text, "Attack: pgd\n")
    assert attack[0][1:6] == [
        "clean, same images",
        "robust, ε = 2/255",
        "success, ε = 2/255",
        "robust, ε = 8/255",
        "success, ε = 8/255",
    ]
    assert attack[2][2:6] == [cell(wilson(40, 100)), cell(wilson(40, 80)), cell(wilson(10, 100)), cell(wilson(70, 80))]
    assert "target hit, ε = 8/255" in rows_of(text, "Attack: pgd-targeted")[0]
    assert "step size ε/4; steps 10" in text
    assert "best epoch on validation images" in text


def test_csv_is_not_rounded(tmp_path):
    write_report(store_with(tmp_path, record(correct=2, images=3)))
    table = pd.read_csv(tmp_path / "accuracy.csv", float_precision="round_trip")
    assert table.loc[0, "top1"] == 2 / 3
    assert table.loc[0, "top1_low"] == wilson(2, 3).low
    assert table.loc[0, "weights"] == "a" * 64


def test_a_run_trained_again_shows_its_newest_weights(tmp_path):
    old, new = record(correct=10), record(correct=90, weights="b" * 64, created="2026-02-01T00:00:00+00:00")
    write_report(store_with(tmp_path, new, old))
    text = (tmp_path / "report.md").read_text()
    assert "bbbbbbbb" in text
    assert "aaaaaaaa" not in text


@pytest.mark.parametrize("name", ["imagenet", "fashion10k"])
def test_published_figures_stand_beside_imagenet_only(name, tmp_path):
    data = image_set(name=name)
    write_report(store_with(tmp_path, record(data=data), record("resnet26", data=data)))
    text = (tmp_path / "report.md").read_text()
    paper = MODELS["san10_pairwise"].published
    assert (f"{paper.top1} / {paper.top5}" in text) == (name == "imagenet")


def test_subsets_are_compared_with_their_own_upright_images(tmp_path):
    whole, part = record(correct=1500, images=2000), record(correct=50)
    turned = record("san10_pairwise", "rotation", correct=40, setting={"angle": 90})
    write_report(store_with(tmp_path, whole, part, turned))
    (row,) = rows_of((tmp_path / "report.md").read_text(), "Rotated")[2:]
    assert row[1] == cell(wilson(50, 100))
    assert row[2].endswith("(-10.0)")


def test_no_records_say_so(tmp_path):
    with pytest.raises(InputError, match="There are no results in"):
        write_report(Store(tmp_path))
    assert not list(tmp_path.iterdir())


def test_the_picture_has_every_network(tmp_path):
    write_report(full(tmp_path))
    pixels = matplotlib.image.imread(tmp_path / "robustness-fashion10k.png")[..., :3]
    colours = {tuple(colour) for colour in (pixels.reshape(-1, 3) * 255).round().astype(int).tolist()}
    for colour in ("#000000", "#E69F00", "#56B4E9"):
        assert tuple(int(part, 16) for part in re.findall("..", colour[1:])) in colours


def test_a_curve_over_budgets_has_one_protocol():
    short = [attacked("san10_pairwise", eps, correct) for eps, correct in (("2/255", 60), ("8/255", 30))]
    long = attacked("san10_pairwise", "8/255", 10)
    long = long.model_copy(update={"setting": {**long.setting, "steps": 100}})
    findings = Findings([long, *short], made_records.rows_of)
    assert budgets([long, *short], findings, "pgd", "linf")[8.0].hits == 30


def test_pairs_are_tested_and_bold_only_where_the_interval_excludes_zero(tmp_path):
    clearly, hardly = record(correct=80), record("san10_patchwise", correct=52)
    store = store_with(tmp_path, clearly, hardly, record("resnet26", correct=50))
    write_report(store, "md,tex,html")
    rows = {row[0]: row for row in rows_of((tmp_path / "report.md").read_text(), "Upright")[2:]}
    assert set(rows) == {"san10_pairwise", "san10_patchwise"}
    assert rows["san10_pairwise"][4].startswith("**+30.0 [")
    assert rows["san10_patchwise"][4].startswith("+2.0 [-")
    assert rows["san10_pairwise"][5] == "30 / 0"
    assert float(rows["san10_pairwise"][6]) == pytest.approx(2 * 0.5**30, rel=0.1)
    assert float(rows["san10_pairwise"][7]) == pytest.approx(4 * 0.5**30, rel=0.1)  # of two tests
    assert float(rows["san10_patchwise"][7]) == 0.5
    assert "<b>+30.0" in (tmp_path / "report.html").read_text()
    tex = (tmp_path / "report.tex").read_text()
    assert r"\textbf{+30.0" in tex and r"san10\_pairwise" in tex
    assert tex.count(r"\begin{tabular}") == tex.count(r"\end{tabular}") == 3


def test_networks_on_other_images_are_not_compared(tmp_path):
    write_report(store_with(tmp_path, record(), record("resnet26", images=90, correct=50)))
    assert "against ResNet" not in (tmp_path / "report.md").read_text()


def test_flags_are_marked_with_a_footnote(tmp_path):
    masked = attacked("san10_pairwise", "8/255", 40).model_copy(update={"flags": ["dead-gradients", "noisy-logits"]})
    write_report(store_with(tmp_path, masked, attacked("resnet26", "8/255", 10)))
    text = (tmp_path / "report.md").read_text()
    rows = rows_of(text, "Attack: pgd")
    assert "†" not in rows[2][2]
    assert rows[3][2].endswith("†1 †2")
    assert "†1 Gradients were all zero" in text and "†2 Logits differed" in text


def test_guessing_is_marked_and_said_on_the_terminal(tmp_path, capsys):
    guessed = record(correct=11).model_copy(update={"flags": ["near-chance"]})
    write_report(store_with(tmp_path, guessed))
    text = (tmp_path / "report.md").read_text()
    assert "11.0 [6.3, 18.6] †1" in text and "†1 Accuracy does not differ from guessing" in text
    records = [guessed, record(correct=80, model="resnet26")]
    print_records(records, Findings(records, made_records.rows_of))
    assert "san10_pairwise upright: Accuracy does not differ from guessing" in capsys.readouterr().out


def test_what_fell_within_a_smaller_budget_has_fallen_within_a_larger(tmp_path):
    small, large = attacked("san10_pairwise", "2/255", 20), attacked("san10_pairwise", "8/255", 30)
    write_report(store_with(tmp_path, small, large))
    row = rows_of((tmp_path / "report.md").read_text(), "Attack: pgd")[2]
    assert row[2] == cell(wilson(20, 100)) and row[4] == f"{row[2]} †1"  # and that nothing more fell is a flag


def test_mean_corruption_error_is_relative_to_the_resnet(tmp_path):
    records = [record(), record("resnet26")]
    for model, errors in (("resnet26", (20, 40)), ("san10_pairwise", (10, 30))):
        for kind in ("fog", "jpeg"):
            for severity, error in zip((1, 2), errors):
                setting = {"corruption": kind, "severity": severity, "definition": "as in the original benchmark"}
                records.append(record(model, "corruption", correct=100 - error, setting=setting))
    write_report(store_with(tmp_path, *records))
    rows = rows_of((tmp_path / "report.md").read_text(), "Corrupted images")
    assert [row[1] for row in rows[2:]] == ["100.0", f"{100 * 40 / 60:.1f}"]
    assert "Defined otherwise" not in (tmp_path / "report.md").read_text()


def test_accuracy_by_class(tmp_path):
    write_report(store_with(tmp_path, record(classes=["a", "b"])))
    assert rows_of((tmp_path / "report.md").read_text(), "Accuracy by class")[2][2:] == ["80.0 (100)", "—", "100 of 2,000"]


def test_pairs_count_the_same_worst_case_as_the_tables(tmp_path):
    """What fell within 2/255 has fallen within 8/255, in the pairs too."""
    small, large = attacked("san10_pairwise", "2/255", 20), attacked("san10_pairwise", "8/255", 30)
    resnet = [attacked("resnet26", eps, 10) for eps in ("2/255", "8/255")]
    write_report(store_with(tmp_path, small, large, *resnet))
    pairs = rows_of((tmp_path / "report.md").read_text(), "Under attack")[2:]
    assert [row[5] for row in pairs] == ["10 / 0", "10 / 0"]


def test_many_angles_stand_in_rows(tmp_path):
    turned = [record("resnet26", "rotation", correct=30, setting={"angle": angle}) for angle in range(15, 151, 15)]
    write_report(store_with(tmp_path, record("resnet26"), *turned), "md")
    rows = rows_of((tmp_path / "report.md").read_text(), "Rotated")
    assert rows[0] == ["turned", "resnet26, n 100 of 2,000, aaaaaaaa"]
    assert [row[0] for row in rows[2:5]] == ["upright", "15°", "30°"] and len(rows) == 2 + 1 + 10 + 1
    assert rows[3][1] == f"{cell(wilson(30, 100))} (-50.0)"


def test_of_many_classes_the_best_and_the_worst_are_named(tmp_path):
    classes = [f"thing {n}" for n in range(30)]
    each = record(images=120, correct=90, classes=classes)
    rows = pd.DataFrame({"index": range(120), "label": [n // 5 for n in range(120)]})  # 24 classes have images
    rows["prediction"] = np.where(rows["index"] % 5 < rows["label"] % 6, rows["label"], 29)
    store = Store(tmp_path)
    counts = each.counts | {"correct": int((rows["prediction"] == rows["label"]).sum())}
    store.add([(each.model_copy(update={"rows": digest(rows), "counts": counts}), rows)])
    write_report(store)
    row = rows_of((tmp_path / "report.md").read_text(), "Accuracy by class")[2]
    assert row[2].split("; ") == [
        f"thing {n} {n}: {100 * hits / 5:.1f} (5)" for n, hits in ((0, 0), (6, 0), (12, 0), (18, 0), (1, 1))
    ]
    assert row[3].split("; ")[0] == "thing 23 23: 100.0 (5)"
    assert row[4] == "120 of 2,000"


EXPERIMENTS = {
    "Accuracy, upright": record(),
    "Rotated images, zero-shot": record(kind="rotation", setting={"angle": 90}),
    "Attack: pgd": attacked("san10_pairwise", "8/255", 10),
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
    table = rows_of((tmp_path / "report.md").read_text(), title)
    assert all("100 of 2,000" in row for row in table[2:])


def test_decoders_and_shrunk_images_have_sections_of_their_own(tmp_path):
    one = record()
    kinds = [
        {"decoder": "PIL 12"},
        {"decoder": "simplejpeg 1.9"},
        {"decoder": "PIL 12", "fingerprint": "shrunk-256-abcdef0123"},
    ]
    kinds[1]["preprocessing"] = kinds[0]["preprocessing"] = "shorter side 256, centre crop 224"
    write_report(store_with(tmp_path, *(one.model_copy(update={"data": image_set(**kind)}) for kind in kinds)))
    text = (tmp_path / "report.md").read_text()
    assert text.count("### Accuracy, upright") == 3
    assert "## fashion10k, shrunk-256: test" in text
    assert "decoder simplejpeg 1.9, shorter side 256, centre crop 224." in text


def test_a_san_is_compared_with_the_resnet_of_its_width_alone(tmp_path):
    """What is paired with what stands in the table."""
    narrow = {"width": 0.375}
    store = store_with(tmp_path, record(variation=narrow), record("resnet26", correct=50))
    write_report(store)
    assert "against ResNet" not in (tmp_path / "report.md").read_text()
    store_with(tmp_path, record("resnet26", correct=60, variation=narrow, weights="c" * 64))
    write_report(store)
    (row,) = rows_of((tmp_path / "report.md").read_text(), "Upright")[2:]
    assert row[:2] == ["san10_pairwise width=0.375", "resnet26 width=0.375"] and row[5] == "20 / 0"
