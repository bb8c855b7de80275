"""Checkpoints: weights and all that is needed to rebuild the network. Only tensors and plain values are unpickled."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from sanbench.errors import InputError, SanbenchError, validated
from sanbench.late import Late
from sanbench.models import SMALLEST_IMAGE, family_of, size
from sanbench.models.integrity import Unreadable, add_tensor, check_tensors, content_digest
from sanbench.store.schema import ModelSpec

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from sanbench.models import Classifier, building, weights
else:
    torch, building, weights = Late("torch"), Late("sanbench.models.building"), Late("sanbench.models.weights")

FORMAT = "sanbench checkpoint 2"


def save_checkpoint(path: Path, model: Classifier, **about: Any) -> None:
    """Write weights, `model.spec` and `about` (plain values) to `path`. Raises SanbenchError as `write_whole` does."""
    write_whole(path, {"format": FORMAT, "model": model.spec.model_dump(), "state_dict": model.state_dict(), **about})


def write_whole(path: Path, content: dict[str, Any]) -> None:
    """Write tensors and plain values and their digest to `path`, all or nothing. Raises SanbenchError where it cannot be."""
    content = {**content, "digest": content_digest(content)}
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
    except (OSError, RuntimeError) as error:
        with suppress(OSError):  # on a disk that is read-only now nothing can be removed either
            partial.unlink(missing_ok=True)
        raise SanbenchError(f"Cannot write {path}: {system_reason(error)}. What was there before is whole.") from error
    except BaseException:
        with suppress(OSError):
            partial.unlink(missing_ok=True)
        raise


def system_reason(error: BaseException) -> str:
    """What the system said: torch.save raises a RuntimeError about positions where a write under it raised OSError."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.strerror:
            return cause.strerror
        cause = cause.__cause__ or cause.__context__
    return (str(error) or type(error).__name__).splitlines()[0]


def read_checkpoint(path: Path | str, kind: str = FORMAT, advice: str = "") -> dict[str, Any]:
    """The content of a checkpoint, or of another `kind` of file from `write_whole`; its digest fits.

    Raises InputError if there is none, SanbenchError if it cannot be used, which says what to do: `advice`, or to take
    another checkpoint of the folder.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"There is no checkpoint {path}.")
    try:
        content = weights.read_file(path)
    except Unreadable as error:
        raise SanbenchError(f"{error} {advice or other_checkpoints(path)}") from error
    if not isinstance(content, dict) or content.get("format") != kind:
        found = type(content).__name__
        if isinstance(content, dict):
            found = str(content.get("format") or f"keys {', '.join(sorted(map(str, content))[:6])}")
        raise SanbenchError(
            f"{path} is a file of another program or version ({found[:200]!r}): accepted is "
            f"what `sanbench train` writes, {kind}."
        )
    digest = content.pop("digest", None)
    if check_tensors(content, size := path.stat().st_size) > size or content_digest(content) != digest:
        raise SanbenchError(f"{path} is damaged: its digest does not fit. {advice or other_checkpoints(path)}")
    return content


def other_checkpoints(path: Path) -> str:
    """What to do where `path` is damaged."""
    others = [name for name in ("best.pt", "last.pt") if name != path.name and path.with_name(name).is_file()]
    measure = f"Measure {path.with_name(others[0])} instead" if others else "Copy it again"
    return f"{measure}, or train it anew; an unfinished run goes on with --resume and writes it again."


def load_model(path: Path | str) -> Classifier:
    """The network of a checkpoint, in evaluation mode on the CPU, rebuilt from the file alone.

    Raises InputError if there is no such file, SanbenchError if it is not a whole checkpoint of sanbench.
    """
    return rebuild(read_checkpoint(path), path)


def rebuild(content: dict[str, Any], path: Path | str) -> Classifier:
    """The network of the `content` of `path`, in evaluation mode. Raises as `load_model` does."""
    if not isinstance(content.get("model"), dict) or not isinstance(content.get("state_dict"), dict):
        raise SanbenchError(f"{path} holds no network: accepted is what `sanbench train` writes.")
    try:
        spec = validated(ModelSpec, "model", **content["model"])
        settings: dict[str, Any] = {"mean": spec.mean, "std": spec.std, **spec.variation}
        fits = fits_in(spec, content["state_dict"])
        with nullcontext() if fits else torch.device("meta"):  # shapes are compared before memory is taken
            model = building.build_model(spec.name, spec.num_classes, **settings)
    except (InputError, TypeError) as error:
        raise SanbenchError(f"{path} holds a network that cannot be built: {error}") from error
    weights.check_fit(model.state_dict(), content["state_dict"], path, spec.label)
    if not fits:
        model = building.build_model(spec.name, spec.num_classes, **settings)
    weights.load_weights(model, content["state_dict"], path, spec.label)
    return model.eval()


def fits_in(spec: ModelSpec, state_dict: dict[str, Tensor]) -> bool:
    """Whether a network has no more bytes than the tensors have; False where that is not known before it is built."""
    if family_of(spec.name).size is None:
        return False
    parameters, _ = size(spec.name, SMALLEST_IMAGE, spec.num_classes, **spec.variation)
    tensors = (value for value in state_dict.values() if isinstance(value, torch.Tensor))
    return 4 * parameters <= sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def weights_hash(state_dict: dict[str, Tensor]) -> str:
    """SHA-256 over names, shapes, types and values: equal weights, equal hash, whatever the file."""
    digest = hashlib.sha256()
    for name, tensor in sorted(state_dict.items()):
        digest.update(f"{name} ".encode())
        add_tensor(digest, tensor)
    return digest.hexdigest()
