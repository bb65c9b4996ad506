"""What every kind of device can be asked."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from samx.devices.reading import Readings


class Adapter(Protocol):
    """Read one device. Names that mean the same everywhere: `power` in W and `energy` in J (a counter that only grows)
    are what the measured device draws, `power_scope` says in words what they cover, `temperature` is in C.
    """

    kind: str

    def name(self) -> str:
        """Name the device as its maker does."""
        ...

    def facts(self) -> Readings:
        """Read what does not move during a run: model, memory, libraries, power mode."""
        ...

    def sample(self) -> Readings:
        """Read what moves: clocks, power, temperature, load. Cheap, for it is called while something is measured."""
        ...

    def throttled(self, samples: Sequence[Readings]) -> list[str]:
        """Say what slowed the device down in these samples, which are in order; nothing if nothing did."""
        ...
