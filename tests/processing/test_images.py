"""Pictures and embeddings: what is read, how it is framed, and what is refused in one line."""

from __future__ import annotations

import io
import struct
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torch.nn import functional as F

from samx.errors import Doubt, ImageError, UsageError, WriteError
from samx.models.spec import DecoderSpec, sam1_spec, sam2_spec
from samx.processing import images
from samx.processing.embeddings import read_embedding
from samx.processing.frames import Frame
from samx.processing.images import (
    MAX_TILED_PX,
    check_png,
    check_upright,
    normalised,
    parse_levels,
    read_image,
    to_frame,
    write_png,
)

SAM1, SAM2 = sam1_spec(image_size=64), sam2_spec(image_size=64)


def gradient(height: int = 30, width: int = 40) -> NDArray[np.uint8]:
    rows, columns = np.mgrid[:height, :width]
    return np.stack([rows * 8, columns * 6, np.full_like(rows, 77)], axis=-1).astype(np.uint8)


def saved(path: Path, picture: Image.Image, **options: Any) -> Path:
    picture.save(path, **options)
    return path


def test_a_picture_is_read_as_it_is(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.png", Image.fromarray(gradient()))
    np.testing.assert_array_equal(read_image(path), gradient())


@pytest.mark.parametrize(
    ("mode", "suffix"),
    [(mode, "png") for mode in ("1", "L", "LA", "P", "RGBA")] + [("P", "gif"), ("CMYK", "tif"), ("YCbCr", "tif")],
)
def test_every_common_mode_becomes_rgb(tmp_path: Path, mode: str, suffix: str) -> None:
    path = saved(tmp_path / f"a.{suffix}", Image.fromarray(gradient()).convert(mode))
    image = read_image(path)
    assert image.dtype == np.uint8
    assert image.shape == (30, 40, 3)
    assert image.std() > 0


def test_transparency_is_dropped_and_colours_stay(tmp_path: Path) -> None:
    alpha = np.full((30, 40, 1), 10, np.uint8)
    path = saved(tmp_path / "a.png", Image.fromarray(np.concatenate([gradient(), alpha], axis=-1)))
    np.testing.assert_array_equal(read_image(path), gradient())


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_sixteen_bit_grey_is_scaled_and_not_clipped(tmp_path: Path, suffix: str) -> None:
    grey = np.linspace(0, 65535, 12).astype(np.uint16).reshape(3, 4)
    image = read_image(saved(tmp_path / f"a.{suffix}", Image.fromarray(grey)))
    np.testing.assert_allclose(image[..., 0], grey / 257, atol=0.51)


def deep_png(values: NDArray[np.uint16]) -> bytes:
    """Write 16 bits a channel, which Pillow does not."""
    height, width, channels = values.shape
    lines = np.zeros((height, 1 + 2 * width * channels), np.uint8)
    lines[:, 1:] = np.frombuffer(values.astype(">u2").tobytes(), np.uint8).reshape(height, -1)
    head = struct.pack(">IIBBBBB", width, height, 16, {1: 0, 3: 2}[channels], 0, 0, 0)
    parts = (b"IHDR", head), (b"IDAT", zlib.compress(lines.tobytes())), (b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body)) for name, body in parts
    )


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("most", "white"), [(4095, 4095), (3000, 4095), (1023, 1023), (200, 255)])
def test_few_bits_in_sixteen_are_not_read_as_nearly_black_and_that_is_said(
    tmp_path: Path, channels: int, most: int, white: int
) -> None:
    values = np.linspace(0, most, 4 * 6 * channels).astype(np.uint16).reshape(4, 6, channels)
    (tmp_path / "a.png").write_bytes(deep_png(values))
    with pytest.warns(Doubt, match=rf"values from 0 to {most} in more bits than they need: {white} is taken as white"):
        image = read_image(tmp_path / "a.png")
    np.testing.assert_allclose(image[..., :channels], values * (255 / white), atol=0.51)


