"""Pictures without Pillow: the same bytes as with it, or one line that says what is wrong."""

from __future__ import annotations

import io
import struct
import sys
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from samx.errors import ImageError, SamxError
from samx.models.spec import sam1_spec, sam2_spec
from samx.processing import images
from samx.processing.frames import Frame
from samx.processing.images import read_image, to_frame
from samx.processing.rasters import is_deep_png, png_bytes, read_raster

RANDOM = np.random.default_rng(0)
ROWS, COLUMNS = np.mgrid[:37, :53]
PICTURES = {
    "smooth": np.stack([ROWS * 4, COLUMNS * 3, ROWS * COLUMNS % 256], axis=-1).astype(np.uint8),
    "noise": RANDOM.integers(0, 256, (37, 53, 3), dtype=np.uint8),
    "a row": RANDOM.integers(0, 256, (1, 9, 3), dtype=np.uint8),
    "a column": RANDOM.integers(0, 256, (9, 1, 3), dtype=np.uint8),
    "a pixel": np.array([[[1, 2, 3]]], np.uint8),
}


def any_size(size: tuple[int, int]) -> None:
    """Refuse nothing."""


def decoded(data: bytes) -> NDArray[np.uint8]:
    return read_raster(data, "picture", any_size)


def by_pillow(data: bytes, folder: Path) -> NDArray[np.uint8]:
    if is_deep_png(data):  # Pillow keeps the upper 8 bits alone
        with Image.open(io.BytesIO(data)) as picture:
            return np.array(picture.convert("RGB"))
    (folder / "picture").write_bytes(data)
    return read_image(folder / "picture")


def saved(picture: Image.Image, form: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, form, **options)
    return buffer.getvalue()


