"""What every kind of device can be asked, and what it answers: values, or why there is none."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Protocol

Value = float | int | str | bool


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


class Adapter(Protocol):
    """Read one device. Names that mean the same everywhere: `power` in W and `energy` in J (a counter that only grows)
    are what the measured device draws, `power_scope` says in words what they cover, `temperature` is in C.
    """

    kind: str

    def name(self) -> str:
        """Return the device's name, as its maker writes it."""
        ...

    def facts(self) -> Readings:
        """Read what does not move during a run: model, memory, libraries, power mode."""
        ...

    def sample(self) -> Readings:
        """Read what moves: clocks, power, temperature, load. Cheap, for it is called while something is measured."""
        ...

    def throttled(self, samples: Sequence[Readings]) -> list[str]:
        """Return in words what slowed the device down in these samples, which are in order."""
        ...


def unread(reason: object, unit: str | None = None) -> Reading:
    """Return a reading without a value."""
    return Reading(None, unit, str(reason))


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
