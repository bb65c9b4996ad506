"""Read and write JSON by type: every surprise in a file is an ArtifactError of one line that names the path.

A type is what annotations say: str (never empty), bool, int, float, Any, X | None, Literal, tuple[T, ...], list[T],
Mapping[str, T], a dataclass, and Annotated[T, rule], whose rule refuses a value by raising. A dictionary of names and
types stands for an object without a class.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import fields as fields_of
from dataclasses import is_dataclass
from datetime import datetime, timedelta
from functools import cache
from math import isclose, isfinite
from types import UnionType
from typing import Annotated, Any, ClassVar, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from samx.errors import ArtifactError

D = TypeVar("D", bound="Document")
Rule = Callable[[Any, str], object]

SHOWN_CHARACTERS = 80  # an error line stays readable whatever the file holds
DEEPEST = 64  # levels of lists and objects; the deepest file has about ten
LARGEST = 2**62  # of any count: sizes and times are 64-bit numbers
REMEDY = "The file is damaged, altered or of another samx version; export or validate again."
PLAIN = (str, int, float, bool)
OTHER_VERSION = "Use the samx version that wrote it, or export again."
SHA256 = re.compile(r"[0-9a-f]{64}")


def short(words: str) -> str:
    """Cut what a file holds to what an error line shows of it."""
    return words if len(words) <= SHOWN_CHARACTERS else words[:SHOWN_CHARACTERS] + "..."


def refusal(what: str, found: str | None = None, expected: str | None = None, fix: str = REMEDY) -> ArtifactError:
    """Return the error of a file that nothing here wrote."""
    return ArtifactError(what, found=None if found is None else short(found), expected=expected, fix=fix)


class Document:
    """Let a dataclass be read from JSON and written to it.

    HEADER stands in the file with just these values. DERIVED properties are written for readers of the file and must
    follow from the rest when it is read, floats up to ROUNDING; so are NOTES, which nothing is compared with.
    """

    HEADER: ClassVar[Mapping[str, Any]] = {}
    DERIVED: ClassVar[tuple[str, ...]] = ()
    NOTES: ClassVar[tuple[str, ...]] = ()
    ROUNDING: ClassVar[float] = 0.0
    INDENT: ClassVar[int | None] = 2

    def check(self, where: str) -> None:
        """Refuse what was read, where its fields do not fit together."""

    def to_json(self) -> dict[str, Any]:
        """Return the header, what follows from the fields, and the fields, as plain data."""
        names = (*self.DERIVED, *self.NOTES, *_hints(type(self)))
        return {**self.HEADER, **{name: plain(getattr(self, name)) for name in names}}

    def to_bytes(self) -> bytes:
        """Return the file's content."""
        return (json.dumps(self.to_json(), indent=self.INDENT, allow_nan=False) + "\n").encode()

    @classmethod
    def from_json(cls: type[D], value: Any, where: str) -> D:
        """Read plain data.

        Raises: ArtifactError for anything that to_json() would not have returned.
        """
        shape = {**_hints(cls), **dict.fromkeys((*cls.DERIVED, *cls.NOTES), Any)}
        found = contents(value, cls.HEADER, shape, where)
        document = cls(**{name: found[name] for name in _hints(cls)})
        document.check(where)
        for name in cls.DERIVED:
            _compare(found[name], plain(getattr(document, name)), f"{where}: {name}", cls.ROUNDING)
        return document

    @classmethod
    def from_bytes(cls: type[D], data: bytes, where: str) -> D:
        """Read the file's content.

        Raises: ArtifactError for anything that to_bytes() would not have written.
        """
        return cls.from_json(parse(data, where), where)


def parse(data: bytes, where: str) -> Any:
    """Parse UTF-8 JSON without duplicate keys, numbers that are not finite, and strings that are no text.

    Raises: ArtifactError naming `where`.
    """
    try:
        found = json.loads(data.decode("utf-8"), object_pairs_hook=_unique)
        _examine(found, 0)
    except (ValueError, RecursionError) as cause:
        raise refusal(f"{where} is not valid JSON", str(cause)) from cause
    return found


