"""Records with plausible values, as measurements would leave them."""

import numpy as np
import pandas as pd

from sanbench.runs.config import RECIPES
from sanbench.store.files import Record, Store


def record(model="san10_pairwise", experiment="accuracy", correct=80, images=100, weights="a" * 64, **changes):
    """A record with plausible values."""
    values = {
        "model": model,
        "weights": weights,
        "data": {"name": "fashion10k", "split": "test", "fingerprint": "f", "decoder": "none", "images": images, "of": 2000}
        | {"subset_seed": None if images == 2000 else 0},
        "experiment": experiment,
        "setting": {},
        "run": f"run-{model}",
        "counts": {"images": images, "correct": correct, "correct_top5": images},
        "extremes": {},
        "training": {"seed": 7, "epoch": 3, "train_images": 7000, "train_seconds": 60.0, "recipe": recipe()},
        "selection": "best epoch on validation images",
        "versions": {"torch": "2"},
        "device": "cpu",
        "seconds": 1.0,
        "created": "2026-01-01T00:00:00+00:00",
    }
    return Record(**(values | changes))


def recipe():
    return RECIPES["short"].model_dump()


def attacked(model, eps, correct, name="pgd"):
    setting = {"attack": name, "norm": "linf", "eps": eps, "step_size": f"{int(eps.split('/')[0]) / 4}/255", "steps": 10}
    setting |= {"restarts": 1, "start": "uniform in the ball", "target": "none" if name == "pgd" else "other", "seed": 0}
    setting |= {"attacked": "images right before"}
    counts = {"images": 100, "correct": correct, "correct_top5": 90, "right_before": 80, "success": 80 - correct}
    counts |= {} if name == "pgd" else {"hit_target": 3}
    return record(model, "attack", counts=counts, setting=setting, extremes={"linf": 0.03})


def store_with(tmp_path, *records):
    store = Store(tmp_path)
    for each in records:
        images = each.counts["images"]
        right = np.arange(images) < each.counts["correct"]
        store.write(each, pd.DataFrame({"index": np.arange(images), "label": 0, "prediction": np.where(right, 0, 1)}))
    return store
