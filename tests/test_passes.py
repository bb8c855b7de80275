"""Attacks that may spend so many passes on an image: exactly so many, and more are never weaker."""

from dataclasses import replace

import pytest
import torch

import sanbench as library
from sanbench.evaluation.attacks.table import ATTACKS, parse_attacks
from sanbench.evaluation.kinds import AttackOptions
from sanbench.report import write_report
from sanbench.store.files import Store
from tests.support.commands import sanbench
from tests.support.quick_measurements import run
from tests.support.report_pages import page, table

RESTARTED = [name for name, entry in ATTACKS.items() if "restarts" in entry.shown]


def limited(name, passes, budget="3/255", **changes):
    """With few steps, so that several restarts are needed."""
    steps = 5 if "steps" in ATTACKS[name].shown else None
    targets = 2 if ATTACKS[name].targets else None
    ((_, settings),) = parse_attacks(name, "1/2" if name == "pgd-l2" else budget, steps, targets=targets, max_passes=passes)
    return replace(settings, **changes)


@pytest.mark.parametrize("name", RESTARTED)
@pytest.mark.parametrize("passes", [1, 2, 24, 61])
def test_a_standing_image_costs_exactly_so_many_passes_and_none_more(name, passes, network, batch):
    """Beside them are its looks: clean, as it is, in 8 bits, and of a control a second one."""
    attack, _, rows = run(name, network, batch, limited(name, passes))
    assert attack.setting["max_passes"] == passes
    right = rows["clean_prediction"] == rows["label"]
    stands = right & ~rows["success"]
    assert stands.sum() > 5
    assert (rows["attack_passes"] <= passes).all() and (rows["attack_passes"][~right] == 0).all()
    if name != "pgd-targeted":
        assert (rows["attack_passes"][rows["success"]] > 0).all()
    assert (rows["attack_passes"][stands] == passes).all()
    looks = 3 + (rows["index"] % 4 == 0)
    assert (rows["forward_passes"] + rows["backward_passes"] - looks == rows["attack_passes"]).all()


@pytest.mark.parametrize("name", ATTACKS)
def test_more_passes_are_never_weaker(name, network, batch, quick):
    found = [run(name, network, batch, limited(name, passes, "24/255"))[2]["success"] for passes in (2, 15, 60, 150)]
    for fewer, more in zip(found, found[1:], strict=False):
        assert (more >= fewer).all()
    assert found[-1].sum() > found[0].sum() or name == "fgsm"


@pytest.mark.parametrize("name", ["pgd", "apgd-targeted", "square", "standard"])
def test_passes_and_rows_do_not_depend_on_the_batch(name, network, batch, quick):
    settings = limited(name, 33)
    whole = run(name, network, batch, settings)[2]
    small = run(name, network, batch, settings, batch_size=3)[2]
    half = run(name, network, tuple(x[:11] for x in batch), settings)[2]
    for other in (small, half):
        same = whole.iloc[: len(other)]
        assert (other["attack_passes"] != same["attack_passes"]).sum() <= 1
        assert (other["prediction_8bit"] != same["prediction_8bit"]).sum() <= 1


def test_averaged_passes_are_spent_in_whole_queries(network, batch):
    rows = run("pgd", network, batch, limited("pgd", 16, eot=3))[2]
    stands = rows["prediction"] == rows["label"]
    assert (rows["attack_passes"][stands] == 15).all()  # twice 3 forward and 3 backward, then 3 forward


def test_the_report_shows_robust_accuracy_over_passes(network, batch, tmp_path):
    wanted = [AttackOptions(attack="pgd,square", eps="8/255", max_passes=limit, steps=8) for limit in (32, 64)]
    found = library.evaluate(network, batch[:2], *wanted, store=tmp_path, name="small")
    assert len({record.key for record in found.records}) == 4
    write_report(Store(tmp_path), "md")
    rows = table(page(tmp_path, "attacks"), "Robust accuracy over passes")
    assert len(rows) == 4 * 6
    for name in ("pgd", "square"):
        own = [row for row in rows if row["attack"].startswith(f"{name} ") and "max passes 64" in row["attack"]]
        assert [row["passes"] for row in own] == ["2", "4", "8", "16", "32", "64"]
        hits = [float(row["small mean=0.0,0.0,0.0 std=1.0,1.0,1.0"].split()[0]) for row in own]
        assert hits == sorted(hits, reverse=True)
    one, two = (
        next(r for r in found.records if r.setting["attack"] == "pgd" and r.setting["max_passes"] == n) for n in (32, 64)
    )
    assert found.findings.within_passes(two, 32).hits == one.counts["correct"]  # a beginning of the longer attack
    assert found.findings.within_passes(two, 64).hits == two.counts["correct"]
    assert torch.equal(torch.tensor(found.findings.rows(one)["attack_passes"] <= 32), torch.ones(25, dtype=torch.bool))


@pytest.mark.parametrize("words", ["--smallest", "--search", "--surrogate other"])
def test_what_does_not_go_with_it_is_refused(words, tmp_path):
    done = sanbench("attack", "--max-passes", 9, *words.split(), "--results", tmp_path, columns=200)
    assert done.exit_code == 2 and "max-passes 9 is not accepted with smallest, search or surrogate" in done.output
