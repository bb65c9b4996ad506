"""Masks as PNG files: found by the picture's name, read as they are stored, refused where they are seen otherwise."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from labelled import blank, coco, read, square
from PIL import Image

from samx.errors import InputError, SamxError
from samx.processing.images import write_png
from samx.processing.rasters import png_bytes
from samx.processing.rle import Rle

WHITE, BLACK, RED = [255, 255, 255], [0, 0, 0], [200, 0, 0]
INSIDE = square() * np.uint8(255)
ALL = np.full_like(INSIDE, 255)


def mask_png(path: Path, values: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(values)).save(path)


class TestMaskFiles:
    WAYS: dict[str, Callable[[Path], None]] = {
        "photo.png beside photo.jpg": lambda folder: mask_png(folder / "photo.png", square() * np.uint8(255)),
        "photo.mask.png": lambda folder: mask_png(folder / "photo.mask.png", square() * np.uint8(1)),
        "one bit": lambda folder: mask_png(folder / "photo.mask.png", square()),
        "in colours": lambda folder: mask_png(
            folder / "photo.mask.png", np.repeat(square()[..., None], 3, -1) * np.uint8(255)
        ),
        "in a folder": lambda folder: mask_png(folder / "photo" / "mask-0001.png", square() * np.uint8(255)),
        "a label map": lambda folder: mask_png(folder / "photo.labels.png", square() * np.uint8(3)),
        "a label map of 16 bits": lambda folder: mask_png(folder / "photo.labels.png", square() * np.uint16(300)),
    }

    @pytest.mark.parametrize("write", WAYS.values(), ids=WAYS)
    def test_a_mask_beside_its_picture_is_read(self, write: Callable[[Path], None], tmp_path: Path) -> None:
        Image.new("RGB", (40, 30)).save(tmp_path / "photo.jpg")
        Image.new("RGB", (40, 30)).save(tmp_path / "unlabelled.jpg")
        write(tmp_path)
        labels, (truth,) = read(tmp_path)
        assert labels.kind == "png"
        assert labels.left_out["no_label"] == 1
        np.testing.assert_array_equal(truth.rle.mask(), square())

    def test_a_folder_of_masks_apart_is_read(self, tmp_path: Path) -> None:
        blank(tmp_path / "pictures")
        mask_png(tmp_path / "masks" / "photo.png", square() * np.uint8(255))
        assert read(tmp_path / "masks", tmp_path / "pictures")[1][0].rle.area_px == 81

    def test_a_label_map_has_an_object_of_each_number(self, tmp_path: Path) -> None:
        Image.new("RGB", (40, 30)).save(tmp_path / "photo.jpg")
        values = square() * np.uint8(1) + square((40, 30), (20, 15), 5) * np.uint8(7)
        picture = Image.fromarray(values, "P")
        picture.putpalette([i for level in range(256) for i in (level, 0, 255 - level)])
        picture.save(tmp_path / "photo.labels.png")
        truths = read(tmp_path)[1]
        assert [(truth.name, truth.rle.area_px) for truth in truths] == [
            ("photo.labels.png 1", 81), ("photo.labels.png 7", 25)
        ]  # fmt: skip

    def test_what_samx_segment_writes_is_read(self, tmp_path: Path) -> None:
        from samx.processing.results import Segments, label_map, pictures

        Image.new("RGB", (40, 30)).save(tmp_path / "photo.jpg")
        found = Segments("photo.jpg", 40, 30, [Rle.of(square()), Rle.of(square((40, 30), (20, 15), 5))], [{}, {}])
        (tmp_path / "photo.labels.png").write_bytes(png_bytes(label_map(found)))
        by_map = read(tmp_path)[1]
        (tmp_path / "photo.labels.png").unlink()
        (tmp_path / "photo").mkdir()
        for name, data in pictures(found):
            (tmp_path / "photo" / name).write_bytes(data)
        assert [truth.rle.area_px for truth in by_map] == [truth.rle.area_px for truth in read(tmp_path)[1]] == [81, 25]

    def test_soft_edges_are_refused(self, tmp_path: Path) -> None:
        Image.new("RGB", (40, 30)).save(tmp_path / "photo.jpg")
        soft = square() * np.uint8(255)
        soft[5, 5:14] = 128
        mask_png(tmp_path / "photo.png", soft)
        with pytest.raises(InputError, match=r"more than two values: found 3.*name it photo.labels.png"):
            read(tmp_path)

    def test_masks_in_two_places_are_refused(self, tmp_path: Path) -> None:
        Image.new("RGB", (40, 30)).save(tmp_path / "photo.jpg")
        for name in ("photo.png", "photo.labels.png"):
            mask_png(tmp_path / name, square() * np.uint8(255))
        with pytest.raises(InputError, match="masks in two places"):
            read(tmp_path)

    def test_an_empty_mask_is_counted(self, tmp_path: Path) -> None:
        Image.new("RGB", (40, 30)).save(tmp_path / "photo.jpg")
        mask_png(tmp_path / "photo.png", np.zeros((30, 40), np.uint8))
        with pytest.raises(InputError, match="1 labels without a pixel"):
            read(tmp_path)

    def test_a_coloured_label_map_is_refused(self, tmp_path: Path) -> None:
        Image.new("RGB", (40, 30)).save(tmp_path / "photo.jpg")
        write_png(tmp_path / "photo.labels.png", np.zeros((30, 40, 3), np.uint8))
        with pytest.raises(InputError, match="has colours: found 3 channels"):
            read(tmp_path)

    def test_a_mask_of_another_size_is_refused(self, tmp_path: Path) -> None:
        Image.new("RGB", (40, 30)).save(tmp_path / "photo.jpg")
        mask_png(tmp_path / "photo.png", square((80, 60)) * np.uint8(255))
        with pytest.raises(InputError, match="another size"):
            read(tmp_path)

    @pytest.mark.parametrize("damage", [b"", b"\x89PNG\r\n\x1a\n", b"no picture"])
    def test_a_damaged_mask_is_told(self, damage: bytes, tmp_path: Path) -> None:
        Image.new("RGB", (40, 30)).save(tmp_path / "photo.jpg")
        (tmp_path / "photo.png").write_bytes(damage)
        with pytest.raises(SamxError, match=r"photo\.png"):
            read(tmp_path)

    def test_an_empty_folder_is_told(self, tmp_path: Path) -> None:
        with pytest.raises(InputError, match="no masks of pictures"):
            read(tmp_path)

    def test_numbers_of_a_label_map_count_whatever_its_palette_shows(self, tmp_path: Path) -> None:
        blank(tmp_path, "photo.jpg")
        palette(tmp_path / "photo.labels.png", WHITE + BLACK, transparency=1)
        assert read(tmp_path)[1][0].rle.area_px == square().sum()

    @pytest.mark.parametrize(
        ("picture", "mask"),
        [
            ("A.JPG", "A.PNG"), ("a.jpg", "a.MASK.png"), ("a.JPG", "a.Labels.Png"), ("A.jpeg", "A/one.PNG"),
            ("a.PNG", "a.labels.png"),
        ],
    )  # fmt: skip
    def test_endings_may_be_in_capitals(self, picture: str, mask: str, tmp_path: Path) -> None:
        blank(tmp_path, picture)
        mask_png(tmp_path / mask, INSIDE)
        labels, (truth,) = read(tmp_path)
        assert [one.path.name for one in labels.pictures] == [picture]
        assert labels.left_out["no_label"] == 0
        np.testing.assert_array_equal(truth.rle.mask(), square())

    def test_a_mask_of_another_name_is_none(self, tmp_path: Path) -> None:
        """Endings may differ in capitals; names are what tells pictures apart."""
        blank(tmp_path, "a.jpg")
        mask_png(tmp_path / "masks" / "A.PNG", INSIDE)
        with pytest.raises(InputError, match="no masks of pictures"):
            read(tmp_path / "masks", tmp_path)

    @pytest.mark.parametrize("names", [("a.jpeg", "a.jpg"), ("a.JPG", "a.jpg"), ("a.bmp", "a.tif")])
    @pytest.mark.parametrize("apart", [False, True])
    def test_a_mask_of_two_pictures_is_refused(self, names: tuple[str, str], apart: bool, tmp_path: Path) -> None:
        for name in names:
            blank(tmp_path, name)
        masks = tmp_path / "masks" if apart else tmp_path
        mask_png(masks / "a.png", INSIDE)
        with pytest.raises(InputError) as caught:
            read(masks, tmp_path)
        words = str(caught.value)
        assert f"'{masks / 'a.png'}' may be of two pictures: found '{tmp_path / names[0]}' and" in words
        assert "expected one picture of that name. Rename one of them" in words

    def test_a_picture_is_not_the_mask_of_another(self, tmp_path: Path) -> None:
        for name in ("a.PNG", "a.png"):
            mask_png(tmp_path / name, INSIDE)
        with pytest.raises(InputError, match="may be of two pictures"):
            read(tmp_path)

    def test_one_folder_under_two_names_is_one(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        blank(tmp_path)
        mask_png(tmp_path / "photo.labels.png", INSIDE)
        monkeypatch.chdir(tmp_path)
        assert len(read(tmp_path, Path())[1]) == 1

    def test_a_label_file_in_the_folder_has_to_be_named(self, tmp_path: Path) -> None:
        blank(tmp_path)
        coco(tmp_path / "instances.JSON", [], [], [])
        with pytest.raises(InputError) as caught:
            read(tmp_path)
        assert f"name it: --data '{tmp_path / 'instances.JSON'}'." in str(caught.value)


def layers(path: Path, mode: str, *planes: Any) -> None:
    Image.merge(mode, [Image.fromarray(np.asarray(plane, np.uint8)) for plane in planes]).save(path)


def palette(path: Path, colours: list[int], numbers: Any = None, **more: Any) -> None:
    picture = Image.fromarray(square().astype(np.uint8) if numbers is None else numbers).convert("P")
    picture.putpalette(colours)
    picture.save(path, **more)


class TestMasksAreSeenAsStored:
    """Where what is seen is another object than the numbers hold, nobody knows which one is meant."""

    GOOD: dict[str, Callable[[Path], None]] = {
        "a palette": lambda path: palette(path, BLACK + RED),
        "a palette, transparent outside": lambda path: palette(path, BLACK + RED, transparency=0),
        "white on nothing": lambda path: layers(path, "LA", INSIDE, INSIDE),
        "red on nothing": lambda path: layers(path, "RGBA", INSIDE, 0 * INSIDE, 0 * INSIDE, INSIDE),
        "opaque": lambda path: layers(path, "RGBA", INSIDE, INSIDE, INSIDE, ALL),
        "16 bits": lambda path: mask_png(path, square() * np.uint16(1)),
    }
    BAD: dict[str, tuple[Callable[[Path], None], str]] = {
        "white, cut out": (lambda path: layers(path, "LA", ALL, INSIDE), "transparent pixels"),
        "white in colours, cut out": (lambda path: layers(path, "RGBA", ALL, ALL, ALL, INSIDE), "transparent pixels"),
        "black, cut out": (lambda path: layers(path, "LA", 0 * ALL, INSIDE), "transparent pixels"),
        "white, the object transparent": (lambda path: layers(path, "LA", INSIDE, 255 - INSIDE), "transparent pixels"),
        "soft edges in transparency": (lambda path: layers(path, "LA", INSIDE, INSIDE // 2), "transparent pixels"),
        "a transparent grey": (
            lambda path: Image.fromarray(INSIDE).save(path, transparency=255), "transparent pixels"
        ),
        "0 is white": (lambda path: palette(path, WHITE + BLACK), "a palette with other colours"),
        "0 is white everywhere": (lambda path: palette(path, WHITE, 0 * INSIDE), "a palette with other colours"),
        "0 is red": (lambda path: palette(path, RED + WHITE), "a palette with other colours"),
        "both are black": (lambda path: palette(path, BLACK + BLACK), "a palette with other colours"),
        "black on transparent black": (lambda path: palette(path, BLACK + BLACK, transparency=1), "transparent pixels"),
    }  # fmt: skip

    @pytest.mark.parametrize("write", GOOD.values(), ids=GOOD)
    def test_masks_that_are_seen_as_stored_are_read(self, write: Callable[[Path], None], tmp_path: Path) -> None:
        blank(tmp_path, "photo.jpg")
        write(tmp_path / "photo.png")
        np.testing.assert_array_equal(read(tmp_path)[1][0].rle.mask(), square())

    @pytest.mark.parametrize("name", ["photo.png", "photo/one.png"])
    @pytest.mark.parametrize(("write", "words"), BAD.values(), ids=BAD)
    def test_others_are_refused(self, write: Callable[[Path], None], words: str, name: str, tmp_path: Path) -> None:
        blank(tmp_path, "photo.jpg")
        (tmp_path / name).parent.mkdir(exist_ok=True)
        write(tmp_path / name)
        with pytest.raises(InputError) as caught:
            read(tmp_path)
        assert f"{name}' is seen otherwise than it is stored: found {words}, expected black outside" in str(
            caught.value
        )
        assert "Save it in grey without transparency: 0 outside, 255 inside." in str(caught.value)

    @pytest.mark.parametrize("name", ["photo.png", "photo.labels.png"])
    def test_a_turned_mask_is_refused(self, name: str, tmp_path: Path) -> None:
        blank(tmp_path, "photo.jpg")
        exif = Image.Exif()
        exif[0x0112] = 3  # upside down, of the same size
        Image.fromarray(INSIDE).save(tmp_path / name, exif=exif)
        with pytest.raises(SamxError, match=r"turned by its EXIF orientation.*found orientation 3.*Save the mask"):
            read(tmp_path)

    def test_faint_colours_of_16_bits_are_not_taken_for_black(self, tmp_path: Path) -> None:
        blank(tmp_path, "photo.jpg")
        (tmp_path / "photo.png").write_bytes(png_bytes(np.repeat(square()[..., None], 3, -1) * np.uint16(1)))
        with pytest.raises(SamxError, match="colours of 16 bits"):
            read(tmp_path)
