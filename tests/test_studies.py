"""Studies: what a file may say, what it expands into, and what running it leaves."""

import shutil
from collections import Counter
from pathlib import Path

import pytest

from sanbench.runs.config import configure
from sanbench.store.files import Store
from sanbench.studies.expand import Choice, canonical, expand
from sanbench.studies.status import look
from sanbench.studies.study import line_of, read, shipped
from sanbench_cli import training as train_command
from tests.support.commands import sanbench
from tests.support.small_study import TEXT, write

ROOT = Path(__file__).parents[1]
TRIO = ["resnet26", "san10_pairwise", "san10_patchwise"]
ALL_SIZES = [
    *TRIO,
    *("resnet38", "san15_pairwise", "san15_patchwise"),
    *("resnet50", "san19_pairwise", "san19_patchwise"),
]
BASE = {"pairwise": ("san10_pairwise", {}), "patchwise": ("san10_patchwise", {})}


def pair(name: str, field: str, value: object) -> dict[str, tuple[str, dict[str, object]]]:
    """`{name}_pairwise` and `{name}_patchwise`, each with one field changed."""
    return {f"{name}_{attention}": (f"san10_{attention}", {field: value}) for attention in BASE}


PAIRWISE, PATCHWISE = {"san10_pairwise": BASE["pairwise"]}, {"san10_patchwise": BASE["patchwise"]}
ABLATIONS: dict[str, dict[str, tuple[str, dict[str, object]]]] = {  # by table its networks and what they change
    "4": {
        "summation": ("san10_pairwise", {"relation": "summation"}),
        **PAIRWISE,
        "concatenation": ("san10_pairwise", {"relation": "concatenation"}),
        "hadamard": ("san10_pairwise", {"relation": "hadamard"}),
        "dot": ("san10_pairwise", {"relation": "dot"}),
        "star": ("san10_patchwise", {"relation": "star"}),
        "clique": ("san10_patchwise", {"relation": "clique"}),
        **PATCHWISE,
    },
    "5": {**pair("gamma1", "gamma_depth", 1), **PAIRWISE, **PATCHWISE, **pair("gamma3", "gamma_depth", 3)},
    "6": {
        **pair("shared_phi_psi_beta", "shared", "phi-psi-beta"),
        **pair("shared_phi_psi", "shared", "phi-psi"),
        **PAIRWISE,
        **PATCHWISE,
    },
    "7": {
        **PAIRWISE,
        **PATCHWISE,
        **{name: entry for side in (3, 5, 9, 11) for name, entry in pair(f"footprint{side}", "footprint", side).items()},
    },
    "8": {
        "no_position": ("san10_pairwise", {"position": "none"}),
        "absolute_position": ("san10_pairwise", {"position": "absolute"}),
        **PAIRWISE,
    },
}
SMALL = {"width": 0.375, "epochs": 5, "warmup_epochs": 0.5, "crops": False, "zero_init": True}
UPRIGHT_AND_TURNED = ["upright", "90°", "180°", "270°", "flip"]
TARGETED = [f"pgd-targeted, L∞ ε = {eps}/255" for eps in (2, 4, 8)]


@pytest.mark.parametrize("key", ["4", "5", "6", "7", "8"])
@pytest.mark.parametrize("name", ["paper", "ablations"])
def test_the_ablations_are_those_of_the_paper(name, key):
    found = expand(read(name), Choice(tables=[key]))
    (table,) = found.tables
    assert set(table.networks) == set(ABLATIONS[key])
    changes = {**SMALL, "lr": 0.004} if name == "ablations" else {}
    for training in found.trainings:
        model, changed = ABLATIONS[key][training.network]
        recipe, data = ("short", "fashion10k") if name == "ablations" else ("paper", "imagenet")
        assert training.config == configure(
            model, data, recipe=recipe, changes={**changes, **changed}, seed=training.config.seed
        )
        assert [(w.about, w.limit) for w in found.wanted[training.name]] == [("upright", None)]
    seeds = [0, 1, 2] if name == "ablations" else [0]
    suffix = "-s{}" if name == "ablations" else ""
    assert sorted(t.name for t in found.trainings) == sorted(
        f"{name}-{network}{suffix.format(seed)}" for network in ABLATIONS[key] for seed in seeds
    )
    references = {rows.reference for rows in table.entry.rows}
    assert references == {"san10_pairwise"} if key == "8" else references == {"san10_pairwise", "san10_patchwise"}


