"""The two kinds of error a user meets; everything else is a fault of sanbench."""

import difflib
from collections.abc import Iterable


class SanbenchError(Exception):
    """Something failed: a file, a device, a measurement. The command line exits with 1."""


class InputError(SanbenchError, ValueError):
    """Something was typed or passed wrong. The command line exits with 2."""


def unknown(kind: str, value: str, known: Iterable[str]) -> InputError:
    """An error for `value` that names the nearest of the `known` words and lists them all."""
    words = sorted(known)
    nearest = difflib.get_close_matches(value, words, n=1, cutoff=0.4)
    hint = f" Did you mean {nearest[0]!r}?" if nearest else ""
    accepted = f"Known: {', '.join(words)}." if words else "None is accepted here."
    return InputError(f"Unknown {kind} {value!r}.{hint} {accepted}")
