"""Every option of every command, with a value of the wrong type, out of range, and without sense: a sentence that names it.

The cases are made from the commands themselves: a new option is tested by being there.
"""

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
import typer

from sanbench.printable import one_line
from sanbench_cli.main import app
from tests.support.commands import sanbench
from tests.support.without_modules import BLOCKED, TORCH, without

NUMBERS = {"int": ("x", "1.5", "-1", str(10**30), "nan"), "float": ("x", "nan", "inf", "-1", "")}
WORDS = ("nonsense", "[/x]", "a\nb", "x" * 300)
FILE, NOWHERE = "a_file", "nowhere"  # in the working directory: one is there, the other is not
NEEDED = {  # what a command needs beside the option, so that the option is what is wrong; {runs} is a folder of runs
    "train": ("san10", "--runs", "new"),
    "runs": (),
    "import": (FILE, "--model", "san10", "--output", "new.pt"),
    "export": ("san10", "--runs", "{runs}", "--output", "new.safetensors"),
    "accuracy": ("san10", "--runs", "{runs}", "--results", "new"),
    "rotate": ("san10", "--runs", "{runs}", "--results", "new", "--angles", "45"),
    "spatial": ("san10", "--runs", "{runs}", "--results", "new", "--method", "random,grid,smallest"),
    "attack": ("san10", "--runs", "{runs}", "--results", "new", "--attack", "pgd-targeted"),
    "corrupt": ("san10", "--runs", "{runs}", "--results", "new"),
    "show": ("san10", "--runs", "{runs}", "--output", "new"),
    "compare": ("one", "two"),
    "bench": ("--results", "new"),
    "bench roofline": (),
    "bench kernels": (),
    "bench images": ("new",),
    **{f"study {name}": ("quick", "--runs", "new", "--results", "new") for name in ("show", "run", "work", "status")},
    "data check": ("imagenet", "--data-root", "set"),
    "data prepare": ("imagenet", "--archives", "set", "--data-root", "new"),
    "data shrink": ("--data-root", "set", "--output", "new"),
}
ALSO = {  # what an option needs beside it
    "image_size": ("--data", "folder:set"),
    "decoder": ("--data", "folder:set"),
    "journal": ("--decode",),
    "seed": ("--limit", "5"),
    "surrogate_weights": ("--surrogate", "torchvision:resnet18"),
    "targets": ("--attack", "apgd-targeted"),
    "mean": ("--weights", FILE),
    "std": ("--weights", FILE),
}
SPECIAL: dict[str, tuple[str, ...]] = {  # by option, or by command and option, values that are not accepted
    "results": (FILE,),
    "report results": (FILE, NOWHERE),
    "results check results": (FILE, NOWHERE),
    "runs": (FILE,),
    "runs runs": (FILE, NOWHERE),
    "data_root": (NOWHERE,),
    "checkpoint": (NOWHERE, FILE),
    "output": (FILE, f"{NOWHERE}/x"),
    "pixels": (FILE, NOWHERE),
    "show output": (FILE, f"{NOWHERE}/x", f"{NOWHERE}/x.png"),
    "data shrink output": (f"{FILE}/x", "set"),
    "weights": (NOWHERE, FILE),
    "surrogate_weights": (NOWHERE, FILE),
    "journal": (f"{NOWHERE}/x",),
    "archives": (NOWHERE,),
    "photographs": (NOWHERE,),
    "bench images folder": (FILE, f"{FILE}/x"),
    "train run": ("a/b", "../x", "a\nb", "", ".x"),
    "data prepare data_root": (),  # made where it is not there
    "settings": ("nonsense", "nosuch=1", "footprint=x", "=1", "width=nan", "[/x]=1"),
    "mean": (*WORDS[:2], "1,2", "nan,1,1", "1,2,x"),
    "std": (*WORDS[:2], "1,2", "0.0,1.0,1.0", "inf,1,1"),
    "eps": (*WORDS, "1e999999999", "-1", "2", "nan", "1/0", "0x1"),
    "step_size": (*WORDS, "1e999999999", "0", "nan"),
    "angles": (*WORDS, "0:1e9:1", "nan", "1:2:0", "inf", "1e400"),
    "severity": (*WORDS, "1:999999999999", "0", "6", "5:1", "1.5"),
    "grid": (*WORDS, "5x5", "0x5x5", "5x5x999999", "-5x5x5"),
    "spatial pixels": ("x", "nan", "inf", "-1", "32", ""),
    "kinds": (*WORDS, "fog,fog,all", ",", "fog,"),
}


def commands(command: Any = None, path: tuple[str, ...] = ()) -> Iterator[tuple[str, Any]]:
    command = command or typer.main.get_command(app)
    if not hasattr(command, "commands"):
        yield " ".join(path), command
        return
    for name, below in command.commands.items():
        yield from commands(below, (*path, name))


def type_name(parameter: Any) -> str:
    if getattr(parameter, "is_flag", False):
        return "flag"
    words = repr(getattr(parameter, "type_descriptor", None) or parameter.type)
    found = re.search(r"annotation=(.*?), parameter_info", words)
    words = found[1] if found else words
    return next((name for name in ("Path", "float", "int") if re.search(rf"\b{name}", words)), "str")


