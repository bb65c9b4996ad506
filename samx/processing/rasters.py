"""PNG, PPM and PGM without Pillow: what they hold, decoded to the bytes that Pillow gives, and PNG written."""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from samx.errors import ImageError, doubt

Bytes = NDArray[np.uint8]
Check = Callable[[tuple[int, int]], None]  # refuses a width and height
Levels = tuple[float, float]  # what becomes black, and what white

SIGNATURE = b"\x89PNG\r\n\x1a\n"
# By PNG's colour types: grey, RGB, palette, and with alpha.
CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
DEPTHS = {0: (1, 2, 4, 8, 16), 3: (1, 2, 4, 8)}
USUAL_DEPTHS = (8, 16)
PALETTE, SUB = 3, 1  # a colour type; a filter
SIXTEEN_BIT = 65535
NETPBM = re.compile(rb"P([56])" + rb"(?:\s|#[^\n]*\n)+(\d{1,9})" * 3 + rb"\s")
ORIENTATION, UPRIGHT = 0x0112, 1  # of EXIF
AGAIN = "Make or copy the file again."
PILLOW = "Install Pillow, which reads it: pip install pillow"


def read_raster(data: bytes, where: str, check: Check, levels: Levels | None = None) -> Bytes:
    """Decode a PNG, PPM or PGM; `check` is asked about the size before anything is unpacked. Shapes: -> (H, W, 3).

    levels: what becomes black and white of more than 8 bits; None: as eight_bits() finds.
    Raises: ImageError for a damaged file, and for what needs Pillow.
    """
    if data.startswith(SIGNATURE):
        return _png(data, where, check, levels)
    if found := NETPBM.match(data):
        return _netpbm(data, found, where, check)
    raise ImageError(f"{where} is no picture that samx reads without Pillow", expected="PNG, PPM or PGM", fix=PILLOW)


def png_bytes(image: NDArray[np.uint8] | NDArray[np.uint16]) -> bytes:
    """Write a picture as PNG. Shapes: (H, W, 3), or (H, W) in grey -> bytes."""
    height, width, *rest = image.shape
    step = int(np.prod(rest)) * image.itemsize
    samples = np.ascontiguousarray(image, image.dtype.newbyteorder(">")).view(np.uint8).reshape(height, width, step)
    lines = np.full((height, 1 + width * step), SUB, np.uint8)
    lines[:, 1:] = np.diff(samples, axis=1, prepend=np.zeros((height, 1, step), np.uint8)).reshape(height, -1)
    head = struct.pack(">IIBBBBB", width, height, 8 * image.itemsize, 2 if rest else 0, 0, 0, 0)
    parts = (b"IHDR", head), (b"IDAT", zlib.compress(lines.tobytes())), (b"IEND", b"")
    return SIGNATURE + b"".join(
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body)) for name, body in parts
    )


def _damaged(where: str, found: str) -> ImageError:
    return ImageError(f"{where} is damaged or incomplete", found=found, fix=AGAIN)


def is_deep_png(head: bytes) -> bool:
    """Return whether a file begins as a PNG with 16 bits of colours, of which Pillow keeps the upper 8 alone."""
    return head.startswith(SIGNATURE) and len(head) > 25 and head[24] == 16 and head[25] in (2, 4, 6)


