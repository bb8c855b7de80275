"""A store as a large study leaves it: 40 networks on 1,000 classes, each under a hundred conditions."""

from pathlib import Path

import numpy as np
import pandas as pd

from sanbench.store.files import Store
from sanbench.store.rows import digest
from tests.support.made_records import attacked, image_set, record

IMAGES = 500
DEPTHS = (("resnet26", "san10"), ("resnet38", "san15"), ("resnet50", "san19"))
NETWORKS = [name for resnet, san in DEPTHS for name in (resnet, f"{san}_pairwise", f"{san}_patchwise")]
CORRUPTIONS = [f"corruption-{n}" for n in range(15)]
ORIGINAL = "as in the original benchmark"
SWEEP = {"interpolation": "bilinear", "fill": "black", "crop": "none", "mask": "none"}


def conditions():
    """What `record` takes of each: its kind and setting, or the attack's own fields."""
    yield {"kind": "accuracy", "setting": {}, "classes": [f"class {n}" for n in range(1000)]}
    yield from ({"kind": "rotation", "setting": {"angle": angle}} for angle in (90, 180, 270, "flip"))
    yield from ({"kind": "rotation", "setting": {"angle": angle, **SWEEP}} for angle in range(15, 346, 15) if angle % 90)
    for name in ("pgd", "pgd-targeted", "standard"):
        for eps in ("1/255", "2/255", "4/255", "8/255"):
            yield {"kind": "attack", "setting": attacked("san10_pairwise", eps, 0, name).setting}
    for name in CORRUPTIONS:
        for severity in range(1, 6):
            setting = {
                "corruption": name,
                "severity": severity,
                "strength": severity,
                "definition": "as in the original benchmark",
            }
            yield {"kind": "corruption", "setting": setting}


def large_store(folder: Path, networks: int = 40) -> Store:
    """Each image is right with a probability of its network and condition; the same seeds give the same store."""
    store, draw = Store(folder), np.random.default_rng(0)
    labels = np.arange(IMAGES) % 1000
    for number in range(networks):
        measured = []
        for place, condition in enumerate(conditions()):
            right = draw.random(IMAGES) < (0.8 - 0.005 * place) * (0.8 + 0.005 * number)
            rows = pd.DataFrame(
                {"index": np.arange(IMAGES), "label": labels, "prediction": np.where(right, labels, labels + 1)}
            )
            rows["confidence"] = draw.random(IMAGES)
            counts = {"images": IMAGES, "correct": int(right.sum()), "correct_top5": IMAGES}
            if condition["kind"] == "attack":
                counts |= {"right_before": 450, "success": 450 - counts["correct"]}
            one = record(
                NETWORKS[number % len(NETWORKS)],
                weights=f"{number:064x}",
                run=f"run {number}",
                training=record().training | {"seed": number // len(NETWORKS)},
                data=image_set(IMAGES, name="imagenet", of=50000),
                counts=counts,
                **condition,
            )
            measured.append((one.model_copy(update={"rows": digest(rows)}), rows))
        store.add(measured)
    return store
