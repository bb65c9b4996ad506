"""Medians and ratios are exact, the interval holds the truth, and a p90 is not made up."""

from __future__ import annotations

import numpy as np
import pytest
from fake_candidates import samples

from samx.benchmarks.summary import P90_SAMPLES, Ratio, speedup, summarize


def test_median_and_spread_are_exact() -> None:
    found = summarize(samples("a", 10, 30, 20, 50, 40))
    assert (found.median_ms, found.iqr_ms, found.count) == (30.0, 20.0, 5)
    assert found.noisy


def test_steady_samples_are_not_noisy() -> None:
    assert not summarize(samples("a", *[10.0, 10.1, 9.9, 10.0])).noisy


def test_p90_needs_enough_samples() -> None:
    assert summarize(samples("a", *[1.0] * (P90_SAMPLES - 1))).p90_ms is None
    found = summarize(samples("a", *range(1, 102))).p90_ms
    assert found == pytest.approx(91)


def test_ratio_is_that_of_the_medians_per_prompt() -> None:
    ratio = speedup(samples("peer", 10, 20, 30), samples("ours", 80, 80, 80, prompts=16))
    assert ratio.value == 4.0
    assert ratio.low <= ratio.value <= ratio.high


def test_constant_times_leave_no_uncertainty() -> None:
    assert speedup(samples("peer", *[20.0] * 30), samples("ours", *[10.0] * 30)) == Ratio(2.0, 2.0, 2.0)


def test_interval_holds_the_truth_and_narrows_with_samples() -> None:
    rng = np.random.default_rng(1)

    def noisy(center: float, count: int) -> list[float]:
        return list(center * rng.lognormal(0, 0.2, count))

    few = speedup(samples("peer", *noisy(20, 20)), samples("ours", *noisy(10, 20)))
    many = speedup(samples("peer", *noisy(20, 500)), samples("ours", *noisy(10, 500)))
    assert many.low < 2.0 < many.high
    assert many.high - many.low < few.high - few.low


def test_disturbance_that_hits_both_does_not_widen_the_interval() -> None:
    weather = np.random.default_rng(2).uniform(1, 3, 50)
    ratio = speedup(samples("peer", *(20 * weather)), samples("ours", *(10 * weather)))
    assert (ratio.low, ratio.high) == pytest.approx((2.0, 2.0), rel=1e-5)
