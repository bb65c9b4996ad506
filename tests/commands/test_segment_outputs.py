"""Masks in files: each kind holds the same masks, and nothing that is there is lost."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import contourpy  # noqa: F401 - of the extra that these files need
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

import samx
from samx.commands.outputs import check_outputs, write_outputs
from samx.commands.segment import segment_picture
from samx.demo.scenes import generate_scene
from samx.errors import ImageError, MissingExtraError, PromptError, UsageError, WriteError
from samx.models.spec import sam1_spec
from samx.processing import results
from samx.processing.frames import Frame
from samx.processing.object_groups import parse_prompts
from samx.processing.postprocess import picture_mask, segment
from samx.processing.prompts import Prompt, mask_logits
from samx.processing.rasters import png_bytes
from samx.processing.results import Segments, kind_of, label_map, polygons
from samx.processing.rle import Rle
from samx.segmenting import Asked

SIZE = (40, 60)  # (H, W)
FloatGrid = NDArray[np.float64]


def masks() -> list[np.ndarray[tuple[int, int], np.dtype[np.bool_]]]:
    rng = np.random.default_rng(0)
    big = np.zeros(SIZE, np.bool_)
    big[5:30, 5:40] = True
    big[10:14, 10:20] = False  # a hole
    small = np.zeros(SIZE, np.bool_)
    small[20:25, 20:25] = True
    return [big, small, rng.random(SIZE) < 0.4, np.zeros(SIZE, np.bool_)]


def found() -> Segments:
    facts = [
        {"predicted_iou": 0.9 - n / 10, "stability_score": float("nan"), "point_coords": [[1, 2]]} for n in range(4)
    ]
    return Segments("photo.jpg", SIZE[1], SIZE[0], [Rle.of(mask) for mask in masks()], facts)


def written(folder: Path, *names: str, overwrite: bool = False) -> list[Path]:
    paths = [folder / name for name in names]
    check_outputs(paths, overwrite)
    write_outputs(paths, found(), lambda: np.zeros((*SIZE, 3), np.uint8), overwrite)
    return paths


def test_coco_reads_what_is_written(tmp_path: Path) -> None:
    from pycocotools.coco import COCO

    (path,) = written(tmp_path, "masks.json")
    coco = COCO(str(path))
    annotations = coco.loadAnns(coco.getAnnIds(imgIds=[1]))
    assert coco.loadImgs([1])[0]["file_name"] == "photo.jpg"
    for annotation, mask in zip(annotations, masks(), strict=True):
        np.testing.assert_array_equal(coco.annToMask(annotation), mask)
        assert annotation["area"] == mask.sum()
    assert annotations[1]["bbox"] == [20, 20, 5, 5]
    assert annotations[0]["stability_score"] is None  # JSON has no number for it


def test_polygons_hold_the_centres_of_the_masks_pixels(tmp_path: Path) -> None:
    (path,) = written(tmp_path, "masks.geojson")
    features = json.loads(path.read_bytes())["features"]
    y, x = np.mgrid[: SIZE[0], : SIZE[1]] + 0.5
    for feature, mask in zip(features, masks(), strict=True):
        rings = [ring for polygon in feature["geometry"]["coordinates"] for ring in polygon]
        assert all(ring[0] == ring[-1] for ring in rings)
        np.testing.assert_array_equal(sum((crossings(ring, x, y) for ring in rings), np.zeros(SIZE, int)) % 2, mask)
    (square,) = polygons((0, 0), masks()[1])
    assert len(square[0]) == 9  # eight corners, cut off: nothing on a straight line
    assert polygons((0, 0), masks()[3]) == []


def crossings(ring: list[list[float]], x: FloatGrid, y: FloatGrid) -> NDArray[np.int64]:
    """Count how often a line from each point to the right crosses a ring."""
    found = np.zeros(x.shape, np.int64)
    for (x0, y0), (x1, y1) in pairwise(ring):
        if y0 != y1:
            found += ((y0 <= y) != (y1 <= y)) & (x < x0 + (y - y0) * (x1 - x0) / (y1 - y0))
    return found


def area(ring: list[list[float]]) -> float:
    x, y = np.array(ring).T
    return float(np.sum(x[:-1] * y[1:] - x[1:] * y[:-1]) / 2)


def test_a_polygons_area_is_its_masks_but_for_the_corners() -> None:
    (rings,) = polygons((0, 0), masks()[0])
    assert len(rings) == 2
    assert area(rings[0]) * area(rings[1]) < 0  # a hole runs the other way
    assert sum(map(area, rings)) == pytest.approx(masks()[0].sum(), abs=8 * 0.125)


def test_a_label_map_shows_the_smallest_mask_on_top(tmp_path: Path) -> None:
    (path,) = written(tmp_path, "all.labels.png")
    labels = np.asarray(Image.open(path))
    np.testing.assert_array_equal(labels, label_map(found()))
    assert (labels[masks()[1]] == 2).all()
    many = Segments("p", SIZE[1], SIZE[0], [Rle.of(masks()[1])] * 300, [{}] * 300)
    labels = label_map(many)
    path.write_bytes(png_bytes(labels))
    assert np.asarray(Image.open(path))[22, 22] == labels[22, 22] == 300


def test_arrays_and_pictures(tmp_path: Path) -> None:
    archive, folder = written(tmp_path, "masks.npz", "masks")
    with np.load(archive) as arrays:
        np.testing.assert_array_equal(arrays["masks"], masks())
        assert arrays["boxes"][1].tolist() == [20, 20, 25, 25]
        np.testing.assert_allclose(arrays["predicted_iou"], [0.9, 0.8, 0.7, 0.6])
    names = sorted(path.name for path in folder.iterdir())
    assert names == [f"mask-{n:04}.png" for n in range(1, 5)]
    for name, mask in zip(names, masks(), strict=True):
        np.testing.assert_array_equal(np.asarray(Image.open(folder / name)) == 255, mask)


def test_no_masks_make_whole_files(tmp_path: Path) -> None:
    nothing = Segments("p", 6, 4, [], [])
    names = ["a.json", "a.geojson", "a.npz", "a.labels.png", "a"]
    write_outputs([tmp_path / name for name in names], nothing, lambda: np.zeros((4, 6, 3), np.uint8), False)
    assert json.loads((tmp_path / "a.json").read_bytes())["annotations"] == []
    assert np.load(tmp_path / "a.npz")["masks"].shape == (0, 4, 6)
    assert list((tmp_path / "a").iterdir()) == []


def test_what_cannot_be_written_is_refused_before_the_work(tmp_path: Path) -> None:
    (tmp_path / "masks").mkdir()
    (tmp_path / "masks" / "mask-0001.png").write_text("old")
    (tmp_path / "there.json").write_text("mine")
    for name, error, words in (
        ("masks.jpg", UsageError, "nothing says what .* found .jpg, expected .labels.png"),
        ("masks", WriteError, "exists already"),
        ("there.json", WriteError, "exists already"),
        ("nowhere/a.json", WriteError, "no folder"),
    ):
        with pytest.raises(error, match=words):
            check_outputs([tmp_path / name], overwrite=False)
    with pytest.raises(UsageError, match="twice"):
        check_outputs([tmp_path / "a.png", tmp_path / "." / "a.png"], overwrite=True)
    assert (tmp_path / "there.json").read_text() == "mine"


def test_one_place_under_two_names_is_refused(tmp_path: Path) -> None:
    (tmp_path / "linked").symlink_to(tmp_path)
    with pytest.raises(UsageError, match="twice"):
        check_outputs([tmp_path / "a.png", tmp_path / "linked" / "a.png"], overwrite=True)


def test_what_is_read_is_never_written_over(tmp_path: Path) -> None:
    model, photo, link = tmp_path / "model", tmp_path / "photo.png", tmp_path / "link.png"
    model.mkdir()
    (model / "manifest.json").touch()
    photo.touch()
    link.symlink_to(photo)
    for path in (photo, link, model / "manifest.json"):
        with pytest.raises(UsageError, match="named twice"):
            check_outputs([path], overwrite=True, read=[photo, model])
    check_outputs([tmp_path / "other.png"], overwrite=True, read=[photo, model])


def test_a_picture_is_not_replaced_by_its_masks(tmp_path: Path) -> None:
    photo = tmp_path / "photo.png"
    photo.write_bytes(b"the only one")
    with pytest.raises(UsageError, match="named twice"):
        segment_picture(photo, tmp_path / "model", Asked((Prompt(box=(1, 2, 3, 4)),)), [photo], overwrite=True)
    assert photo.read_bytes() == b"the only one"


def test_a_place_without_permission_is_refused_before_the_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.access", lambda path, mode: False)
    for name in ("a.json", "masks"):
        with pytest.raises(WriteError, match="no permission in"):
            check_outputs([tmp_path / name], overwrite=False)


def test_a_folder_is_replaced_only_if_it_holds_masks_alone(tmp_path: Path) -> None:
    (tmp_path / "masks").mkdir()
    (tmp_path / "masks" / "mask-0009.png").write_text("old")
    written(tmp_path, "masks", overwrite=True)
    assert len(list((tmp_path / "masks").iterdir())) == 4
    (tmp_path / "masks" / "notes.txt").write_text("mine")
    with pytest.raises(WriteError, match=r"holds more than masks: found notes\.txt"):
        written(tmp_path, "masks", overwrite=True)
    assert (tmp_path / "masks" / "notes.txt").read_text() == "mine"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["masks"]


def test_a_missing_library_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "contourpy", None)
    with pytest.raises(MissingExtraError, match="contourpy"):
        results.check_kind(".geojson")


@pytest.mark.parametrize(
    ("name", "kind"), [("a.png", ".png"), ("a.labels.png", ".labels.png"), ("A.JSON", ".json"), ("a", ""), (".png", "")]
)
def test_an_ending_says_what_a_file_holds(name: str, kind: str) -> None:
    assert kind_of(Path(name)) == kind


def test_objects_are_told_apart() -> None:
    one = parse_prompts(["1,2"], ["3,4"], ["0,0,9,9"], [])
    assert [(len(prompt.points), prompt.box) for prompt in one] == [(2, (0, 0, 9, 9))]
    several = parse_prompts([], [], ["0,0,9,9", "1,1,5,5"], ["box=2,2,8,8 point=3,3 background=4,4", "point=1,1"])
    assert [(list(prompt.labels), prompt.box is None) for prompt in several] == [
        ([], False), ([], False), ([1, 0], False), ([1], True),
    ]  # fmt: skip
    with pytest.raises(UsageError, match="points beside several objects belong to none"):
        parse_prompts(["1,2"], [], ["0,0,9,9", "1,1,5,5"], [])
    for text, words in (("box:1", "object cannot be read"), ("box=0,0,1,1 box=0,0,2,2", "several boxes")):
        with pytest.raises(PromptError, match=words):
            parse_prompts([], [], [], [text])


def test_masks_of_a_prompt_are_chosen() -> None:
    spec = sam1_spec(image_size=256)
    frame = Frame.of(spec, 60, 40)
    outputs = {
        "low_res_masks": np.random.default_rng(0).standard_normal((2, 3, 64, 64)).astype(np.float32),
        "iou_predictions": np.array([[0.1, 0.3, 0.2], [0.9, 0.3, 0.2]], np.float32),
    }
    places = {
        choice: [(mask.prompt, mask.index) for mask in segment(outputs, frame, spec, choice)]
        for choice in ("best", "all", "2")
    }
    assert places["best"] == [(0, 1), (1, 0)]
    assert places["all"] == [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2)]
    assert places["2"] == [(0, 2), (1, 2)]
    with pytest.raises(UsageError, match="no such mask: found '3', expected best, all or 0 or 1 or 2"):
        list(segment(outputs, frame, spec, "3"))


@pytest.mark.parametrize("size", [(600, 400), (400, 600)])
def test_a_mask_that_is_fed_back_is_the_same_at_picture_size(size: tuple[int, int]) -> None:
    spec = sam1_spec(image_size=256)
    frame = Frame.of(spec, *size)
    mask = np.zeros(size[::-1], np.bool_)
    mask[100:300, 150:350] = True
    again = picture_mask(mask_logits(mask, frame, spec), frame)
    assert (again & mask).sum() / (again | mask).sum() > 0.97


@pytest.mark.parametrize("kind", ["of ones", "of white", "with losses"])
def test_an_earlier_mask_is_gone_on_from(kind: str, all_masks_artifact: Path, tmp_path: Path) -> None:
    photo, earlier, click = tmp_path / "photo.png", tmp_path / "earlier", Prompt(points=[(100, 70)], labels=[1])
    Image.fromarray(generate_scene(900_100, (200, 150)).image).save(photo)
    mask = np.zeros((150, 200), np.bool_)
    mask[40:100, 60:140] = True
    drawn = Image.fromarray(mask * np.uint8(1 if kind == "of ones" else 255)).convert("RGB")
    drawn.save(earlier, "JPEG" if kind == "with losses" else "PNG")
    asked = Asked((click,), refine_from=earlier)
    (refined,) = segment_picture(photo, all_masks_artifact, asked, [tmp_path / "out.json"]).rles
    with samx.open(all_masks_artifact) as predictor:
        predictor.set_image(photo)
        logits = mask_logits(mask, Frame.of(predictor.spec, 200, 150), predictor.spec)
        first, second = (predictor.segment([prompt])[0].mask for prompt in (click, replace(click, mask=logits)))
    np.testing.assert_array_equal(refined.mask(), second)
    assert np.any(first != second)  # an earlier mask that is not looked at gives the first


@pytest.mark.parametrize(
    "kind",
    ["labels", "near labels", "no black", "two colours", "photograph", "white", "black", "another size"],
)
def test_what_is_no_earlier_mask_is_refused(kind: str, all_masks_artifact: Path, tmp_path: Path) -> None:
    photo, earlier = tmp_path / "photo.png", tmp_path / "earlier.png"
    picture = generate_scene(900_100, (200, 150)).image
    Image.fromarray(picture).save(photo)
    drawn = np.zeros((150, 200), np.uint8)
    drawn[10:60, 10:60], drawn[80:140, 100:180] = 1, 2
    colours = np.array([(0, 0, 0), (128, 0, 0), (0, 128, 0)], np.uint8)
    kinds = {
        "near labels": drawn + np.uint8(3) * (drawn > 0), "no black": np.maximum(drawn, 1),
        "two colours": colours[drawn], "labels": drawn, "photograph": picture, "white": np.full_like(drawn, 255),
        "black": np.zeros_like(drawn), "another size": drawn[:100],
    }  # fmt: skip
    Image.fromarray(kinds[kind]).save(earlier)
    with pytest.raises(ImageError, match="not of this picture's size" if kind == "another size" else "is no mask"):
        segment_picture(photo, all_masks_artifact, Asked(refine_from=earlier), [tmp_path / "out.json"])
    assert not (tmp_path / "out.json").exists()
