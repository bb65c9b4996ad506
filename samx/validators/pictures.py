"""Pictures that image encoders are judged on, and where they lie in the square that an encoder takes.

The resizer is plain arithmetic, apart from the one that users' pictures go through: it judges that one too. It computes
in whole numbers, so that every machine makes the same bytes.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from samx.errors import ImageError
from samx.models.spec import DecoderSpec
from samx.processing.frames import Frame
from samx.processing.images import RgbArray, read_image

PHOTOS = Path(__file__).parent / "photos"  # sources and terms: NOTICE
SECOND_SCENE, THIN_SCENE = 900_101, 900_102  # far from every seed that the demo model was trained on
SECOND_PX = (400, 300)
LONG, THIN = 1.5, 0.1  # sides of the encoder's: what is made smaller shows a resizer without antialiasing
ONE = 1 << 14  # weights are whole numbers of this; products of two and a byte are exact in float64
MOST_SIDE_PX, MOST_PHOTO_PX = 4096, 1 << 22  # of a stored picture: more is an attack on the memory
LEVELS_APART = 1  # of 255, that two right resizers may differ by: one rounds once, the other after each axis


def package_pictures(picture_px: int) -> list[tuple[str, RgbArray]]:
    """Return the pictures that come with samx: three photographs and two of the demo's scenes."""
    from samx.demo.scenes import generate_scene  # needs Pillow

    scene = generate_scene(THIN_SCENE, (int(LONG * picture_px), picture_px)).image
    strip = scene[picture_px // 2 :][: max(int(THIN * picture_px), 1)]
    return [
        ("square, a cat", read_image(PHOTOS / "cat.jpg")),
        ("second, a scene", generate_scene(SECOND_SCENE, SECOND_PX).image),  # shows what is left of the first
        ("wide, a coffee cup", read_image(PHOTOS / "coffee.jpg")),
        ("tall, a rocket", read_image(PHOTOS / "rocket.jpg")),
        ("thin, a scene", np.ascontiguousarray(strip)),
    ]


def frame_of(spec: DecoderSpec, picture_px: int, photo: RgbArray) -> Frame:
    """Place a photo in the square of an encoder, whose side may be another than the decoder's."""
    return Frame.of(spec, photo.shape[1], photo.shape[0], picture_px)


def framed(photo: RgbArray, frame: Frame) -> RgbArray:
    """Resize with bilinear weights, antialiased or not, zeros beside. Shapes: (H, W, 3) -> (size_px, size_px, 3)."""
    rows = _weights(frame.height_px, frame.valid_height_px, frame.antialiases)
    columns = _weights(frame.width_px, frame.valid_width_px, frame.antialiases)
    sums = np.tensordot(np.tensordot(rows, photo.astype(np.float64), 1), columns, (1, 1)).transpose(0, 2, 1)
    picture = np.zeros((frame.size_px, frame.size_px, 3), np.uint8)
    resized = np.minimum((sums + ONE * ONE // 2) // (ONE * ONE), 255)
    picture[: frame.valid_height_px, : frame.valid_width_px] = resized
    return picture


def _weights(size: int, resized: int, antialiases: bool) -> NDArray[np.float64]:
    """Return each resized pixel's shares of the pixels, a triangle as wide as what it covers, or as a pixel.

    Shapes: -> (out, in).
    """
    scale = size / resized
    reach = max(scale, 1.0) if antialiases else 1.0
    centres = (np.arange(resized) + 0.5) * scale
    triangle = np.maximum(1 - abs(np.arange(size) + 0.5 - centres[:, None]) / reach, 0)
    return np.rint(triangle / triangle.sum(axis=1, keepdims=True) * ONE)


def resizing_problems(name: str, found: object, right: RgbArray, dtype: str) -> list[str]:
    """Return how another resizer's picture differs from the right one, or is not of the type that it should have."""
    if type(found) is not np.ndarray or found.dtype != dtype or found.shape != right.shape:
        return [f"picture '{name}' is not resized to {dtype} {right.shape}"]
    apart = float(abs(found.astype(np.float32) - right).max())
    if apart <= LEVELS_APART:
        return []
    return [f"picture '{name}' is resized wrongly: {apart:.4g} levels off, at most {LEVELS_APART} are rounding"]


def check_photo(photo: RgbArray, where: str) -> None:
    """Refuse a picture of a size that no suite has.

    Raises: ImageError.
    """
    height, width = photo.shape[:2]
    if not (1 <= min(height, width) <= max(height, width) <= MOST_SIDE_PX and height * width <= MOST_PHOTO_PX):
        expected = f"sides of 1 to {MOST_SIDE_PX} px, and at most {MOST_PHOTO_PX} px"
        raise ImageError(f"{where} has an odd size", found=f"{width} x {height} px", expected=expected)
