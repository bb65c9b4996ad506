"""What raw samples say: medians, spread, an honest p90, ratios with their uncertainty."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from samx.benchmarks.interleave import Samples

# Fewest samples that bound a 90th percentile. Source: MLPerf's early-stopping rule.
P90_SAMPLES = 64
# IQR / median above which a measurement is called noisy. Source: torch.utils.benchmark.
NOISY_SPREAD = 0.1
RESAMPLES = 2000  # moves the interval's ends by less than a hundredth
CONFIDENCE = 0.95
SEED = 0


@dataclass(frozen=True)
class Summary:
    """Describe the time per prompt of one candidate."""

    median_ms: float
    iqr_ms: float
    p90_ms: float | None  # None: too few samples to say
    count: int

    @property
    def noisy(self) -> bool:
        """Whether the middle half of the samples lies too far apart to trust the median."""
        return not self.iqr_ms <= NOISY_SPREAD * self.median_ms


@dataclass(frozen=True)
class Ratio:
    """Say how many times faster than the baseline, with the ends of the confidence interval."""

    value: float
    low: float
    high: float


def summarize(samples: Samples) -> Summary:
    """Reduce raw samples to what a table shows."""
    values = samples.prompt_ms
    low, median, high = np.percentile(values, (25, 50, 75))
    p90 = float(np.percentile(values, 90)) if len(values) >= P90_SAMPLES else None
    return Summary(float(median), float(high - low), p90, len(values))


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
