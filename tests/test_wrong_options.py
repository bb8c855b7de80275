"""Every option of every command, with a value of the wrong type, out of range, and without sense: a sentence that names it.

The cases are made from the commands themselves: a new option is tested by being there.
"""

import re
from collections.abc import Iterator
from typing import Any

import typer

from sanbench_cli.main import app

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
    "attack": ("san10", "--runs", "{runs}", "--results", "new", "--attack", "pgd-targeted"),
    "corrupt": ("san10", "--runs", "{runs}", "--results", "new"),
    "bench": ("--results", "new"),
    "bench roofline": (),
    "bench kernels": (),
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
}
SPECIAL: dict[str, tuple[str, ...]] = {  # by option, or by command and option: values that it does not accept
    "results": (FILE,),
    "runs": (FILE,),
    "runs results": (),
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
