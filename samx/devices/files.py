"""Read small system files below a root, so that the same code reads a machine and a recording of one."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

from samx.devices.reading import Reading, Value, unread

SHOWN_CHARACTERS = 40


class Tree:
    """System files by their absolute paths, below a root."""

    def __init__(self, root: Path = Path("/")) -> None:
        self._root = str(root).rstrip("/")

    def text(self, path: str) -> str:
        """Read a file, without the zeros and line ends that the kernel closes it with.

        Raises: OSError.
        """
        with open(self._root + path, "rb", buffering=0) as file:
            return file.read().decode(errors="replace").strip("\0\n\r\t ")

    def find(self, pattern: str) -> list[str]:
        """List the paths that match, numbers in their own order."""
        found = Path(self._root or "/").glob(pattern.lstrip("/"))
        return sorted((str(path)[len(self._root) :] for path in found), key=_natural)

    def reading(self, path: str, convert: Callable[[str], Value] = str, unit: str | None = None) -> Reading:
        """Read one file as one value, or say why not."""
        try:
            text = self.text(path)
            value = convert(text)
        except OSError as cause:
            return unread(_words(path, cause), unit)
        except (ValueError, OverflowError):
            return unread(f"{path} holds something else: {text[:SHOWN_CHARACTERS]!r}", unit)
        return Reading(value, unit) if value != "" else unread(f"{path} is empty", unit)

    def lines(self, path: str) -> list[str]:
        """Read the lines of a file that may be missing."""
        try:
            return self.text(path).splitlines()
        except OSError:
            return []


def scaled(factor: float) -> Callable[[str], float]:
    """Make a conversion from a whole number in a file to a unit."""
    return lambda text: int(text) * factor


def finite(text: str) -> float:
    """Read a decimal number.

    Raises: ValueError, for NaN and infinity too.
    """
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(text)
    return value


def _words(path: str, cause: OSError) -> str:
    if isinstance(cause, FileNotFoundError):
        return f"{path} is not there"
    if isinstance(cause, PermissionError):
        return f"{path} may be read by root only"
    return f"{path} cannot be read: {cause.strerror or cause}"


def _natural(path: str) -> list[tuple[bool, int, str]]:
    """Order cpu2 before cpu10."""
    parts = "".join(letter if letter.isdigit() else f" {letter} " for letter in path).split()
    return [(part.isdigit(), int(part) if part.isdigit() else 0, part) for part in parts]
