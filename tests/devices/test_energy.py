"""Energy comes from a counter or from power over time, and from nothing where too little was sampled."""

from __future__ import annotations

import pytest

from samx.devices.adapter import Reading, unread
from samx.devices.monitor import Sample, energy_mj

SECOND = 1_000_000_000


def power(*watts: float | None, every: float = 1.0) -> list[Sample]:
    """Make samples of power, from time 0 on; None is a sample without a value."""
    readings = [unread("sensor asleep", "W") if value is None else Reading(value, "W") for value in watts]
    return [(int(i * every * SECOND), {"power": reading}) for i, reading in enumerate(readings)]


def counter(*joules: float) -> list[Sample]:
    """Make samples of an energy counter, one a second, beside a power that is wrong."""
    return [
        (i * SECOND, {"energy": Reading(value, "J"), "power": Reading(999.0, "W")}) for i, value in enumerate(joules)
    ]


def energy(samples: list[Sample], start: float, end: float, slack: float = 0.0) -> Reading:
    return energy_mj(samples, int(start * SECOND), int(end * SECOND), int(slack * SECOND))


@pytest.mark.parametrize(
    ("watts", "start", "end", "joules"),
    [
        ((5, 5, 5, 5), 0, 3, 15),  # constant
        ((0, 2, 4, 6), 0, 3, 9),  # a ramp: trapezoids are exact
        ((0, 2, 4, 6, 8), 0.5, 3.5, 12),  # edges between samples are interpolated
        ((0, 0, 9, 0, 0), 0, 4, 9),  # a peak
        ((7, 3, 3, 3, 7), 1, 3, 6),  # what lies outside does not count
    ],
)
def test_power_over_time(watts: tuple[float, ...], start: float, end: float, joules: float) -> None:
    found = energy(power(*watts), start, end)
    assert found.value == pytest.approx(joules * 1e3)
    assert found.unit == "mJ"


def test_uneven_samples() -> None:
    times = (0.0, 0.3, 1.0, 2.5, 4.0)
    samples: list[Sample] = [(int(at * SECOND), {"power": Reading(2.0 * at, "W")}) for at in times]
    assert energy(samples, 0, 4).value == pytest.approx(16e3)


def test_a_counter_goes_before_power() -> None:
    assert energy(counter(100, 103, 107, 112), 0, 3).value == pytest.approx(12e3)


def test_a_counter_between_its_samples() -> None:
    assert energy(counter(100, 102, 106, 112, 120), 0.5, 3.5).value == pytest.approx(15e3)


def test_a_counter_just_beyond_its_samples() -> None:
    samples = [(at + SECOND, readings) for at, readings in counter(100, 102, 106)]
    assert energy(samples, 0.5, 3.5, slack=1).value == pytest.approx((6 + 1 + 2) * 1e3)


def test_power_just_beyond_its_samples() -> None:
    samples = [(at + SECOND, readings) for at, readings in power(2, 4, 6)]
    assert energy(samples, 0.5, 3.5, slack=1).value == pytest.approx((8 + 1 + 3) * 1e3)


@pytest.mark.parametrize(("start", "end", "inside"), [(1.5, 2.5, 1), (1.1, 1.9, 0), (1.0, 2.0, 2)])
def test_too_few_samples(start: float, end: float, inside: int) -> None:
    reason = f"{inside} samples of power lie in the interval, at least 3 are needed"
    assert energy(power(5, 5, 5, 5, 5), start, end) == unread(reason, "mJ")


@pytest.mark.parametrize(("start", "end"), [(0, 9), (-3, 4)])
def test_samples_that_end_early_do_not_speak_for_the_rest(start: float, end: float) -> None:
    reason = "the samples of power do not reach over the whole interval"
    assert energy(power(5, 5, 5, 5, 5), start, end, slack=1) == unread(reason, "mJ")


def test_samples_without_a_value_do_not_count() -> None:
    assert energy(power(5, None, 5, 5), 0, 3).value == pytest.approx(15e3)
    assert energy(power(5, None, None, 5), 0, 3).value is None


def test_without_power_the_reason_is_the_sensors() -> None:
    assert energy(power(None, None), 0, 1) == unread("sensor asleep", "mJ")
    assert energy([(0, {}), (SECOND, {})], 0, 1) == unread("has no power reading", "mJ")
    assert energy([], 0, 1) == unread("has no power reading", "mJ")
