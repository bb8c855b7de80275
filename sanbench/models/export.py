"""Networks as files for other programs. All three formats are read without this toolkit."""

import importlib.util
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path

import torch
from safetensors.torch import save
from torch import Tensor
from torch.export import Dim, ExportedProgram

from sanbench.errors import InputError, unknown
from sanbench.models import SMALLEST_IMAGE, Classifier
from sanbench.models.checkpoints import write_file
from sanbench.ops.footprint import neighbours
from sanbench.ops.operator import SPECIFICATIONS

INPUT, OUTPUT = "images", "logits"


def decompositions() -> dict[torch._ops.OperatorBase, Callable[..., Tensor]]:
    """This toolkit's operators as their specifications, which are operators of PyTorch."""
    return {getattr(torch.ops.sanbench, name).default: body for name, body in SPECIFICATIONS.items()}


@contextmanager
def empty_footprint_cache() -> Iterator[None]:
    """Empty the cache of neighbour indices before and after: a trace must not use real ones, nor a network traced ones."""
    neighbours.cache_clear()
    try:
        yield
    finally:
        neighbours.cache_clear()


def trace(model: Classifier, image_size: int) -> ExportedProgram:
    """N x 3 x image_size x image_size in [0, 1], any N -> logits, in operators of PyTorch alone."""
    images = torch.zeros(2, 3, image_size, image_size)
    with torch.no_grad(), empty_footprint_cache():
        program = torch.export.export(model.eval(), (images,), dynamic_shapes=({0: Dim("N")},))
        return program.run_decompositions(decompositions())


def to_safetensors(model: Classifier, image_size: int) -> bytes:
    """The state dict, which fits what `build_model` makes of the metadata's `model`."""
    tensors = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    return save(tensors, {"model": json.dumps(model.spec.model_dump())})


def to_pt2(model: Classifier, image_size: int) -> bytes:
    file = BytesIO()
    torch.export.save(trace(model, image_size), file)
    return file.getvalue()


def to_onnx(model: Classifier, image_size: int) -> bytes:
    if missing := [name for name in ("onnx", "onnxscript") if importlib.util.find_spec(name) is None]:
        raise InputError(f"onnx is not accepted here: {', '.join(missing)} is missing, pip install 'sanbench[onnx]'.")
    program = torch.onnx.export(
        trace(model, image_size), dynamo=True, verbose=False, input_names=[INPUT], output_names=[OUTPUT]
    )
    assert program is not None
    return program.model_proto.SerializeToString()


FORMATS: dict[str, Callable[[Classifier, int], bytes]] = {
    "safetensors": to_safetensors,
    "onnx": to_onnx,
    "pt2": to_pt2,
}


def export_model(model: Classifier, form: str, path: Path, image_size: int) -> None:
    """Write `model` to `path` as one of FORMATS.

    safetensors  the weights, and in the metadata what `build_model` needs
    onnx         the network for N x 3 x image_size x image_size in [0, 1], input "images", output "logits"
    pt2          the same for `torch.export.load(path).module()`: PyTorch of this version or later, nothing else

    The last two compute the attention as its specification, which expands footprints: they are slower than the kernels here
    and take more memory. Raises InputError for another format or size and for a path that is taken.
    """
    if form not in FORMATS:
        raise unknown("format", form, FORMATS)
    if image_size < SMALLEST_IMAGE:
        raise InputError(f"image-size {image_size} is not accepted: it must be at least {SMALLEST_IMAGE}.")
    if path.exists():
        raise InputError(f"{path} is there already: remove it, or name another file with --output.")
    content = FORMATS[form](model.cpu(), image_size)
    write_file(path, lambda file: file.write(content))
