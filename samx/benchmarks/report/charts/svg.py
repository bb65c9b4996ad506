"""Draw with matplotlib, and make of its SVG a part of the page: colours and font are the page's."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

import numpy as np
from numpy.typing import NDArray

from samx.extras import require

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Floats = NDArray[np.float64]

EXTRA, PURPOSE = "report", "drawing a report"
UNITS_PER_INCH = 72  # matplotlib's SVG unit, here a CSS pixel
SERIES = 8
NAMES = ("text", "muted", "line", "good", "bad", *(f"series-{i + 1}" for i in range(SERIES)))
NAMES += ("phase-1", "phase-2", "phase-3")
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
FONT = re.compile(r"font:\s*(?:(\d+)\s+)?([\d.]+)px[^;]*;?")
FAMILY = re.compile(r"font-family:[^;]*;?")
FOREIGN = ("id", "clip-path")  # names that a second picture of the page would use again


def series(index: int) -> str:
    """Give the colour of the n-th kind."""
    return COLOURS[f"series-{index % SERIES + 1}"]


@contextmanager
def _style() -> Iterator[None]:
    """Draw the same whatever settings the user has."""
    style = require("matplotlib.style", EXTRA, PURPOSE)
    with style.context(["default", dict(STYLE)]):
        yield


def draw(width: float, height: float, alt: str, paint: Callable[[Axes], None]) -> str:
    """Draw into one axes that fills the picture, in pixels; give SVG that says to those who don't see it what it shows.

    Raises: MissingExtraError.
    """
    figures = require("matplotlib.figure", EXTRA, PURPOSE)
    with _style():
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


def frame(axes: Axes, width: float, height: float, *, left: float, right: float, bottom: float) -> None:
    """Leave margins, in pixels, and count y in pixels from the top."""
    axes.set_position((left / width, bottom / height, (width - left - right) / width, (height - bottom) / height))
    axes.set_ylim(height - bottom, 0)


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
    """Take out names, needless digits and matplotlib's own font."""
    element.tag = element.tag.removeprefix(SPACE)
    for name in FOREIGN:
        element.attrib.pop(name, None)
    if "d" in element.attrib:
        element.attrib["d"] = " ".join(DECIMALS.sub(r"\1", element.attrib["d"]).split())
    if "style" in element.attrib:
        element.attrib["style"] = FAMILY.sub("", FONT.sub(_font, element.attrib["style"]))


def _font(found: re.Match[str]) -> str:
    weight = f" font-weight: {found[1]};" if found[1] else ""
    return f"font-size: {found[2]}px;{weight}"
