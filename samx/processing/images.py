"""Pictures: read, checked, put into the frame of an image encoder, written."""

from __future__ import annotations

import io
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from samx.errors import ImageError, UsageError, WriteError
from samx.files import open_regular, reading
from samx.models.session import FloatArray
from samx.models.spec import LEAST_RANGE, PIXELS
from samx.processing.frames import Frame
from samx.processing.rasters import PILLOW, SIXTEEN_BIT, Levels, eight_bits, is_deep_png, png_bytes, read_raster
from samx.processing.resize import resized

if TYPE_CHECKING:
    from PIL import Image

RgbArray = NDArray[np.uint8]
_PILLOWS_LIMIT = threading.Lock()  # one number for the whole process

MAX_PICTURE_PX = 100_000_000  # 300 MB as RGB; what phones and most cameras take is below it
MAX_TILED_PX = 1_000_000_000  # of a picture that is looked at tile by tile: read whole all the same, twice for a moment
# Formats with a decoder inside Pillow; others start programs of their own (EPS: Ghostscript) or hold no photographs.
PICTURE_FORMATS = ("JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF", "PPM")
SENT = "picture"  # what a file that somebody sent is called in errors
HEAD_BYTES = 32  # of a file, which tell whether it is a PNG and how deep
ORIENTATION, UPRIGHT = 0x0112, 1  # of EXIF
OF_EMBEDDING = "its embedding may be of the pixels as stored"
EMBED_AGAIN = "Save the picture turned, without that tag, and make the embedding of that one."
ON_SIDE = (5, 6, 7, 8)  # orientations that swap width and height


def read_image(path: Path, levels: Levels | None = None, most_px: int | None = None) -> RgbArray:
    """Read a picture as it is meant to be seen: turned by its EXIF orientation, in RGB, transparency dropped;
    of an animation, the first picture. Without Pillow, PNG, PPM and PGM alone.

    levels: of pictures with more than 8 bits a channel, what becomes black and white; None: as eight_bits() finds.
    most_px: that it may have; None: MAX_PICTURE_PX.
    Shapes: -> (H, W, 3).
    Raises: ImageError when it is missing, no picture, damaged or too large, or needs Pillow.
    """
    with _opened(path) as file:
        return decode_image(file, path, levels, most_px)


def decode_image(
    file: IO[bytes], path: Path | str, levels: Levels | None = None, most_px: int | None = None
) -> RgbArray:
    """Read a picture as read_image() does from a file that is open; `path` is what errors call it."""
    pillow = find_spec("PIL")
    deep = is_deep_png(file.read(HEAD_BYTES))
    file.seek(0)
    if not deep and pillow is not None:
        return _read_by_pillow(path, file, levels, most_px)
    try:
        return read_raster(file.read(), f"picture '{path}'", partial(_check_size, path, most_px), levels)
    except ImageError as error:
        if pillow is None or error.fix != PILLOW:
            raise
        fix = "Convert it to 8 bits a channel."
        raise ImageError(f"picture '{path}' has 16 bits, and is interlaced or turned", fix=fix) from error


def read_image_bytes(data: bytes, most_px: int | None = None) -> RgbArray:
    """Read a picture that somebody sent, as read_image() does; errors name no place of this machine.

    Shapes: -> (H, W, 3).
    Raises: ImageError.
    """
    return decode_image(io.BytesIO(data), SENT, most_px=most_px)


def _read_by_pillow(path: Path | str, file: IO[bytes], levels: Levels | None, most_px: int | None) -> RgbArray:
    from PIL import ImageOps

    with _pillow_errors(path), _pillow_image(file) as picture:
        _check_size(path, most_px, picture.size)
        ImageOps.exif_transpose(picture, in_place=True)
        return _as_rgb(path, picture, levels)


def seen_size(path: Path) -> tuple[int, int]:
    """Return (W, H) of a picture as read_image() gives it, without decoding it where Pillow is here.

    Raises: ImageError.
    """
    if find_spec("PIL") is None:
        height, width = read_image(path).shape[:2]
        return width, height
    with _opened(path) as file, _pillow_errors(path), _pillow_image(file) as picture:
        width, height = picture.size
        return (height, width) if picture.getexif().get(ORIENTATION, UPRIGHT) in ON_SIDE else (width, height)


def read_values(path: Path) -> NDArray[Any]:
    """Read a picture's numbers as they are stored, a palette's numbers too; not turned, not scaled.

    Shapes: -> (H, W), or (H, W, channels) in colours.
    Raises: ImageError; for colours of 16 bits too.
    """
    with _opened(path) as file, _pillow_errors(path), _pillow_image(file) as picture:
        _check_size(path, None, picture.size)
        _check_depth(path, picture)
        return np.array(picture)


