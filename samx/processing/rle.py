"""Run-length encoding of masks, as COCO counts runs: column by column, beginning with what is outside the mask."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from samx.extras import require
from samx.processing.postprocess import BoolArray

RESULTS = "results"  # the extra of what result files need
# Of packed runs: a character's code less the first one's is five bits of a number, the highest of them its sign in the
# number's last character, and one bit that says that more follow.
FIRST_CODE, LAST_CODE, BITS, SIGN, MORE = 48, 63, 5, 16, 32
MOST_CODES = 7  # of a number: 35 bits, more than any picture has pixels
Runs = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Rle:
    """Hold one mask as the lengths of its runs. Units: px."""

    height: int
    width: int
    counts: Runs

    @classmethod
    def of(cls, mask: BoolArray) -> Rle:
        """Encode a mask. Shapes: (H, W)."""
        return cls.of_part(mask, (0, 0), (mask.shape[1], mask.shape[0]))

    @classmethod
    def of_part(cls, part: BoolArray, corner: tuple[int, int], size: tuple[int, int]) -> Rle:
        """Encode a mask of which only a part is given, from its upper left corner on; the rest is outside.

        Shapes: part (h, w), corner (x, y), size (W, H).
        """
        (x, y), (width, height) = corner, size
        lines = np.zeros((part.shape[1], part.shape[0] + 2), np.bool_)  # a pixel outside above and below each column
        lines[:, 1:-1] = part.T
        column, row = np.divmod(np.flatnonzero(lines[:, 1:] != lines[:, :-1]), part.shape[0] + 1)
        borders = (x + column) * height + y + row
        first, last = borders[::2], borders[1::2]
        apart = first[1:] != last[:-1]  # else a run goes on from the foot of one column to the head of the next
        edges = np.zeros(2 * (np.count_nonzero(apart) + bool(len(first))) + 2, np.int64)
        edges[1:-1:2], edges[2:-1:2] = first[np.r_[True, apart][: len(first)]], last[np.r_[apart, True][: len(first)]]
        edges[-1] = width * height
        counts = np.diff(edges)
        return cls(height, width, counts if counts[-1] or len(counts) == 1 else counts[:-1])

    @classmethod
    def read(cls, counts: Sequence[int], height: int, width: int) -> Rle:
        """Take the lengths of runs from a file.

        Raises: ValueError where they are not those of a mask of this size.
        """
        if any(not 0 <= count <= height * width for count in counts) or sum(counts) != height * width:
            raise ValueError(f"runs of {sum(counts)} px in a mask of {height * width}")
        return cls(height, width, np.array(counts, np.int64))

    @classmethod
    def packed(cls, text: str, height: int, width: int) -> Rle:
        """Take runs as COCO packs them, and coco() does; a library that is not told their size would write beyond it.

        A number is its bits, five a character, the least first; the fourth and later ones are differences from the
        one before the last. Source: rleFrString of pycocotools.
        Raises: ValueError where they are not those of a mask of this size.
        """
        codes = np.frombuffer(text.encode("ascii", "replace"), np.uint8).astype(np.int64) - FIRST_CODE
        ends = np.flatnonzero(~codes & MORE)
        if not len(codes) or codes.min() < 0 or codes.max() > LAST_CODE or codes[-1] & MORE:
            raise ValueError("no packed runs")
        starts = np.r_[0, ends[:-1] + 1]
        lengths = ends - starts + 1
        if lengths.max() > MOST_CODES:
            raise ValueError("a number of too many bits")
        shifts = BITS * (np.arange(len(codes)) - np.repeat(starts, lengths))
        numbers = np.add.reduceat((codes & (MORE - 1)) << shifts, starts)
        numbers -= np.where(codes[ends] & SIGN, np.int64(1) << BITS * lengths, 0)
        for first in (1, 2):
            numbers[first::2] = np.cumsum(numbers[first::2])
        return cls.read(numbers.tolist(), height, width)

    @property
    def area_px(self) -> int:
        """Return the number of the mask's pixels."""
        return int(self.counts[1::2].sum())

    def mask(self) -> BoolArray:
        """Decode it. Shapes: -> (H, W)."""
        inside = np.arange(len(self.counts)) % 2 == 1
        return np.repeat(inside, self.counts).reshape(self.width, self.height).T

    def part(self) -> tuple[tuple[int, int], BoolArray]:
        """Decode the part of the picture that the mask is in. Shapes: -> corner (x, y), (h, w); or 0 x 0."""
        borders = np.cumsum(self.counts)[: len(self.counts) // 2 * 2]  # of its runs: first pixels, and those beyond
        if not len(borders):
            return (0, 0), np.zeros((0, 0), np.bool_)
        left, right = borders[0] // self.height, (borders[-1] - 1) // self.height + 1
        runs = np.diff(np.r_[left * self.height, borders, right * self.height])
        columns = np.repeat(np.arange(len(runs)) % 2 == 1, runs).reshape(right - left, self.height).T
        rows = np.flatnonzero(columns.any(axis=1))
        return (int(left), int(rows[0])), columns[rows[0] : rows[-1] + 1]

    def uncompressed(self) -> dict[str, Any]:
        """Return it as plain data."""
        return {"size": [self.height, self.width], "counts": self.counts.tolist()}

    def coco(self) -> dict[str, Any]:
        """Return it as COCO packs it: text for counts.

        Raises: MissingExtraError.
        """
        packed = coco_library().frPyObjects(self.uncompressed(), self.height, self.width)
        return {"size": packed["size"], "counts": str(packed["counts"], "ascii")}


def coco_library() -> Any:
    """Import what packs runs.

    Raises: MissingExtraError.
    """
    return require("pycocotools.mask", RESULTS, "packing masks as COCO does")


@dataclass(frozen=True)
class Masks(Sequence[BoolArray]):
    """Decode masks one at a time, when they are looked at: many of a large picture do not fit in memory."""

    rles: Sequence[Rle]

    def __len__(self) -> int:
        return len(self.rles)

    @overload
    def __getitem__(self, place: int) -> BoolArray: ...
    @overload
    def __getitem__(self, place: slice) -> Masks: ...
    def __getitem__(self, place: int | slice) -> BoolArray | Masks:
        return Masks(self.rles[place]) if isinstance(place, slice) else self.rles[place].mask()
