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
from numpy.typing import NDArray
from PIL import Image

from samx.errors import ImageError, WriteError
from samx.models.spec import DecoderSpec, sam1_spec, sam2_spec
from samx.processing import images
from samx.processing.frames import Frame
from samx.processing.images import normalised, read_embedding, read_image, to_frame, write_png

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
        (lambda folder: folder, "cannot be opened"),
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


@pytest.mark.parametrize(("side", "message"), [(10001, "10001 x 10001 px"), (60000, "more than Pillow opens")])
def test_huge_pictures_are_refused_before_they_are_decoded(tmp_path: Path, side: int, message: str) -> None:
    with pytest.raises(ImageError, match=f"too large: found {message}, expected at most 100 megapixels"):
        read_image(promising(tmp_path / "a.png", side, side))


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
