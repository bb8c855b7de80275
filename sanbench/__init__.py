"""sanbench: train self-attention networks (SAN) and their ResNet baselines, and measure how robust they are."""

from importlib import import_module as _import_module
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING
from typing import Any as _Any

if TYPE_CHECKING:
    from sanbench.evaluation.api import Results as Results
    from sanbench.evaluation.api import attack as attack
    from sanbench.evaluation.api import evaluate as evaluate
    from sanbench.models import build_model as build_model
    from sanbench.models.checkpoints import load_model as load_model

try:
    __version__ = version("sanbench")
except PackageNotFoundError:  # run from a source tree that is not installed
    __version__ = "0+source"

_HOME = {
    "Results": "sanbench.evaluation.api",
    "attack": "sanbench.evaluation.api",
    "build_model": "sanbench.models",
    "evaluate": "sanbench.evaluation.api",
    "load_model": "sanbench.models.checkpoints",
}
__all__ = ["Results", "attack", "build_model", "evaluate", "load_model"]


def __getattr__(name: str) -> _Any:
    """Import torch only when something is asked for: the command line's help must not wait for it."""
    if name not in _HOME:
        raise AttributeError(f"module 'sanbench' has no attribute {name!r}")
    return getattr(_import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
