"""Axes of times: where they begin and end, and when they count in powers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from samx.benchmarks.report.charts.svg import EXTRA, PURPOSE
from samx.benchmarks.report.words import short
from samx.extras import require

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Floats = NDArray[np.float64]

WIDE = 4.0  # an axis whose end is so many times its start is logarithmic
SHOWN = 99.0  # percentile of the slowest calls that the axis still reaches
PAD = 0.04
TICKS = 5
STEPS = (1.0, 2.0, 5.0)


def limits(rows: Sequence[Floats]) -> tuple[float, float]:
    """Reach over all rows, but not to the few slowest calls of each."""
    low = min(float(row.min()) for row in rows)
    high = max(float(np.percentile(row, SHOWN)) for row in rows)
    return (low * (1 - PAD / 4), high * (1 + PAD / 4)) if high > low * (1 + 1e-6) else (low * 0.9, low * 1.1)


def time_axis(axes: Axes, low: float, high: float) -> bool:
    """Set up an axis of positive numbers; tells whether it is logarithmic."""
    is_log = high / low > WIDE
    axes.set_xscale("log" if is_log else "linear")
    span = np.log(high / low) if is_log else high - low
    axes.set_xlim(*((low * np.exp(-PAD * span), high * np.exp(PAD * span)) if is_log
                    else (low - PAD * span, high + PAD * span)))  # fmt: skip
    label_axis(axes, is_log)
    return is_log


def label_axis(axes: Axes, is_log: bool) -> None:
    """Write a few round numbers below the axis, with lines up from them."""
    ticker = require("matplotlib.ticker", EXTRA, PURPOSE)
    low, high = axes.get_xlim()
    ticks = (
        _powers(low, high)
        if is_log
        else list(ticker.MaxNLocator(TICKS, steps=[1, 2, 2.5, 5, 10]).tick_values(low, high))
    )
    axes.xaxis.set_major_locator(ticker.FixedLocator([tick for tick in ticks if low <= tick <= high]))
    axes.xaxis.set_minor_locator(ticker.NullLocator())
    axes.xaxis.set_major_formatter(ticker.FuncFormatter(lambda value, _: _tick(value)))
    axes.grid(axis="x")
    axes.set_axisbelow(True)
    axes.tick_params(bottom=False, pad=8)


def _powers(low: float, high: float) -> list[float]:
    """Take 1, 2, 5 of each power of ten; fewer where that would be too many."""
    powers = 10.0 ** np.arange(np.floor(np.log10(low)), np.ceil(np.log10(high)) + 1)
    for steps in (STEPS, (1.0, 3.0), (1.0,)):
        found = [step * power for power in powers for step in steps if low <= step * power <= high]
        if len(found) <= TICKS + 1:
            return found
    return found[:: len(found) // TICKS]


def _tick(value: float) -> str:
    return short(value) if abs(value) >= 1e4 else f"{value:g}"
