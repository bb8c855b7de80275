"""mCE by hand, AlexNet's published errors, and records of two definitions."""

import pytest

from sanbench.evaluation.corruption_error import (
    CLEAN_ALEXNET,
    Errors,
    alexnet,
    by_definition,
    comparable_with_alexnet,
    mean_corruption_error,
    relative_mean_corruption_error,
)
from sanbench.evaluation.corruptions import CORRUPTIONS, SEVERITIES
from sanbench.report import write_report
from tests.support.made_records import image_set, network, record, store_with
from tests.support.report_pages import page, table

OWN = Errors({("fog", 1): 0.3, ("fog", 2): 0.5, ("jpeg", 1): 0.2, ("jpeg", 2): 0.2}, clean=0.1)
BASELINE = Errors({("fog", 1): 0.4, ("fog", 2): 0.6, ("jpeg", 1): 0.3, ("jpeg", 2): 0.5}, clean=0.2)


def test_mce_by_hand():
    assert mean_corruption_error(OWN, BASELINE) == pytest.approx((0.8 / 1.0 + 0.4 / 0.8) / 2)
    assert mean_corruption_error(BASELINE, BASELINE) == 1


def test_relative_mce_by_hand():
    expected = ((0.2 + 0.4) / (0.2 + 0.4) + (0.1 + 0.1) / (0.1 + 0.3)) / 2
    assert relative_mean_corruption_error(OWN, BASELINE) == pytest.approx(expected) == pytest.approx(0.75)


def test_there_is_no_mce_where_conditions_differ_or_the_baseline_loses_nothing():
    fewer = Errors({at: error for at, error in OWN.corrupted.items() if at != ("fog", 2)}, OWN.clean)
    assert mean_corruption_error(fewer, BASELINE) is None and relative_mean_corruption_error(fewer, BASELINE) is None
    assert relative_mean_corruption_error(Errors(OWN.corrupted, None), BASELINE) is None
    assert relative_mean_corruption_error(OWN, Errors(BASELINE.corrupted, 0.4)) is None  # JPEG costs it nothing
    assert mean_corruption_error(OWN, Errors(dict.fromkeys(BASELINE.corrupted, 0.0), 0.0)) is None
    assert mean_corruption_error(Errors({}, 0.1), Errors({}, 0.1)) is None


def test_alexnets_errors_are_the_published_ones():
    """The means over severities stand in code of its author's later papers (google-research/augmix, imagenet.py)."""
    means = (0.886428, 0.894468, 0.922640, 0.819880, 0.826268, 0.785948, 0.798360, 0.866816)
    means += (0.826572, 0.819324, 0.564592, 0.853204, 0.646056, 0.717840, 0.606500)
    errors = alexnet().corrupted
    assert set(errors) == {(name, severity) for name in CORRUPTIONS for severity in SEVERITIES}
    for name, mean in zip(CORRUPTIONS, means):
        assert sum(errors[name, severity] for severity in SEVERITIES) / 5 == pytest.approx(mean, abs=1e-9)
    assert alexnet().clean == pytest.approx(0.435, abs=5e-4)  # the paper's


def test_a_published_corruption_error_comes_out():
    """Of torchvision's first ResNet-50: 39.06% of the images of other contrast are right, a CE of 71.43%."""
    contrast = {at: error for at, error in alexnet().corrupted.items() if at[0] == "contrast"}
    found = mean_corruption_error(Errors(dict.fromkeys(contrast, 1 - 0.3906), None), Errors(contrast, None))
    assert 100 * found == pytest.approx(71.43, abs=0.01)


def photographs(model, kind, correct, **setting):
    made = record(model, kind, correct=correct, images=1000, setting=setting)
    data = image_set(1000, name="imagenet", preprocessing="shorter side 256, centre crop 224")
    return made.model_copy(update={"data": data, "network": network(model).model_copy(update={"num_classes": 1000})})


def test_the_report_names_both_baselines(tmp_path):
    records = [photographs("san10_pairwise", "accuracy", 700), photographs("resnet26", "accuracy", 600)]
    for model, correct in (("san10_pairwise", 400), ("resnet26", 300)):
        for name in CORRUPTIONS:
            for severity in SEVERITIES:
                setting = {"corruption": name, "severity": severity, "definition": "d"}
                records.append(photographs(model, "corruption", correct, **setting))
    assert comparable_with_alexnet(records[0]) and not comparable_with_alexnet(record())
    write_report(store_with(tmp_path, *records), "md")
    lines = {line["corruption"]: line for line in table(page(tmp_path, "corruptions"), "Top-1 by corruption")}
    sums = {name: sum(alexnet().corrupted[name, severity] for severity in SEVERITIES) for name in CORRUPTIONS}
    for model, (correct, clean) in {"san10_pairwise": (0.4, 0.3), "resnet26": (0.3, 0.4)}.items():
        error = 1 - correct
        assert lines["mCE (AlexNet)"][model] == f"{100 * sum(5 * error / total for total in sums.values()) / 15:.1f}"
        relative = sum(5 * (error - clean) / (total - 5 * CLEAN_ALEXNET) for total in sums.values()) / 15
        assert lines["relative mCE (AlexNet)"][model] == f"{100 * relative:.1f}"
        assert lines["mCE (against resnet26)"][model] == f"{100 * error / 0.7:.1f}"
        assert lines["relative mCE (against resnet26)"][model] == f"{100 * (error - clean) / 0.3:.1f}"


def corrupted(name, severity=1, **setting):
    return record(kind="corruption", setting={"corruption": name, "severity": severity, "strength": severity, **setting})


def test_definitions_are_not_mixed(tmp_path):
    old = [corrupted("fog", level, definition="noise", seed=0) for level in (1, 2)] + [
        corrupted("jpeg", definition="J", seed=0)
    ]
    new = [corrupted("fog", level, definition="plasma", seed=0, rounding="down") for level in (1, 2)]
    new.append(corrupted("jpeg", definition="J", seed=0, rounding="down"))
    again = [corrupted("fog", definition="third", seed=0, rounding="down")]
    seeded = [corrupted("fog", definition="plasma", seed=1, rounding="down")]
    assert by_definition([*old, *new, *again, *seeded]) == [old, new, again, seeded]
    write_report(store_with(tmp_path, *old, *new), "md")
    names = [line["corruption"] for line in table(page(tmp_path, "corruptions"), "Top-1 by corruption")]
    assert [name for name in names if name.startswith("mCE")] == [
        "mCE (against resnet26, definitions 1 of 2)",
        "mCE (against resnet26, definitions 2 of 2)",
    ]
    assert len([name for name in names if name.startswith("fog")]) == 2
