"""Which function of a multifunction package decodes how many points. Data, no Core ML library."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from samx.artifacts import strict_json as read
from samx.models.shape_range import MOST, ShapeRange

SINGLE_FUNCTION = "main"  # Core ML's name for the function of a package that has one
MULTIFUNCTION_IOS = 18  # the first system that loads packages of several functions
FUNCTION_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,63}")


def _check_name(name: str, where: str) -> None:
    if not FUNCTION_NAME.fullmatch(name):
        raise read.refusal(f"{where} has a name that no function can have", repr(name[: read.SHOWN_CHARACTERS]))


BY_NAME = Mapping[Annotated[str, _check_name], Annotated[int, read.between(1, MOST)]]  # rows of points


@dataclass(frozen=True)
class Functions:
    """Map rows of points to the functions that take them, fewest first."""

    by_rows: Mapping[int, str]

    @classmethod
    def of(cls, options: Mapping[str, Any], where: str) -> Functions:
        """Read an artifact's options.

        Raises: ArtifactError naming `where`.
        """
        rows: dict[str, int] = read.take(BY_NAME, options.get("functions"), f"{where}: functions")
        if not rows or len(set(rows.values())) != len(rows):
            expected = "at least one, each with its own number of points"
            raise read.refusal(f"{where}: functions do not tell points apart", str(rows), expected)
        functions = cls({count: name for name, count in sorted(rows.items(), key=lambda item: item[1])})
        functions._check_span(options, where)
        return functions

    @property
    def sizes(self) -> tuple[int, ...]:
        """Rows of points, fewest first."""
        return tuple(self.by_rows)

    def name(self, rows: int) -> str:
        """Name the function that takes exactly so many rows."""
        return self.by_rows[rows]

    def _check_span(self, options: Mapping[str, Any], where: str) -> None:
        points = ShapeRange.from_json(options.get("points"), f"{where}: points")
        if (points.min, points.max) != (self.sizes[0], self.sizes[-1]):
            expected = f"{self.sizes[0]} to {self.sizes[-1]}, as the functions take"
            raise read.refusal(f"{where}: points and functions disagree", f"points {points}", expected)
