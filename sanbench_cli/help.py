"""A command's help: options in groups, each with its text and default, in lines that no terminal cuts.

What is listed of the library's tables is read from their source: importing them would import torch.
"""

import ast
import textwrap
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import sanbench

HEAD = 26  # characters of an option's name beside which its text stands
GROUPS: dict[str, tuple[str, ...]] = {  # the options that many commands share; all others are what the command is there for
    "Network": (
        *("model", "attention", "networks", "pairs", "name", "checkpoint", "classes", "settings", "weights"),
        *("mean", "std", "resize", "network_crop", "network_interpolation"),
    ),
    "Data": ("data", "data_root", "images", "limit", "image_size", "decoder", "download", "skip_bad_images", "photographs"),
    "Machine": (
        *("device", "nproc", "workers", "batch_size", "accumulate", "precision", "compile", "compiled", "deterministic"),
        *("dtype", "kernels"),
    ),
    "Output": (
        *("runs", "results", "run", "resume", "output", "form", "formats", "save_images", "force", "tensorboard", "profile"),
        *("save_minutes", "dry_run", "journal"),
    ),
}
OWN = {  # how the group of a command's own options is called; elsewhere "Options"
    "train": "Training",
    **dict.fromkeys(("rotate", "spatial", "attack", "corrupt", "accuracy"), "Measurement"),
    **dict.fromkeys(("model", "ops", "evaluate", "pipeline", "protocol", "roofline"), "Timing"),
}
VALUES = {"int": "N", "float": "X", "path": "PATH"}  # how a value of a type is shown


@cache
def tree(module: str) -> ast.Module:
    """The source of `sanbench.*`, as a file or as a folder's __init__.py."""
    path = Path(sanbench.__file__).parent.joinpath(*module.split(".")[1:])
    return ast.parse((path / "__init__.py" if path.is_dir() else path.with_suffix(".py")).read_text())


def keys(module: str, table: str) -> list[str]:
    """Of a dict literal: `keys("sanbench.evaluation.corruptions", "CORRUPTIONS")`."""
    for node in tree(module).body:
        if isinstance(node, ast.AnnAssign) and getattr(node.target, "id", "") == table and isinstance(node.value, ast.Dict):
            return [ast.literal_eval(key) for key in node.value.keys if key is not None]
    raise LookupError(f"{module} has no dict literal {table}")


def fields(module: str, name: str) -> list[str]:
    """Of a class: those that are declared in it."""
    for node in tree(module).body:
        if isinstance(node, ast.ClassDef) and node.name == name:
            return [
                each.target.id for each in node.body if isinstance(each, ast.AnnAssign) and isinstance(each.target, ast.Name)
            ]
    raise LookupError(f"{module} has no class {name}")


def lists(command: str, option: str) -> str:
    """What is listed beside the text of an option."""
    if (command, option) == ("train", "settings"):
        san, resnet = (fields("sanbench.models.configurations", name) for name in ("SANConfig", "ResNetConfig"))
        recipe = fields("sanbench.runs.config", "Recipe")
        return f"Of the recipe: {', '.join(recipe)}. Of a SAN: {', '.join(san)}. Of a ResNet: {', '.join(resnet)}."
    if (command, option) == ("corrupt", "kinds"):
        return f"Drawn here: {', '.join(keys('sanbench.evaluation.corruptions', 'CORRUPTIONS'))}."
    return ""


def head(parameter: Any, context: Any) -> str:
    """`--batch-size N`, `RUN|CHECKPOINT|MODEL ...`."""
    if parameter.param_type_name == "argument":
        word = parameter.metavar or parameter.name.upper()
        return f"{word.removesuffix('...')} ..." if parameter.nargs == -1 else str(word)
    names = ", ".join(sorted([*parameter.opts, *parameter.secondary_opts], key=len))
    if parameter.is_flag:
        return names
    described = getattr(parameter, "type_descriptor", None)  # of newer typers; older ones have click's type
    kind = str(described.annotation if described else parameter.type.name).lower()
    return f"{names} {parameter.metavar or next((shown for word, shown in VALUES.items() if word in kind), 'TEXT')}"


def text(command: str, parameter: Any) -> str:
    """The help, what it lists, and the default where the help does not tell it."""
    told = " ".join(filter(None, [parameter.help or "", lists(command, parameter.name)]))
    if "default" in told.lower() or parameter.name == "help":
        return told
    default = getattr(parameter.default, "default", parameter.default)
    if parameter.required:
        return f"{told} Has to be given."
    if getattr(parameter, "is_flag", False):
        return f"{told} Default: no."
    if default is None or default == () or default == []:
        return f"{told} Default: none."
    return f"{told} Default: {default}."


def groups(command: Any, parameters: Sequence[Any]) -> dict[str, list[Any]]:
    """The command's own options first, then those of GROUPS."""
    of_option = {option: group for group, options in GROUPS.items() for option in options}
    own = OWN.get(command.name, "Options")
    found: dict[str, list[Any]] = {own: [], **{group: [] for group in GROUPS}}
    for parameter in parameters:
        found[of_option.get(parameter.name, own)].append(parameter)
    if command.name in OWN:
        found = {group: found[group] for group in dict.fromkeys(["Network", own, *found])}
    return {group: members for group, members in found.items() if members}


def page(command: Any, context: Any, width: int) -> str:
    """Usage, what the command does, an example, its options in groups, and the commands that it has."""
    does, _, example = (command.help or "").strip().partition(": sanbench ")
    usage = " ".join([context.command_path, *command.collect_usage_pieces(context)])
    lines = [*wrapped(f"Usage: {usage}", width, "       "), "", *wrapped(f"{does.rstrip('.')}.", width)]
    if example:
        lines += ["", "Example", *wrapped(f"sanbench {example.rstrip('.')}", width - 2, "    ", "  ")]
    for group, parameters in groups(command, command.get_params(context)).items():
        lines += ["", group]
        for parameter in parameters:
            lines += entry(head(parameter, context), text(command.name, parameter), width)
    members = command.list_commands(context) if hasattr(command, "list_commands") else []
    for name in members:
        does = (command.get_command(context, name).help or "").strip().partition(": sanbench ")[0]
        lines += [*(["", "Commands"] if name == members[0] else []), *entry(name, f"{does.rstrip('.')}.", width)]
    return "\n".join(lines)


def entry(name: str, about: str, width: int) -> Iterator[str]:
    """The name, and its text beside it, or below a long name."""
    indent = " " * (HEAD + 4)
    described = wrapped(about, width, indent, indent)
    if len(name) <= HEAD and described:
        yield f"  {name:<{HEAD}}  {described[0].strip()}"
        yield from described[1:]
    else:
        yield f"  {name}"
        yield from described


def wrapped(words: str, width: int, indent: str = "", first: str = "") -> list[str]:
    return textwrap.wrap(
        words, width, initial_indent=first, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
    )