def read_shown(path: Path) -> RgbArray | None:
    """Read what is seen of a picture with a palette or with transparency, not turned; None of one with neither.

    Shapes: -> (H, W, 4), the last of opacity.
    Raises: ImageError.
    """
    with _opened(path) as file, _pillow_errors(path), _pillow_image(file) as picture:
        _check_size(path, None, picture.size)
        if picture.mode != "P" and "A" not in picture.getbands() and "transparency" not in picture.info:
            return None
        return np.array(picture.convert("RGBA"))


def check_upright(path: Path, doubt: str = OF_EMBEDDING, fix: str = EMBED_AGAIN) -> None:
    """Refuse a picture that is turned before it is shown, where an embedding or a mask comes with it: of which way it
    was made nobody knows.

    doubt, fix: what the error says of it.
    Raises: ImageError.
    """
    if find_spec("PIL") is None:
        return  # without it, no turned picture is read
    with _opened(path) as file, _pillow_errors(path), _pillow_image(file) as picture:
        turned = picture.getexif().get(ORIENTATION, UPRIGHT)
    if turned != UPRIGHT:
        raise ImageError(
            f"picture '{path}' is turned by its EXIF orientation, and {doubt}", found=f"orientation {turned}",
            expected="pixels stored as they are seen", fix=fix,
        )  # fmt: skip


def parse_levels(text: str) -> Levels:
    """Read LOW:HIGH, the values that become black and white.

    Raises: UsageError.
    """
    try:
        low, high = (float(part) for part in text.split(":"))
    except ValueError:
        low = high = 0.0
    if not (low < high and np.isfinite([low, high]).all()):
        raise UsageError("no range of brightness", found=repr(text), expected="LOW:HIGH, such as 0:4095")
    return low, high


@contextmanager
def _opened(path: Path) -> Iterator[IO[bytes]]:
    """Open a file that the user named."""
    with open_regular(path, f"file '{path}'", ImageError) as file, reading(f"file '{path}'", ImageError):
        yield file


@contextmanager
def _pillow_errors(path: Path | str) -> Iterator[None]:
    """Turn whatever Pillow says about a file into one line."""
    from PIL import UnidentifiedImageError

    try:
        yield
    except (ImageError, MemoryError):
        raise
    except UnidentifiedImageError as error:
        formats = ", ".join(PICTURE_FORMATS)
        raise ImageError(f"file '{path}' is no picture that samx reads", expected=f"one of {formats}") from error
    except Exception as error:  # damaged files make Pillow's decoders raise nearly anything
        fix = "Make or copy the file again."
        raise ImageError(f"picture '{path}' is damaged or incomplete", found=error, fix=fix) from error


def _pillow_image(file: IO[bytes]) -> Image.Image:
    """Open a picture of any size by its header: which are too large is said here, not by Pillow."""
    from PIL import Image

    with _PILLOWS_LIMIT:
        usual, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            return Image.open(file, formats=PICTURE_FORMATS)
        finally:
            Image.MAX_IMAGE_PIXELS = usual


def _check_size(path: Path | str, most_px: int | None, size: tuple[int, int]) -> None:
    width, height = size
    if width < 1 or height < 1:
        raise ImageError(f"picture '{path}' has no pixels", found=f"{width} x {height} px")
    most = MAX_PICTURE_PX if most_px is None else most_px
    if width * height > most:
        tiled = "" if most_px else " Or look for everything in it tile by tile: --everything --tile-px 2048."
        raise ImageError(
            f"picture '{path}' is too large", found=f"{width} x {height} px",
            expected=f"at most {most // 1_000_000} megapixels", fix=f"Make it smaller first.{tiled}",
        )  # fmt: skip


def _as_rgb(path: Path | str, picture: Image.Image, levels: Levels | None) -> RgbArray:
    """Convert any mode to 8-bit RGB; grey of more bits is scaled, since Pillow's own conversion clips it to white.

    Shapes: -> (H, W, 3).
    """
    _check_depth(path, picture)
    if not _is_deep_grey(picture):
        return np.array(picture if picture.mode == "RGB" else picture.convert("RGB"))
    grey = np.asarray(picture)
    if levels is None and (picture.mode == "F" or grey.min() < 0 or grey.max() > SIXTEEN_BIT):
        fix = "Say it: --range LOW:HIGH, what becomes black and white; or convert the picture to 8 bits."
        raise ImageError(f"picture '{path}' has no fixed range of brightness", found=f"mode {picture.mode}", fix=fix)
    return eight_bits(grey, f"picture '{path}'", levels)[..., None].repeat(3, axis=-1)


def _is_deep_grey(picture: Image.Image) -> bool:
    return picture.mode in ("F", "I") or picture.mode.startswith("I;16")


