"""Modules that are imported when something of them is used: commands that only print, parse or refuse do not wait for torch.

A module that such commands read names what it computes with as

    if TYPE_CHECKING:
        import torch
    else:
        torch = Late("torch")
"""

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any


class Late:
    """`torch = Late("torch")`: torch is imported by the first `torch.something`."""

    def __init__(self, module: str) -> None:
        self._module = module

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # what copying and inspecting ask of any object
            raise AttributeError(name)
        return getattr(import_module(self._module), name)


def functions(module: str, *names: str) -> list[Callable[..., Any]]:
    """Functions of a module, which is imported when one of them is called: what a table of functions holds."""
    home = Late(module)

    def late(name: str) -> Callable[..., Any]:
        return lambda *given, **named: getattr(home, name)(*given, **named)

    return [late(name) for name in names]


def attributes(package: str, homes: Mapping[str, str]) -> Callable[[str], Any]:
    """The `__getattr__` of a package: `homes` tells the module of each name that it imports late."""

    def find(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(import_module(homes[name]), name)

    return find
