"""Percentiles are exact and only given where they are honest; noise and drift are seen, other inputs are not noise."""

from __future__ import annotations

import numpy as np
import pytest

from samx.benchmarks.interleave import Samples
from samx.benchmarks.summary import DRIFT_SAMPLES, P90_SAMPLES, P99_SAMPLES, RATIO_SAMPLES, describe, speedup


def test_percentiles_are_exact() -> None:
    times = np.random.default_rng(0).permutation(np.arange(1, 1002)).tolist()
    found = describe(times)
    assert (found.count, found.median_ms, found.iqr_ms, found.p90_ms, found.p99_ms) == (1001, 501, 500, 901, 991)
    assert found.spread == 500 / 501


@pytest.mark.parametrize(
    ("count", "has_p90", "has_p99"),
    [(P90_SAMPLES - 1, False, False), (P90_SAMPLES, True, False), (P99_SAMPLES - 1, True, False),
     (P99_SAMPLES, True, True)],
)  # fmt: skip
def test_tails_need_samples(count: int, has_p90: bool, has_p99: bool) -> None:
    found = describe([1.0] * count)
    assert (found.p90_ms is not None, found.p99_ms is not None) == (has_p90, has_p99)
    assert (P90_SAMPLES, P99_SAMPLES) == (64, 662)


def test_noise_is_seen() -> None:
    assert describe([9.0, 10.0, 11.0, 12.0] * 5).noisy
    assert not describe([9.8, 10.0, 10.1, 10.2] * 5).noisy


def test_a_step_and_a_slope_are_unstable() -> None:
    rng = np.random.default_rng(1)
    still = 10 + rng.normal(0, 0.1, 60)
    assert not describe(still.tolist()).unstable
    stepped = describe((still + 2 * (np.arange(60) >= 30)).tolist())
    assert stepped.unstable
    assert stepped.drift == pytest.approx(0.2, abs=0.01)
    assert describe((still + np.linspace(0, 3, 60)).tolist()).unstable


def test_chance_is_no_drift() -> None:
    rng = np.random.default_rng(2)
    unstable = [describe((10 * rng.lognormal(0, 0.1, 40)).tolist()).unstable for _ in range(300)]
    assert sum(unstable) <= 3


def test_few_samples_say_nothing_about_drift() -> None:
    found = describe([10.0] * 3 + [20.0] * (DRIFT_SAMPLES - 4))
    assert (found.drift, found.unstable) == (0.0, False)


def test_inputs_of_different_size_are_no_noise() -> None:
    cycle = np.tile([10.0, 20.0, 30.0, 40.0], 20)
    assert describe(cycle.tolist()).noisy
    even = describe(cycle.tolist(), cycle=4)
    assert (even.noisy, even.unstable, even.spread) == (False, False, 0.0)
    assert (even.median_ms, even.iqr_ms) == (25.0, 15.0)  # of the calls as they were
    noise = np.random.default_rng(3).uniform(0.8, 1.2, 80)
    assert describe((cycle * noise).tolist(), cycle=4).noisy


def test_a_cycle_that_broke_off_is_described() -> None:
    assert describe([10.0, 20.0], cycle=4).spread == 0.0


def test_the_interval_of_the_fewest_rounds_is_their_range() -> None:
    base = Samples("base", 1, (60, 62, 64, 66, 68, 70))
    ratio = speedup(base, Samples("mine", 1, (10,) * RATIO_SAMPLES))
    assert ratio.value == 6.5
    assert 6.0 <= ratio.low <= 6.3
    assert 6.7 <= ratio.high <= 7.0