@pytest.mark.parametrize("channels", [1, 3])
def test_all_sixteen_bits_are_scaled_without_a_word(
    tmp_path: Path, channels: int, recwarn: pytest.WarningsRecorder
) -> None:
    values = np.linspace(0, 65535, 4 * 6 * channels).astype(np.uint16).reshape(4, 6, channels)
    (tmp_path / "a.png").write_bytes(deep_png(values))
    np.testing.assert_allclose(read_image(tmp_path / "a.png")[..., :channels], values / 257, atol=0.51)
    assert not recwarn


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_a_stated_range_is_taken(tmp_path: Path, suffix: str, recwarn: pytest.WarningsRecorder) -> None:
    grey = np.array([[0, 100, 600, 1100, 5000]], np.uint16)
    path = saved(tmp_path / f"a.{suffix}", Image.fromarray(grey))
    assert read_image(path, (100, 1100))[0, :, 0].tolist() == [0, 0, 128, 255, 255]
    assert not recwarn


@pytest.mark.parametrize("kind", [np.float32, np.int32])
def test_values_without_a_range_are_refused_until_it_is_stated(tmp_path: Path, kind: type[np.generic]) -> None:
    path = saved(tmp_path / "a.tif", Image.fromarray(np.array([[-5, 5, 15]]).astype(kind)))
    with pytest.raises(ImageError, match=r"no fixed range of brightness.*--range LOW:HIGH"):
        read_image(path)
    assert read_image(path, (-5, 15))[0, :, 0].tolist() == [0, 128, 255]


@pytest.mark.parametrize("text", ["", "5", "9:3", "a:b", "0:inf", "0:1:2"])
def test_what_is_no_range_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match=r"no range of brightness.*LOW:HIGH"):
        parse_levels(text)
    assert parse_levels("0:4095") == (0, 4095)


def test_a_turned_picture_with_an_embedding_is_refused(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = saved(tmp_path / "a.png", Image.fromarray(gradient()), exif=exif)
    with pytest.raises(ImageError, match=r"orientation 6.*Save the picture turned"):
        check_upright(turned)
    check_upright(saved(tmp_path / "b.png", Image.fromarray(gradient())))


@pytest.mark.parametrize("name", ["a.jpg", "a", "a.npz"])
def test_a_picture_is_not_written_under_the_name_of_another_format(name: str) -> None:
    with pytest.raises(UsageError, match=r"expected \.png. Name it a\.png"):
        check_png(Path(name))
    check_png(Path("A.PNG"))


@pytest.mark.parametrize("size", [(64, 48), (2560, 1440), (300, 900), (20, 31)])
def test_sam2s_pictures_are_resized_as_numbers_as_meta_does(size: tuple[int, int]) -> None:
    width, height = size
    picture = np.random.default_rng(1).integers(0, 256, (height, width, 3), dtype=np.uint8)
    spec = sam2_spec(image_size=256)
    found = to_frame(picture, Frame.of(spec, width, height))
    tensor = torch.from_numpy(picture).permute(2, 0, 1)[None].float() / 255
    expected = F.interpolate(tensor, (256, 256), mode="bilinear", align_corners=False, antialias=True)
    np.testing.assert_allclose(found, expected.numpy(), atol=2e-6)


def test_the_orientation_in_the_file_is_applied(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: rotate by 90 degrees clockwise to view
    path = saved(tmp_path / "a.png", Image.fromarray(gradient()), exif=exif)
    np.testing.assert_array_equal(read_image(path), np.rot90(gradient(), k=-1))


def damaged(path: Path, form: str) -> Path:
    """Save half of a picture's bytes."""
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise).save(buffer, format=form)
    path.write_bytes(buffer.getvalue()[: len(buffer.getvalue()) // 2])
    return path


def text(path: Path) -> Path:
    path.write_text("not a picture")
    return path


def empty(path: Path) -> Path:
    path.write_bytes(b"")
    return path


def postscript(path: Path) -> Path:
    path.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n")
    return path


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda folder: folder / "missing.png", "does not exist"),
        (lambda folder: folder, "cannot be read"),
        (lambda folder: text(folder / "a.png"), "is no picture that samx reads"),
        (lambda folder: empty(folder / "a.png"), "is no picture that samx reads"),
        (lambda folder: postscript(folder / "a.eps"), "is no picture that samx reads"),
        (lambda folder: damaged(folder / "a.png", "PNG"), "damaged or incomplete"),
        (lambda folder: damaged(folder / "a.jpg", "JPEG"), "damaged or incomplete"),
        (lambda folder: damaged(folder / "a.tif", "TIFF"), "damaged or incomplete|no picture"),
        (lambda folder: damaged(folder / "a.webp", "WEBP"), "damaged or incomplete|no picture"),
        (lambda folder: saved(folder / "a.tif", Image.new("F", (4, 4))), "no fixed range of brightness"),
        (lambda folder: saved(folder / "a.tif", Image.new("I", (4, 4), -5)), "no fixed range of brightness"),
        (lambda folder: saved(folder / "a.tif", Image.new("I", (4, 4), 70000)), "no fixed range of brightness"),
    ],
)
def test_unreadable_pictures_are_refused(tmp_path: Path, make: Callable[[Path], Path], message: str) -> None:
    with pytest.raises(ImageError, match=message) as error:
        read_image(make(tmp_path))
    assert "\n" not in str(error.value)
    assert error.value.exit_code == 6


