"""Every command's help at 80 columns: whole names, a text and a default for each option, and what tables list."""

import pytest

from sanbench.evaluation.corruptions import CORRUPTIONS
from sanbench.models.families import FAMILIES
from sanbench.runs.config import Recipe
from sanbench_cli.help import GROUPS, fields, keys
from tests.support.commands import sanbench
from tests.test_wrong_options import commands

EVERY = [(words, command) for words, command in commands()]


def shown(words, columns=80):
    outcome = sanbench(*words.split(), "--help", columns=columns)
    assert outcome.exit_code == 0, outcome.output
    return outcome.stdout


@pytest.mark.parametrize(("words", "command"), EVERY, ids=[words for words, _ in EVERY])
@pytest.mark.parametrize("columns", [60, 80, 200])
def test_no_name_is_cut_and_every_option_has_a_text_and_a_default(words, command, columns):
    text = shown(words, columns)
    assert max(map(len, text.splitlines())) <= columns
    heads = [line.strip() for line in text.splitlines() if line.startswith("  -") or line.startswith("  [A-Z]")]
    for parameter in command.params:
        for name in parameter.opts if parameter.param_type_name == "option" else []:
            own = [head for head in heads if f"{name} " in f"{head} ".replace(",", " ")]
            assert own, f"{name} is not whole"
        assert parameter.help, f"{parameter.name} has no text"
        if not parameter.required and parameter.name != "help":
            about = " ".join(text.split()).split(parameter.help.split()[0], 1)[1]
            assert "efault" in about
    assert "…" not in text


@pytest.mark.parametrize("columns", [60, 80, 200])
@pytest.mark.parametrize("group", ["", *dict.fromkeys(words.rpartition(" ")[0] for words, _ in EVERY if " " in words)])
def test_a_group_lists_its_commands_and_no_types(group, columns):
    text = shown(group, columns)
    assert max(map(len, text.splitlines())) <= columns
    assert "<" not in text and "bool" not in text and "…" not in text
    below = text[text.index("\nCommands\n") :].splitlines()
    members = {words.split(" ")[-1]: command for words, command in EVERY if words.rpartition(" ")[0] == group}
    assert len(members) > 0
    for name, command in members.items():
        (line,) = [line for line in below if line.startswith(f"  {name} ")]
        assert line.split()[1] == command.help.split()[0]


def test_shared_options_stand_in_groups_with_an_example():
    text = shown("attack")
    order = [text.index(f"\n{group}\n") for group in ("Example", "Network", "Measurement", "Data", "Machine", "Output")]
    assert order == sorted(order)
    assert "\n  sanbench attack --eps 2/255,8/255 --limit 500\n" in text
    every = {parameter.name for _, command in EVERY for parameter in command.params}
    assert {option for options in GROUPS.values() for option in options} <= every


def test_lists_are_those_of_the_tables():
    assert keys("sanbench.evaluation.corruptions", "CORRUPTIONS") == list(CORRUPTIONS)
    assert fields("sanbench.runs.config", "Recipe") == list(Recipe.model_fields)
    corrupt, train = (" ".join(shown(words).split()) for words in ("corrupt", "train"))
    assert ", ".join(CORRUPTIONS) in corrupt
    assert ", ".join(Recipe.model_fields) in train
    for family in FAMILIES.values():
        assert ", ".join(family.config.model_fields) in train
