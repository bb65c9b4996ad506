"""Core ML's plan of one function, as data that says of itself what it shows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from samx.artifacts import strict_json as read
from samx.errors import ArtifactError

KIND, SCHEMA_VERSION = "compute plan", 1
SHOWS = "where Core ML means to run each operation on the named machine; planned before a run, not observed in one"
ENGINE, GPU, CPU = "ANE", "GPU", "CPU"
DEVICES = (ENGINE, GPU, CPU)


@dataclass(frozen=True)
class Planned:
    """Say where one operation shall run, as WhisperKit's compute plan files do."""

    dispatch: str
    supported: tuple[str, ...]
    cost: float | None  # percent of what all operations are estimated to cost

    def to_json(self) -> dict[str, Any]:
        """Give the fields as plain data."""
        return {"dispatch": self.dispatch, "supported": list(self.supported), "cost": self.cost}


@dataclass(frozen=True)
class Residency:
    """Give the share that the Neural Engine is meant to take; None where the plan estimates no cost."""

    operations: float
    cost: float | None


@dataclass(frozen=True)
class ComputePlan:
    """Hold the plan of one function. Stored weights are no operations; of the unplanned ones Core ML says nothing."""

    function: str
    compute_units: str
    machine: Mapping[str, str]
    constants: int
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

    def residency(self) -> Residency:
        """Say how much of the function shall run on the Neural Engine."""
        costs = [(planned.dispatch, planned.cost) for planned in self.operations.values() if planned.cost is not None]
        whole, on_engine = (sum(cost for device, cost in costs if device in of) for of in (DEVICES, (ENGINE,)))
        operations = self.dispatch[ENGINE] / self.total if self.total else 0.0
        return Residency(operations, on_engine / whole if whole else None)

    def lines(self) -> list[str]:
        """Summarise for a terminal."""
        share = self.residency()
        cost = "no estimated cost" if share.cost is None else f"{share.cost:.1%} of the estimated cost"
        counts = ", ".join(f"{device} {count}" for device, count in self.dispatch.items())
        head = f"{self.function}: {share.operations:.1%} of {self.total} operations and {cost} on the Neural Engine"
        return [f"{head} ({counts})"]

    def to_json(self) -> dict[str, Any]:
        """Give the plan as plain data. `operations` has the shape of WhisperKit's `*.mlcomputeplan.json`."""
        return {
            "kind": KIND,
            "shows": SHOWS,
            "schema_version": SCHEMA_VERSION,
            "function": self.function,
            "compute_units": self.compute_units,
            "machine": dict(self.machine),
            "dispatch": dict(self.dispatch),
            "residency": asdict(self.residency()),
            "constants": self.constants,
            "unplanned": list(self.unplanned),
            "operations": {name: planned.to_json() for name, planned in self.operations.items()},
        }

    @classmethod
    def from_json(cls, value: Any, where: str) -> ComputePlan:
        """Read a plan back.

        Raises: ArtifactError for anything that to_json() would not have given.
        """
        names = ("kind", "shows", "schema_version", "dispatch", "residency", *cls.__dataclass_fields__)
        body = read.fields(value, names, where)
        machine, operations = (read.mapping(body[name], f"{where}: {name}") for name in ("machine", "operations"))
        plan = cls(
            function=read.text(body["function"], f"{where}: function"),
            compute_units=read.text(body["compute_units"], f"{where}: compute_units"),
            machine={name: read.text(text, f"{where}: machine") for name, text in machine.items()},
            constants=read.count(body["constants"], f"{where}: constants"),
            operations={name: _planned(entry, f"{where}: {name}") for name, entry in operations.items()},
            unplanned=tuple(read.text(name, where) for name in read.items(body["unplanned"], f"{where}: unplanned")),
        )
        if plan.to_json() != value or any(planned.dispatch not in DEVICES for planned in plan.operations.values()):
            raise ArtifactError(f"{where} is another kind of report, or contradicts itself", fix=read.REMEDY)
        return plan


def _planned(value: Any, where: str) -> Planned:
    found = read.fields(value, Planned.__dataclass_fields__, where)
    supported = tuple(read.text(device, where) for device in read.items(found["supported"], where))
    cost = None if found["cost"] is None else read.number(found["cost"], f"{where}: cost")
    return Planned(read.text(found["dispatch"], where), supported, cost)
