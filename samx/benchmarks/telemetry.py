"""Read the part of a report that devices told about themselves."""

from __future__ import annotations

from typing import Any

from samx.artifacts import strict_json as read
from samx.benchmarks.fields import FIX, each, lines, names, optional, texts
from samx.benchmarks.results import DeviceRecord, Reading
from samx.errors import ArtifactError

PLAIN = (str, int, float)
KIND_PARTS = ("facts", "before", "after")


def read_device(value: Any, where: str) -> DeviceRecord:
    """Take what telemetry told."""
    found = read.fields(value, names(DeviceRecord), where)
    environment = read.mapping(found["environment"], f"{where}: environment")
    kinds = read.mapping(found["kinds"], f"{where}: kinds")
    return DeviceRecord(
        requested=read.text(found["requested"], f"{where}: requested"),
        environment=texts(environment, environment, f"{where}: environment"),
        kinds={kind: _kind(entry, f"{where}: {kind}") for kind, entry in kinds.items()},
        samples=each(_sample, found["samples"], f"{where}: sample"),
        sampling=_sampling(found["sampling"], f"{where}: sampling"),
        flags=lines(found["flags"], f"{where}: flags"),
    )


def _kind(value: Any, where: str) -> dict[str, Any]:
    found = read.fields(value, ("name", *KIND_PARTS), where)
    parts = {part: _readings(found[part], f"{where}: {part}") for part in KIND_PARTS}
    return {"name": read.text(found["name"], f"{where}: name"), **parts}


def _sample(value: Any, where: str) -> dict[str, Any]:
    found = read.fields(value, ("time_ns", "readings"), where)
    kinds = {kind: read.mapping(entry, where) for kind, entry in read.mapping(found["readings"], where).items()}
    if not all(isinstance(value, PLAIN) for values in kinds.values() for value in values.values()):
        raise ArtifactError(f"{where} holds something else than values", fix=FIX)
    return {"time_ns": read.count(found["time_ns"], f"{where}: time_ns"), "readings": kinds}


def _sampling(value: Any, where: str) -> dict[str, Any]:
    found = read.fields(value, ("interval_s", "cost"), where)
    return {
        "interval_s": read.number(found["interval_s"], where),
        "cost": read_reading(found["cost"], f"{where}: cost"),
    }


def _readings(value: Any, where: str) -> dict[str, Reading]:
    return {name: read_reading(entry, f"{where}: {name}") for name, entry in read.mapping(value, where).items()}


def read_reading(value: Any, where: str) -> Reading:
    """Take a reading: what could not be read has a reason, and nothing else has."""
    found = read.fields(value, ("value", "unit", "reason"), where)
    optional(read.text, found["unit"], f"{where}: unit")
    reason = optional(read.text, found["reason"], f"{where}: reason")
    plain = found["value"] is None or isinstance(found["value"], PLAIN)
    if not plain or (found["value"] is None) is (reason is None):
        raise ArtifactError(f"{where} is no reading", expected="a value, or null and the reason", fix=FIX)
    return found
