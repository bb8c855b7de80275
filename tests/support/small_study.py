"""A study that takes seconds: a narrow SAN and a narrow ResNet, two seeds, on the class folders of `conftest.folder`."""

from pathlib import Path

TEXT = """version = 1
title = "A small study"
data = "folder:{folder}"
image_size = 32
seeds = [0, 1]

[set.san]
width = 0.25
footprint = 3
epochs = 1
batch_size = 16

[set.resnet]
width = 0.25
epochs = 1
batch_size = 16

[networks.resnet26]
[networks.san10]

[[measure]]
what = ["accuracy", "rotate:90"]

[[measure]]
what = ["pgd:8/255"]
set = {{ steps = 2 }}
networks = ["san10"]
limit = 6

[tables.1]
title = "Upright and turned"
columns = ["top1", "top5", "drop rotate:90", "parameters", "gmacs"]

[[tables.1.rows]]
networks = {{ resnet26 = "ResNet", san10 = "SAN" }}
reference = "resnet26"

[tables.2]
title = "Under attack"
columns = ["pgd:8/255", "success pgd:8/255"]

[[tables.2.rows]]
networks = ["san10"]
"""
RUNS = ["small-resnet26-s0", "small-resnet26-s1", "small-san10-s0", "small-san10-s1"]
MEASURED = {  # by run: kind, setting beside what all share, and images
    name: [("accuracy", {}, 18), ("rotation", {"angle": 90}, 18)] + [("attack", {"steps": 2}, 6)] * ("san10" in name)
    for name in RUNS
}


def write(folder: Path, data: Path, text: str = TEXT) -> Path:
    """FOLDER/small.toml, of images in `data`."""
    path = folder / "small.toml"
    path.write_text(text.format(folder=data))
    return path


def places(root: Path) -> list[object]:
    return ["--runs", root / "runs", "--results", root / "results"]
