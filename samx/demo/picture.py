"""Writes a demo scene as a PNG: `python -m samx.demo.picture OUT.png [--seed N] [--size WxH]`.

The demo model has not seen the scenes of small seeds: those are held out from its training.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from samx.demo.scenes import generate_scene
from samx.processing.images import write_png

PICTURE_SEED = 4
PICTURE_SIZE_PX = (1024, 768)  # not square, as photographs are


def write_picture(path: Path, seed: int = PICTURE_SEED, size_px: tuple[int, int] = PICTURE_SIZE_PX) -> None:
    """Draw the scene of a seed and write it; a picture that is there is replaced.

    Raises: WriteError when the disk does not take it.
    """
    write_png(path, generate_scene(seed, size_px).image, overwrite=True)


def parse_size(text: str) -> tuple[int, int]:
    """Read a size written as WxH."""
    width, separator, height = text.partition("x")
    if not separator or not (width.isdecimal() and height.isdecimal()) or not (int(width) and int(height)):
        raise argparse.ArgumentTypeError(f"found '{text}', expected WxH in px, such as 1024x768")
    return int(width), int(height)


def main() -> None:
    """Write a picture from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path)
    parser.add_argument("--seed", type=int, default=PICTURE_SEED)
    parser.add_argument("--size", type=parse_size, default=PICTURE_SIZE_PX, help="WxH in px")
    options = parser.parse_args()
    write_picture(options.output, options.seed, options.size)


if __name__ == "__main__":
    main()