@pytest.mark.parametrize(
    ("key", "conditions"),
    [
        ("1-3", {("upright", None)}),
        ("9", {(words, None) for words in UPRIGHT_AND_TURNED}),
        ("10", {("upright", None), *((words, 1000) for words in TARGETED)}),
    ],
)
def test_the_papers_comparisons_have_all_sizes(key, conditions):
    found = expand(read("paper"), Choice(tables=[key]))
    assert [training.name for training in found.trainings] == [f"paper-{network}" for network in ALL_SIZES]
    for training in found.trainings:
        assert training.config == configure(training.network, "imagenet", recipe="paper")
        assert {(w.about, w.limit) for w in found.wanted[training.name]} == conditions


def of_reproduce(name: str) -> Counter[tuple[str, int | None]]:
    """By kind and limit, how many conditions a network has."""
    (one, *others) = (Counter((w.kind, w.limit) for w in own) for own in expand(read(name)).wanted.values())
    assert all(other == one for other in others)
    return one


def test_quick_all_and_full_are_what_reproduce_ran():
    for name, run in (("quick", "quick"), ("all", "quick"), ("full", "full")):
        found = expand(read(name))
        order = TRIO if run == "full" else TRIO[::-1]  # the longest first
        assert [training.name for training in found.trainings] == [f"{run}-{network}" for network in order]
        for training in found.trainings:
            small = SMALL | {"epochs": 6} | ({"lr": 0.004} if training.network != "resnet26" else {})
            changes = {"epochs": 30} if run == "full" else small
            assert training.config == configure(training.network, "fashion10k", changes=changes)
    assert of_reproduce("quick") == {("accuracy", None): 1, ("rotation", None): 4 + 4, ("attack", 200): 2 * 3}
    sweeps = 5 + 20 + 2 * 24  # quarter turns and words, then steps of 15 degrees, whole and in two frames with their 0
    assert of_reproduce("all") == {
        **{("accuracy", None): 1, ("rotation", None): sweeps, ("corruption", None): 75},
        **{("attack", 200): 3 * 4 + 2 + 1, ("attack", 100): 2 * 2, ("attack", 32): 5},
    }
    assert of_reproduce("full") == {
        **{("accuracy", None): 1, ("rotation", None): sweeps - 1, ("corruption", None): 75, ("attack", None): 7 * 5 + 3 + 2 * 2}
    }


def test_adversarial_networks_stand_beside_plain_ones():
    found = expand(read("adversarial"))
    expected = {}
    for network in ("resnet26", "san10_pairwise"):
        changes = SMALL | ({"lr": 0.004} if network == "san10_pairwise" else {})
        expected[f"adversarial-{network}"] = configure(network, "fashion10k", changes=changes)
        madry = {"adversary": "pgd", "adversary_eps": "8/255", "adversary_steps": 7}
        expected[f"adversarial-{network}_adversarial"] = configure(network, "fashion10k", changes=changes | madry)
    assert {training.name: training.config for training in found.trainings} == expected
    budgets = {(f"pgd, L∞ ε = {eps}/255", None) for eps in (2, 4, 8)} | {("standard, L∞ ε = 8/255", 128)}
    for own in found.wanted.values():
        assert {(w.about, w.limit) for w in own} == {("upright", None)} | budgets


def test_what_was_committed_counts_as_done(tmp_path):
    store = Store(ROOT / "results")
    records = {(r.run, r.kind, canonical(r.setting), r.data.images) for r in store.records()}
    for name in ("quick", "all"):
        found = expand(read(name))
        for run, own in found.wanted.items():
            of_now = [w for w in own if w.kind != "corruption"]  # theirs are of the definitions of before
            assert [w for w in of_now if (run, w.kind, w.setting, w.limit or 2000) not in records] == []
    copy = Store(shutil.copytree(ROOT / "results", tmp_path / "results", ignore=shutil.ignore_patterns("report")))
    standing = look(expand(read("quick")), copy, tmp_path / "runs")
    assert {state.word for state in standing.states.values()} == {"done"}


