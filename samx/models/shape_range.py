"""ShapeRange: the least, the usual and the most of something that an engine is built for."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from samx.errors import ArtifactError, UsageError

SPAN = re.compile(r"([0-9]{1,6})(?::([0-9]{1,6}):([0-9]{1,6}))?", re.ASCII)
EXPECTED = "MIN:OPT:MAX with 1 <= MIN <= OPT <= MAX, such as 1:8:64, or one number for a fixed size"
MOST = 999_999


@dataclass(frozen=True)
class ShapeRange:
    """Hold a range and the value in it that matters most."""

    min: int
    opt: int
    max: int

    def __post_init__(self) -> None:
        """Check the order.

        Raises: UsageError.
        """
        if not 1 <= self.min <= self.opt <= self.max <= MOST:
            raise UsageError("no range to build for", found=self, expected=EXPECTED)

    def __str__(self) -> str:
        return f"{self.min}:{self.opt}:{self.max}"

    def __contains__(self, number: int) -> bool:
        return self.min <= number <= self.max

    @classmethod
    def parse(cls, text: str, what: str) -> ShapeRange:
        """Read `min:opt:max`, or one number that is all three.

        Raises: UsageError naming what the range is for.
        """
        match = SPAN.fullmatch(text)
        low, opt, high = (match[1], match[2] or match[1], match[3] or match[1]) if match else ("0", "0", "0")
        try:
            return cls(int(low), int(opt), int(high))
        except UsageError as cause:
            raise UsageError(f"{what} is no range to build for", found=repr(text), expected=EXPECTED) from cause

    def to_json(self) -> list[int]:
        """Give the three numbers."""
        return [self.min, self.opt, self.max]

    @classmethod
    def from_json(cls, value: Any, where: str) -> ShapeRange:
        """Read the three numbers back.

        Raises: ArtifactError naming `where`.
        """
        try:
            if type(value) is list and [type(number) for number in value] == [int, int, int]:
                return cls(*value)
        except UsageError:
            pass
        raise ArtifactError(f"{where} is no range", found=repr(value)[:80], expected="three numbers, MIN <= OPT <= MAX")
