"""How a reading moved during a run, as small as a word."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from samx.benchmarks.report.charts.svg import COLOURS, dots, draw, series

if TYPE_CHECKING:
    from matplotlib.axes import Axes

WIDTH, HEIGHT = 132, 26
MARGIN = 0.12
FLATTEST = 0.05  # of the highest value: a reading that moves by less looks calm


def spark(alt: str, times: Sequence[float], values: Sequence[float]) -> str:
    """Draw a line over time, its last value as a dot."""

    def paint(axes: Axes) -> None:
        axes.set_axis_off()
        middle, width = (max(values) + min(values)) / 2, times[-1] - times[0] or 1.0
        span = max(max(values) - min(values), FLATTEST * max(map(abs, values)))
        axes.set_xlim(times[0] - width * 0.02, times[-1] + width * 0.04)
        axes.set_ylim(middle - span * (0.5 + MARGIN), middle + span * (0.5 + MARGIN))
        axes.plot([times[0], times[-1]], [middle - span / 2] * 2, color=COLOURS["line"], linewidth=1)
        axes.plot(times, values, color=series(0), linewidth=1.5, solid_joinstyle="round")
        dots(axes, np.array(times[-1:]), np.array(values[-1:]), 4.5, series(0))

    return draw(WIDTH, HEIGHT, alt, paint)
