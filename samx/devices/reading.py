"""One value that was read from a device, or why it could not be."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

Value = float | int | str | bool


@dataclass(frozen=True)
class Reading:
    """Hold a value with its unit; without a value, the reason why there is none."""

    value: Value | None
    unit: str | None = None
    reason: str | None = None

    def __post_init__(self) -> None:
        if (self.value is None) != bool(self.reason):
            raise ValueError(f"a reading has a value or a reason, not {self.value!r} and {self.reason!r}")

    def to_json(self) -> dict[str, Value | None]:
        """Give the fields to machines."""
        return {"value": self.value, "unit": self.unit, "reason": self.reason}


Readings = Mapping[str, Reading]


def unread(reason: str, unit: str | None = None) -> Reading:
    """Say why there is no value."""
    return Reading(None, unit, reason)


def number(readings: Readings, name: str) -> float | None:
    """Take a number from among the readings, if it was read."""
    reading = readings.get(name)
    value = None if reading is None else reading.value
    return None if value is None or isinstance(value, str) else float(value)
