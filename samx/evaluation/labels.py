"""Labels: pictures with objects whose true masks are known, out of whichever files hold them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from samx.artifacts.strict_json import take
from samx.errors import ArtifactError, InputError
from samx.processing.images import seen_size
from samx.processing.rle import Rle
from samx.progress import Progress

LeftOut = Counter[str]  # why something was not measured: how often
# What is said of each reason. None of them is fatal, and none is silent.
REASONS: Mapping[str, str] = {
    "crowd": "labels of crowds (iscrowd), which are no single object",
    "empty": "labels without a pixel",
    "no_prompt": "objects that are too small for the prompt",
    "picture_missing": "labelled pictures that are not in the folder",
    "no_label": "pictures without any label",
}
TOLD_EVERY = 200  # pictures, whose labels take a second or so
LOOK = "Look at that place of the label file."


@dataclass(frozen=True, eq=False)
class Truth:
    """Hold one object as its label has it."""

    name: str  # its id in the label file
    category: str
    rle: Rle


@dataclass(frozen=True)
class Labelled:
    """Name a picture, the file or folder of its labels, and what reads its objects, counting what it leaves out."""

    path: Path
    source: Path
    read: Callable[[LeftOut], list[Truth]]


@dataclass(frozen=True)
class Labels:
    """Hold labelled pictures, of which some may not be there."""

    kind: str  # "coco", "sa1b" or "png"
    source: Path
    pictures: Sequence[Labelled]
    left_out: LeftOut = field(default_factory=Counter)

    def files(self) -> list[Path]:
        """List the pictures, and the files and folders of their labels."""
        return list({path: None for picture in self.pictures for path in (picture.path, picture.source)})

    def present(self, skip_missing: bool) -> Labels:
        """Keep the pictures that are there.

        Raises: InputError for those that are not, unless they may be skipped; where none is there in any case.
        """
        there = [picture for picture in self.pictures if picture.path.is_file()]
        missing = len(self.pictures) - len(there)
        if missing and not (skip_missing and there):
            first = next(picture.path for picture in self.pictures if not picture.path.is_file())
            without = "; or go on without them: --skip-missing." if there else "."
            raise InputError(
                f"{missing} of {len(self.pictures)} labelled pictures are missing", found=f"no file '{first}'",
                expected=f"the pictures that {self.source} is about",
                fix=f"Name their folder: --pictures DIR{without}",
            )  # fmt: skip
        return replace(self, pictures=there, left_out=self.left_out + Counter({"picture_missing": missing}))

    def drawn(self, limit: int | None, seed: int) -> Labels:
        """Draw at most so many pictures, in their order; the same seed draws the same."""
        if limit is None or limit >= len(self.pictures):
            return self
        places = np.random.default_rng(seed).choice(len(self.pictures), limit, replace=False)
        return replace(self, pictures=[self.pictures[place] for place in sorted(places)])

    def truths(self, progress: Progress) -> list[tuple[Path, list[Truth]]]:
        """Read every object before the work; pictures without any are counted in left_out.

        Raises: InputError for damaged labels, labels of another size than their picture's, and where no object is left.
        """
        found = []
        for place, picture in enumerate(self.pictures):
            if place % TOLD_EVERY == 0:
                progress("Reading labels", place, len(self.pictures))
            truths = picture.read(self.left_out)
            _check_sizes(picture.path, truths)
            found += [(picture.path, truths)] if truths else []
        if not found:
            raise InputError(
                f"no object of {self.source} can be asked about", found=told(self.left_out) or "no labels",
                expected="at least one object with a mask",
            )  # fmt: skip
        return found


def _check_sizes(path: Path, truths: Sequence[Truth]) -> None:
    """Refuse labels of a picture of another size: their masks would lie elsewhere."""
    if not truths:
        return
    width, height = seen_size(path)
    for truth in truths:
        if (truth.rle.width, truth.rle.height) != (width, height):
            raise InputError(
                f"label '{truth.name}' is of a picture of another size than '{path}'",
                found=f"{truth.rle.width} x {truth.rle.height} px", expected=f"{width} x {height} px",
                fix="Label the picture as it is seen, turned by its EXIF orientation, and at its own size.",
            )  # fmt: skip


def told(left_out: LeftOut) -> str:
    """Say what was left out."""
    return "; ".join(f"{count} {REASONS[reason]}" for reason, count in sorted(left_out.items()) if count)


@contextmanager
def label_errors() -> Iterator[None]:
    """Say of what is wrong in a label file where to look; it is none that samx wrote."""
    try:
        yield
    except ArtifactError as error:
        raise InputError(error.what, found=error.found, expected=error.expected, fix=LOOK) from error


def field_of(row: Any, name: str, hint: Any, where: str) -> Any:
    """Take a field of an object that may have others.

    Raises: ArtifactError naming `where`.
    """
    fields = take(dict[str, Any], row, where)
    if name not in fields:
        raise ArtifactError(f"{where} has no '{name}'", found=", ".join(fields) or "nothing")
    return take(hint, fields[name], f"{where}: {name}")
