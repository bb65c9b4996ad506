"""Tables below the charts: every latency with its proof, energy, devices, what was not measured."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from typing import Any

from samx.benchmarks.report.runs import Entry, Run, all_entries, scenarios
from samx.benchmarks.report.words import places, plain, short, spaced
from samx.benchmarks.results import PHASES, Reading, Result

MOVING = 2  # fewest different values that make a line


@dataclass(frozen=True)
class Latency:
    """Hold one line of the table of all latencies."""

    entry: Entry
    result: Result

    @property
    def placement(self) -> str:
        """Where its operations ran."""
        return placement(self.entry)


@dataclass(frozen=True)
class Fact:
    """Hold what was read of a device, before and after the run and meanwhile."""

    name: str
    before: str
    after: str
    reason: str | None
    times: tuple[float, ...] = ()
    values: tuple[float, ...] = ()


@dataclass(frozen=True)
class Gap:
    """Say what was not measured, and why."""

    what: str
    reason: str


def placement(entry: Entry) -> str:
    """Say where the operations of an artifact ran."""
    found = entry.subject.placement
    return "nothing ran" if found is None else plain(places(found.get("operations")))


def latencies(runs: Sequence[Run]) -> list[tuple[str, list[Latency]]]:
    """Give every result, by scenario."""
    names = list(dict.fromkeys([*scenarios(runs), *(name for phase in PHASES for name in scenarios(runs, phase))]))
    found = {name: [Latency(entry, result) for entry in all_entries(runs) for result in entry.results()
                    if result.scenario == name] for name in names}  # fmt: skip
    return list(found.items())


def energies(runs: Sequence[Run]) -> tuple[dict[str, list[tuple[Entry, Result, float]]], list[Gap]]:
    """Give the energy per prompt by scenario, and why there is none elsewhere."""
    measured: dict[str, list[tuple[Entry, Result, float]]] = {}
    missing: dict[str, list[str]] = {}
    steady = [(entry, result) for entry in all_entries(runs) for result in entry.results()
              if result.phase == "steady" and result.peak_bytes is None]  # fmt: skip
    for entry, result in steady:
        value = result.energy_mj["value"]
        if isinstance(value, (int, float)) and isfinite(value):
            measured.setdefault(result.scenario, []).append((entry, result, float(value)))
        else:
            missing.setdefault(str(result.energy_mj["reason"] or "no finite value was read"), []).append(entry.label)
    return measured, [Gap(_all_or(labels, runs), reason) for reason, labels in missing.items()]


def gaps(runs: Sequence[Run]) -> list[Gap]:
    """Give what was not measured, artifacts with the same reason together."""
    found: dict[tuple[str, str], list[str]] = {}
    for entry in all_entries(runs):
        for one in entry.run.report.not_measured:
            if one.subject == entry.subject.name:
                what = ", ".join(spaced(part) for part in (one.scenario, one.phase) if part) or "everything"
                found.setdefault((what, one.reason), []).append(entry.label)
    return [Gap(f"{what} of {_all_or(labels, runs)}", reason) for (what, reason), labels in found.items()]


def facts(run: Run, kind: str) -> tuple[list[Fact], list[Fact]]:
    """Give what does not move, and what does, of one kind of device."""
    found = run.report.device.kinds[kind]
    fixed = [_fact(name, reading, reading) for name, reading in found["facts"].items()]
    before, after = found["before"], found["after"]
    names = list(dict.fromkeys([*before, *after]))
    return fixed, [_moving(run, kind, name, before.get(name), after.get(name)) for name in names]


def command(run: Run) -> str:
    """Write the command that measures the same again."""
    return shlex.join(run.report.command)


def value(reading: Reading | None) -> str:
    """Write a reading with its unit."""
    if reading is None or reading["value"] is None:
        return "\u2013"
    found, unit = reading["value"], reading["unit"]
    return f"{_words(found)}{f' {unit}' if unit else ''}"


def _all_or(labels: Sequence[str], runs: Sequence[Run]) -> str:
    """Name artifacts, but not one by one where all are meant."""
    named, every = list(dict.fromkeys(labels)), all_entries(runs)
    return "all artifacts" if len(named) == len(every) > 1 else ", ".join(named)


def _fact(name: str, before: Reading | None, after: Reading | None) -> Fact:
    read = [reading for reading in (before, after) if reading is not None]
    reasons = [str(reading["reason"]) for reading in read if reading["value"] is None]
    return Fact(name, value(before), value(after), reasons[0] if len(reasons) == len(read) and reasons else None)


def _moving(run: Run, kind: str, name: str, before: Reading | None, after: Reading | None) -> Fact:
    fact = _fact(name, before, after)
    points = [(sample["time_ns"] / 1e9, found) for sample in run.report.device.samples
              if (found := _number(sample["readings"], kind, name)) is not None]  # fmt: skip
    if len({found for _, found in points}) < MOVING:
        return fact
    times, values = zip(*points, strict=True)
    return Fact(name, fact.before, fact.after, fact.reason, tuple(times), tuple(values))


def _number(readings: Mapping[str, Mapping[str, Any]], kind: str, name: str) -> float | None:
    found = readings.get(kind, {}).get(name)
    is_number = isinstance(found, (int, float)) and not isinstance(found, bool) and isfinite(found)
    return float(found) if is_number and found is not None else None


def _words(found: object) -> str:
    if isinstance(found, bool):
        return "yes" if found else "no"
    return short(found) if isinstance(found, float) else str(found)
