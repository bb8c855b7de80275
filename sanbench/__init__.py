"""sanbench: train self-attention networks (SAN) and their ResNet baselines, and measure how robust they are."""

from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sanbench.models import build_model as build_model
    from sanbench.models.checkpoints import load_model as load_model

try:
    __version__ = version("sanbench")
except PackageNotFoundError:  # run from a source tree that is not installed
    __version__ = "0+source"

PUBLIC = {"build_model": "sanbench.models", "load_model": "sanbench.models.checkpoints"}
__all__ = ["build_model", "load_model"]


def __getattr__(name: str) -> Any:
    """Import torch only when a model is asked for: the command line's help must not wait for it."""
    if name not in PUBLIC:
        raise AttributeError(f"module 'sanbench' has no attribute {name!r}")
    return getattr(import_module(PUBLIC[name]), name)
