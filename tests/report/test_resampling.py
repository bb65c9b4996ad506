"""A planted slowdown is found, noise is not, and neither hangs on a single call."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray

from samx.benchmarks.report.baseline import MARGIN
from samx.benchmarks.summary import CHANGE_SAMPLES, time_ratio

SEEDS = range(120)
Noise = Callable[[np.random.Generator, int], NDArray[np.float64]]


def independent(random: np.random.Generator, count: int) -> NDArray[np.float64]:
    return random.normal(0, 0.1, count)


def with_tail(random: np.random.Generator, count: int) -> NDArray[np.float64]:
    return random.normal(0, 0.05, count) + np.where(random.random(count) < 0.1, random.exponential(1, count), 0)


def hanging_together(random: np.random.Generator, count: int) -> NDArray[np.float64]:
    """Calls that stay slow for about twenty calls once they are."""
    steps, found = random.normal(0, 0.1 * np.sqrt(1 - 0.9**2), count + 50), np.zeros(count + 50)
    for i in range(1, len(found)):
        found[i] = 0.9 * found[i - 1] + steps[i]
    return found[50:]


def calls(noise: Noise, seed: int, which: int, count: int, factor: float = 1.0) -> list[int]:
    drawn = noise(np.random.default_rng([seed, which]), count)
    return [int(value) for value in 1e7 * factor * np.exp(drawn)]


def found_slower(noise: Noise, count: int, factor: float, seeds: range = SEEDS) -> tuple[float, float]:
    """Give the share of seeds in which the rule finds a slowdown, and in which the bare medians say so."""
    pairs = [(calls(noise, seed, 0, count), calls(noise, seed, 1, count, factor)) for seed in seeds]
    ratios = [time_ratio(base, new) for base, new in pairs]
    by_rule, bare = ([getattr(ratio, end) > 1 + MARGIN for ratio in ratios] for end in ("low", "value"))
    return float(np.mean(by_rule)), float(np.mean(bare))


@pytest.mark.parametrize("noise", [independent, with_tail, hanging_together])
def test_noise_is_seldom_taken_for_a_slowdown_where_bare_medians_often_are(noise: Noise) -> None:
    by_rule, bare = found_slower(noise, 16, 1.0)
    assert by_rule <= 0.05
    assert bare >= max(0.02, 2 * by_rule)


def test_noise_that_is_independent_is_never_taken_for_a_slowdown() -> None:
    assert found_slower(independent, 64, 1.0, range(60))[0] == 0


@pytest.mark.parametrize(("noise", "count"), [(independent, 400), (with_tail, 300)])
def test_a_planted_slowdown_of_a_tenth_is_found(noise: Noise, count: int) -> None:
    assert found_slower(noise, count, 1.1, range(30))[0] >= 0.7


def test_a_doubled_time_is_found_even_in_few_noisy_calls() -> None:
    assert found_slower(independent, 10, 2.0)[0] >= 0.95


def test_the_value_is_the_ratio_of_the_medians_and_lies_in_the_interval() -> None:
    base, new = calls(independent, 1, 0, 200), calls(independent, 1, 1, 300, 1.3)
    ratio = time_ratio(base, new)
    assert ratio.value == pytest.approx(np.median(new) / np.median(base), rel=1e-9)
    assert ratio.low <= ratio.value <= ratio.high


def test_identical_calls_have_a_ratio_of_one_without_width() -> None:
    ratio = time_ratio([1000] * 20, [1000] * 20)
    assert (ratio.low, ratio.value, ratio.high) == (1, 1, 1)


def test_the_same_samples_give_the_same_interval_again() -> None:
    base, new = calls(independent, 2, 0, 100), calls(independent, 2, 1, 100)
    assert time_ratio(base, new) == time_ratio(base, new)


def test_one_very_slow_call_does_not_move_the_ratio() -> None:
    base = calls(independent, 3, 0, 100)
    new = [*base[:50], base[50] * 1000, *base[51:]]
    assert time_ratio(base, new).value == pytest.approx(1, abs=0.02)
    assert time_ratio(base, new).low < 1 + MARGIN


def test_inputs_of_different_size_are_no_noise() -> None:
    sizes = np.tile([1, 2, 4, 8], 25)
    base = [int(ns * size) for ns, size in zip(calls(independent, 4, 0, 100), sizes, strict=True)]
    new = [int(ns * size * 1.2) for ns, size in zip(calls(independent, 4, 1, 100), sizes, strict=True)]
    levelled, mixed = time_ratio(base, new, cycle=4), time_ratio(base, new)
    assert levelled.value == pytest.approx(1.2, abs=0.06)
    assert levelled.high - levelled.low < (mixed.high - mixed.low) / 2


def test_calls_that_only_rise_give_an_interval_over_everything() -> None:
    rising = list(range(1_000_000, 2_000_000, 1_000_000 // 64))
    ratio = time_ratio(rising, rising)
    assert (ratio.low, ratio.high) == pytest.approx((rising[0] / rising[-1], rising[-1] / rising[0]))


def test_the_fewest_samples_bound_a_median_at_that_confidence() -> None:
    assert 1 - 2 / 2**CHANGE_SAMPLES >= 0.99 > 1 - 2 / 2 ** (CHANGE_SAMPLES - 1)
