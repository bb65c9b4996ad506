"""What every kind of device can be asked, and what it answers: values, or why there is none.

Small system files are read below a root, so that the same code reads a machine and a recording of one.
"""

from __future__ import annotations

import math
import os
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

Value = float | int | str | bool
Run = Callable[..., str]  # the words of a command -> what it printed; raises CommandError

SENSORS, ZONES = "/sys/class/hwmon/hwmon*", "/sys/class/thermal/thermal_zone*"
SHOWN_OF_FILE, SHOWN_OF_COMMAND = 40, 120  # characters
TIMEOUT_S = 5.0  # of a command


@dataclass(frozen=True)
class Reading:
    """A value with its unit; without a value, the reason why there is none."""

    value: Value | None
    unit: str | None = None
    reason: str | None = None

    def __post_init__(self) -> None:
        if (self.value is None) != bool(self.reason):
            raise ValueError(f"a reading has a value or a reason, not {self.value!r} and {self.reason!r}")

    def to_json(self) -> dict[str, Value | None]:
        """Return the fields as plain data."""
        return asdict(self)


Readings = Mapping[str, Reading]


def unread(reason: object, unit: str | None = None) -> Reading:
    """Return a reading without a value."""
    return Reading(None, unit, str(reason))


class Adapter:
    """Read one device. This one knows nothing of it, and says why: what is measured is in the report in any case.

    Names that mean the same everywhere: `power` in W and `energy` in J (a counter that only grows) are what the
    measured device draws, `power_scope` says in words what they cover, `temperature` is in C.
    """

    kind = "unknown"

    def __init__(self, kind: str, reason: str) -> None:
        self.kind, self._reason = kind, reason

    def name(self) -> str:
        """Return the device's name, as its maker writes it."""
        return "unknown"

    def facts(self) -> Readings:
        """Read what does not move during a run: model, memory, libraries, power mode."""
        return {"power_scope": unread(self._reason)}

    def sample(self) -> Readings:
        """Read what moves: clocks, power, temperature, load. Cheap, for it is called while something is measured."""
        return {"power": unread(self._reason, "W")}

    def throttled(self, samples: Sequence[Readings]) -> list[str]:
        """Return in words what slowed the device down in these samples, which are in order."""
        return []


def number(readings: Readings, name: str) -> float | None:
    """Return a number from among the readings, if it was read."""
    reading = readings.get(name)
    value = None if reading is None else reading.value
    return None if value is None or isinstance(value, str) else float(value)


def numbers(samples: Sequence[Readings], name: str) -> list[float]:
    """Return a number from every sample that has it."""
    return [value for sample in samples if (value := number(sample, name)) is not None]


def texts(samples: Sequence[Readings], name: str) -> list[str]:
    """Return a value from every sample that asked for it, in words; "None" where it could not be read."""
    return [str(sample[name].value) for sample in samples if name in sample]


def risen(samples: Sequence[Readings], sentences: Mapping[str, tuple[float, str]]) -> list[str]:
    """Return the sentences about counters that rose by at least so much; each has `{by}` in it."""
    rises = {name: values[-1] - values[0] for name in sentences if (values := numbers(samples, name))}
    return [
        words.format(by=f"{rises[name]:g}") for name, (least, words) in sentences.items() if rises.get(name, 0) >= least
    ]


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
        return sorted((str(path)[len(self._root) :] for path in found), key=lambda path: (len(path), path))

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

    def sensors(self, driver: str) -> list[str]:
        """Find the folders of a driver's sensors."""
        return [path for path in self.find(SENSORS) if self.reading(f"{path}/name").value == driver]

    def zones(self) -> dict[str, str]:
        """Find the thermal zones: type -> file of the temperature."""
        found = ((self.reading(f"{zone}/type").value, f"{zone}/temp") for zone in self.find(ZONES))
        return {str(kind): path for kind, path in found if kind is not None}

    def celsius(self, path: str | None) -> Reading:
        """Read a temperature that is kept in thousandths of a degree."""
        if path is None:
            return unread("no sensor of the processor is known here", "C")
        return self.reading(path, scaled(1e-3), "C")

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