def contents(value: Any, header: Mapping[str, Any], shape: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Take an object that has exactly a header and these fields.

    Raises: ArtifactError; of another format or version before anything else.
    """
    found = take(dict[str, Any], value, where)
    wrong = [name for name, true in header.items() if not _same(found.get(name), true)]
    if wrong:
        there, wanted = (", ".join(f"{name} {of.get(name)!r}" for name in wrong) for of in (found, header))
        raise refusal(f"{where} has another format", there, wanted, OTHER_VERSION)
    found = fields(found, [*header, *shape], where)
    return {name: take(hint, found[name], f"{where}: {name}") for name, hint in shape.items()}


def fields(value: Any, names: Collection[str], where: str) -> dict[str, Any]:
    """Take an object that has exactly these fields, of any type."""
    found: dict[str, Any] = take(dict[str, Any], value, where)
    missing, unknown = sorted(set(names) - set(found)), sorted(set(found) - set(names))
    if missing or unknown:
        parts = [f"no {', '.join(missing)}"] if missing else []
        parts += [f"unknown {', '.join(unknown)}"] if unknown else []
        raise refusal(f"{where} has other fields", "; ".join(parts))
    return found


def take(hint: Any, value: Any, where: str) -> Any:
    """Take a value of a type.

    Raises: ArtifactError naming `where`.
    """
    if isinstance(hint, dict):
        return contents(value, {}, hint, where)
    if hint is Any:
        return value
    if hasattr(hint, "from_json"):
        return hint.from_json(value, where)
    if is_dataclass(hint):
        kind: Any = hint
        return kind(**contents(value, {}, _hints(kind), where))
    origin = get_origin(hint)
    return TAKERS[origin](get_args(hint), value, where) if origin else _scalar(hint, value, where)


def plain(value: Any) -> Any:
    """Return a value as JSON has it: documents and dataclasses as objects, tuples as lists."""
    if hasattr(value, "to_json"):
        return value.to_json()
    if is_dataclass(value):
        return {name: plain(getattr(value, name)) for name in _hints(type(value))}
    if isinstance(value, Mapping):
        return {name: plain(entry) for name, entry in value.items()}
    return [plain(entry) for entry in value] if isinstance(value, (tuple, list)) else value


def _annotated(parts: tuple[Any, ...], value: Any, where: str) -> Any:
    found = take(parts[0], value, where)
    for rule in parts[1:]:
        rule(found, where)
    return found


def _choice(choices: tuple[Any, ...], value: Any, where: str) -> Any:
    if not any(_same(value, choice) for choice in choices):
        raise refusal(f"{where} is unknown", repr(value), " or ".join(map(str, choices)))
    return value


def _union(options: tuple[Any, ...], value: Any, where: str) -> Any:
    """Take the type that a value is of, or else the one that is no plain type."""
    if value is None and type(None) in options:
        return None
    rest = [option for option in options if option is not type(None)]
    fits = [option for option in rest if type(value) is option] or [option for option in rest if option not in PLAIN]
    if not fits and len(rest) > 1:
        raise refusal(f"{where} has the wrong type", repr(value), " or ".join(option.__name__ for option in rest))
    return take((fits or rest)[0], value, where)


def _items(parts: tuple[Any, ...], value: Any, where: str) -> tuple[Any, ...]:
    if parts[1:] not in ((), (...,)):
        raise TypeError(f"{where}: only tuple[T, ...] is read")
    return tuple(take(parts[0], entry, f"{where} {i}") for i, entry in enumerate(_typed(list, value, where)))


def _mapping(parts: tuple[Any, ...], value: Any, where: str) -> dict[str, Any]:
    key, of = parts
    found = _typed(dict, value, where)
    named = found if key is str else [take(key, name, where) for name in found]
    return {name: take(of, found[name], f"{where}: {short(name)}") for name in named}


TAKERS: Mapping[Any, Callable[[tuple[Any, ...], Any, str], Any]] = {
    Annotated: _annotated, Literal: _choice, Union: _union, UnionType: _union, tuple: _items, dict: _mapping,
    Mapping: _mapping, list: lambda parts, value, where: list(_items(parts, value, where)),
}  # fmt: skip


def _scalar(kind: type, value: Any, where: str) -> Any:
    if kind is float and type(value) is int and abs(value) <= LARGEST:
        return float(value)
    found = _typed(kind, value, where)
    if kind is str and not found.strip():
        raise refusal(f"{where} is empty")
    if kind is float and not isfinite(found):
        raise refusal(f"{where} is not finite", str(found))
    return found


def _typed(kind: type, value: Any, where: str) -> Any:
    if type(value) is not kind:  # type(), because a bool is an int and must not pass for a size
        raise refusal(f"{where} has the wrong type", repr(value), kind.__name__)
    return value


def _field_types(kind: Any) -> dict[str, Any]:
    """Return the types of a dataclass's fields."""
    hints = get_type_hints(kind, include_extras=True)
    return {field.name: hints[field.name] for field in fields_of(kind)}


_hints: Callable[[Any], dict[str, Any]] = cache(_field_types)


def _compare(stated: Any, true: Any, where: str, rounding: float) -> None:
    """Refuse what a file says of itself and does not follow from it."""
    if isinstance(true, dict):
        for name, found in fields(stated, true, where).items():
            _compare(found, true[name], f"{where}: {name}", rounding)
    elif not _same(stated, true, rounding):
        raise refusal(f"{where}: the file contradicts itself", repr(stated), short(repr(true)))


def _same(stated: Any, true: Any, rounding: float = 0.0) -> bool:
    if type(true) is float and type(stated) in (int, float) and abs(stated) <= LARGEST:
        return isclose(stated, true, rel_tol=rounding, abs_tol=rounding)
    if type(true) is list and type(stated) is list:
        return len(stated) == len(true) and all(map(_same, stated, true, [rounding] * len(true)))
    return type(stated) is type(true) and bool(stated == true)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key occurs twice")
    return found


def _examine(value: Any, depth: int) -> None:
    if depth > DEEPEST:
        raise ValueError("nested too deeply")
    if isinstance(value, float) and not isfinite(value):
        raise ValueError(f"{value} is no number")
    if isinstance(value, str):
        value.encode()  # half of a surrogate pair is no text, and could not be shown
    for part in (*value, *value.values()) if isinstance(value, dict) else value if isinstance(value, list) else ():
        _examine(part, depth + 1)


def between(least: int, most: int) -> Rule:
    """Return the rule that a number lies in a range."""

    def check(value: int, where: str) -> None:
        if not least <= value <= most:
            expected = f"{least} or more" if most == LARGEST and value < least else f"{least} to {most}"
            raise refusal(f"{where} is out of range", str(value), expected)

    return check


def is_sha256(value: str, where: str) -> None:
    """Check that a string is a SHA-256."""
    if not SHA256.fullmatch(value):
        raise refusal(f"{where} is no hash", value, "64 hexadecimal digits")


def is_utc(value: str, where: str) -> None:
    """Check that a string is a time in UTC."""
    try:
        good = datetime.fromisoformat(value).utcoffset() == timedelta(0)
    except ValueError:
        good = False
    if not good:
        raise refusal(f"{where} is no time", value, "ISO 8601 in UTC")


def not_empty(value: Collection[Any], where: str) -> None:
    """Check that a list or an object holds something."""
    if not value:
        raise refusal(f"{where} is empty", expected="at least one entry")


def shaped(shape: dict[str, Any]) -> Rule:
    """Return the rule that an object has these fields of these types."""
    return lambda value, where: take(shape, value, where)


Count = Annotated[int, between(0, LARGEST)]
Positive = Annotated[int, between(1, LARGEST)]
Sha256 = Annotated[str, is_sha256]
Time = Annotated[str, is_utc]
