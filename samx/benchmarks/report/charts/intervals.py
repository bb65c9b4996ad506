"""Ratios with their confidence intervals, as dots with whiskers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from samx.benchmarks.report.charts.scale import label_axis
from samx.benchmarks.report.charts.svg import COLOURS, dots, draw, frame
from samx.benchmarks.report.words import elide

if TYPE_CHECKING:
    from matplotlib.axes import Axes

WIDTH, ROW, AXIS, SIDE = 360, 40, 26, 6
NAME, WHISKER = 13, 26
NAME_CHARACTERS = 24
PAD = 1.04
NARROWEST = 1.1  # the axis shows at least a tenth to either side


@dataclass(frozen=True)
class Row:
    """Hold what one row shows."""

    label: str
    value: float
    low: float
    high: float
    colour: str  # a name of the page's colours
    words: str


def intervals(alt: str, rows: Sequence[Row], band: tuple[float, float] | None = None) -> str:
    """Draw ratios around 1; the band is what counts as no difference."""
    height = ROW * len(rows) + AXIS

    def paint(axes: Axes) -> None:
        frame(axes, WIDTH, height, left=SIDE, right=SIDE, bottom=AXIS)
        axes.set_xscale("log")
        axes.set_xlim(min(1 / NARROWEST, *(row.low for row in rows)) / PAD,
                      max(NARROWEST, *(row.high for row in rows)) * PAD)  # fmt: skip
        label_axis(axes, _is_wide(axes))
        if band is not None:
            axes.axvspan(*band, color=COLOURS["muted"], alpha=0.16, linewidth=0)
        for i, row in enumerate(rows):
            _paint_row(axes, row, i * ROW)

    return draw(WIDTH, height, alt, paint)


def _paint_row(axes: Axes, row: Row, top: float) -> None:
    across, colour, at = axes.get_yaxis_transform(), COLOURS[row.colour], top + WHISKER
    axes.text(0, top + NAME, elide(row.label, NAME_CHARACTERS), transform=across)
    axes.text(1, top + NAME, row.words, ha="right", color=colour, transform=across)
    axes.plot([1, 1], [top + NAME + 4, top + ROW - 2], color=COLOURS["muted"], linewidth=1.4)
    axes.plot([row.low, row.high], [at, at], color=colour, linewidth=2.4, solid_capstyle="round")
    dots(axes, np.array([row.value]), np.array([at]), 8, colour)


def _is_wide(axes: Axes) -> bool:
    low, high = axes.get_xlim()
    return bool(high / low > 4)