def wrong_values(command: str, parameter: Any) -> tuple[str, ...]:
    for key in (f"{command} {parameter.name}", parameter.name):
        if key in SPECIAL:
            return SPECIAL[key]
    kind = type_name(parameter)
    if kind == "flag":
        return ("x",)
    if kind in NUMBERS:
        least, most = getattr(parameter, "min", None), getattr(parameter, "max", None)
        edges = [str(least - 1)] if least is not None else []
        edges += [str(most + 1)] if most is not None else []
        return tuple(dict.fromkeys([*NUMBERS[kind], *edges]))
    assert kind == "str", f"{command} {parameter.name}: say in SPECIAL which paths are not accepted"
    return WORDS


def arguments(command: str, parameter: Any, options: set[str], value: str) -> list[str]:
    needed = NEEDED.get(command) or (NEEDED["bench"] if command.startswith("bench") and command not in NEEDED else ())
    option = parameter.opts[-1]
    words = [word for word in needed if word]
    if parameter.name == "weights" or parameter.name in ("mean", "std", "resize", "network_crop", "network_interpolation"):
        words[0] = "torchvision:resnet18"
    if option.startswith("-"):
        while option in words:
            del words[words.index(option) : words.index(option) + 2]
        typed = [f"{option}={value}"] if option.startswith("--") else [option, value]
        also = ALSO.get(parameter.name, ())
        return [*command.split(), *words, *(also if also[:1] and also[0] in options else ()), *typed]
    if words and not words[0].startswith("-"):
        words = words[1:]
    return [*command.split(), value, *words]


CASES = [
    (
        command,
        parameter.opts[-1],
        value,
        arguments(command, parameter, {option for each in found.params for option in each.opts}, value),
    )
    for command, found in commands()
    for parameter in found.params
    for value in wrong_values(command, parameter)
    if not (parameter.param_type_name == "argument" and value.startswith("-"))
]


@pytest.fixture(scope="module")
def world(runs, tmp_path_factory) -> Iterator[dict[str, str]]:
    """A working directory with a file, a set of photographs without images, and what `runs` gives."""
    folder = tmp_path_factory.mktemp("wrong")
    before = os.getcwd()
    os.chdir(folder)
    Path(FILE).write_text("no checkpoint")
    (folder / "set" / "train" / "a").mkdir(parents=True)
    yield {"runs": str(runs)}
    os.chdir(before)


@pytest.mark.parametrize(("command", "option", "value", "typed"), CASES, ids=[f"{c}-{o}-{v[:20]!r}" for c, o, v, _ in CASES])
def test_a_wrong_value_is_named_in_one_sentence_and_nothing_is_written(command, option, value, typed, world):
    before = everything()
    outcome = sanbench(*(word.format(**world) if word == "{runs}" else word for word in typed))
    said = outcome.stderr
    assert outcome.exit_code in (1, 2), outcome.output
    assert said.startswith("Error: ") and said.count("\n") == 1, said
    assert "Traceback" not in outcome.output and "fault of sanbench" not in said
    assert one_line(value.partition("=")[0])[:20] in said or (value == "x" and option in said), said  # of a flag only the name
    assert not re.match(r"Error: \w*(Error|Exception)\b", said)
    assert everything() == before


def everything() -> set[Path]:
    """All files; `work` holds what is in progress, and shows that a folder can be written."""
    return {path for path in Path().rglob("*") if path.is_file() and "work" not in path.parts}


def test_there_are_enough_cases():
    assert len(CASES) >= 300


LOOKED_INTO = {"checkpoint", "weights", "surrogate_weights", "data_root", "archives"}  # files, networks or sets come first


def test_wrong_values_are_refused_without_torch(world):
    typed = [[word.format(**world) if word == "{runs}" else word for word in words] for *_, words in CASES]
    outcomes = without(TORCH, typed)
    waited = [(*case[:3], output) for case, (_, output) in zip(CASES, outcomes) if BLOCKED in output]
    options = {parameter.opts[-1]: parameter.name for _, found in commands() for parameter in found.params}
    assert {options[option] for _, option, *_ in waited} <= LOOKED_INTO, waited
    assert len(waited) < 0.02 * len(CASES)


def test_the_words_of_options_are_those_of_the_library():
    from sanbench.bench.shapes import FUSED
    from sanbench.data.decoding import DECODERS
    from sanbench.device import DEVICES
    from sanbench.models.configurations import SANConfig
    from sanbench.models.export import FORMATS
    from sanbench.models.external import Preprocessing
    from sanbench.ops.cpu import KERNELS
    from sanbench.report import FORMATS as REPORTS
    from sanbench.runs.config import Recipe, TrainConfig
    from sanbench_cli import options

    def words(config: Any, field: str) -> set[str]:
        return set(get_args(config.model_fields[field].annotation))

    assert set(options.DECODERS) == set(DECODERS) == words(TrainConfig, "decoder")
    assert set(options.DEVICES) == set(DEVICES)
    assert set(options.EXPORTS) == set(FORMATS)
    assert set(options.REPORTS) == set(REPORTS)
    assert options.KERNELS == KERNELS
    assert options.ATTENTIONS[:2] == FUSED
    assert set(options.PRECISIONS) == words(TrainConfig, "precision")
    assert set(options.SELECTIONS) == words(Recipe, "select")
    assert set(options.ATTENTIONS) == words(SANConfig, "attention")
    assert set(options.INTERPOLATIONS) == words(Preprocessing, "interpolation")
