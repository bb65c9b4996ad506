"""Writes docs/images/rooms.svg, a picture of the floors that docs/architecture.md lists: `make docs`."""

from __future__ import annotations

import re
from collections.abc import Iterator
from html import escape
from pathlib import Path

HERE = Path(__file__).parent
PICTURE = HERE / "images" / "rooms.svg"
FLOORS = re.compile(r"^## Imports run downwards\n.*?^```text\n(.*?)^```", re.MULTILINE | re.DOTALL)
WIDTH, LEFT, ROW, BOX, GAP, LETTER = 900, 36, 38, 26, 8, 7.3  # px
# A room's colour says what it is for.
COLOURS = (
    ("people call it", "#d7e8fb", ("cli", "console", "api", "commands", "predictor", "picture_encoder", "web")),
    ("measured", "#fbe3cf", ("benchmarks",)),
    (
        "exported, run, proven", "#d9f0d8",
        ("exporters", "runtimes", "validators", "contracts", "quantization", "kits", "registry"),
    ),
    ("files and devices", "#efe0f5", ("artifacts", "formats", "devices", "demo")),
    ("models and pictures", "#fff3c4", ("models", "processing")),
    ("everybody's", "#e6e6e6", ()),
)  # fmt: skip
BEGIN = (
    '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img" font-family="monospace" '
    'font-size="12">\n<title>The rooms of samx; imports run downwards</title>\n'
    '<rect width="{width}" height="{height}" fill="#ffffff"/>\n'
)


def floors() -> list[list[str]]:
    """Read the rooms of each floor, from the top, off the architecture page."""
    found = FLOORS.search((HERE / "architecture.md").read_text(encoding="utf-8"))
    assert found is not None
    return [line.split("  ")[0].split(", ") for line in found[1].splitlines()]


def picture() -> str:
    """Draw the floors."""
    rows = floors()
    height = ROW * len(rows) + 64
    parts = [BEGIN.format(width=WIDTH, height=height), arrow(ROW * len(rows))]
    parts += [shape for row, rooms in enumerate(rows) for shape in floor(12 + ROW * row, rooms)]
    return "".join([*parts, *legend(height - 36), "</svg>\n"])


def arrow(bottom: int) -> str:
    """Draw which way imports run."""
    line = f'<path d="M 18 16 V {bottom - 4} m -5 -9 l 5 9 l 5 -9" fill="none" stroke="#555" stroke-width="1.5"/>\n'
    return (
        line + f'<text x="12" y="{bottom // 2}" fill="#555" transform="rotate(-90 12 {bottom // 2})">imports</text>\n'
    )


def floor(top: int, rooms: list[str]) -> Iterator[str]:
    """Draw the rooms of a floor side by side."""
    left = float(LEFT)
    for room in rooms:
        width = LETTER * len(room) + 16
        yield box(left, top, width, colour(room), room)
        left += width + GAP


def box(left: float, top: int, width: float, fill: str, label: str) -> str:
    """Draw a labelled box."""
    shape = f'<rect x="{left:.1f}" y="{top}" width="{width:.1f}" height="{BOX}" rx="4" fill="{fill}" stroke="#888"/>'
    return f'{shape}<text x="{left + 8:.1f}" y="{top + 17}" fill="#222">{escape(label)}</text>\n'


def colour(room: str) -> str:
    """Choose a room's colour by the first word of its name."""
    first = room.partition(".")[0]
    fitting = (
        fill for _, fill, names in COLOURS if any(first == name or first.startswith(f"{name}_") for name in names)
    )
    return next(fitting, COLOURS[-1][1])


def legend(top: int) -> Iterator[str]:
    """Explain the colours."""
    left = float(LEFT)
    for label, fill, _ in COLOURS:
        yield box(left, top, LETTER * len(label) + 16, fill, label)
        left += LETTER * len(label) + 16 + GAP


if __name__ == "__main__":
    PICTURE.write_text(picture(), encoding="utf-8")
