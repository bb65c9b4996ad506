"""How much longer a measurement took than another: ratio of medians, its interval from resampled blocks of calls."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from samx.benchmarks.summary import Ratio, Times, levelled, levels

# Calls that follow each other are alike (clocks, heat, neighbours): whole stretches are resampled, not single calls.
BLOCKS = 32
BINS = 128  # of the sorted samples; what is finer moves an interval by less than a hundredth of their spread
RESAMPLES = 2000
CONFIDENCE = 0.99
LEAST_SAMPLES = 8  # fewest whose whole range holds the median with that confidence: 1 - 2 / 2**8
MOST_ALIKE = 0.99
SEED = 0


def time_ratio(base_ns: Sequence[int], new_ns: Sequence[int], cycle: int = 1) -> Ratio:
    """Divide what a call takes now by what it took before; call i had the input i modulo `cycle`.

    Where calls hang together for so long that too few independent stretches are left, the interval reaches over
    everything that was measured.
    """
    inputs = levels(np.array(base_ns, np.float64), cycle)
    base, new = (levelled(np.array(samples, np.float64), inputs) for samples in (base_ns, new_ns))
    value, counts = float(np.median(new) / np.median(base)), (_blocks(base), _blocks(new))
    if min(counts) < LEAST_SAMPLES:
        return Ratio(value, float(new.min() / base.max()), float(new.max() / base.min()))
    random = np.random.default_rng(SEED)
    ratios = _resampled_medians(new, counts[1], random) / _resampled_medians(base, counts[0], random)
    low, high = np.quantile(ratios, ((1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2))
    return Ratio(value, float(low), float(high))


def _blocks(times: Times) -> int:
    """Count the stretches of calls that can be taken to be independent of each other.

    A call counts for (1 - r) / (1 + r) independent ones, r being how much it is like the one before it.
    """
    ranks = np.argsort(np.argsort(times, kind="stable")).astype(np.float64)  # a single slow call must not decide
    alike = min(float(np.corrcoef(ranks[:-1], ranks[1:])[0, 1]), MOST_ALIKE)
    length = max(round((1 + alike) / (1 - alike)), 1) if np.ptp(times) > 0 else 1
    return min(BLOCKS, len(times) // length)


def _resampled_medians(times: Times, blocks: int, random: np.random.Generator) -> Times:
    """Draw blocks with replacement, one fewer than there are, and take the median of all that they hold.

    One fewer, because a block differs from the mean of all blocks less than from the truth.
    """
    order = np.argsort(times, kind="stable")
    block = (np.arange(len(times)) * blocks // len(times))[order]
    bins = min(BINS, len(times))
    held = np.zeros((blocks, bins))
    np.add.at(held, (block, np.arange(len(times)) * bins // len(times)), 1)
    drawn = random.multinomial(blocks - 1, np.full(blocks, 1 / blocks), RESAMPLES)
    below = drawn.astype(np.float64) @ np.cumsum(held, axis=1)
    middle = np.argmax(2 * below >= below[:, -1:], axis=1)
    return np.asarray(times[order][(middle * 2 + 1) * len(times) // (2 * bins)])
