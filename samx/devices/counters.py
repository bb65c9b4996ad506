"""Counters of events that slow a device down: what they rose by during a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from samx.devices.reading import Readings, number


def increase(samples: Sequence[Readings], name: str) -> float:
    """Give what a counter rose by between the first and the last sample that have it."""
    values = [value for sample in samples if (value := number(sample, name)) is not None]
    return values[-1] - values[0] if values else 0.0


def risen(samples: Sequence[Readings], sentences: Mapping[str, tuple[float, str]]) -> list[str]:
    """Say which counters rose by at least so much. Each sentence has `{by}` in it."""
    rises = {name: increase(samples, name) for name in sentences}
    return [words.format(by=f"{rises[name]:g}") for name, (least, words) in sentences.items() if rises[name] >= least]