def promising(path: Path, width: int, height: int) -> Path:
    """Write a PNG that claims a size and holds no pixels."""
    chunk = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + chunk + struct.pack(">I", zlib.crc32(chunk)))
    with path.open("ab") as file:
        file.write(struct.pack(">I", 0) + b"IDAT" + struct.pack(">I", zlib.crc32(b"IDAT")))
    return path


@pytest.mark.parametrize("side", [10001, 60000])
def test_huge_pictures_are_refused_before_they_are_decoded(tmp_path: Path, side: int) -> None:
    path, usual = promising(tmp_path / "a.png", side, side), Image.MAX_IMAGE_PIXELS
    with pytest.raises(ImageError, match=f"found {side} x {side} px, expected at most 100 megapixels.*--tile-px"):
        read_image(path)
    with pytest.raises(ImageError, match="too large" if side == 60000 else "damaged"):
        read_image(path, most_px=MAX_TILED_PX)
    assert usual == Image.MAX_IMAGE_PIXELS  # Pillow's own limit is the caller's


def test_pictures_without_pixels_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=r"has no pixels|no picture|damaged"):
        read_image(promising(tmp_path / "a.png", 0, 5))


def test_the_size_limit_itself_is_allowed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = saved(tmp_path / "a.png", Image.fromarray(gradient()))
    monkeypatch.setattr(images, "MAX_PICTURE_PX", 30 * 40)
    assert read_image(path).shape == (30, 40, 3)
    monkeypatch.setattr(images, "MAX_PICTURE_PX", 30 * 40 - 1)
    with pytest.raises(ImageError, match="too large"):
        read_image(path)


def test_sam1_pads_below_and_sam2_fills_the_frame() -> None:
    image = np.full((20, 40, 3), 255, np.uint8)
    padded = to_frame(image, Frame.of(SAM1, 40, 20))
    assert padded.shape == (1, 3, 64, 64)
    assert padded.dtype == np.float32
    assert (padded[:, :, :32] == 1).all()
    assert (padded[:, :, 32:] == 0).all()
    assert (to_frame(image, Frame.of(SAM2, 40, 20)) == 1).all()


