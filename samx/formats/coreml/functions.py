"""Which function of a multifunction package decodes how many points. Data, no Core ML library."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from samx.artifacts import strict_json as read
from samx.errors import ArtifactError, PromptError
from samx.models.shape_range import MOST, ShapeRange

SINGLE_FUNCTION = "main"  # Core ML's name for the function of a package that has one
MULTIFUNCTION_IOS = 18  # the first system that loads packages of several functions
FUNCTION_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,63}")


@dataclass(frozen=True)
class Functions:
    """Hold the rows of points that each function takes, fewest first."""

    by_rows: Mapping[int, str]

    @classmethod
    def of(cls, options: Mapping[str, Any], where: str) -> Functions:
        """Read an artifact's options.

        Raises: ArtifactError naming `where`.
        """
        found = read.mapping(options.get("functions"), f"{where}: functions")
        rows = {name: _rows(name, count, f"{where}: functions") for name, count in found.items()}
        if not rows or len(set(rows.values())) != len(rows):
            raise ArtifactError(
                f"{where}: functions do not tell points apart", found=str(rows)[: read.SHOWN_CHARACTERS],
                expected="at least one, each with its own number of points", fix=read.REMEDY,
            )  # fmt: skip
        functions = cls({count: name for name, count in sorted(rows.items(), key=lambda item: item[1])})
        functions._check_span(options, where)
        return functions

    @property
    def sizes(self) -> tuple[int, ...]:
        """Rows of points, fewest first."""
        return tuple(self.by_rows)

    def rows(self, points: int) -> int:
        """Give the rows of the smallest function that holds so many points.

        Raises: PromptError naming the limit.
        """
        fitting = [size for size in self.sizes if size >= points]
        if not fitting:
            raise PromptError(
                "too many points a prompt for this artifact, padding counted", found=points,
                expected=f"at most {self.sizes[-1]}", fix="Export again with a larger --points.",
            )  # fmt: skip
        return fitting[0]

    def name(self, rows: int) -> str:
        """Name the function that takes exactly so many rows."""
        return self.by_rows[rows]

    def _check_span(self, options: Mapping[str, Any], where: str) -> None:
        points = ShapeRange.from_json(options.get("points"), f"{where}: points")
        if (points.min, points.max) != (self.sizes[0], self.sizes[-1]):
            raise ArtifactError(
                f"{where}: points and functions disagree", found=f"points {points}",
                expected=f"{self.sizes[0]} to {self.sizes[-1]}, as the functions take", fix=read.REMEDY,
            )  # fmt: skip


def _rows(name: str, value: Any, where: str) -> int:
    if not FUNCTION_NAME.fullmatch(name):
        shown = repr(name[: read.SHOWN_CHARACTERS])
        raise ArtifactError(f"{where} has a name that no function can have", found=shown, fix=read.REMEDY)
    rows = read.count(value, f"{where}: {name}")
    if not 1 <= rows <= MOST:
        raise ArtifactError(f"{where}: {name} takes no number of points", found=str(rows)[:20], fix=read.REMEDY)
    return rows