def _check_depth(path: Path | str, picture: Image.Image) -> None:
    """Refuse colours of which Pillow drops the lower bits without a word."""
    if not _is_deep_grey(picture) and any("16" in str(tile.args) for tile in getattr(picture, "tile", ())):
        fix = "Save it as PNG, or with 8 bits a channel."
        raise ImageError(f"picture '{path}' has colours of 16 bits, of which Pillow keeps 8", fix=fix)


def to_frame(image: RgbArray, frame: Frame) -> FloatArray:
    """Put a picture into its frame: resized as the family does, zeros beyond its valid part, values 0 to 1.

    Shapes: (H, W, 3) -> (1, 3, size_px, size_px). Normalising colours is the image encoder's work.
    Raises: ImageError for a picture of another size.
    """
    framed = np.zeros((1, 3, frame.size_px, frame.size_px), np.float32)
    framed[0, :, : frame.valid_height_px, : frame.valid_width_px] = _resized(image, frame).transpose(2, 0, 1) / 255
    return framed


def to_levels(image: RgbArray, frame: Frame) -> NDArray[Any]:
    """Put a picture into its frame as to_frame() does, with values from 0 to 255: bytes where they are whole.

    Shapes: (H, W, 3) -> (S, S, 3).
    Raises: ImageError for a picture of another size.
    """
    framed = np.zeros((frame.size_px, frame.size_px, 3), np.float32 if frame.resizes_floats else np.uint8)
    framed[: frame.valid_height_px, : frame.valid_width_px] = _resized(image, frame)
    return framed


def _resized(image: RgbArray, frame: Frame) -> FloatArray:
    """Resize a picture to the part of its frame that it fills; values 0 to 255."""
    if image.shape != (frame.height_px, frame.width_px, 3):
        expected = (frame.height_px, frame.width_px, 3)
        raise ImageError("picture does not have its frame's size", found=image.shape, expected=expected)
    return resized(image, frame.valid_width_px, frame.valid_height_px, frame.resizes_floats, frame.antialiases)


def check_pixels(encoder: Path | None, kind: str | None) -> None:
    """Refuse an encoder of which nothing says what pixels it takes: a wrong guess gives a wrong mask without an error.

    Raises: UsageError; for an unknown kind too.
    """
    if encoder is not None and kind is None:
        raise UsageError(
            f"nothing says which pixels the encoder '{encoder}' takes", expected=" or ".join(PIXELS),
            fix="Say it: --pixels in the shell, pixels= in Python.",
        )  # fmt: skip
    if kind is not None and kind not in PIXELS:
        raise UsageError("unknown pixel normalisation", found=repr(kind), expected=" or ".join(PIXELS))


def normalised(pixels: FloatArray, frame: Frame, kind: str) -> FloatArray:
    """Shift and scale the picture's part of a frame; the padding stays zero. Shapes: (1, 3, S, S) -> the same.

    Raises: UsageError for an unknown kind.
    """
    if kind not in PIXELS:
        raise UsageError("unknown pixel normalisation", found=repr(kind), expected=" or ".join(PIXELS))
    result = np.zeros_like(pixels)
    valid = np.s_[..., : frame.valid_height_px, : frame.valid_width_px]
    if kind == "minmax":
        least = pixels[valid].min()
        result[valid] = (pixels[valid] - least) / max(pixels[valid].max() - least, LEAST_RANGE)
    else:
        mean, std = (np.array(values, np.float32).reshape(1, 3, 1, 1) for values in PIXELS[kind])
        result[valid] = (pixels[valid] - mean) / std
    return result


def check_png(path: Path) -> None:
    """Refuse a name that promises another format than PNG, which pictures are written in.

    Raises: UsageError.
    """
    if path.suffix.lower() != ".png":
        fix = f"Name it {path.with_suffix('.png').name}."
        raise UsageError(f"'{path}' is not written", found=path.suffix or "no suffix", expected=".png", fix=fix)


def check_free(path: Path, overwrite: bool) -> None:
    """Refuse a file that exists already, before any work is done for it.

    Raises: WriteError when it exists and overwriting was not asked for.
    """
    if path.exists() and not overwrite:
        raise WriteError(f"file '{path}' exists already", fix="Choose another name, or ask for overwriting: --force.")


def write_png(path: Path, picture: RgbArray, overwrite: bool = False) -> None:
    """Write a PNG whole or not at all. Shapes: (H, W, 3).

    Raises: WriteError when the file exists already and overwrite is not asked for, or when writing fails.
    """
    check_free(path, overwrite)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with partial.open("xb") as file:
            file.write(png_bytes(picture))
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except OSError as error:
        raise WriteError(f"file '{path}' could not be written", found=error.strerror or error) from error
    finally:
        with suppress(OSError):  # gone by now if all went well
            partial.unlink()
