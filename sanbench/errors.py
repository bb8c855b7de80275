"""The kinds of error a user meets; everything else is a fault of sanbench."""

import difflib
from collections.abc import Iterable
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from pydantic import BaseModel

    Config = TypeVar("Config", bound=BaseModel)


SHORT_OF_MEMORY = ("can't allocate memory", "not enough memory", "out of memory", "Storage size calculation overflowed")


class SanbenchError(Exception):
    """Something failed: a file, a device, a measurement. The command line exits with 1."""

    exit_code = 1


class InputError(SanbenchError, ValueError):
    """Something was typed or passed wrong. The command line exits with 2."""

    exit_code = 2


class UnreadableImage(SanbenchError):
    """A file of a data set cannot be decoded."""


class Interrupted(SanbenchError):
    """A signal asked to stop, and what was done is kept. The command line exits with 75: a scheduler tries again."""

    exit_code = 75


def unknown(kind: str, value: str, known: Iterable[str]) -> InputError:
    """An error for `value` that names the nearest of the `known` words and lists them all."""
    words = sorted(known)
    likely = difflib.get_close_matches(value[:100], words, n=5, cutoff=0.4)  # of equally near ones that of the nearest letters
    nearest = max(likely, key=lambda word: (likeness(value[:100], word), -distance(value, word)), default=None)
    hint = f" Did you mean {nearest!r}?" if nearest else ""
    accepted = f"Known: {', '.join(words)}." if words else "None is accepted here."
    return InputError(f"Unknown {kind} {value!r}.{hint} {accepted}")


def likeness(value: str, word: str) -> float:
    return difflib.SequenceMatcher(None, word, value).ratio()


def distance(value: str, word: str) -> int:
    """Of letters in the same position: san11 is nearer to san10 than to san19."""
    return sum(abs(ord(a) - ord(b)) for a, b in zip(value, word, strict=False))


def validated(config: "type[Config]", kind: str, **values: object) -> "Config":
    """`config(**values)`, with the first thing that is wrong as an InputError that names the value and what is accepted."""
    from pydantic import ValidationError  # here, so that `--help` stays fast

    try:
        return config(**values)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"])
        if first["type"] == "extra_forbidden":
            raise unknown(f"{kind} field", field, config.model_fields) from None
        if first["type"] == "value_error":
            raise InputError(first["msg"].removeprefix("Value error, ")) from None
        raise InputError(f"{field}={first['input']!s} is not accepted for {kind}: {first['msg'].lower()}.") from None


def short_of_memory(error: Exception) -> bool:
    """Whether it is torch's or Python's way to say so, on any device."""
    return isinstance(error, MemoryError) or any(words in str(error) for words in SHORT_OF_MEMORY)
