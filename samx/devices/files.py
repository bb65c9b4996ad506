"""Read small system files below a root, so that the same code reads a machine and a recording of one; run commands."""

from __future__ import annotations

import math
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

from samx.devices.adapter import Reading, Value, unread

SHOWN_OF_FILE, SHOWN_OF_COMMAND = 40, 120  # characters
TIMEOUT_S = 5.0  # of a command

Run = Callable[..., str]  # the words of a command -> what it printed; raises CommandError


class CommandError(Exception):
    """Raised with the reason why a command gave nothing."""


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
        """Read one file as one value, or return why not."""
        try:
            text = self.text(path)
            value = convert(text)
        except OSError as cause:
            return unread(_words(path, cause), unit)
        except (ValueError, OverflowError):
            return unread(f"{path} holds something else: {text[:SHOWN_OF_FILE]!r}", unit)
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


def run(*words: str) -> str:
    """Run a command and return what it printed.

    Raises: CommandError when it is not there, takes too long or fails.
    """
    environment = {**os.environ, "LC_ALL": "C"}  # what is read here was written in English
    try:
        done = subprocess.run(
            words, capture_output=True, text=True, errors="replace", stdin=subprocess.DEVNULL, timeout=TIMEOUT_S,
            check=False, env=environment,
        )  # fmt: skip
    except subprocess.TimeoutExpired as cause:
        raise CommandError(f"{words[0]} did not answer in {TIMEOUT_S:g} s") from cause
    except OSError as cause:
        raise CommandError(f"{words[0]} cannot be run: {cause.strerror or cause}") from cause
    if done.returncode != 0:
        said = " ".join((done.stderr or done.stdout).split())[:SHOWN_OF_COMMAND]
        raise CommandError(f"{' '.join(words)} failed with exit code {done.returncode}: {said or 'no message'}")
    return done.stdout


def answer(run: Run, words: tuple[str, ...], take: Callable[[str], str | None]) -> Reading:
    """Take one text from what a command prints, or return why not."""
    try:
        found = take(run(*words))
    except CommandError as cause:
        return unread(cause)
    return Reading(found) if found else unread(f"{' '.join(words)} printed something else")
