"""Records with plausible values, as measurements would leave them."""

from fractions import Fraction

import numpy as np
import pandas as pd

from sanbench.runs.config import RECIPES
from sanbench.store.files import Store
from sanbench.store.rows import digest
from sanbench.store.schema import ImageSet, Network, Record


def network(name="san10_pairwise", weights="a" * 64, **variation):
    return Network(name=name, num_classes=10, weights=weights, variation=variation)


def image_set(images=100, **changes):
    values = {"name": "fashion10k", "split": "test", "fingerprint": "f", "decoder": "none", "images": images, "of": 2000}
    return ImageSet(**(values | {"subset_seed": None if images == 2000 else 0} | changes))


def record(model="san10_pairwise", kind="accuracy", correct=80, images=100, weights="a" * 64, variation=None, **changes):
    """A record with plausible values; its rows are those of `rows_of`."""
    values = {
        "network": network(model, weights, **(variation or {})),
        "data": image_set(images),
        "kind": kind,
        "setting": {},
        "run": f"run-{model}",
        "counts": {"images": images, "correct": correct, "correct_top5": images},
        "training": {"seed": 7, "epoch": 3, "train_images": 7000, "train_seconds": 60.0, "recipe": recipe()},
        "selection": "best epoch on validation images",
        "rows": "",
        "versions": {"torch": "2"},
        "device": "cpu",
        "seconds": 1.0,
        "created": "2026-01-01T00:00:00+00:00",
    }
    made = Record(**(values | changes))
    return made.model_copy(update={"rows": digest(rows_of(made))})


def recipe():
    return RECIPES["short"].model_dump()


def attacked(model, eps, correct, name="pgd", **changes):
    """Under an attack with ten steps; 80 of 100 images were right before it."""
    setting = {"attack": name, "norm": "linf", "eps": eps, "step_size": str(Fraction(eps) / 4), "steps": 10}
    setting |= {"restarts": 1, "start": "uniform in the ball", "target": "none" if name == "pgd" else "other", "seed": 0}
    setting |= {"attacked": "images right before"}
    counts = {"images": 100, "correct": correct, "correct_top5": 90, "right_before": 80, "success": 80 - correct}
    counts |= {} if name == "pgd" else {"hit_target": 3}
    return record(model, "attack", **({"counts": counts, "setting": setting, "extremes": {"linf": 0.03}} | changes))


def rows_of(record):
    """The first images are right, as many as the record counts."""
    images = record.counts["images"]
    right = np.arange(images) < record.counts["correct"]
    return pd.DataFrame({"index": np.arange(images), "label": 0, "prediction": np.where(right, 0, 1)})


def store_with(folder, *records):
    store = Store(folder)
    store.add([(each, rows_of(each)) for each in records])
    return store
