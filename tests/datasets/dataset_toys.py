"""Pictures to be segmented by the hundred, and a worker that needs no model and dies when it is told to."""

from __future__ import annotations

import io
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as parquet
from PIL import Image

from samx.datasets import child
from samx.datasets.pictures import Picture, Read, Row, row_of
from samx.datasets.segmenter import How
from samx.demo.scenes import generate_scene

# A worker's process for tests: 'samx.datasets.child' with the segmenter below.
COMMAND = (sys.executable, __file__)
LOOSE = ("--points-per-side", "4", "--pred-iou-thresh", "0.5", "--stability-score-thresh", "0.5")


class Pretender:
    """Answer a picture's number of bytes as its width; do what the picture's name says.

    die: the process is killed. once: it is killed the first time. slow: it takes a while.
    """

    def __init__(self, how: How) -> None:
        self.folder = Path(how.model)

    def __call__(self, picture: Picture, read: Read) -> Row:
        """Return a row without masks."""
        data, name = read(picture), picture.name
        if "slow" in name:
            time.sleep(0.3)
        mark = self.folder / f"{name.replace('/', '_')}.died"
        if "die" in name or ("once" in name and not mark.exists()):
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return row_of(picture, len(data), os.getpid() if "pid" in name else 1)


def scene(number: int, size: tuple[int, int] = (160, 120)) -> bytes:
    """Draw a picture as PNG."""
    buffer = io.BytesIO()
    Image.fromarray(generate_scene(910_000 + number, size).image).save(buffer, "PNG")
    return buffer.getvalue()


def scenes(folder: Path, count: int, size: tuple[int, int] = (160, 120)) -> Path:
    """Write pictures into two folders in a folder."""
    for number in range(count):
        path = folder / "ab"[number % 2] / f"{number:04}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(scene(number, size))
    return folder


def blanks(folder: Path, names: list[str]) -> Path:
    """Write files of one to nine bytes, which only the pretender takes for pictures."""
    folder.mkdir(exist_ok=True)
    for number, name in enumerate(names):
        (folder / name).write_bytes(b"x" * (1 + number % 9))
    return folder


def rows(out: Path) -> list[dict[str, Any]]:
    """Read what was written, as others do, in the order of the pictures' names."""
    found: list[dict[str, Any]] = parquet.read_table(out).to_pylist()
    return sorted(found, key=lambda row: str(row["picture"]))


def files(out: Path) -> dict[str, bytes]:
    """Read every file, hidden ones too."""
    return {path.name: path.read_bytes() for path in out.iterdir()}


def decoded(mask: dict[str, Any]) -> np.ndarray[Any, Any]:
    """Return a mask as pycocotools decodes it."""
    from pycocotools import mask as coco

    found: np.ndarray[Any, Any] = coco.decode(mask["segmentation"]).astype(bool)
    return found


if __name__ == "__main__":
    vars(child)["Segmenter"] = Pretender
    sys.exit(child.main())
