"""What Python hands to the compiled kernels: structures that C++ declares too, under the same names and in the same order.

A field is a size, a strided map or an address, behind which a tensor is dense. `check_layouts` compares both declarations
when a build is loaded, as far as a structure's size and the place of its last field tell them apart.
"""

import ctypes
from typing import Any

from torch import Tensor

from sanbench.errors import SanbenchError

MOST_PARTS = 3  # of a linear's weight


def fields(kind: Any, names: str) -> tuple[tuple[str, Any], ...]:
    return tuple((name, kind) for name in names.split())


class StridedMap(ctypes.Structure):
    """A map N x C x H x W in memory."""

    _fields_ = (("data", ctypes.c_void_p), *fields(ctypes.c_int64, "image channel row column"))  # strides in elements

    @classmethod
    def of(cls, x: Tensor) -> "StridedMap":
        return cls(x.data_ptr(), *x.stride())


class Attention(ctypes.Structure):
    """Arguments of pairwise.cpp and patchwise.cpp."""

    _fields_ = (
        *fields(ctypes.c_int, "images height width footprint narrow extra hidden groups channels threads weights"),
        *fields(StridedMap, "query key at_i at_j value out grad_query grad_key grad_value"),
        *fields(ctypes.c_void_p * 7, "gamma grad_gamma"),
        *fields(ctypes.c_void_p, "grad_at_i grad_at_j moments grad_moments out_moments"),
    )


class Normalise(ctypes.Structure):
    """Arguments of normalise.cpp."""

    _fields_ = (
        *fields(ctypes.c_int64, "images pixels channels"),
        ("threads", ctypes.c_int),
        *fields(ctypes.c_void_p, "x scale shift grad moments grad_moments out grad_x grad_scale grad_shift"),
    )


class Batch(ctypes.Structure):
    """Arguments of normalise.cpp's normalisation by a batch."""

    _fields_ = (
        *fields(ctypes.c_int64, "images channels values threads"),
        *fields(ctypes.c_double, "momentum eps"),
        *fields(ctypes.c_void_p, "moments weight bias running_mean running_variance scale shift"),
        *fields(ctypes.c_void_p, "grad_scale grad_shift grad_moments grad_weight grad_bias"),
    )


class Pool(ctypes.Structure):
    """Arguments of pool.cpp."""

    _fields_ = (
        *fields(ctypes.c_int64, "images height width inputs channels"),
        ("threads", ctypes.c_int),
        *fields(ctypes.c_void_p, "x weight scale shift grad out grad_x grad_scale grad_shift"),
    )


class Linear(ctypes.Structure):
    """Arguments of linear.cpp."""

    _fields_ = (
        *fields(ctypes.c_int64, "pixels inputs outputs parts"),
        ("threads", ctypes.c_int),
        *fields(ctypes.c_void_p, "x scale shift residual grad out"),
        ("size", ctypes.c_int64 * MOST_PARTS),
        *fields(ctypes.c_void_p * MOST_PARTS, "weight bias"),
    )


STRUCTURES: tuple[type[ctypes.Structure], ...] = (StridedMap, Attention, Normalise, Batch, Pool, Linear)


def check_layouts(library: Any, file: str) -> None:
    """Raise SanbenchError if `library` was compiled from other structures than those of this file."""
    for structure in STRUCTURES:
        name, last = structure.__name__, structure._fields_[-1][0]
        own, found = (ctypes.sizeof(structure), getattr(structure, last).offset), (ctypes.c_int64 * 2)()
        if (layout_of := getattr(library, f"layout_of_{name}", None)) is None:
            raise SanbenchError(f"{file} does not tell the size of {name}, here {own[0]} bytes: reinstall sanbench.")
        layout_of(found)
        if tuple(found) != own:
            sizes = f"{found[0]} bytes in {file} and {own[0]} here (the last field begins at {found[1]} and {own[1]})"
            raise SanbenchError(f"{name} has {sizes}: reinstall sanbench.")
