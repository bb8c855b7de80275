"""What a study would take, and the statistics of its differences."""

import numpy as np
import pytest
import torch

from sanbench.device import describe
from sanbench.evaluation.statistics import difference_over_seeds, paired_difference
from sanbench.store.files import Store
from sanbench.store.schema import Benchmark
from sanbench.studies.cost import estimate, totals
from sanbench.studies.expand import Choice, expand
from sanbench.studies.status import look
from sanbench.studies.study import read
from tests.support.commands import sanbench
from tests.support.small_study import RUNS, write

CPU = torch.device("cpu")
SAN = {"model": "san10_pairwise", "footprint": 3, "width": 0.25}


def benchmarks(store: Store, config, device: str) -> None:
    """Of the small study's SAN: 4 images a second in training, seconds an image in measuring."""
    told = {"device": device, "versions": {}, "seconds": {"one": 1.0}}
    setting = config.model_dump(mode="json", include={"data", "image_size", "decoder", "precision", "compile"})
    speed = {"images_per_second san10_pairwise footprint=3 width=0.25": 4.0}
    recipe = config.recipe.model_dump(mode="json")
    store.write_benchmark(Benchmark(kind="train", setting={**setting, "recipe": recipe}, figures=speed, **told))
    figures = {"upright": 0.5, "quarter turn": 0.75, "any angle": 1.0, "corrupting": 0.1, "pgd 1/255": 30.0, "pgd 8/255": 3.0}
    store.write_benchmark(Benchmark(kind="protocol", setting={"network": SAN, "image_size": 32}, figures=figures, **told))


@pytest.mark.parametrize("own", [True, False])
def test_device_hours_come_from_benchmarks_of_this_device(folder, tmp_path, own):
    expansion = expand(read(str(write(tmp_path, folder))))
    store = Store(tmp_path / "results")
    san = next(t for t in expansion.trainings if t.name == "small-san10-s0")
    benchmarks(store, san.config, describe(CPU) if own else "another")
    standing = look(expansion, store, tmp_path / "runs")
    found = estimate(standing, store, CPU)
    assert list(found) == RUNS
    seconds = {line.what: line.seconds for line in found["small-san10-s0"]}
    expected = {  # 48 images to train on for an epoch, 18 to measure, 6 of them attacked for 2 of 10 steps
        "train": 48 / 4,
        "accuracy, 1 condition, 18 images": 18 * 0.5,
        "rotation, 1 condition, 18 images": 18 * 0.75,
        "attack, 1 condition, 6 images": 6 * 30.0 * 2 / 10,
    }
    assert seconds == (expected if own else dict.fromkeys(expected))
    assert [line.seconds for line in found["small-resnet26-s0"]] == [None] * 3
    assert all(line.memory and line.disk for own in found.values() for line in own if line.what == "train")
    upright, attacked = (totals(found, standing, table) for table in expansion.tables)
    assert attacked == ((2 * sum(expected.values()), 0) if own else (0, 2 * 4))
    assert upright == ((attacked[0], 2 * 3) if own else (0, 2 * 4 + 2 * 3))


def test_a_dry_run_changes_nothing_and_says_what_is_unknown(folder, tmp_path):
    path = write(tmp_path, folder)
    options = ["--runs", tmp_path / "runs", "--results", tmp_path / "results"]
    outcome = sanbench("study", "run", path, "--dry-run", *options, columns=150)
    assert outcome.exit_code == 0, outcome.output
    assert [run for run in RUNS if run not in outcome.output] == []
    assert outcome.output.count("unknown") == 2 * 3 + 2 * 4 + 3  # runs, two tables, all
    assert sorted(path.name for path in tmp_path.iterdir()) == ["small.toml"]


def test_imagenet_is_planned_without_its_images(tmp_path):
    expansion = expand(read("paper"), Choice(networks=["san10_pairwise"]))
    lines = estimate(look(expansion, Store(tmp_path), tmp_path), Store(tmp_path), CPU)["paper-san10_pairwise"]
    train, upright, turned, attacked = lines
    assert train.disk == 4 * 10_531_848 * (2 + 1 + 1)  # best, last, and state with momentum
    assert "50,000 images" in upright.what and "4 conditions, 50,000" in turned.what and "3 conditions, 1,000" in attacked.what


def right(*values: int) -> np.ndarray:
    return np.array(values, dtype=bool)


def test_of_one_seed_it_is_the_paired_difference():
    pair = right(1, 1, 0, 1, 0, 1), right(1, 0, 0, 1, 1, 0)
    one, paired = difference_over_seeds([pair]), paired_difference(*pair)
    assert one == (paired.value, paired.low, paired.high, paired.p, 1)


def test_seeds_that_differ_widen_the_interval():
    """+1 on each image with one seed and -1 with the other, against 0 on each: the means are alike, their certainty is not."""
    ones, zeros = right(*[1] * 50), right(*[0] * 50)
    apart = difference_over_seeds([(ones, zeros), (zeros, ones)])
    together = difference_over_seeds([(ones, ones), (ones, ones)])
    assert (apart.value, together.value) == (0, 0)
    assert together == (0, 0, 0, 1, 2)
    # t of 1 degree of freedom, 12.706, by the standard error of the means +1 and -1: sqrt(2 / 2) = 1
    assert apart.high == -apart.low == pytest.approx(12.706, abs=0.001)
    assert not apart.excludes_zero and apart.p == 1


def test_the_interval_covers_the_difference_as_often_as_it_says():
    """Seeds, images and the rest vary; 95% of intervals hold the true difference, of 400 studies at least 92.5%."""
    rng, truth, held = np.random.default_rng(0), 0.08, 0
    for _ in range(400):
        hard = rng.normal(0, 0.15, (1, 120))
        ours, theirs = (np.clip(0.6 + shift + hard + rng.normal(0, 0.04, (3, 1)), 0, 1) for shift in (truth, 0.0))
        draws = [(rng.random((3, 120)) < share) for share in (ours, theirs)]
        found = difference_over_seeds(list(zip(*draws, strict=True)))
        held += found.low <= truth <= found.high
    assert held >= 370