def part(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def png(
    rows: bytes, width: int, height: int, depth: int = 8, kind: int = 2, interlaced: int = 0,
    more: Sequence[tuple[bytes, bytes]] = (),
) -> bytes:  # fmt: skip
    """Write a PNG by hand; `rows` begin with their filters."""
    head = struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, interlaced)
    parts = [(b"IHDR", head), *more, (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(part(*each) for each in parts)


@pytest.mark.parametrize("name", PICTURES)
@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA"])
@pytest.mark.parametrize("options", [{}, {"optimize": True}, {"compress_level": 0}], ids=["usual", "small", "stored"])
def test_a_png_is_what_pillow_reads(name: str, mode: str, options: dict[str, Any], tmp_path: Path) -> None:
    data = saved(Image.fromarray(PICTURES[name]).convert(mode), **options)
    np.testing.assert_array_equal(decoded(data), by_pillow(data, tmp_path))


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_small_palettes_are_what_pillow_reads(bits: int, tmp_path: Path) -> None:
    data = saved(Image.fromarray(PICTURES["smooth"]).quantize(2**bits), bits=bits)
    np.testing.assert_array_equal(decoded(data), by_pillow(data, tmp_path))


CHANNELS = {0: 1, 2: 3, 4: 2, 6: 4}


@pytest.mark.parametrize(
    ("kind", "depth"), [(kind, depth) for kind in CHANNELS for depth in (8, 16)] + [(0, 1), (0, 2), (0, 4)]
)
def test_every_filter_and_depth_is_what_pillow_reads(kind: int, depth: int, tmp_path: Path) -> None:
    line = (21 * CHANNELS[kind] * depth + 7) // 8
    rows = RANDOM.integers(0, 256, (40, 1 + line), dtype=np.uint8)
    rows[:, 0] = RANDOM.integers(0, 5, 40)
    data = png(rows.tobytes(), 21, 40, depth, kind)
    difference = np.abs(decoded(data).astype(int) - by_pillow(data, tmp_path))
    assert difference.max() <= int(is_deep_png(data))  # rounded here, cut off there


@pytest.mark.parametrize(("magic", "most"), [(m, n) for m in ("P5", "P6") for n in (255, 65535, 100, 1000, 1)])
def test_a_netpbm_file_is_what_pillow_reads(magic: str, most: int, tmp_path: Path) -> None:
    shape = (7, 5, 1 if magic == "P5" else 3)
    samples = RANDOM.integers(0, most + 1, shape).astype(">u2" if most > 255 else np.uint8)
    data = f"{magic}\n# a comment\n5 7\n{most}\n".encode() + samples.tobytes()
    np.testing.assert_array_equal(decoded(data), by_pillow(data, tmp_path))


@pytest.mark.parametrize("name", PICTURES)
def test_what_is_written_is_read_by_both(name: str, tmp_path: Path) -> None:
    data = png_bytes(PICTURES[name])
    np.testing.assert_array_equal(decoded(data), PICTURES[name])
    np.testing.assert_array_equal(by_pillow(data, tmp_path), PICTURES[name])


def test_extra_parts_and_bytes_after_the_end_change_nothing(tmp_path: Path) -> None:
    rows = b"\0\1\2\3"
    data = png(rows, 1, 1, more=[(b"tEXt", b"Comment\0hello"), (b"gAMA", b"\0\0\xb1\x8f")]) + b"more"
    np.testing.assert_array_equal(decoded(data), by_pillow(data, tmp_path))


GOOD = png_bytes(PICTURES["noise"])


def exif(value: int) -> bytes:
    return b"MM\0*" + struct.pack(">IHHHIHHI", 8, 1, 0x0112, 3, 1, value, 0, 0)


@pytest.mark.parametrize("value", [1, 6])
def test_a_turned_picture_needs_pillow_and_an_upright_one_not(value: int) -> None:
    data = png(b"\0\1\2\3", 1, 1, more=[(b"eXIf", exif(value))])
    if value == 1:
        assert decoded(data).tolist() == [[[1, 2, 3]]]
        return
    with pytest.raises(ImageError, match=r"was turned by the camera, .*Install Pillow"):
        decoded(data)


def flipped(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (flipped(GOOD, 60), "another checksum"),
        (flipped(GOOD, 30), "another checksum"),
        (GOOD[:-20], "cut off"),
        (GOOD[:8], "cut off"),
        (GOOD[:20], "cut off"),
        (b"\x89PNG\r\n\x1a\n" + part(b"IEND", b""), "no header"),
        (png(b"\0\1\2\3", 1, 2), "4 bytes of pixels instead of 8"),
        (png(b"\7\1\2\3", 1, 1), "filter 7"),
        (png(b"\0\1\2\3", 1, 1, kind=5), "colour type 5"),
        (png(b"\0\1\2\3", 1, 1, depth=3), "with 3 bits"),
        (png(b"\0\1", 1, 1, kind=3), "a palette of 0 bytes"),
        (png(b"\0\1", 1, 1, kind=3, more=[(b"PLTE", b"\1\2\3\4")]), "a palette of 4 bytes"),
        (png(b"\0\1\2\3", 1, 1, interlaced=1), "is interlaced, which samx does not read without Pillow"),
        (GOOD.replace(b"IDAT", b"IDAX"), "another checksum"),
        (b"\x89PNG\r\n\x1a\n" + part(b"IHDR", b"short") + part(b"IDAT", b"") + part(b"IEND", b""), "no header"),
        (b"P6\n5 5\n255\n" + bytes(74), "74 bytes of pixels instead of 75"),
        (b"P5\n5 5\n0\n" + bytes(25), "brightest value of 0"),
        (b"P5\n5 5\n65536\n" + bytes(50), "brightest value of 65536"),
        (b"\xff\xd8\xff\xe0 JPEG", "reads without Pillow: .*PNG, PPM or PGM.*Install Pillow"),
        (b"P3\n1 1\n255\n1 2 3\n", "Install Pillow"),
        (b"", "Install Pillow"),
    ],
)
def test_what_cannot_be_read_is_one_line(data: bytes, words: str) -> None:
    with pytest.raises(ImageError, match=words) as error:
        decoded(data)
    assert "\n" not in str(error.value)
    assert error.value.exit_code == 6


def test_bytes_that_are_no_zlib_stream_are_one_line() -> None:
    data = b"\x89PNG\r\n\x1a\n" + part(b"IHDR", struct.pack(">IIBBBBB", 1, 1, 8, 2, 0, 0, 0))
    with pytest.raises(ImageError, match="damaged or incomplete: found Error -3"):
        decoded(data + part(b"IDAT", b"no zlib stream") + part(b"IEND", b""))


def test_a_bomb_is_unpacked_no_further_than_its_header_says() -> None:
    rows = b"\0\1\2\3" + bytes(50_000_000)
    assert decoded(png(rows, 1, 1)).tolist() == [[[1, 2, 3]]]


@pytest.fixture
def no_pillow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let Pillow look as if it had never been installed."""
    for name in [name for name in sys.modules if name.split(".")[0] == "PIL"]:
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setattr(images, "find_spec", lambda name: None)


@pytest.mark.usefixtures("no_pillow")
def test_a_picture_file_is_read_without_pillow(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(GOOD)
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), PICTURES["noise"])


HUGE = [png(b"\0\1\2\3", 20_000, 20_000), b"P6\n20000 20000\n255\n"]
EMPTY = [png(b"", 0, 4), b"P5\n0 4\n255\n"]


@pytest.mark.usefixtures("no_pillow")
@pytest.mark.parametrize(
    ("data", "words"), [*((data, "too large: found 20000 x 20000 px") for data in HUGE),
                        *((data, "has no pixels") for data in EMPTY)]
)  # fmt: skip
def test_huge_and_empty_pictures_are_refused_before_they_are_unpacked(data: bytes, words: str, tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(data)
    with pytest.raises(ImageError, match=words):
        read_image(tmp_path / "a")


@pytest.mark.usefixtures("no_pillow")
def test_resizing_needs_no_pillow() -> None:
    for spec in (sam1_spec(image_size=64), sam2_spec(image_size=64)):
        framed = to_frame(np.full((20, 40, 3), 51, np.uint8), Frame.of(spec, 40, 20))
        np.testing.assert_allclose(framed[:, :, :32], 0.2, atol=1e-6)


@pytest.mark.parametrize("seed", range(60))
def test_a_damaged_file_is_refused_or_read_and_nothing_else(seed: int) -> None:
    random = np.random.default_rng(seed)
    base = [GOOD, saved(Image.fromarray(PICTURES["smooth"]).quantize(16), bits=4), b"P6\n5 5\n255\n" + bytes(75)]
    data = bytearray(base[seed % 3])
    for _ in range(random.integers(1, 4)):
        data[random.integers(0, len(data))] = random.integers(0, 256)
    end = random.integers(0, len(data) + 1) if seed % 2 else len(data)
    try:
        found = read_raster(bytes(data[:end]), "picture", lambda size: images._check_size(Path("a"), None, size))
    except SamxError as error:
        words = str(error)
    else:
        words = f"read as {found.shape}"
    assert "\n" not in words
