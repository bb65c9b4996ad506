"""The tables of the page: devices by precisions, limits, every latency with its proof, energy, what is missing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import isfinite
from typing import Any

from samx.benchmarks.report.runs import NARROW, Entry, Run, all_entries, plain, precisions, scenarios, short, spaced
from samx.benchmarks.results import PHASES, Need, Reading, Result, Roofline

SHOWN_FIRST = "click"  # what a person waits for; another scenario only where none measured it
MEGA, GIGA = 1e6, 1e9

Cell = tuple[Entry, Result]


@dataclass(frozen=True)
class Headline:
    """The table: for each run, for each column, the artifacts that belong there."""

    scenario: str
    columns: list[str]
    rows: list[tuple[Run, list[list[Cell]]]]

    @property
    def cells(self) -> list[Cell]:
        """Return the cells, row by row."""
        return [cell for _, row in self.rows for column in row for cell in column]

    @property
    def best(self) -> Cell:
        """Return the fastest cell."""
        return min(self.cells, key=lambda cell: cell[1].summary.median_ms)

    @property
    def slowest_ms(self) -> float:
        """Return the slowest cell's time."""
        return max(result.summary.median_ms for _, result in self.cells)


def headline(runs: Sequence[Run]) -> Headline | None:
    """Build the table; None where nothing was measured steadily."""
    measured, heads = scenarios(runs), precisions(runs)
    if not measured:
        return None
    scenario = SHOWN_FIRST if SHOWN_FIRST in measured else measured[0]
    cells = [(entry, result) for entry in all_entries(runs) if (result := entry.find(scenario)) is not None]
    rows = [(run, [[cell for cell in cells if cell[0].run is run and cell[0].precision == head] for head in heads])
            for run in runs]  # fmt: skip
    return Headline(scenario, heads, rows)


def title(found: Headline | None) -> str:
    """Return the most important thing in one line."""
    if found is None:
        return "No result"
    what = "a click" if found.scenario == SHOWN_FIRST else f"in {spaced(found.scenario)}"
    return f"{short(found.best[1].summary.median_ms)} ms {what}"


@dataclass(frozen=True)
class Limit:
    """One artifact's calls in one scenario beside the machine's peaks."""

    entry: Entry
    need: Need
    result: Result
    share: float  # of the time that the machine would need at best

    @property
    def adds_per_byte(self) -> float:
        """Return how many multiply-adds a call has for each byte that it needs."""
        return self.need.multiply_adds / self.need.bytes

    @property
    def adds_per_s(self) -> float:
        """Return how many multiply-adds were done a second."""
        return self.need.multiply_adds / self.result.summary.median_ms * 1e3

    @property
    def words(self) -> str:
        """Return what was reached, in words."""
        each = self.need.multiply_adds / max(self.result.prompts, 1) / MEGA
        return (f"{self.entry.name}, {spaced(plain(self.need.scenario))}: {short(each)} million a prompt, "
                f"{short(self.adds_per_s / GIGA)} G/s, {short(100 * self.share)}{NARROW}% of the roof")  # fmt: skip


def limits(run: Run, line: Roofline) -> list[Limit]:
    """Return what has a need, a steady time and known peaks."""
    entries = {entry.subject.name: entry for entry in run.entries}
    pairs = [(need, entries[need.subject].find(need.scenario)) for need in line.needs]
    return [Limit(entries[need.subject], need, result, share) for need, result in pairs
            if result is not None and (share := line.share(need, result.summary.median_ms)) is not None]  # fmt: skip


def unknown_limits(runs: Sequence[Run]) -> list[tuple[str, str]]:
    """Return of which runs no peaks are known, and why."""
    return [(f"peaks of {run.key}", plain(str(line.bytes_per_s["reason"]))) for run in runs
            for line in run.report.rooflines if not limits(run, line)]  # fmt: skip


MOVING = 2  # fewest different values that make a line

Gap = tuple[str, str]  # what is missing, and why


@dataclass(frozen=True)
class Fact:
    """What was read of a device, before and after the run and meanwhile."""

    name: str
    before: str
    after: str
    reason: str | None
    times: tuple[float, ...] = ()
    values: tuple[float, ...] = ()


