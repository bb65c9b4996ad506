"""How long calls took, one scenario a picture: shape, middle half, percentiles and single calls."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from samx.benchmarks.report.runs import elide, short
from samx.benchmarks.report.svg import COLOURS, EXTRA, PURPOSE, Floats, dots, draw_rows, limits, time_axis
from samx.benchmarks.results import Result
from samx.benchmarks.summary import counted
from samx.extras import require

if TYPE_CHECKING:
    from matplotlib.axes import Axes

ROW = 68
NAME, CLOUD, MIDDLE, DOTS = 13, 40, 45, 56  # where things stand in a row, in pixels from its top
CLOUD_HEIGHT, DOTS_HEIGHT = 19, 9
NAME_CHARACTERS = 32
DOTS_SHOWN = 160
LEAST_SHAPE = 16  # calls that have a shape
CURVE_POINTS = 120
THINNED = 2000  # calls that the shape is made of at most
MS = 1e-6

Row = tuple[str, str, Result]  # its name, a name of the page's colours, and its calls


def distributions(scenario: str, rows: Sequence[Row]) -> tuple[str, str]:
    """Draw the calls of one scenario, and say how many of them lie beyond the axis."""
    times = [_times_ms(result) for _, _, result in rows]
    low, high = limits(times)
    hidden, slowest = sum(int((row > high).sum()) for row in times), max(float(row.max()) for row in times)
    note = f"Beyond the axis: {counted(hidden, 'call')}, the slowest of {short(slowest)} ms." if hidden else ""
    medians = "; ".join(f"{label}: median {short(result.summary.median_ms)} ms" for label, _, result in rows)
    alt = f"Distribution of call times in the scenario {scenario}. {medians}."

    def paint(axes: Axes, row: Row, top: float) -> None:
        _paint_row(axes, row, top, high)

    return draw_rows(alt, rows, ROW, lambda axes: time_axis(axes, low, high), paint), note


def _times_ms(result: Result) -> Floats:
    return np.array(result.samples_ns, np.float64) * MS


def _paint_row(axes: Axes, row: Row, top: float, high: float) -> None:
    label, colour_name, result = row
    colour, across, times = COLOURS[colour_name], axes.get_yaxis_transform(), _times_ms(result)
    shown = times[times <= high]
    axes.text(0, top + NAME, elide(label, NAME_CHARACTERS), transform=across, color=COLOURS["text"])
    axes.text(1, top + NAME, f"{short(result.summary.median_ms)} ms", transform=across, ha="right", weight="bold",
              color=COLOURS["text"])  # fmt: skip
    _cloud(axes, shown, top + CLOUD, colour)
    _middle(axes, result, top + MIDDLE, colour)
    _dots(axes, shown, top + DOTS, colour)


def _cloud(axes: Axes, times: Floats, base: float, colour: str) -> None:
    """Draw how the calls spread: a smoothed density, none where there are too few or all are the same."""
    is_log = axes.get_xscale() == "log"
    values = np.log(times) if is_log else times
    values = values[:: len(values) // THINNED + 1]
    if len(values) < LEAST_SHAPE or np.ptp(values) == 0:
        return
    kernel = require("matplotlib.mlab", EXTRA, PURPOSE).GaussianKDE(values)
    ends = np.log(axes.get_xlim()) if is_log else np.array(axes.get_xlim())
    reach = kernel.factor * values.std() * 2
    grid = np.linspace(max(values.min() - reach, ends[0]), min(values.max() + reach, ends[1]), CURVE_POINTS)
    density = kernel.evaluate(grid)
    x = np.exp(grid) if is_log else grid
    top = base - density / density.max() * CLOUD_HEIGHT
    axes.fill([x[0], *x, x[-1]], [base, *top, base], color=colour, alpha=0.32, linewidth=0)
    axes.plot(x, top, color=colour, linewidth=1.4, solid_joinstyle="round")


def _middle(axes: Axes, result: Result, at: float, colour: str) -> None:
    """Draw the middle half as a bar, the median as a ring, p90 and p99 as ticks."""
    low, high = np.percentile(_times_ms(result), (25, 75))
    axes.plot([low, high], [at, at], color=colour, linewidth=5, solid_capstyle="round")
    ends = [value for value in (result.summary.p90_ms, result.summary.p99_ms) if value is not None]
    for end in ends:
        axes.plot([end, end], [at - 4, at + 4], color=colour, linewidth=1.6)
    if ends:
        axes.plot([high, ends[-1]], [at, at], color=colour, linewidth=1)
    median = result.summary.median_ms
    axes.plot([median, median], [at - 5, at + 5], color=COLOURS["text"], linewidth=2.4, solid_capstyle="round")


def _dots(axes: Axes, times: Floats, at: float, colour: str) -> None:
    """Draw single calls, evenly taken where there are many."""
    shown = times[np.linspace(0, len(times) - 1, min(DOTS_SHOWN, len(times))).astype(int)]
    y = at + np.random.default_rng(0).uniform(-0.5, 0.5, len(shown)) * DOTS_HEIGHT
    dots(axes, shown, y, 2.6, colour, alpha=0.55)
