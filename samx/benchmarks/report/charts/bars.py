"""What a time, or an amount, is made of: stacked bars."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from samx.benchmarks.report.charts.scale import label_axis
from samx.benchmarks.report.charts.svg import COLOURS, draw, frame
from samx.benchmarks.report.words import elide, short

if TYPE_CHECKING:
    from matplotlib.axes import Axes

WIDTH, ROW, AXIS, SIDE = 360, 42, 26, 6
NAME, BAR, THICK = 13, 26, 11
NAME_CHARACTERS = 32


@dataclass(frozen=True)
class Bar:
    """Hold what one bar shows: parts by name of the page's colours."""

    label: str
    parts: Sequence[tuple[str, float]]

    @property
    def total(self) -> float:
        """The bar's length."""
        return sum(value for _, value in self.parts)


def bars(alt: str, unit: str, rows: Sequence[Bar]) -> str:
    """Draw bars that begin at 0, each with its sum."""
    height = ROW * len(rows) + AXIS

    def paint(axes: Axes) -> None:
        frame(axes, WIDTH, height, left=SIDE, right=SIDE, bottom=AXIS)
        axes.set_xlim(0, max(row.total for row in rows) * 1.02 or 1)
        label_axis(axes, is_log=False)
        for i, row in enumerate(rows):
            _paint_row(axes, row, i * ROW, unit)

    told = "; ".join(f"{row.label}: {short(row.total)} {unit}" for row in rows)
    return draw(WIDTH, height, f"{alt} {told}.", paint)


def _paint_row(axes: Axes, row: Bar, top: float, unit: str) -> None:
    across = axes.get_yaxis_transform()
    axes.text(0, top + NAME, elide(row.label, NAME_CHARACTERS), transform=across)
    axes.text(1, top + NAME, f"{short(row.total)} {unit}", transform=across, ha="right", weight="bold")
    start = 0.0
    for colour, value in row.parts:
        axes.barh(top + BAR, value, THICK, left=start, color=COLOURS[colour], linewidth=0)
        start += value
