"""Label files: what is read of them is what COCO's own library reads, and what is wrong is told in a line."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from labelled import annotation, blank, coco, read, scenes, square
from PIL import Image
from pycocotools import mask as library
from pycocotools.coco import COCO

from samx.errors import InputError, UsageError
from samx.evaluation.label_files import open_labels
from samx.evaluation.labels import told
from samx.processing.rle import Rle

CATEGORIES = [{"id": 7, "name": "cat"}]
TURNED = Rle.of(square((30, 40))).coco()
TRIANGLE = [[3.5, 4.0, 30.2, 6.1, 12.0, 25.7]]


def one(folder: Path, **changes: Any) -> Path:
    """Write a picture with one label, some of its fields changed; None takes a field out."""
    blank(folder)
    row = {**annotation(1, 1, 7, square()), **changes}
    image = {"id": 1, "file_name": "photo.png", "width": 40, "height": 30}
    return coco(folder / "coco.json", [image], [{k: v for k, v in row.items() if v is not None}], CATEGORIES)


class TestRuns:
    @pytest.mark.parametrize("seed", range(20))
    def test_packed_runs_are_those_of_cocos_library(self, seed: int) -> None:
        rng = np.random.default_rng(seed)
        mask = rng.random((int(rng.integers(1, 90)), int(rng.integers(1, 90)))) < rng.choice([0.01, 0.5, 0.99])
        packed = library.encode(np.asfortranarray(mask.astype(np.uint8)))
        found = Rle.packed(packed["counts"].decode(), *mask.shape)
        np.testing.assert_array_equal(found.mask(), mask)
        assert found.area_px == int(library.area(packed))

    def test_long_runs_take_several_characters(self) -> None:
        mask = np.zeros((3000, 4000), np.bool_)
        mask[1000:1003, 2000:2900] = True
        np.testing.assert_array_equal(Rle.packed(Rle.of(mask).coco()["counts"], 3000, 4000).mask(), mask)

    @pytest.mark.parametrize("text", ["", "P", "05", "é", "~~~", "00000P1000", "oooooooooooo0", "0" * 50])
    def test_damaged_runs_are_refused(self, text: str) -> None:
        with pytest.raises(ValueError, match=r"run|number"):
            Rle.packed(text, 10, 10)

    def test_every_cut_or_changed_character_is_refused_or_fits(self) -> None:
        text = Rle.of(square()).coco()["counts"]
        for place in range(len(text)):
            for other in ("", "0", "o", "z"):
                try:
                    found = Rle.packed(text[:place] + other + text[place + 1 :], 30, 40)
                except ValueError:
                    continue
                assert found.counts.min() >= 0
                assert found.mask().shape == (30, 40)


class TestCoco:
    def test_masks_are_those_of_cocos_library(self, tmp_path: Path) -> None:
        file = scenes(tmp_path)
        api, (labels, truths) = COCO(str(file)), read(file)
        assert labels.kind == "coco"
        assert len(truths) == len(api.anns) > 10
        for truth in truths:
            np.testing.assert_array_equal(truth.rle.mask(), api.annToMask(api.anns[int(truth.name)]) == 1)
        assert Counter(truth.category for truth in truths) == Counter(
            api.cats[row["category_id"]]["name"] for row in api.anns.values()
        )

    @pytest.mark.parametrize("polygons", [TRIANGLE, [*TRIANGLE, [30.0, 20.0, 39.9, 20.0, 39.9, 29.9, 30.0, 29.9]]])
    def test_polygons_are_drawn_as_coco_draws_them(self, polygons: list[list[float]], tmp_path: Path) -> None:
        file = one(tmp_path, segmentation=polygons)
        (truth,) = read(file)[1]
        api = COCO(str(file))
        np.testing.assert_array_equal(truth.rle.mask(), api.annToMask(api.anns[1]) == 1)

    def test_a_polygon_of_two_corners_is_no_box(self, tmp_path: Path) -> None:
        """COCO's library takes four numbers for a box."""
        (truth,) = read(one(tmp_path, segmentation=[*TRIANGLE, [0.0, 0.0, 40.0, 30.0]]))[1]
        (alone,) = read(one(tmp_path, segmentation=TRIANGLE))[1]
        assert truth.rle.area_px == alone.rle.area_px < 600

    def test_what_is_no_single_object_is_counted(self, tmp_path: Path) -> None:
        blank(tmp_path)
        rows = [annotation(1, 1, 7, square()), annotation(2, 1, 7, square(), iscrowd=1),
                annotation(3, 1, 7, square() & False), annotation(4, 1, 7, square(), segmentation=[])]  # fmt: skip
        size = {"width": 40, "height": 30}
        images = [{"id": 1, "file_name": "photo.png", **size}, {"id": 2, "file_name": "photo.png", **size}]
        labels, truths = read(coco(tmp_path / "c.json", images, rows, CATEGORIES))
        assert [truth.name for truth in truths] == ["1"]
        assert {name: count for name, count in labels.left_out.items() if count} == {
            "crowd": 1,
            "empty": 2,
            "no_label": 1,
        }
        assert "2 labels without a pixel" in told(labels.left_out)

    def test_missing_pictures_are_an_error_or_are_counted(self, tmp_path: Path) -> None:
        file = scenes(tmp_path)
        (tmp_path / "scene1.png").unlink()
        with pytest.raises(InputError, match=r"1 of 2 labelled pictures are missing.*scene1.*--skip-missing"):
            read(file)
        labels, truths = read(file, skip=True)
        assert labels.left_out["picture_missing"] == 1
        assert truths
        (tmp_path / "scene0.png").unlink()
        with pytest.raises(InputError, match=r"2 of 2 labelled pictures are missing.*--pictures DIR\."):
            read(file, skip=True)

    def test_the_same_seed_draws_the_same_pictures(self, tmp_path: Path) -> None:
        labels = open_labels(scenes(tmp_path, range(6)), None)
        drawn = [[one.path.name for one in labels.drawn(3, seed).pictures] for seed in (0, 0, 1)]
        assert drawn[0] == drawn[1] != drawn[2]
        assert [len(names) for names in drawn] == [3, 3, 3]
        assert drawn[0] == sorted(drawn[0])
        assert labels.drawn(9, 0) is labels

    WRONG: dict[str, tuple[dict[str, Any], str]] = {
        "unknown category": ({"category_id": 8}, "annotations 0: category_id is unknown: found 8, expected an id of"),
        "unknown picture": ({"image_id": 9}, "annotations 0: image_id is unknown: found 9"),
        "no category": ({"category_id": None}, "annotations 0 has no 'category_id'"),
        "another size": (
            {"segmentation": Rle.of(square((30, 40))).coco()},
            "found [40, 30], expected height and width [30, 40]",
        ),
        "runs too long": ({"segmentation": {"size": [30, 40], "counts": [0, 2000]}}, "no runs of its size"),
        "runs below 0": ({"segmentation": {"size": [30, 40], "counts": [-5, 1205]}}, "no runs of its size"),
        "no runs": ({"segmentation": {"size": [30, 40]}}, "segmentation has no 'counts'"),
        "packed badly": ({"segmentation": {"size": [30, 40], "counts": "~~"}}, "no runs of its size"),
        "size of one": ({"segmentation": {"size": [30], "counts": [1200]}}, "is of another size: found [30]"),
        "half a corner": ({"segmentation": [[1.0, 2, 3, 4, 5, 6, 7]]}, "half a corner"),
        "far outside": ({"segmentation": [[1.0, 2, 1e9, 4, 5, 6]]}, "far outside the picture"),
        "text in a polygon": ({"segmentation": [[1.0, 2, "x", 4, 5, 6]]}, "has the wrong type"),
        "a number": ({"segmentation": 7}, "has the wrong type"),
        "crowd as text": ({"iscrowd": "0"}, "iscrowd is neither 0 nor 1: found '0'"),
        "half a crowd": ({"iscrowd": 0.5}, "iscrowd is neither 0 nor 1: found 0.5"),
    }

    @pytest.mark.parametrize(("changes", "words"), WRONG.values(), ids=WRONG)
    def test_a_wrong_label_is_told_with_its_place(self, changes: dict[str, Any], words: str, tmp_path: Path) -> None:
        with pytest.raises(InputError) as caught:
            read(one(tmp_path, **changes))
        assert words in str(caught.value)
        assert "coco.json" in str(caught.value)
        assert "export or validate again" not in str(caught.value)

    def test_a_picture_of_another_size_is_told(self, tmp_path: Path) -> None:
        file = one(tmp_path)
        blank(tmp_path, size=(30, 40))
        with pytest.raises(InputError, match=r"another size than .*photo.png': found 40 x 30 px, expected 30 x 40 px"):
            read(file)

    def test_a_picture_that_exif_turns_has_the_size_that_is_seen(self, tmp_path: Path) -> None:
        file = one(tmp_path)
        exif = Image.Exif()
        exif[0x0112] = 6
        Image.new("RGB", (30, 40)).save(tmp_path / "photo.png", exif=exif)
        assert len(read(file)[1]) == 1

    @pytest.mark.parametrize("name", ["../photo.png", "/etc/hostname"])
    def test_a_picture_outside_the_folder_is_refused(self, name: str, tmp_path: Path) -> None:
        blank(tmp_path)
        images = [{"id": 1, "file_name": name, "width": 40, "height": 30}]
        with pytest.raises(InputError, match="leaves the folder"):
            read(coco(tmp_path / "c.json", images, [annotation(1, 1, 7, square())], CATEGORIES))

    @pytest.mark.parametrize("kind", ["images", "annotations", "categories"])
    def test_an_id_that_occurs_twice_is_refused(self, kind: str, tmp_path: Path) -> None:
        file = one(tmp_path)
        document = json.loads(file.read_text())
        document[kind] *= 2
        file.write_text(json.dumps(document))
        with pytest.raises(InputError, match=f"{kind} 1 has the id of another: found ., expected an id of its own"):
            read(file)

    @pytest.mark.parametrize("crowd", [0, False, 0.0, None])
    def test_an_object_that_is_no_crowd_is_read(self, crowd: object, tmp_path: Path) -> None:
        file = one(tmp_path)
        document = json.loads(file.read_text())
        document["annotations"][0]["iscrowd"] = crowd
        file.write_text(json.dumps(document))
        assert len(read(file)[1]) == 1

    def test_annotations_without_an_id_are_known_by_their_place(self, tmp_path: Path) -> None:
        file = one(tmp_path, id=None)
        document = json.loads(file.read_text())
        document["annotations"] *= 2
        file.write_text(json.dumps(document))
        assert [truth.name for truth in read(file)[1]] == ["0", "1"]

    @pytest.mark.parametrize(
        ("text", "words"),
        [
            ("", "is not valid JSON"), ("{", "is not valid JSON"), ("[]", "holds a list"), ("7", "has the wrong type"),
            ('{"shapes": []}', "is no label file that samx reads: found shapes"), ('{"images": NaN}', "not valid JSON"),
            ('{"images": [], "annotations": [], "categories": []}', "no object of"),
            ('{"images": 5, "annotations": []}', "images has the wrong type"),
            ('{"image": {}, "annotations": []}', "image has no 'file_name'"),
        ],
    )  # fmt: skip
    def test_a_file_of_another_kind_is_told(self, text: str, words: str, tmp_path: Path) -> None:
        (tmp_path / "labels.json").write_text(text)
        with pytest.raises(InputError, match=re.escape(words)):
            read(tmp_path / "labels.json")

    def test_a_file_that_is_not_there_is_told(self, tmp_path: Path) -> None:
        with pytest.raises(InputError, match="does not exist"):
            read(tmp_path / "labels.json")
        with pytest.raises(UsageError, match="is no folder"):
            open_labels(one(tmp_path), tmp_path / "nowhere")

    def test_a_file_without_any_mask_is_no_answer(self, tmp_path: Path) -> None:
        with pytest.raises(InputError, match="can be asked about: found 1 labels of crowds"):
            read(one(tmp_path, iscrowd=1))


