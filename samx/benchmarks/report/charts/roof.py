"""Calls below the roof that a machine's products and copies make over them: the classic roofline."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from samx.benchmarks.report.charts.scale import label_axis
from samx.benchmarks.report.charts.svg import COLOURS, EXTRA, PURPOSE, dots, draw
from samx.benchmarks.report.words import short
from samx.extras import require

if TYPE_CHECKING:
    from matplotlib.axes import Axes

WIDTH, HEIGHT, SIDE, TOP, BOTTOM = 360, 240, 8, 16, 26
ROOM = 2.0  # times, to either side of what is shown
GIGA = 1e9


@dataclass(frozen=True)
class Call:
    """Hold what a call needs and how fast it was."""

    mark: str
    adds_per_byte: float
    adds_per_s: float
    colour: str  # a name of the page's colours


def roof(alt: str, adds_per_s: float, bytes_per_s: float, calls: Sequence[Call]) -> str:
    """Draw multiply-adds a second over multiply-adds a byte, both axes in powers, and the least of both limits."""
    ridge = adds_per_s / bytes_per_s
    low = min(ridge, *(call.adds_per_byte for call in calls)) / ROOM
    high = max(ridge, *(call.adds_per_byte for call in calls)) * ROOM
    slowest = min(call.adds_per_s for call in calls)

    def paint(axes: Axes) -> None:
        axes.set_position((SIDE / WIDTH, BOTTOM / HEIGHT, (WIDTH - 2 * SIDE) / WIDTH, (HEIGHT - BOTTOM - TOP) / HEIGHT))
        axes.set(xscale="log", yscale="log", xlim=(low, high), ylim=(min(slowest, low * bytes_per_s) / ROOM,
                                                                     max(adds_per_s, slowest) * ROOM))  # fmt: skip
        axes.yaxis.set_minor_locator(require("matplotlib.ticker", EXTRA, PURPOSE).NullLocator())
        label_axis(axes, is_log=True)
        _paint_roof(axes, adds_per_s, bytes_per_s, (low, ridge, high))
        for call in calls:
            _paint_call(axes, call)

    return draw(WIDTH, HEIGHT, alt, paint)


def _paint_roof(axes: Axes, adds_per_s: float, bytes_per_s: float, corners: tuple[float, float, float]) -> None:
    low, ridge, high = corners
    axes.plot([low, ridge, high], [low * bytes_per_s, adds_per_s, adds_per_s], color=COLOURS["muted"], linewidth=2)
    grey = COLOURS["muted"]
    axes.text(high, adds_per_s * 1.1, f"{short(adds_per_s / GIGA)} G/s", ha="right", va="bottom", color=grey)
    axes.text(low, low * bytes_per_s / 1.2, f"{short(bytes_per_s / GIGA)} GB/s", ha="left", va="top", color=grey)


def _paint_call(axes: Axes, call: Call) -> None:
    dots(axes, np.array([call.adds_per_byte]), np.array([call.adds_per_s]), 9, COLOURS[call.colour])
    axes.annotate(call.mark, (call.adds_per_byte, call.adds_per_s), (7, -4), textcoords="offset points")
