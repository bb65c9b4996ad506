"""Read JSON that somebody else may have written: every surprise is an ArtifactError in one line."""

from __future__ import annotations

import json
from collections.abc import Collection
from typing import Any, TypeVar

from samx.errors import ArtifactError

T = TypeVar("T")

SHOWN_CHARACTERS = 80  # an error line stays readable whatever the file holds
REMEDY = "The file is damaged, altered or of another samx version; export or validate again."


def parse(data: bytes, where: str) -> Any:
    """Parse UTF-8 JSON without duplicate keys, NaN or infinity.

    Raises: ArtifactError naming `where`.
    """
    try:
        return json.loads(data.decode("utf-8"), object_pairs_hook=_unique, parse_constant=_no_constant)
    except (ValueError, RecursionError) as cause:
        raise ArtifactError(f"{where} is not valid JSON", found=_short(str(cause)), fix=REMEDY) from cause


def fields(value: Any, names: Collection[str], where: str) -> dict[str, Any]:
    """Take an object that has exactly these fields."""
    found = mapping(value, where)
    missing, unknown = sorted(set(names) - set(found)), sorted(set(found) - set(names))
    if missing or unknown:
        parts = [f"no {', '.join(missing)}"] if missing else []
        parts += [f"unknown {', '.join(unknown)}"] if unknown else []
        raise ArtifactError(f"{where} has other fields", found=_short("; ".join(parts)), fix=REMEDY)
    return found


def mapping(value: Any, where: str) -> dict[str, Any]:
    """Take an object."""
    return _typed(value, dict, where)


def items(value: Any, where: str) -> list[Any]:
    """Take a list."""
    return _typed(value, list, where)


def text(value: Any, where: str) -> str:
    """Take a string that is not empty."""
    found = _typed(value, str, where)
    if not found.strip():
        raise ArtifactError(f"{where} is empty", fix=REMEDY)
    return found


def flag(value: Any, where: str) -> bool:
    """Take true or false."""
    return _typed(value, bool, where)


def count(value: Any, where: str) -> int:
    """Take an integer of 0 or more."""
    found = _typed(value, int, where)
    if found < 0:
        raise ArtifactError(f"{where} is negative", found=_short(str(found)), expected="0 or more", fix=REMEDY)
    return found


def number(value: Any, where: str) -> float:
    """Take a number."""
    return float(value) if type(value) is int else _typed(value, float, where)


def _typed(value: Any, kind: type[T], where: str) -> T:
    if type(value) is not kind:  # type(), because a bool is an int and must not pass for a size
        raise ArtifactError(
            f"{where} has the wrong type", found=_short(repr(value)), expected=kind.__name__, fix=REMEDY
        )
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key occurs twice")
    return found


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def _short(message: str) -> str:
    return message if len(message) <= SHOWN_CHARACTERS else message[:SHOWN_CHARACTERS] + "..."
