"""Measurements as texts, `rotate:90,180`: what `sanbench.evaluate` and studies take. Needs no torch."""

from typing import Any

from sanbench.errors import InputError, unknown
from sanbench.evaluation.attacks.table import ATTACKS
from sanbench.evaluation.kinds import KINDS


def options_of(measurement: str) -> Any:
    """`rotate:90,180` -> RotationOptions(angles="90,180"); an attack's name stands for `attack:` and that name."""
    head, _, rest = measurement.partition(":")
    if head in ATTACKS:
        head, rest = "attack", measurement
    commands: dict[str, tuple[Any, tuple[str, ...]]] = {
        entry.command: (entry.options, entry.text) for entry in KINDS.values() if entry.options is not None
    }
    if head not in commands:
        raise unknown("measurement", head, [*commands, *ATTACKS])
    options, fields = commands[head]
    words = rest.split(":", max(0, len(fields) - 1)) if rest else []
    if len(words) > len(fields):
        raise InputError(f"measurement {measurement!r} is not accepted: {head} takes nothing after a colon.")
    return options(**dict(zip(fields, words, strict=False)))
