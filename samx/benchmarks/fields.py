"""Read lists, optional values and several fields of one kind: what reading a report needs beyond strict_json."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import fields
from typing import Any, TypeVar

from samx.artifacts import strict_json as read

T = TypeVar("T")
FIX = "Measure again with 'samx bench'."


def names(kind: type) -> list[str]:
    """Name a dataclass's fields."""
    return [field.name for field in fields(kind)]


def each(reader: Callable[[Any, str], T], value: Any, where: str) -> tuple[T, ...]:
    """Read every entry of a list."""
    return tuple(reader(entry, f"{where} {i}") for i, entry in enumerate(read.items(value, where)))


def optional(reader: Callable[[Any, str], T], value: Any, where: str) -> T | None:
    """Read a value that may be null."""
    return None if value is None else reader(value, where)


def lines(value: Any, where: str) -> tuple[str, ...]:
    """Read a list of strings."""
    return each(read.text, value, where)


def texts(found: Mapping[str, Any], wanted: Iterable[str], where: str) -> dict[str, Any]:
    """Read fields that are strings."""
    return all_of(read.text, found, wanted, where)


def all_of(
    reader: Callable[[Any, str], Any], found: Mapping[str, Any], wanted: Iterable[str], where: str
) -> dict[str, Any]:
    """Read fields of one kind."""
    return {name: reader(found[name], f"{where}: {name}") for name in wanted}
