"""Draw with matplotlib, and make of its SVG a part of the page: colours and font are the page's; axes of numbers."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar
from xml.etree import ElementTree

import numpy as np
from numpy.typing import NDArray

from samx.benchmarks.report.runs import short
from samx.extras import require

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Floats = NDArray[np.float64]
T = TypeVar("T")

EXTRA, PURPOSE = "report", "drawing a report"
WIDTH, AXIS, SIDE = 360, 26, 6  # of charts of rows, in pixels
UNITS_PER_INCH = 72  # matplotlib's SVG unit, here a CSS pixel
SERIES = 8
NAMES = ("text", "muted", "line", "good", "bad", *(f"series-{i + 1}" for i in range(SERIES)))
NAMES += ("phase-1", "phase-2", "phase-3", "phase-4")
# Stand-ins that matplotlib draws with: each becomes the page's variable of that name.
COLOURS: Mapping[str, str] = {name: f"#fe{i:02x}dc" for i, name in enumerate(NAMES)}
STYLE: Mapping[str, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "samx",
    "font.size": 12,
    "path.simplify": False,
    "text.parse_math": False,
    "text.color": COLOURS["text"],
    "axes.edgecolor": COLOURS["line"],
    "axes.spines.left": False,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "xtick.color": COLOURS["line"],
    "xtick.labelcolor": COLOURS["muted"],
    "xtick.labelsize": 11,
    "grid.color": COLOURS["line"],
    "grid.linewidth": 1,
}
SPACE = "{http://www.w3.org/2000/svg}"
DECIMALS = re.compile(r"(\d+\.\d)\d+")
WIDE = 4.0  # an axis whose end is so many times its start is logarithmic
SHOWN = 99.0  # percentile of the slowest calls that the axis still reaches
PAD = 0.04
TICKS = 5
STEPS = (1.0, 2.0, 5.0)
FOREIGN = ("id", "clip-path")  # names that a second picture of the page would use again


def draw(width: float, height: float, alt: str, paint: Callable[[Axes], None]) -> str:
    """Draw into one axes that fills the picture, in pixels; the SVG says to those who don't see it what it shows.

    Raises: MissingExtraError.
    """
    figures, style = require("matplotlib.figure", EXTRA, PURPOSE), require("matplotlib.style", EXTRA, PURPOSE)
    with style.context(["default", dict(STYLE)]):  # the same whatever settings the user has
        figure = figures.Figure((width / UNITS_PER_INCH, height / UNITS_PER_INCH))
        figure.patch.set_visible(False)
        axes = figure.add_axes((0, 0, 1, 1))
        axes.patch.set_visible(False)
        axes.yaxis.set_visible(False)
        paint(axes)
        file = io.BytesIO()
        figure.savefig(file, format="svg", metadata={"Date": None})
    return _inline(file.getvalue(), width, height, alt)


def dots(axes: Axes, x: Floats, y: Floats, size: float, colour: str, alpha: float = 1.0) -> None:
    """Draw dots as lines of no length with round ends: markers need names, which pictures of one page would share."""
    gap = np.full(len(x), np.nan)
    points = (np.ravel([start, end, gap], "F") for start, end in ((x, x * (1 + 1e-9)), (y, y)))
    axes.plot(*points, color=colour, alpha=alpha, linewidth=size, solid_capstyle="round")


def draw_rows(
    alt: str, rows: Sequence[T], row_height: float, set_up: Callable[[Axes], object],
    paint: Callable[[Axes, T, float], None],
) -> str:  # fmt: skip
    """Draw rows under each other over one axis; the painter gets each row's top, y being in pixels from the top."""
    height = row_height * len(rows) + AXIS

    def paint_all(axes: Axes) -> None:
        axes.set_position((SIDE / WIDTH, AXIS / height, (WIDTH - 2 * SIDE) / WIDTH, (height - AXIS) / height))
        axes.set_ylim(height - AXIS, 0)
        set_up(axes)
        for i, row in enumerate(rows):
            paint(axes, row, i * row_height)

    return draw(WIDTH, height, alt, paint_all)


def limits(rows: Sequence[Floats]) -> tuple[float, float]:
    """Return an axis' ends: they reach over all rows, but not to the few slowest calls of each."""
    low = min(float(row.min()) for row in rows)
    high = max(float(np.percentile(row, SHOWN)) for row in rows)
    return (low * (1 - PAD / 4), high * (1 + PAD / 4)) if high > low * (1 + 1e-6) else (low * 0.9, low * 1.1)


def time_axis(axes: Axes, low: float, high: float) -> None:
    """Set up an axis of positive numbers, logarithmic where it is wide."""
    is_log = high / low > WIDE
    axes.set_xscale("log" if is_log else "linear")
    span = np.log(high / low) if is_log else high - low
    axes.set_xlim(*((low * np.exp(-PAD * span), high * np.exp(PAD * span)) if is_log
                    else (low - PAD * span, high + PAD * span)))  # fmt: skip
    label_axis(axes, is_log)


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


def _inline(data: bytes, width: float, height: float, alt: str) -> str:
    """Keep of a whole SVG file what a page needs."""
    root = ElementTree.fromstring(data)
    for name in ("metadata", "defs"):  # rules and shapes in defs would hold for the whole page
        for element in root.findall(f"{SPACE}{name}"):
            root.remove(element)
    for element in root.iter():
        _tidy(element)
    root.attrib.clear()
    root.attrib.update({"viewBox": f"0 0 {width:g} {height:g}", "role": "img", "aria-label": alt, "class": "chart"})
    root.attrib["style"] = f"max-width: {width * 1.2:g}px"
    text = ElementTree.tostring(root, encoding="unicode")
    for name, colour in COLOURS.items():
        text = text.replace(colour, f"var(--{name})")
    return text


def _tidy(element: ElementTree.Element) -> None:
    """Take out names and needless digits; the page's style sheet chooses the font."""
    element.tag = element.tag.removeprefix(SPACE)
    for name in FOREIGN:
        element.attrib.pop(name, None)
    if "d" in element.attrib:
        element.attrib["d"] = " ".join(DECIMALS.sub(r"\1", element.attrib["d"]).split())
