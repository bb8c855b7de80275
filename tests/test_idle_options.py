"""Each option of each command, where it has no effect, is refused; the others have an effect always."""

import pytest

from sanbench_cli.applicable import RULES
from tests.support.commands import sanbench
from tests.test_wrong_options import FILE, commands

ALWAYS = {  # their value decides which files are read or written, what is computed, or with which resources
    *("model", "models", "networks", "pairs", "name", "attention", "data", "recipe", "epochs", "batch_size", "lr", "select"),
    *("settings", "workers", "nproc", "accumulate", "precision", "compile", "deterministic", "save_minutes", "tensorboard"),
    *("device", "resume", "dry_run", "results", "checkpoint", "output", "form", "formats", "force", "limit"),
    *("angles", "crop", "mask", "attack", "smallest", "search", "eot", "max_passes", "save_images", "surrogate", "kinds"),
    *("severity", "everything", "full", "train", "compiled", "footprint", "dtype", "n", "photographs", "decoders", "images"),
    *("kernels", "stages", "capability", "against", "decode", "archives", "size", "rotate", "folder", "network", "top1"),
    *("first", "second"),  # of compare
    *("method", "degrees"),  # of spatial
    *("tables", "seeds", "cluster", "train_only"),  # of study
}
WEIGHTS = "torchvision:resnet18 --weights a_file"
IDLE = {  # by option: commands in which a value does nothing
    "image_size": ["train san10 --image-size 64", "export san10 --output new --image-size 64"],
    "decoder": [
        "train san10 --decoder pil",
        "accuracy san10 --data fashion10k --decoder pil",
        "show san10 --data fashion10k --decoder pil",
    ],
    "skip_bad_images": ["train san10 --skip-bad-images"],
    "data_root": [
        "train san10 --data-root .",
        "accuracy san10 --data folder:. --data-root .",
        "bench train --data-root .",
        "study run quick --data-root .",
    ],
    "download": ["train san10 --download"],
    "partition": ["study run quick --partition gpu", "study run quick --cluster local --partition gpu"],
    "gpus_per_node": ["study run quick --gpus-per-node 8"],
    "jobs": ["study run quick --jobs 2"],
    "hours": ["study run quick --hours 12"],
    "run": ["train --resume san10 --run x"],
    "profile": ["train san10 --dry-run --profile 3"],
    "journal": ["data check imagenet --data-root . --journal x"],
    "draws": ["spatial san10 --method grid,smallest --draws 3"],
    "grid": ["spatial san10 --grid 5x5x31"],
    "step": ["spatial san10 --step 5"],
    "pixels": ["spatial san10 --method smallest --pixels 2"],
    "seed": [
        "accuracy san10 --seed 3",
        "rotate san10 --seed 3",
        "spatial san10 --method grid --seed 3",
        "corrupt san10 --data imagenet-c --seed 3",
    ],
    "interpolation": ["rotate san10 --angles 90,flip,0:360:90 --interpolation nearest"],
    "fill": ["rotate san10 --angles 90 --fill white", "rotate san10 --angles 45 --crop inscribed --fill white"],
    "order": ["rotate san10 --data fashion10k --order rotate-first"],
    "width": ["bench evaluate --attack standard --width 1"],
    "runs": ["bench evaluate --runs ."],
    "norm": ["attack san10 --attack pgd --norm l2", "bench evaluate --norm l2"],
    "steps": ["attack san10 --attack fgsm --steps 3"],
    "step_size": ["attack san10 --attack apgd --step-size 1/255", "attack san10 --attack pgd --step-size 0"],
    "eps": ["attack san10 --search --eps 8/255", "bench evaluate --eps 1/255"],
    "bisections": ["attack san10 --bisections 4", "attack san10 --attack fab --smallest --bisections 4"],
    "restarts": ["attack san10 --attack standard --restarts 2"],
    "target": ["attack san10 --attack pgd --target next"],
    "targets": ["attack san10 --attack pgd --targets 3"],
    "surrogate_weights": ["attack san10 --surrogate-weights x", "attack san10 --surrogate san10 --surrogate-weights x"],
    "weights": ["accuracy san10 --weights a_file", "show san10 --weights a_file"],
    "stage": ["show resnet26 --stage 2"],
    "pixel": ["show resnet26 --pixel 3,4"],
    "channels": ["show resnet26 --channels"],
    "mean": ["accuracy san10 --mean 1,1,1"],
    "std": ["accuracy san10 --std 1,1,1"],
    "resize": ["accuracy san10 --resize 64"],
    "network_crop": ["accuracy san10 --network-crop 64", "rotate san10 --network-crop 64"],
    "network_interpolation": ["accuracy san10 --interpolation nearest", "rotate san10 --network-interpolation nearest"],
    "classes": ["import a_file --export --output new --classes 10"],
    "export": ["import a_file --export --output new --model san10"],
}
NAMED = {"network_crop": "crop", "export": "export", "network_interpolation": "interpolation"}


def test_every_option_is_on_one_of_the_lists():
    every = {parameter.name for _, command in commands() for parameter in command.params}
    assert every == ALWAYS | set(IDLE)
    assert not ALWAYS & set(IDLE)
    assert {rule.option for rule in RULES} <= set(IDLE)


@pytest.mark.parametrize(("option", "typed"), [(option, typed) for option, lines in IDLE.items() for typed in lines])
def test_an_option_without_an_effect_is_refused(option, typed, runs, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / FILE).write_text("no checkpoint")
    command = typed.split()[0]
    where = ["--runs", runs] if command not in ("data", "import", "bench") else []
    where += ["--results", "new"] if command in ("accuracy", "rotate", "attack", "bench", "study") else []
    outcome = sanbench(*typed.split(), *where)
    assert outcome.exit_code == 2, outcome.output
    assert NAMED.get(option, option.replace("_", "-")) in outcome.stderr
    assert outcome.stderr.count("\n") == 1
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and path.name not in (FILE, ".gitignore")]
