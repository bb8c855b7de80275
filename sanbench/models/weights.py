"""Files of weights from anywhere: tensors by name. Only tensors and plain values are unpickled."""

import pickle
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.modules.utils import consume_prefix_in_state_dict_if_present

from sanbench.errors import InputError, SanbenchError
from sanbench.models.integrity import Unreadable, check_published, check_tensors, check_zip

SHOWN = 20  # names of each kind that an error lists
SCALAR = np.float64(0).__reduce__()[0]
# An accuracy beside the weights is often a NumPy scalar; NumPy 1 wrote the constructor's name without the underscore.
NUMPY_SCALARS: list[Any] = [
    *((SCALAR, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")),
    np.dtype,
    *(type(np.dtype(name)) for name in ("float32", "float64", "int32", "int64", "bool")),
]


def read_file(path: Path) -> Any:
    """Load a file of `torch.save` to the CPU, after its checksums.

    Raises InputError if there is none, Unreadable if it cannot be used.
    """
    if not path.is_file():
        raise InputError(f"There is no file {path}.")
    check_zip(path)
    try:
        with torch.serialization.safe_globals(NUMPY_SCALARS), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of pickle protocols: what cannot be read is an error
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # unpickling what is damaged may raise anything
        if found := re.search(r"GLOBAL (\S+) was not an allowed", str(error)):
            raise Unreadable(f"{path} holds {found[1]}: accepted are tensors and plain values, nothing else.") from error
        raise Unreadable(f"{path} is not a readable checkpoint: {why_unreadable(path, error)}.") from error
    try:
        check_tensors(content, path.stat().st_size)
    except ValueError as error:
        raise Unreadable(f"{path} is refused: {error}.") from error
    return content


def why_unreadable(path: Path, error: Exception) -> str:
    """What a file that torch cannot load is, as far as its first bytes tell."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    if isinstance(error, MemoryError):
        return "it needs more memory than there is"
    with path.open("rb") as file:
        begins = file.read(2)
    if begins == b"PK":
        return "it holds more than tensors and plain values, or torch.save has not written it"
    if begins[:1] == b"\x80" and isinstance(error, pickle.UnpicklingError):
        return "it is a pickle that holds more than tensors and plain values"
    return "it is truncated, or not written by torch.save"


def read_weights(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """A state dict, and the other values in the file: .safetensors, or torch.save of a state dict or a dict with `state_dict`.

    `module.`, which data-parallel training puts before every name, is removed. A digest beside the file or in its name has
    to fit, see `check_published`. Raises as `read_file` does.
    """
    if path.is_file():
        check_published(path)
    content = read_safetensors(path) if path.suffix == ".safetensors" else read_file(path)
    about: dict[str, Any] = {}
    if isinstance(content, dict) and isinstance(content.get("state_dict"), dict):
        about, content = content, content["state_dict"]
    unfit = [] if isinstance(content, dict) else [type(content).__name__]
    unfit = unfit or [str(name) for name, value in content.items() if not isinstance(value, Tensor)]
    if unfit or not content:
        found = ", ".join(unfit[:SHOWN]) or "nothing"
        raise SanbenchError(f"{path} is not a state dict, it holds {found}: accepted are tensors by name.")
    if all(name.startswith("module.") for name in content):
        consume_prefix_in_state_dict_if_present(content, "module.")
    return content, {name: value for name, value in about.items() if name != "state_dict"}


def read_safetensors(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise InputError(f"There is no file {path}.")
    try:
        return load_file(path)
    except SafetensorError as error:
        raise SanbenchError(f"{path} is not a readable safetensors file: {error}.") from error


def check_fit(wanted: Mapping[str, Tensor], found: Mapping[str, Tensor], path: Path | str, label: str) -> None:
    """Raise SanbenchError that lists what is missing, what is unknown and what has another shape or type."""
    if strange := [str(name) for name, value in found.items() if not isinstance(value, Tensor)]:
        raise SanbenchError(f"{path} is not a state dict, it holds {listed(strange)}: accepted are tensors by name.")
    shapes = [
        f"{name} is {size(found[name])} instead of {size(tensor)}"
        for name, tensor in wanted.items()
        if name in found and found[name].shape != tensor.shape
    ]
    types = [
        f"{name} is {found[name].dtype}"
        for name, tensor in wanted.items()
        if name in found and (found[name].is_floating_point(), found[name].is_complex()) != (tensor.is_floating_point(), False)
    ]
    missing = [
        name for name in wanted if name not in found and not name.endswith("num_batches_tracked")
    ]  # PyTorch before 0.4.1 wrote none
    kinds = {
        "missing": missing,
        "unknown": [name for name in found if name not in wanted],
        "of another shape": shapes,
        "of another type": types,
    }
    wrong = "; ".join(f"{kind}: {listed(names)}" for kind, names in kinds.items() if names)
    if wrong:
        raise SanbenchError(f"{path} does not hold the weights of a {label}. {wrong[0].upper()}{wrong[1:]}.")


def load_weights(network: nn.Module, weights: dict[str, Tensor], path: Path | str, label: str) -> None:
    """Call `network.load_state_dict(weights)`. Raises SanbenchError as `check_fit` does, and for values that are not finite."""
    check_fit(network.state_dict(), weights, path, label)
    check_finite(weights, path)
    network.load_state_dict(weights, strict=False)


def check_finite(weights: Mapping[str, Tensor], path: Path | str) -> None:
    """Raises SanbenchError that names the tensors with NaN or infinite values."""
    bad = [name for name, tensor in weights.items() if tensor.is_floating_point() and not is_finite(tensor)]
    if bad:
        raise SanbenchError(f"{path} holds NaN or infinite values in {listed(bad)}: such weights give no predictions.")


def is_finite(tensor: Tensor) -> bool:
    """Whether all values are: the least and the greatest are NaN where any is."""
    return tensor.numel() == 0 or bool(torch.stack(tensor.float().aminmax()).isfinite().all())


def listed(names: list[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more


def size(tensor: Tensor) -> str:
    return " x ".join(map(str, tensor.shape)) or "a scalar"
