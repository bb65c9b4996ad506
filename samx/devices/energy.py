"""What a device drew over an interval, from samples of its power or of its energy counter."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from samx.devices.reading import Reading, Readings, number, unread

Sample = tuple[int, Readings]  # time in ns
Floats = npt.NDArray[np.float64]

LEAST_SAMPLES = 3
UNIT = "mJ"
NO_POWER = "has no power reading"


def energy_mj(samples: Sequence[Sample], start_ns: int, end_ns: int, slack_ns: int) -> Reading:
    """Give the energy between two times, in mJ. A counter goes before power: it misses nothing between samples.

    The samples must reach over the interval, up to `slack_ns` at either end.
    """
    tried = [_energy(samples, name, integrate, start_ns, end_ns, slack_ns) for name, integrate in SOURCES.items()]
    return next((reading for reading in tried if reading.value is not None), tried[-1])


def _energy(
    samples: Sequence[Sample], name: str, integrate: Callable[..., float], start_ns: int, end_ns: int, slack_ns: int
) -> Reading:
    known = [(time, value) for time, readings in samples if (value := number(readings, name)) is not None]
    inside = sum(start_ns <= time <= end_ns for time, _ in known)
    if not known:
        return unread(_reason(samples, name), UNIT)
    if inside < LEAST_SAMPLES:
        return unread(f"{inside} samples of {name} lie in the interval, at least {LEAST_SAMPLES} are needed", UNIT)
    if known[0][0] > start_ns + slack_ns or known[-1][0] < end_ns - slack_ns:
        return unread(f"the samples of {name} do not reach over the whole interval", UNIT)
    times, values = (np.array(column, dtype=np.float64) for column in zip(*known, strict=True))
    return Reading(integrate((times - start_ns) * 1e-9, values, (end_ns - start_ns) * 1e-9) * 1e3, UNIT)


def _counted(times: Floats, joules: Floats, end: float) -> float:
    """Take the difference of a counter between 0 and `end`, at the pace of the nearest samples beyond them."""
    at_start, at_end = (_extended(times, joules, when) for when in (0.0, end))
    return at_end - at_start


def _extended(times: Floats, joules: Floats, when: float) -> float:
    if times[0] <= when <= times[-1]:
        return float(np.interp(when, times, joules))
    near, far = (0, 1) if when < times[0] else (-1, -2)
    pace = (joules[near] - joules[far]) / (times[near] - times[far])
    return float(joules[near] + pace * (when - times[near]))


def _integrated(times: Floats, watts: Floats, end: float) -> float:
    """Integrate power between 0 and `end` by trapezoids; beyond the samples the nearest one holds."""
    grid = np.concatenate(([0.0], times[(times > 0) & (times < end)], [end]))
    power: Any = np.interp(grid, times, watts)
    return float(np.sum((power[1:] + power[:-1]) / 2 * np.diff(grid)))


def _reason(samples: Sequence[Sample], name: str) -> str:
    reasons = [readings[name].reason for _, readings in samples if name in readings]
    return str(reasons[-1]) if reasons else NO_POWER


SOURCES: dict[str, Callable[..., float]] = {"energy": _counted, "power": _integrated}
