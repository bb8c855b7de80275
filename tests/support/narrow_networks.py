"""Fields that make a network of any family small enough for tests."""

from typing import Any

from sanbench.models import family_of, resolve

NARROW = {"width": 0.25, "footprint": 3}


def narrow(name: str, **changes: Any) -> dict[str, Any]:
    """Those of NARROW and `changes` that the network's family has."""
    fields = family_of(resolve(name)[0]).fields
    return {field: value for field, value in {**NARROW, **changes}.items() if field in fields}