def test_other_data_have_runs_of_their_own(folder):
    on_imagenet, on_folder = (expand(read("paper"), Choice(["4"], ["dot"], data=data)) for data in (None, f"folder:{folder}"))
    ((one,), (two,)) = on_imagenet.trainings, on_folder.trainings
    assert (one.name, two.name) == ("paper-dot", f"paper-{folder.name}-dot")
    assert (two.config.data, two.config.recipe) == (f"folder:{folder}", one.config.recipe)


@pytest.mark.parametrize("name", shipped())
def test_a_training_is_the_command_that_it_prints(name, monkeypatch, tmp_path):
    """Parsed back by the command line, the words give the same configuration."""
    told = []
    monkeypatch.setattr(train_command, "show_plan", lambda config, processes: told.append(config))
    root = tmp_path if name == "paper" else None
    trainings = expand(read(name), Choice(seeds=[3], data_root=root)).trainings
    for training in trainings:
        outcome = sanbench(*training.words, "--dry-run", "--runs", tmp_path)
        assert outcome.exit_code == 0, outcome.output
    assert told == [training.config for training in trainings]


BAD = [
    ('version = 1\n', "version = 2\n", 1, "version 2 is not accepted"),
    ("version = 1\n", "\n", 1, "the version is missing"),
    ("seeds = [0, 1]", "seeds = [0, 0]", 5, "each seed once"),
    ("seeds = [0, 1]", "seeds = []", 5, "seeds = [] is not accepted"),
    ("seeds = [0, 1]", "seedz = [0, 1]", 5, "Did you mean 'seeds'?"),
    ("data = ", 'recipe = "papr"\ndata = ', 3, "Did you mean 'paper'?"),
    ('data = "folder:{folder}"', 'data = "imagnet"', 3, "Did you mean 'imagenet'?"),
    ('data = "folder:{folder}"', 'data = "imagenet-a"', 3, "test images only"),
    ("[set.san]", "[set.sann]", 7, "Unknown family 'sann'"),
    ("footprint = 3", "footprnt = 3", 9, "Did you mean 'footprint'?"),
    ("footprint = 3", "footprint = 4", 9, "it must be an odd number"),
    ("epochs = 1\nbatch_size = 16\n\n[set.res", 'epochs = "many"\nbatch_size = 16\n\n[set.res', 10, "epochs=many"),
    ("[networks.san10]", '[networks.san10]\nmodel = "san11"', 20, "Did you mean 'san10'?"),
    ("[networks.san10]", "[networks.san10]\nset = {{ footprnt = 3 }}", 20, "Did you mean 'footprint'?"),
    ("[networks.san10]", "[networks.san10]\nfootprint = 3", 20, "Unknown field of a study 'footprint'"),
    ("[networks.san10]", '[networks.san10]\n[networks.same]\nmodel = "san10"', 20, "it is the same as 'san10'"),
    ("[networks.san10]", '[networks."san 10"]\nmodel = "san10"', 19, "letters, digits and _"),
    ("rotate:90\"]", "rotat:90\"]", 22, "Did you mean 'rotate'?"),
    ("rotate:90\"]", "rotate:upward\"]", 22, "angle 'upward'"),
    ("steps = 2 ", "stepz = 2 ", 26, "Did you mean 'steps'?"),
    ("set = {{ steps = 2 }}", "set.step_size = \"1/255\"\nset.stepz = 2", 27, "Did you mean 'steps'?"),
    ("steps = 2 ", 'steps = "few" ', 26, "steps 'few' is not accepted"),
    ("steps = 2 ", 'surrogate = "resnet26" ', 26, "makes transfers"),
    ('networks = ["san10"]\nlimit', 'networks = ["san20"]\nlimit', 27, "Did you mean 'san10'?"),
    ("limit = 6", "limit = 0", 28, "limit = 0 is not accepted"),
    ('"top5"', '"top6"', 32, "Unknown measurement 'top6'"),
    ('"top5"', '"top6"', 32, "A column may also be top1, top5,"),
    ('"top5"', '"rotate:180"', 32, "is not measured for resnet26: it has upright, 90°"),
    ('"top5"', '"rotate:90,180"', 32, "a column one"),
    ('"top5"', '"success rotate:90"', 32, "only an attack has a success"),
    ('reference = "resnet26"', 'reference = "resnet62"', 36, "Did you mean 'resnet26'?"),
    ('rows]]\nnetworks = ["san10"]', 'rows]]\nnetworks = ["resnet26"]', 40, "'pgd:8/255' is not measured for resnet26"),
    ("[networks.resnet26]\n[networks.san10]\n", "", 1, "networks is missing"),
    ("seeds = [0, 1]", 'networks_of = "quick"', 3, "data is not accepted beside networks_of"),
    ("seeds = [0, 1]", 'seeds = [0, 1', None, "no TOML"),
]  # fmt: skip