def latencies(runs: Sequence[Run]) -> list[tuple[str, list[tuple[Entry, Result]]]]:
    """Return every result, by scenario."""
    names = dict.fromkeys([*scenarios(runs), *(name for phase in PHASES for name in scenarios(runs, phase))])
    pairs = [(entry, result) for entry in all_entries(runs) for result in entry.results]
    return [(name, [pair for pair in pairs if pair[1].scenario == name]) for name in names]


def energies(runs: Sequence[Run]) -> tuple[dict[str, list[tuple[Entry, Result, float]]], list[Gap]]:
    """Return the energy per prompt by scenario, and why there is none elsewhere."""
    measured: dict[str, list[tuple[Entry, Result, float]]] = {}
    missing: dict[str, list[str]] = {}
    for entry, result in [(one, result) for one in all_entries(runs) for result in one.steady]:
        value = result.energy_mj["value"]
        if isinstance(value, (int, float)) and isfinite(value):
            measured.setdefault(result.scenario, []).append((entry, result, float(value)))
        else:
            missing.setdefault(str(result.energy_mj["reason"] or "no finite value was read"), []).append(entry.label)
    return measured, [(_all_or(labels, runs), reason) for reason, labels in missing.items()]


def gaps(runs: Sequence[Run]) -> list[Gap]:
    """Return what was not measured, artifacts with the same reason together."""
    found: dict[tuple[str, str], list[str]] = {}
    for run in runs:
        labels = {entry.subject.name: entry.label for entry in run.entries}
        for one in run.report.not_measured:
            what = ", ".join(spaced(part) for part in (one.scenario, one.phase) if part) or "everything"
            label = labels.get(one.subject, f"{run.key} \u00b7 {plain(one.subject)}")  # it did not open
            found.setdefault((what, one.reason), []).append(label)
    return [(f"{what} of {_all_or(labels, runs)}", reason) for (what, reason), labels in found.items()]


def _all_or(labels: Sequence[str], runs: Sequence[Run]) -> str:
    """Name artifacts, but not one by one where all are meant."""
    named, every = list(dict.fromkeys(labels)), all_entries(runs)
    return "all artifacts" if len(named) == len(every) > 1 else ", ".join(named)


def facts(run: Run, kind: str) -> tuple[list[Fact], list[Fact]]:
    """Return what does not move, and what does, of one kind of device."""
    found = run.report.device.kinds[kind]
    before, after = found["before"], found["after"]
    moving = [_fact(name, before.get(name), after.get(name)) for name in dict.fromkeys([*before, *after])]
    fixed = [_fact(name, reading, reading) for name, reading in found["facts"].items()]
    return fixed, [_with_samples(fact, run, kind) for fact in moving]


def _fact(name: str, before: Reading | None, after: Reading | None) -> Fact:
    read = [reading for reading in (before, after) if reading is not None]
    reasons = [str(reading["reason"]) for reading in read if reading["value"] is None]
    return Fact(name, _value(before), _value(after), reasons[0] if len(reasons) == len(read) and reasons else None)


def _with_samples(fact: Fact, run: Run, kind: str) -> Fact:
    points = [(sample["time_ns"] / 1e9, found) for sample in run.report.device.samples
              if (found := _number(sample["readings"], kind, fact.name)) is not None]  # fmt: skip
    if len({found for _, found in points}) < MOVING:
        return fact
    times, values = zip(*points, strict=True)
    return replace(fact, times=times, values=values)


def _number(readings: Mapping[str, Mapping[str, Any]], kind: str, name: str) -> float | None:
    found = readings.get(kind, {}).get(name)
    is_number = isinstance(found, (int, float)) and not isinstance(found, bool) and isfinite(found)
    return float(found) if is_number and found is not None else None


def _value(reading: Reading | None) -> str:
    """Return a reading with its unit, in words."""
    if reading is None or reading["value"] is None:
        return "\u2013"
    found, unit = reading["value"], reading["unit"]
    if isinstance(found, bool):
        found = "yes" if found else "no"
    return f"{short(found) if isinstance(found, float) else found}{f' {unit}' if unit else ''}"
