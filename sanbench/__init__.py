"""sanbench: train self-attention networks (SAN) and their ResNet baselines, and measure how robust they are."""

from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING

from sanbench.late import attributes as _attributes

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

_HOME = {  # imported when they are asked for
    "Results": "sanbench.evaluation.api",
    "attack": "sanbench.evaluation.api",
    "build_model": "sanbench.models",
    "evaluate": "sanbench.evaluation.api",
    "load_model": "sanbench.models.checkpoints",
}
__all__ = ["Results", "attack", "build_model", "evaluate", "load_model"]

__getattr__ = _attributes(__name__, _HOME)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