def sa1b(folder: Path, name: str = "sa_1") -> Path:
    blank(folder, f"{name}.png")
    row = {"id": 44, "segmentation": Rle.of(square()).coco(), "bbox": [5, 6, 9, 9], "area": 81, "predicted_iou": 0.9,
           "stability_score": 0.98, "crop_box": [0, 0, 40, 30], "point_coords": [[9, 9]]}  # fmt: skip
    image = {"image_id": 1, "width": 40, "height": 30, "file_name": f"{name}.png"}
    file = folder / f"{name}.json"
    file.write_text(json.dumps({"image": image, "annotations": [row]}))
    return file


class TestSa1b:
    @pytest.mark.parametrize("whole_folder", [False, True])
    def test_a_file_and_a_folder_of_files_are_read(self, whole_folder: bool, tmp_path: Path) -> None:
        file = sa1b(tmp_path)
        sa1b(tmp_path, "sa_2")
        labels, truths = read(tmp_path if whole_folder else file)
        assert labels.kind == "sa1b"
        assert [truth.name for truth in truths] == ["44"] * (2 if whole_folder else 1)
        np.testing.assert_array_equal(truths[0].rle.mask(), square())
        assert truths[0].category == "object"

    def test_an_id_that_occurs_twice_is_refused(self, tmp_path: Path) -> None:
        file = sa1b(tmp_path)
        document = json.loads(file.read_text())
        document["annotations"] *= 2
        file.write_text(json.dumps(document))
        with pytest.raises(InputError, match="annotations 1 has the id of another: found 44"):
            read(file)

    def test_an_ending_may_be_in_capitals(self, tmp_path: Path) -> None:
        sa1b(tmp_path).rename(tmp_path / "sa_1.JSON")
        assert read(tmp_path)[0].kind == "sa1b"

    def test_a_coco_file_in_the_folder_is_refused(self, tmp_path: Path) -> None:
        sa1b(tmp_path)
        one(tmp_path).rename(tmp_path / "photo.json")
        with pytest.raises(InputError, match=r"photo.json' in the folder is no SA-1B file"):
            read(tmp_path)