@pytest.mark.parametrize(("before", "after", "line", "sentence"), BAD, ids=[sentence for *_, sentence in BAD])
def test_what_is_wrong_in_a_file_is_told_with_its_line(before, after, line, sentence, tmp_path, folder):
    assert before in TEXT
    path = write(tmp_path, folder, TEXT.replace(before, after, 1))
    outcome = sanbench("study", "show", path, "--runs", tmp_path, "--results", tmp_path)
    told = " ".join(outcome.output.split())
    assert outcome.exit_code == 2, told
    assert sentence in told and told.count("Error:") == 1
    assert line is None or f"small.toml, line {line}:" in told


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["show", "papr"], "Did you mean 'paper'?"),
        (["show", "none.toml"], "There is no study none.toml"),
        (["run", "paper", "--tables", "11"], "Unknown table of paper '11'"),
        (["run", "paper", "--networks", "hadamrd"], "Did you mean 'hadamard'?"),
        (["run", "paper", "--tables", "8", "--networks", "star"], "they have none of these"),
        (["run", "paper", "--data", "imagnet"], "Error: Unknown data set 'imagnet'. Did you mean 'imagenet'?"),
        (["run", "paper", "--data", "imagenet-a"], "test images only"),
        (["run", "paper", "--seeds", "0,x"], "--seeds 'x' is not accepted"),
        (["run", "paper", "--limit", "0"], "--limit 0 is not accepted"),
        (["run", "paper", "--partition", "gpu"], "it belongs to --cluster slurm"),
        (["run", "paper", "--jobs", "2"], "it belongs to --cluster"),
        (["run", "paper", "--cluster", "slrm"], "Did you mean 'slurm'?"),
        (["run", "paper", "--cluster", "local", "--partition", "gpu"], "it belongs to --cluster slurm"),
        (["run", "paper", "--cluster", "local", "--dry-run"], "--dry-run is not accepted with --cluster"),
        (["work", "paper"], "There is no folder"),
        (["run", "quick", "--data-root", "x"], "fashion10k does not read it"),
    ],
)
def test_options_that_have_no_meaning_are_one_sentence(options, sentence, tmp_path):
    places = ["--runs", tmp_path / "runs", "--results", tmp_path / "results"]
    outcome = sanbench("study", *options, *places)
    assert outcome.exit_code == 2, outcome.output
    assert sentence in " ".join(outcome.output.split())
    assert not (tmp_path / "runs").exists()


def test_lines_are_found_where_toml_puts_keys():
    text = 'a = 1\n[b]\nc.d = 2\n\n[[e]]\nf = [\n  "g",\n  "h",\n]\n[[e]]\n[e.i]\nj = 1\n[[e.k]]\n[[e.k]] # two\nl = 1\n'
    for keys, word, line in [
        (("a",), "", 1),
        (("b", "c", "d"), "", 3),
        (("b", "c"), "", 3),
        (("e", 0, "f"), "h", 8),
        (("e", 0, "f", 1), "", 6),
        (("e", 1, "i", "j"), "", 12),
        (("e", 1, "k", 1, "l"), "", 15),
        (("none",), "", 1),
    ]:
        assert line_of(text, keys, word) == line, keys
