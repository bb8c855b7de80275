"""Checkpoints: weights and all that is needed to rebuild the network. Only tensors and plain values are unpickled."""

import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from sanbench.errors import InputError, SanbenchError, validated
from sanbench.models import Classifier, build_model
from sanbench.models.weights import load_weights, read_file
from sanbench.store.schema import ModelSpec

FORMAT = "sanbench checkpoint 1"


def save_checkpoint(path: Path, model: Classifier, **about: Any) -> None:
    """Write weights, `model.spec` and `about` (plain values) to `path`. Raises SanbenchError as `write_whole` does."""
    write_whole(path, {"format": FORMAT, "model": model.spec.model_dump(), "state_dict": model.state_dict(), **about})


def write_whole(path: Path, content: dict[str, Any]) -> None:
    """Write tensors and plain values to `path`, all or nothing. Raises SanbenchError where the file cannot be written."""
    write_file(path, lambda file: torch.save(content, file))


def write_file(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Make `path` of what `write` writes, all or nothing. Raises SanbenchError where the file cannot be written."""
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with partial.open("wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except (OSError, RuntimeError) as error:  # torch reports a full disk as either
        reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
        raise SanbenchError(f"Cannot write {path}: {reason}. What was there before is whole.") from error
    finally:
        partial.unlink(missing_ok=True)


def read_checkpoint(path: Path | str, kind: str = FORMAT) -> dict[str, Any]:
    """The content of a checkpoint, or of another `kind` of file from `write_whole`.

    Raises InputError if there is none, SanbenchError if it cannot be used.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"There is no checkpoint {path}.")
    content = read_file(path)
    if not isinstance(content, dict) or content.get("format") != kind:
        found = f"keys {', '.join(sorted(map(str, content))[:6])}" if isinstance(content, dict) else type(content).__name__
        raise SanbenchError(f"{path} is a file of another program ({found}): accepted is what `sanbench train` writes.")
    return content


def load_model(path: Path | str) -> Classifier:
    """The network of a checkpoint, in evaluation mode on the CPU, rebuilt from the file alone.

    Raises InputError if there is no such file, SanbenchError if it is not a whole checkpoint of sanbench.
    """
    return rebuild(read_checkpoint(path), path)


def rebuild(content: dict[str, Any], path: Path | str) -> Classifier:
    """The network of the `content` of `path`, in evaluation mode. Raises as `load_model` does."""
    spec = validated(ModelSpec, "model", **content["model"])
    model = build_model(spec.name, spec.num_classes, mean=spec.mean, std=spec.std, **spec.variation)
    load_weights(model, content["state_dict"], path, spec.label)
    return model.eval()


def weights_hash(state_dict: dict[str, Tensor]) -> str:
    """SHA-256 over names, shapes, types and values: equal weights, equal hash, whatever the file."""
    digest = hashlib.sha256()
    for name, tensor in sorted(state_dict.items()):
        values = tensor.detach().cpu().contiguous()
        digest.update(f"{name} {tuple(values.shape)} {values.dtype} ".encode())
        digest.update(values.view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