def test_the_specs_rule_frames_a_picture_and_not_the_family() -> None:
    image = np.full((20, 40, 3), 255, np.uint8)
    assert (to_frame(image, Frame.of(replace(SAM1, frame="stretch"), 40, 20)) == 1).all()
    padded = to_frame(image, Frame.of(replace(SAM2, frame="pad"), 40, 20))
    assert (padded[:, :, 32:] == 0).all()
    assert padded.mean() == 0.5


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("unit", (0.2, 0.6)),
        ("half", (-0.6, 0.2)),
        ("minmax", (0.0, 1.0)),
        ("imagenet", ((0.2 - 0.485) / 0.229, (0.6 - 0.485) / 0.229)),
    ],
)
def test_pixels_become_what_the_encoder_takes(kind: str, expected: tuple[float, float]) -> None:
    image = np.full((20, 40, 3), 51, np.uint8)
    image[:, 20:] = 153
    frame = Frame.of(SAM1, 40, 20)
    found = normalised(to_frame(image, frame), frame, kind)
    np.testing.assert_allclose(found[0, 0, 5, [3, 60]], expected, atol=1e-6)
    assert (found[:, :, 32:] == 0).all()


def test_a_picture_of_one_value_has_no_range() -> None:
    frame = Frame.of(SAM1, 40, 20)
    assert (normalised(to_frame(np.full((20, 40, 3), 77, np.uint8), frame), frame, "minmax") == 0).all()


@pytest.mark.parametrize("spec", [SAM1, SAM2])
@pytest.mark.parametrize("size", [(400, 300), (300, 400), (33, 50)])
def test_a_bright_spot_lands_where_its_point_lands(spec: DecoderSpec, size: tuple[int, int]) -> None:
    frame = Frame.of(spec, *size)
    x, y = int(0.7 * size[0]), int(0.25 * size[1])
    image = np.zeros((size[1], size[0], 3), np.uint8)
    image[max(y - 3, 0) : y + 4, max(x - 3, 0) : x + 4] = 255
    light = to_frame(image, frame)[0, 0]
    rows, columns = np.mgrid[:64, :64] + 0.5
    centre = np.array([(light * columns).sum(), (light * rows).sum()]) / light.sum()
    np.testing.assert_allclose(centre, frame.to_frame([x + 0.5, y + 0.5]), atol=0.5)


def test_a_picture_of_another_size_than_its_frame_is_refused() -> None:
    with pytest.raises(ImageError, match=r"found \(30, 40, 3\), expected \(40, 30, 3\)"):
        to_frame(gradient(), Frame.of(SAM1, 30, 40))


def embedding(spec: DecoderSpec, dtype: str = "float32") -> dict[str, NDArray[Any]]:
    rng = np.random.default_rng(0)
    return {t.name: rng.standard_normal([int(s) for s in t.shape]).astype(dtype) for t in spec.image_inputs}


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", ">f4"])
@pytest.mark.parametrize("spec", [SAM1, SAM2])
@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_embeddings_are_read_as_float32(
    tmp_path: Path, spec: DecoderSpec, dtype: str, save: Callable[..., None]
) -> None:
    arrays = embedding(spec, dtype)
    save(tmp_path / "e.npz", **arrays)
    feed = read_embedding(tmp_path / "e.npz", spec)
    assert [*feed] == [tensor.name for tensor in spec.image_inputs]
    for name, values in feed.items():
        assert values.dtype == np.float32
        assert values.flags.c_contiguous
        np.testing.assert_array_equal(values, arrays[name].astype(np.float32))


def test_a_single_array_is_the_image_embedding(tmp_path: Path) -> None:
    values = embedding(SAM1)["image_embeddings"]
    np.save(tmp_path / "e.npy", np.asfortranarray(values))
    read = read_embedding(tmp_path / "e.npy", SAM1)["image_embeddings"]
    np.testing.assert_array_equal(read, values)
    assert read.flags.c_contiguous
    with pytest.raises(ImageError, match=r"other arrays.*high_res_features_0"):
        read_embedding(tmp_path / "e.npy", SAM2)


