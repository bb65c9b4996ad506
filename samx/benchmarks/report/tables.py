"""The tables of the page: devices by precisions, limits, every latency with its proof, energy, what is missing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import isfinite
from typing import Any

from samx.benchmarks.report.runs import NARROW, Entry, Run, all_entries, plain, precisions, scenarios, short, spaced
from samx.benchmarks.results import PHASES, Need, Reading, Result, Roofline

SHOWN_FIRST = "click"  # what a person waits for; another scenario only where none measured it
MOVING = 2  # fewest different values that make a line
MEGA, GIGA = 1e6, 1e9

# An artifact's calls beside the machine's peaks: multiply-adds a byte and a second, what was reached in words.
Limit = tuple[Entry, float, float, str]
# What was read of a device: name, words before and after the run, the reason for none; times and numbers meanwhile.
Fact = dict[str, Any]
Points = Sequence[tuple[float, float]]
Gap = tuple[str, str]  # what is missing, and why


def headline(runs: Sequence[Run]) -> dict[str, Any] | None:
    """Build the table: for each run, for each column, the artifacts that belong there.

    None where nothing was measured steadily.
    """
    measured, heads = scenarios(runs), precisions(runs)
    if not measured:
        return None
    scenario = SHOWN_FIRST if SHOWN_FIRST in measured else measured[0]
    cells = [(entry, result) for entry in all_entries(runs) if (result := entry.find(scenario)) is not None]
    rows = [(run, [[cell for cell in cells if cell[0].run is run and cell[0].precision == head] for head in heads])
            for run in runs]  # fmt: skip
    ordered = [cell for _, row in rows for column in row for cell in column]
    by_time = sorted(ordered, key=lambda cell: cell[1].summary.median_ms)
    return {
        "scenario": scenario, "columns": heads, "rows": rows, "cells": ordered, "best": by_time[0],
        "slowest_ms": by_time[-1][1].summary.median_ms,
    }  # fmt: skip


def title(found: Mapping[str, Any] | None) -> str:
    """Return the most important thing in one line."""
    if found is None:
        return "No result"
    what = "a click" if found["scenario"] == SHOWN_FIRST else f"in {spaced(found['scenario'])}"
    return f"{short(found['best'][1].summary.median_ms)} ms {what}"


def limits(run: Run, line: Roofline) -> list[Limit]:
    """Return what has a need, a steady time and known peaks."""
    entries = {entry.subject.name: entry for entry in run.entries}
    found = [_limit(entries[need.subject], need, line) for need in line.needs]
    return [limit for limit in found if limit is not None]


def _limit(entry: Entry, need: Need, line: Roofline) -> Limit | None:
    result = entry.find(need.scenario)
    share = None if result is None else line.share(need, result.summary.median_ms)
    if result is None or share is None:
        return None
    each, rate = need.multiply_adds / max(result.prompts, 1), need.multiply_adds / result.summary.median_ms * 1e3
    words = (f"{entry.name}, {spaced(plain(need.scenario))}: {short(each / MEGA)} million a prompt, "
             f"{short(rate / GIGA)} G/s, {short(100 * share)}{NARROW}% of the roof")  # fmt: skip
    return entry, need.multiply_adds / need.bytes, rate, words


def unknown_limits(runs: Sequence[Run]) -> list[tuple[str, str]]:
    """Return of which runs no peaks are known, and why."""
    return [(f"peaks of {run.key}", plain(str(line.bytes_per_s["reason"]))) for run in runs
            for line in run.report.rooflines if not limits(run, line)]  # fmt: skip


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
    fixed = [_fact(name, reading, reading) for name, reading in found["facts"].items()]
    moving = [_fact(name, before.get(name), after.get(name), _samples(run, kind, name)) for name in {**before, **after}]
    return fixed, moving


def _fact(name: str, before: Reading | None, after: Reading | None, points: Points = ()) -> Fact:
    read = [reading for reading in (before, after) if reading is not None]
    reason = next((str(reading["reason"]) for reading in read), None) if all(r["value"] is None for r in read) else None
    times, numbers = zip(*points, strict=True) if len({found for _, found in points}) >= MOVING else ((), ())
    words = {"before": _value(before), "after": _value(after)}
    return {"name": name, **words, "reason": reason, "times": times, "numbers": numbers}


def _samples(run: Run, kind: str, name: str) -> Points:
    """Return a reading's numbers during a run, with their times in seconds."""
    read = [
        (sample["time_ns"] / 1e9, sample["readings"].get(kind, {}).get(name)) for sample in run.report.device.samples
    ]
    return [(time, found) for time, found in read
            if isinstance(found, (int, float)) and not isinstance(found, bool) and isfinite(found)]  # fmt: skip


def _value(reading: Reading | None) -> str:
    """Return a reading with its unit, in words."""
    if reading is None or reading["value"] is None:
        return "\u2013"
    found, unit = reading["value"], reading["unit"]
    if isinstance(found, bool):
        found = "yes" if found else "no"
    return f"{short(found) if isinstance(found, float) else found}{f' {unit}' if unit else ''}"