def _png(data: bytes, where: str, check: Check, levels: Levels | None) -> Bytes:
    parts: dict[bytes, bytes] = {}
    for name, body in _chunks(data, where):
        parts[name] = parts.get(name, b"") + body if name == b"IDAT" else parts.get(name, body)
    head = parts.get(b"IHDR", b"")
    if len(head) != 13 or b"IDAT" not in parts:
        raise _damaged(where, "no header, or no pixels")
    width, height, depth, kind, _, _, interlaced = struct.unpack(">IIBBBBB", head)
    check((width, height))
    if kind not in CHANNELS or depth not in DEPTHS.get(kind, USUAL_DEPTHS):
        raise _damaged(where, f"colour type {kind} with {depth} bits")
    if interlaced or _turned(parts.get(b"eXIf", b"")):
        what = "is interlaced" if interlaced else "was turned by the camera"
        raise ImageError(f"{where} {what}, which samx does not read without Pillow", fix=PILLOW)
    line = (width * CHANNELS[kind] * depth + 7) // 8
    packed = _inflated(parts[b"IDAT"], height * (1 + line), where).reshape(height, 1 + line)
    rows = _unfiltered(packed[:, 0], packed[:, 1:], max(1, CHANNELS[kind] * depth // 8), where)
    samples = _samples(rows, width, depth, kind)
    if kind == PALETTE:
        return _from_palette(samples, parts.get(b"PLTE", b""), where)
    colours = samples[..., :3] if CHANNELS[kind] > 2 else samples[..., :1].repeat(3, axis=-1)
    if depth == 16:
        return eight_bits(colours, where, levels)
    return np.ascontiguousarray(colours * (255 // ((1 << min(depth, 8)) - 1)), np.uint8)


def _chunks(data: bytes, where: str) -> Iterator[tuple[bytes, bytes]]:
    """Yield the parts of a PNG up to its end, each with the checksum that it carries.

    Raises: ImageError.
    """
    at, name = len(SIGNATURE), b""
    while name != b"IEND":
        size = int.from_bytes(data[at : at + 4], "big")
        name, body, checksum = (data[at + a : at + b] for a, b in ((4, 8), (8, 8 + size), (8 + size, 12 + size)))
        if len(checksum) != 4 or zlib.crc32(name + body) != int.from_bytes(checksum, "big"):
            raise _damaged(where, f"a part at byte {at} that is cut off or has another checksum")
        yield name, body
        at += 12 + size


def _turned(exif: bytes) -> bool:
    """Return whether EXIF tells to turn the picture before it is shown."""
    order = "<" if exif.startswith(b"II") else ">"
    try:
        (start,) = struct.unpack_from(f"{order}I", exif, 4)
        (count,) = struct.unpack_from(f"{order}H", exif, start)
        entries = [struct.unpack_from(f"{order}HHIH", exif, start + 2 + 12 * i) for i in range(count)]
    except struct.error:
        return False
    return any(tag == ORIENTATION and value != UPRIGHT for tag, _, _, value in entries)


def _inflated(packed: bytes, size: int, where: str) -> Bytes:
    """Unpack no more than the header promises.

    Raises: ImageError where there is less.
    """
    try:
        data = zlib.decompressobj().decompress(packed, size)
    except zlib.error as cause:
        raise _damaged(where, str(cause)) from cause
    if len(data) < size:
        raise _damaged(where, f"{len(data)} bytes of pixels instead of {size}")
    return np.frombuffer(data, np.uint8)


def _unfiltered(filters: Bytes, rows: Bytes, step: int, where: str) -> Bytes:
    """Undo the filters of lines, which predict a byte from those to the left, above, and above the left.

    What is on one diagonal hangs on earlier diagonals alone, so that one is done at a time.
    Shapes: (H,), (H, bytes of a line) -> the latter. Source: the PNG specification, section 9.
    """
    if filters.max(initial=0) > 4:
        raise _damaged(where, f"filter {filters.max()}")
    height, width = rows.shape[0], rows.shape[1] // step
    table = np.zeros((height + 1, width + 1, step), np.uint8)  # a line above, and a pixel to the left
    table[1:, 1:] = rows.reshape(height, width, step)
    flat, stride = table.reshape(-1, step), width + 1
    for diagonal in range(height + width - 1):
        first, last = max(0, diagonal - width + 1), min(height - 1, diagonal)
        start = (first + 1) * stride + diagonal - first + 1
        here = slice(start, start + (last - first) * width + 1, width)
        left, above, corner = (flat[here.start - n : here.stop - n : width].astype(np.int16)
                               for n in (1, stride, stride + 1))  # fmt: skip
        guess = _guess(filters[first : last + 1, None], left, above, corner)
        flat[here] += guess.astype(np.uint8)
    return np.ascontiguousarray(table[1:, 1:]).reshape(height, -1)


def _guess(filters: Bytes, left: Any, above: Any, corner: Any) -> Any:
    """Predict bytes by the filters none, left, above, mean, and the nearest to left + above - corner (Paeth)."""
    to_left, to_above, to_corner = abs(above - corner), abs(left - corner), abs(left + above - 2 * corner)
    nearest = np.where(
        (to_left <= to_above) & (to_left <= to_corner), left, np.where(to_above <= to_corner, above, corner)
    )
    return np.choose(filters, (np.zeros_like(left), left, above, (left + above) >> 1, nearest))


def _samples(rows: Bytes, width: int, depth: int, kind: int) -> NDArray[Any]:
    """Take lines apart into numbers. Shapes: (H, bytes) -> (H, W, channels)."""
    shape = (len(rows), width, CHANNELS[kind])
    if depth == 16:
        return rows.view(">u2").reshape(shape)
    if depth == 8:
        return rows.reshape(shape)
    bits = np.unpackbits(rows, axis=1).reshape(len(rows), -1, depth)[:, :width]
    return (bits @ (1 << np.arange(depth)[::-1])).astype(np.uint8).reshape(shape)


def _from_palette(samples: NDArray[Any], palette: bytes, where: str) -> Bytes:
    """Look colours up; what a palette leaves out is black. Shapes: (H, W, 1) -> (H, W, 3)."""
    colours = np.zeros((256, 3), np.uint8)
    given = np.frombuffer(palette[: 3 * 256], np.uint8)
    if not len(given) or len(given) % 3:
        raise _damaged(where, f"a palette of {len(given)} bytes")
    colours[: len(given) // 3] = given.reshape(-1, 3)
    return colours[samples[..., 0]]


def eight_bits(samples: NDArray[Any], where: str, levels: Levels | None = None) -> Bytes:
    """Scale values of more than 8 bits to 8.

    levels: what becomes black, and what white. None: 0, and the most that the file's largest value needs bits for (12
    bits in a file of 16 are usual), which is said where it is not all 16.
    """
    least, most = (samples.min(initial=0), samples.max(initial=0)) if samples.size else (0, 0)
    if levels is None:
        bits = max(int(most).bit_length(), 8)
        levels = (0, (1 << bits) - 1)
        if bits < 16:
            doubt(
                f"{where} holds values from {least} to {most} in more bits than they need: {levels[1]} is taken as "
                "white; --range LOW:HIGH says otherwise"
            )
    low, high = levels
    scaled = (np.clip(samples.astype(np.float64), low, high) - low) * (255 / (high - low)) + 0.5
    return np.ascontiguousarray(scaled.astype(np.uint8))


def _netpbm(data: bytes, head: re.Match[bytes], where: str, check: Check) -> Bytes:
    width, height, most = (int(head[i]) for i in (2, 3, 4))
    check((width, height))
    if not 0 < most <= SIXTEEN_BIT:
        raise _damaged(where, f"a brightest value of {most}")
    channels, kind = 1 if head[1] == b"5" else 3, np.dtype(np.uint8 if most < 256 else ">u2")
    count = width * height * channels
    if len(data) - head.end() < count * kind.itemsize:
        raise _damaged(where, f"{len(data) - head.end()} bytes of pixels instead of {count * kind.itemsize}")
    samples = np.frombuffer(data, kind, count, head.end()).reshape(height, width, channels)
    scale = SIXTEEN_BIT if channels == 1 and most > 255 else 255
    if most != scale:
        samples = np.minimum(np.rint(samples.astype(np.float64) / most * scale), scale).astype(np.uint16)
    colours = eight_bits(samples, where, (0, SIXTEEN_BIT)) if scale == SIXTEEN_BIT else samples.astype(np.uint8)
    return np.ascontiguousarray(colours if channels == 3 else colours.repeat(3, axis=-1))