def changed(**changes: Any) -> dict[str, Any]:
    return {**embedding(SAM1), **changes}


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({}, "other arrays than the decoder takes: found none"),
        ({"embedding": np.zeros(3)}, "found embedding, expected image_embeddings"),
        (embedding(SAM2), "other arrays"),
        (changed(image_embeddings=np.zeros((1, 256, 4, 5), np.float32)), r"wrong shape: found \(1, 256, 4, 5\)"),
        (changed(image_embeddings=np.zeros((256, 4, 4), np.float32)), r"expected \(1, 256, 4, 4\)"),
        (changed(image_embeddings=np.zeros((1, 256, 4, 4), np.int32)), "wrong type: found int32"),
        (changed(image_embeddings=np.zeros((1, 256, 4, 4), object)), "wrong type: found object"),
        (changed(image_embeddings=np.full((1, 256, 4, 4), np.nan)), "not finite"),
        (changed(image_embeddings=np.full((1, 256, 4, 4), 1e300)), "not finite"),
    ],
)
def test_wrong_embeddings_are_refused(tmp_path: Path, arrays: dict[str, Any], message: str) -> None:
    np.savez(tmp_path / "e.npz", **arrays)
    with pytest.raises(ImageError, match=message) as error:
        read_embedding(tmp_path / "e.npz", SAM1)
    assert "\n" not in str(error.value)


def flipped_byte(path: Path) -> Path:
    np.savez_compressed(path, image_embeddings=embedding(SAM1)["image_embeddings"])
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0xFF
    path.write_bytes(data)
    return path


def cut_npy(path: Path) -> Path:
    np.save(path, embedding(SAM1)["image_embeddings"])
    path.write_bytes(path.read_bytes()[:-100])
    return path


def lying_header(path: Path) -> Path:
    """Promise an array of a terabyte: it must be refused by its shape, before memory is taken."""
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<f4", "fortran_order": False, "shape": (2**38,)})
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("image_embeddings.npy", header.getvalue())
    return path


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda folder: folder / "missing.npz", "does not exist"),
        (lambda folder: text(folder / "e.npz"), "no readable NumPy file"),
        (lambda folder: empty(folder / "e.npy"), "no readable NumPy file"),
        (lambda folder: flipped_byte(folder / "e.npz"), "no readable NumPy file"),
        (lambda folder: cut_npy(folder / "e.npy"), "no readable NumPy file"),
        (lambda folder: lying_header(folder / "e.npz"), r"wrong shape: found \(274877906944,\)"),
    ],
)
def test_damaged_embeddings_are_refused(tmp_path: Path, make: Callable[[Path], Path], message: str) -> None:
    with pytest.raises(ImageError, match=message) as error:
        read_embedding(make(tmp_path), SAM1)
    assert "\n" not in str(error.value)


def test_a_picture_is_written_whole(tmp_path: Path) -> None:
    write_png(tmp_path / "out.png", gradient())
    np.testing.assert_array_equal(read_image(tmp_path / "out.png"), gradient())
    assert [path.name for path in tmp_path.iterdir()] == ["out.png"]


def test_a_file_is_overwritten_only_when_asked(tmp_path: Path) -> None:
    path = tmp_path / "out.png"
    path.write_bytes(b"mine")
    with pytest.raises(WriteError, match="exists already") as error:
        write_png(path, gradient())
    assert error.value.exit_code == 7
    assert path.read_bytes() == b"mine"
    write_png(path, gradient(), overwrite=True)
    np.testing.assert_array_equal(read_image(path), gradient())


def full_disk(descriptor: int) -> None:
    """Fail once the bytes were written."""
    raise OSError(28, "No space left on device")


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.fsync", full_disk)
    path = tmp_path / "out.png"
    path.write_bytes(b"old")
    with pytest.raises(WriteError, match="could not be written: found No space left on device"):
        write_png(path, gradient(), overwrite=True)
    assert path.read_bytes() == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["out.png"]


@pytest.mark.parametrize("name", ["missing/out.png", "file/out.png"])
def test_a_folder_that_is_none_is_reported(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(WriteError, match="could not be written"):
        write_png(tmp_path / name, gradient())
