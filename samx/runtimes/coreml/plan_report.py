"""Core ML's plan of one function, as data that says of itself what it shows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated

from samx.artifacts.strict_json import Count, Document, refusal

SHOWS = "where Core ML means to run each operation on the named machine; planned before a run, not observed in one"
DEVICES = (ENGINE, GPU, CPU) = ("ANE", "GPU", "CPU")


def _known_device(value: str, where: str) -> None:
    if value not in DEVICES:
        raise refusal(f"{where} is unknown", value, " or ".join(DEVICES))


@dataclass(frozen=True)
class Planned:
    """Say where one operation shall run, as WhisperKit's compute plan files do."""

    dispatch: Annotated[str, _known_device]
    supported: tuple[str, ...]
    cost: float | None  # percent of what all operations are estimated to cost


@dataclass(frozen=True)
class Residency:
    """Give the share that the Neural Engine is meant to take; None where the plan estimates no cost."""

    operations: float
    cost: float | None


@dataclass(frozen=True)
class ComputePlan(Document):
    """Hold the plan of one function. Stored weights are no operations; of the unplanned ones Core ML says nothing.

    `operations` has the shape of WhisperKit's `*.mlcomputeplan.json`.
    """

    HEADER = {"kind": "compute plan", "shows": SHOWS, "schema_version": 1}
    DERIVED = ("dispatch", "residency")

    function: str
    compute_units: str
    machine: Mapping[str, str]
    constants: Count
    operations: Mapping[str, Planned]  # by place, operator and input names
    unplanned: tuple[str, ...] = ()

    @property
    def dispatch(self) -> Mapping[str, int]:
        """Count the operations by the device that shall run them."""
        counts = Counter(planned.dispatch for planned in self.operations.values())
        return {device: counts[device] for device in DEVICES}

    @property
    def total(self) -> int:
        """Count the operations, the unplanned too."""
        return len(self.operations) + len(self.unplanned)

    @property
    def residency(self) -> Residency:
        """How much of the function shall run on the Neural Engine."""
        costs = [(planned.dispatch, planned.cost) for planned in self.operations.values() if planned.cost is not None]
        whole, on_engine = (sum(cost for device, cost in costs if device in of) for of in (DEVICES, (ENGINE,)))
        operations = self.dispatch[ENGINE] / self.total if self.total else 0.0
        return Residency(operations, on_engine / whole if whole else None)

    def lines(self) -> list[str]:
        """Summarise for a terminal."""
        share = self.residency
        cost = "no estimated cost" if share.cost is None else f"{share.cost:.1%} of the estimated cost"
        counts = ", ".join(f"{device} {count}" for device, count in self.dispatch.items())
        head = f"{self.function}: {share.operations:.1%} of {self.total} operations and {cost} on the Neural Engine"
        return [f"{head} ({counts})"]
