"""Small charts: stacked bars, ratios with their intervals, calls below a machine's roof, a reading over time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from samx.benchmarks.report.runs import elide, short
from samx.benchmarks.report.svg import COLOURS, EXTRA, PURPOSE, WIDE, WIDTH, dots, draw, draw_rows, label_axis
from samx.extras import require

if TYPE_CHECKING:
    from matplotlib.axes import Axes

BAR_ROW, INTERVAL_ROW = 42, 40
NAME, MIDDLE, THICK = 13, 26, 11  # where things stand in a row, in pixels from its top, and how thick they are
BAR_CHARACTERS, INTERVAL_CHARACTERS = 32, 24  # of a name
PAD = 1.04
NARROWEST = 1.1  # the axis of ratios shows at least a tenth to either side
ROOF_HEIGHT, ROOF_SIDE, ROOF_TOP, ROOF_BOTTOM = 240, 8, 16, 26
ROOM = 2.0  # times, to either side of what is shown
GIGA = 1e9
SPARK_WIDTH, SPARK_HEIGHT = 132, 26
SPARK_MARGIN = 0.12
FLATTEST = 0.05  # of the highest value: a reading that moves by less looks calm

Bar = tuple[str, Sequence[tuple[str, float]]]  # its name, and its parts by name of the page's colours


@dataclass(frozen=True)
class Mark:
    """What one row or dot of a chart shows."""

    label: str
    values: tuple[float, ...]
    colour: str  # a name of the page's colours
    words: str = ""


def bars(alt: str, unit: str, rows: Sequence[Bar]) -> str:
    """Draw bars that begin at 0, each with its sum."""
    totals = [sum(value for _, value in parts) for _, parts in rows]

    def set_up(axes: Axes) -> None:
        axes.set_xlim(0, max(totals) * 1.02 or 1)
        label_axis(axes, is_log=False)

    def paint(axes: Axes, row: Bar, top: float) -> None:
        across, start = axes.get_yaxis_transform(), 0.0
        axes.text(0, top + NAME, elide(row[0], BAR_CHARACTERS), transform=across)
        for colour, value in row[1]:
            axes.barh(top + MIDDLE, value, THICK, left=start, color=COLOURS[colour], linewidth=0)
            start += value
        axes.text(1, top + NAME, f"{short(start)} {unit}", transform=across, ha="right", weight="bold")

    told = "; ".join(f"{label}: {short(total)} {unit}" for (label, _), total in zip(rows, totals, strict=True))
    return draw_rows(f"{alt} {told}.", rows, BAR_ROW, set_up, paint)


def intervals(alt: str, rows: Sequence[Mark], band: tuple[float, float] | None = None) -> str:
    """Draw ratios (value, low, high) around 1 as dots with whiskers; the band is what counts as no difference."""
    low, high = min(1 / NARROWEST, *(row.values[1] for row in rows)), max(NARROWEST, *(row.values[2] for row in rows))

    def set_up(axes: Axes) -> None:
        axes.set_xscale("log")
        axes.set_xlim(low / PAD, high * PAD)
        label_axis(axes, is_log=high * PAD**2 / low > WIDE)
        if band is not None:
            axes.axvspan(*band, color=COLOURS["muted"], alpha=0.16, linewidth=0)

    told = "; ".join(f"{row.label}: {row.words}" for row in rows)
    return draw_rows(f"{alt} {told}.", rows, INTERVAL_ROW, set_up, _paint_interval)


def _paint_interval(axes: Axes, row: Mark, top: float) -> None:
    across, colour, at = axes.get_yaxis_transform(), COLOURS[row.colour], top + MIDDLE
    axes.text(0, top + NAME, elide(row.label, INTERVAL_CHARACTERS), transform=across)
    axes.text(1, top + NAME, row.words, ha="right", color=colour, transform=across)
    axes.plot([1, 1], [top + NAME + 4, top + INTERVAL_ROW - 2], color=COLOURS["muted"], linewidth=1.4)
    axes.plot(row.values[1:], [at, at], color=colour, linewidth=2.4, solid_capstyle="round")
    dots(axes, np.array(row.values[:1]), np.array([at]), 8, colour)


def roof(alt: str, adds_per_s: float, bytes_per_s: float, calls: Sequence[Mark]) -> str:
    """Draw calls (multiply-adds a byte, multiply-adds a second) below the limits of products and copies: a roofline."""
    ridge = adds_per_s / bytes_per_s
    low = min(ridge, *(call.values[0] for call in calls)) / ROOM
    high = max(ridge, *(call.values[0] for call in calls)) * ROOM
    slowest, grey = min(call.values[1] for call in calls), COLOURS["muted"]

    def paint(axes: Axes) -> None:
        axes.set_position((ROOF_SIDE / WIDTH, ROOF_BOTTOM / ROOF_HEIGHT, (WIDTH - 2 * ROOF_SIDE) / WIDTH,
                           (ROOF_HEIGHT - ROOF_BOTTOM - ROOF_TOP) / ROOF_HEIGHT))  # fmt: skip
        axes.set(xscale="log", yscale="log", xlim=(low, high), ylim=(min(slowest, low * bytes_per_s) / ROOM,
                                                                     max(adds_per_s, slowest) * ROOM))  # fmt: skip
        axes.yaxis.set_minor_locator(require("matplotlib.ticker", EXTRA, PURPOSE).NullLocator())
        label_axis(axes, is_log=True)
        axes.plot([low, ridge, high], [low * bytes_per_s, adds_per_s, adds_per_s], color=grey, linewidth=2)
        axes.text(high, adds_per_s * 1.1, f"{short(adds_per_s / GIGA)} G/s", ha="right", va="bottom", color=grey)
        axes.text(low, low * bytes_per_s / 1.2, f"{short(bytes_per_s / GIGA)} GB/s", ha="left", va="top", color=grey)
        for call in calls:
            dots(axes, np.array(call.values[:1]), np.array(call.values[1:]), 9, COLOURS[call.colour])
            axes.annotate(call.label, (call.values[0], call.values[1]), (7, -4), textcoords="offset points")

    return draw(WIDTH, ROOF_HEIGHT, f"{alt} {'; '.join(call.words for call in calls)}.", paint)


def spark(alt: str, times: Sequence[float], values: Sequence[float]) -> str:
    """Draw a line over time as small as a word, its last value as a dot."""
    colour = COLOURS["series-1"]

    def paint(axes: Axes) -> None:
        axes.set_axis_off()
        middle, width = (max(values) + min(values)) / 2, times[-1] - times[0] or 1.0
        span = max(max(values) - min(values), FLATTEST * max(map(abs, values)))
        axes.set_xlim(times[0] - width * 0.02, times[-1] + width * 0.04)
        axes.set_ylim(middle - span * (0.5 + SPARK_MARGIN), middle + span * (0.5 + SPARK_MARGIN))
        axes.plot([times[0], times[-1]], [middle - span / 2] * 2, color=COLOURS["line"], linewidth=1)
        axes.plot(times, values, color=colour, linewidth=1.5, solid_joinstyle="round")
        dots(axes, np.array(times[-1:]), np.array(values[-1:]), 4.5, colour)

    return draw(SPARK_WIDTH, SPARK_HEIGHT, alt, paint)
