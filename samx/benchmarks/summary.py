"""What raw samples say: percentiles where they are honest, spread, drift, ratios with their uncertainty."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt

import numpy as np
from numpy.typing import NDArray

from samx.benchmarks.interleave import Samples

# Fewest samples that bound a percentile. Source: MLPerf's early-stopping rule.
P90_SAMPLES, P99_SAMPLES = 64, 662
# IQR / median above which a measurement is called noisy. Source: torch.utils.benchmark.
NOISY_SPREAD = 0.1
# Halves of a measurement that differ by more than this, and by more than chance allows, are called unstable. Fewer
# samples say nothing about chance.
UNSTABLE_DRIFT, SURE, DRIFT_SAMPLES = 0.05, 3.0, 8
# Standard error of the difference of two halves' medians, as a multiple of IQR / sqrt(all samples); normal samples.
HALVES_ERROR = 1.86
RESAMPLES = 2000  # moves the interval's ends by less than a hundredth
CONFIDENCE = 0.95
RATIO_SAMPLES = 6  # fewest whose whole range holds the median with that confidence: 1 - 2 / 2**6
SEED = 0

Times = NDArray[np.float64]


@dataclass(frozen=True)
class Summary:
    """Describe what calls took."""

    count: int
    median_ms: float
    iqr_ms: float
    p90_ms: float | None  # None: too few samples to say
    p99_ms: float | None
    spread: float  # IQR over median; where the input changes in a cycle, around each input's own median
    drift: float  # how much slower the second half was than the first; 0.1 is 10 %
    unstable: bool  # the drift is more than chance

    @property
    def noisy(self) -> bool:
        """Whether the middle half of the samples lies too far apart to trust the median."""
        return not self.spread <= NOISY_SPREAD


@dataclass(frozen=True)
class Ratio:
    """Say how many times faster than the baseline, with the ends of the confidence interval."""

    value: float
    low: float
    high: float


def summarize(samples: Samples) -> Summary:
    """Reduce raw samples to the time per prompt."""
    return describe(samples.prompt_ms)


def describe(times_ms: Sequence[float], cycle: int = 1) -> Summary:
    """Reduce times to what a table shows; call i had the input i modulo `cycle`.

    Only spread and drift look at the cycle: inputs of different size are no noise.
    """
    times = np.array(times_ms, np.float64)
    even = _levelled(times, cycle)
    drift, unstable = _drift(even)
    return Summary(
        count=len(times),
        median_ms=float(np.median(times)),
        iqr_ms=_iqr(times),
        p90_ms=_percentile(times, 90, P90_SAMPLES),
        p99_ms=_percentile(times, 99, P99_SAMPLES),
        spread=_iqr(even) / float(np.median(even)),
        drift=drift,
        unstable=unstable,
    )


def speedup(baseline: Samples, candidate: Samples) -> Ratio:
    """Divide the medians, baseline by candidate.

    The interval comes from resampling whole rounds, so that a disturbance that hit both does not widen it.
    """
    base, mine = np.array(baseline.prompt_ms), np.array(candidate.prompt_ms)
    rounds = np.random.default_rng(SEED).integers(0, len(base), (RESAMPLES, len(base)))
    ratios = np.median(base[rounds], axis=1) / np.median(mine[rounds], axis=1)
    tail = 100 * (1 - CONFIDENCE) / 2
    low, high = np.percentile(ratios, (tail, 100 - tail))
    return Ratio(float(np.median(base) / np.median(mine)), float(low), float(high))


def by_name(samples: Sequence[Samples]) -> dict[str, Samples]:
    """Index samples by their candidate's name."""
    return {entry.name: entry for entry in samples}


def _iqr(times: Times) -> float:
    low, high = np.percentile(times, (25, 75))
    return float(high - low)


def _percentile(times: Times, percent: int, least: int) -> float | None:
    return float(np.percentile(times, percent)) if len(times) >= least else None


def _levelled(times: Times, cycle: int) -> Times:
    """Bring the times of every input of the cycle to the median of all."""
    if cycle == 1:
        return times
    levels = np.array([np.median(times[i::cycle]) for i in range(min(cycle, len(times)))])
    return np.asarray(times / levels[np.arange(len(times)) % cycle] * np.median(times))


def _drift(times: Times) -> tuple[float, bool]:
    """Compare the medians of the two halves; says whether they differ by more than chance."""
    half = len(times) // 2
    if len(times) < DRIFT_SAMPLES:
        return 0.0, False
    first, second = times[:half], times[-half:]
    change = float(np.median(second) - np.median(first))
    chance = SURE * HALVES_ERROR * (_iqr(first) + _iqr(second)) / 2 / sqrt(len(times))
    drift = change / float(np.median(first))
    return drift, abs(drift) > UNSTABLE_DRIFT and abs(change) > chance
