"""What operators accept: the one place that refuses arguments, by name and with what is accepted."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from sanbench.errors import InputError, unknown
from sanbench.ops.footprint import Footprint
from sanbench.relation import RELATIONS

MAPS = ("query", "key", "value")  # N x channels x H x W
REDUCED = (torch.bfloat16, torch.float16)  # maps in these are computed with in float32


def check(operator: str, arguments: Mapping[str, Any]) -> None:
    """Raise InputError for arguments that `operator` cannot take, given by name."""
    window = Footprint(*(arguments[name] for name in ("footprint", "stride", "dilation")))
    maps = {name: arguments[name] for name in MAPS if name in arguments}
    tensors = {name: value for name, value in arguments.items() if isinstance(value, Tensor)}
    tensors |= {f"gamma[{at}]": tensor for at, tensor in enumerate(arguments.get("gamma", []))}
    first, reference = next(iter(maps.items()))
    for name, tensor in tensors.items():
        if not tensor.is_floating_point():
            refuse(operator, name, str(tensor.dtype), "a floating-point dtype")
        is_wider = reference.dtype in REDUCED and tensor.dtype == torch.float32 and name not in maps
        if tensor.dtype != reference.dtype and not is_wider:
            refuse(operator, name, str(tensor.dtype), f"{first}'s {reference.dtype}")
        if tensor.device != reference.device:
            refuse(operator, name, str(tensor.device), f"{first}'s device {reference.device}")
    for name, tensor in maps.items():
        if tensor.dim() != 4 or 0 in tensor.shape:
            refuse(operator, name, shape(tensor), "N x channels x H x W, none of them 0")
        if tensor.shape[0] != reference.shape[0] or tensor.shape[2:] != reference.shape[2:]:
            refuse(operator, name, shape(tensor), f"images and map of {first}, {shape(reference)}")
    if "key" in maps and maps["key"].shape != reference.shape:
        refuse(operator, "key", shape(maps["key"]), f"query's shape {shape(reference)}")
    if "gamma" in arguments:
        check_gamma(operator, window, arguments)
    if "heads" in arguments:
        heads = arguments["heads"]
        for name in ("query", "value"):
            if heads < 1 or maps[name].shape[1] % heads:
                refuse(operator, "heads", str(heads), f"a divisor of {name}'s {maps[name].shape[1]} channels")
    if "weights" in arguments:
        weights, grid = arguments["weights"], window.output_size(*reference.shape[2:])
        wanted = (len(reference), window.size**2, *grid)
        if weights.dim() != 5 or (len(weights), *weights.shape[2:]) != wanted or reference.shape[1] % weights.shape[1]:
            sizes = f"{wanted[0]} x G x {' x '.join(map(str, wanted[1:]))}"
            refuse(operator, "weights", shape(weights), f"{sizes} with G a divisor of value's {reference.shape[1]} channels")


def check_gamma(operator: str, window: Footprint, arguments: Mapping[str, Any]) -> None:
    """Scale, shift and weight of each linear fit what comes before; an attention's last linear has a bias."""
    kind, task = operator.split("_")
    gamma, position, relation = arguments["gamma"], arguments.get("position"), arguments["relation"]
    if relation not in RELATIONS[kind]:
        raise unknown(f"{kind} relation", relation, RELATIONS[kind])
    channels, neighbours = arguments["query"].shape[1], window.size**2
    width = RELATIONS[kind][relation].channels(channels, neighbours)
    if position is not None:
        size = tuple(arguments["query"].shape[2:])
        if position.dim() != 4 or len(position) != 2 or tuple(position.shape[2:]) != size:
            refuse(operator, "position", shape(position), f"2 x E x {size[0]} x {size[1]}, or None")
        width += position.shape[1]
    if len(gamma) % 3 != (task == "attention") or (task == "attention" and len(gamma) < 4):
        refuse(
            operator, "gamma", f"{len(gamma)} tensors", "scale, shift and weight of each linear, for attention a bias behind"
        )
    for at, tensor in enumerate(gamma):
        wanted = ("D'", width) if at % 3 == 2 else (width,)
        if tensor.dim() != len(wanted) or tensor.shape[-1] != width:
            refuse(operator, f"gamma[{at}]", shape(tensor), " x ".join(map(str, wanted)))
        width = len(tensor) if at % 3 == 2 else width
    if task == "attention":
        groups, rest = divmod(width, neighbours if kind == "patchwise" else 1)
        if rest or not groups or arguments["value"].shape[1] % groups:
            per_group = f"{neighbours} times " if kind == "patchwise" else ""
            accepted = f"{per_group}a divisor of value's {arguments['value'].shape[1]} channels"
            refuse(operator, "gamma", f"{width} weight channels", accepted)


def shape(tensor: Tensor) -> str:
    return " x ".join(map(str, tensor.shape)) or "a scalar"


def refuse(operator: str, argument: str, found: str, accepted: str) -> None:
    raise InputError(f"{operator}: {argument} with {found} is not accepted: accepted is {accepted}.")
