"""The automatic mode tile by tile: each tile as a picture of its own, put together without what several have."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from automatic_toys import Blobs
from numpy.typing import NDArray
from PIL import Image
from toys import image_tensors
from typer.testing import CliRunner
from upstream_predictors import our_predictor

import samx
from samx.cli import app
from samx.commands import outputs
from samx.demo.scenes import generate_scene
from samx.errors import Doubt, SamxError, UsageError
from samx.models.spec import sam1_spec
from samx.processing import images, settings
from samx.processing.boxes import suppress_overlaps, tile_boxes
from samx.processing.rle import Rle
from samx.processing.settings import Settings, read_grids

SIDE = 256
THRESHOLDS: dict[str, Any] = {"pred_iou_thresh": 0.4, "stability_score_thresh": 0.5, "points_per_side": 8}
SPEC = sam1_spec()


def scene(seed: int, width: int = SIDE) -> NDArray[np.uint8]:
    return np.ascontiguousarray(generate_scene(seed, (width, SIDE)).image)


@pytest.mark.parametrize(
    ("size", "side", "shared", "expected"),
    [
        ((100, 80), 100, 25, [(0, 0, 100, 80)]),
        ((101, 80), 100, 25, [(0, 0, 100, 80), (1, 0, 101, 80)]),
        ((250, 50), 100, 25, [(0, 0, 100, 50), (75, 0, 175, 50), (150, 0, 250, 50)]),
        ((30, 160), 100, 0, [(0, 0, 30, 100), (0, 60, 30, 160)]),
    ],
)
def test_tiles_cover_a_picture(size: tuple[int, int], side: int, shared: int, expected: list[Any]) -> None:
    assert tile_boxes(*size, side, shared) == expected


def test_tiles_share_enough_everywhere() -> None:
    for length in range(1, 700):
        boxes = tile_boxes(length, 64, 64, 16)
        assert (boxes[0][0], boxes[-1][2]) == (0, length)
        assert all(left[2] - right[0] >= 16 for left, right in pairwise(boxes))
        assert all(box[2] - box[0] == min(64, length) for box in boxes)


def whole(records: list[Any], border: str) -> list[NDArray[np.bool_]]:
    """Keep masks that do not come near the border that another tile goes on behind."""
    kept = []
    for record in records:
        x, _, width, _ = record["bbox"]
        cut = x + width >= SIDE - 20 if border == "right" else x <= 20
        kept += [] if cut else [record["segmentation"]]
    return kept


def same(found: list[NDArray[np.bool_]], expected: list[NDArray[np.bool_]]) -> bool:
    """Compare masks, whatever their order."""
    return sorted(mask.tobytes() for mask in found) == sorted(mask.tobytes() for mask in expected)


def test_tiles_are_pictures_of_their_own(all_masks_artifact: Path) -> None:
    left, right = scene(900_003), scene(900_104)
    with samx.open(all_masks_artifact) as predictor:
        parts = [list(predictor.everything(part, **THRESHOLDS)) for part in (left, right)]
        both = np.concatenate([left, right], axis=1)
        found = [r["segmentation"] for r in predictor.everything(both, tile_px=SIDE, tile_overlap_px=0, **THRESHOLDS)]
    nothing = np.zeros((SIDE, SIDE), np.bool_)
    expected = [np.concatenate([mask, nothing], axis=1) for mask in whole(parts[0], "right")]
    expected += [np.concatenate([nothing, mask], axis=1) for mask in whole(parts[1], "left")]
    assert len(expected) > 4
    assert same(found, expected)
    assert not same(found[1:], expected)


def test_what_two_tiles_have_comes_once() -> None:
    """Clicks of both lie on the same places where they share pixels."""
    spec, picture = sam1_spec(image_size=SIDE, masks="all"), np.zeros((SIDE, 2 * SIDE, 3), np.uint8)
    tiles: dict[str, Any] = {"tile_px": SIDE, "tile_overlap_px": SIDE // 2, **THRESHOLDS}
    found, doubled = (
        list(our_predictor(Blobs(spec), [image_tensors(spec)]).everything(picture, crop_nms_thresh=most, **tiles))
        for most in (0.5, 1.0)
    )
    assert 10 < len(found) < len(doubled) - 5
    boxes = np.array([record["bbox"] for record in found])
    boxes[:, 2:] += boxes[:, :2]
    assert len(suppress_overlaps(boxes, np.ones(len(found), np.float32), 0.5)) == len(found)
    assert {tuple(record["crop_box"]) for record in found} <= {(x, 0, SIDE, SIDE) for x in (0, 128, 256)}
    sure = sorted(record["predicted_iou"] for record in doubled)
    assert max(record["predicted_iou"] for record in found) == sure[-1]  # of two, the surer stays


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"tile_overlap_px": 9}, "tile_overlap_px is of tiles"),
        ({"tile_px": 256, "crop_n_layers": 1}, "tiles are not cut into crops"),
        ({"tile_px": 256, "tile_overlap_px": 129}, "tiles share too much: found 129 of 256 px"),
        ({"tile_px": 63}, "tile_px is out of range"),
        ({"tile_px": 256, "tile_overlap_px": -1}, "tile_overlap_px is out of range"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(given: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        Settings.of(SPEC, given)


@pytest.mark.parametrize("seed", range(5))
def test_the_part_of_a_mask_is_where_it_is(seed: int) -> None:
    rng = np.random.default_rng(seed)
    mask = np.zeros((37, 53), np.bool_)
    y, x = rng.integers(0, 30, 2)
    mask[y : y + 6, x : x + 9] = rng.random((min(6, 37 - y), min(9, 53 - x))) < 0.5
    (left, top), part = Rle.of(mask).part()
    again = np.zeros_like(mask)
    again[top : top + part.shape[0], left : left + part.shape[1]] = part
    np.testing.assert_array_equal(again, mask)
    assert part[:, [0, -1]].any(axis=0).all()
    assert part[[0, -1]].any(axis=1).all()


@pytest.mark.parametrize("fill", [False, True])
def test_the_part_of_no_mask_is_empty_and_of_a_full_one_all(fill: bool) -> None:
    corner, part = Rle.of(np.full((4, 5), fill)).part()
    assert corner == (0, 0)
    assert part.shape == ((4, 5) if fill else (0, 0))
    assert part.all()


@pytest.fixture
def large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Write a picture that is too large to be looked at whole, the limit being low."""
    for module in (images, settings, outputs):
        monkeypatch.setattr(module, "MAX_PICTURE_PX", SIDE * SIDE)
    Image.fromarray(scene(900_003, 2 * SIDE)).save(tmp_path / "large.tif")
    return tmp_path / "large.tif"


class Ended(NamedTuple):
    """How a command ended; a refusal in one piece, however it was wrapped."""

    exit_code: int
    output: str


def ask(*arguments: object) -> Ended:
    done = CliRunner().invoke(app, ["segment", *map(str, arguments)])
    if isinstance(done.exception, SamxError):
        return Ended(done.exception.exit_code, str(done.exception))
    return Ended(done.exit_code, " ".join(done.output.split()))


def test_a_large_picture_is_looked_at_in_tiles_in_the_shell(large: Path, all_masks_artifact: Path) -> None:
    grid = ["--everything", "--points-per-side", 6, "--pred-iou-thresh", 0.7, "--stability-score-thresh", 0.7]
    asked = [large, "--model", all_masks_artifact, *grid]
    refused = ask(*asked, "-o", large.with_name("a.json"))
    assert refused.exit_code == 6
    assert "--everything --tile-px" in refused.output
    refused = ask(*asked, "--tile-px", SIDE, "-o", large.with_name("a.png"))
    assert refused.exit_code == 2
    assert "expected .json or .geojson" in refused.output
    with pytest.warns(Doubt, match="wider than 64 px, which tiles share, may be missing"):
        found = ask(*asked, "--tile-px", SIDE, "-o", large.with_name("a.json"), "-o", large.with_name("a.geojson"))
    assert found.exit_code == 0, found.output
    annotations = json.loads(large.with_name("a.json").read_bytes())["annotations"]
    features = json.loads(large.with_name("a.geojson").read_bytes())["features"]
    assert len(annotations) == len(features) > 1
    for annotation, feature in zip(annotations, features, strict=True):
        points = np.concatenate([np.array(ring) for polygon in feature["geometry"]["coordinates"] for ring in polygon])
        x, y, width, height = annotation["bbox"]
        assert points.min(axis=0).tolist() == [x, y]
        assert points.max(axis=0).tolist() == [x + width, y + height]


GRIDS = {
    "no JSON": (b"[[", "no valid JSON|not valid JSON"),
    "no list": (b'{"a": 1}', "holds no point grids"),
    "no lists": (b"[1, 2]", "holds no point grids"),
}


@pytest.mark.parametrize("what", GRIDS)
def test_grids_that_are_none_are_refused(tmp_path: Path, what: str) -> None:
    data, words = GRIDS[what]
    (tmp_path / "grid.json").write_bytes(data)
    with pytest.raises(UsageError, match=words):
        read_grids(tmp_path / "grid.json")
    with pytest.raises(UsageError):
        read_grids(tmp_path / "none.json")


def test_own_points_are_given_in_a_file(tmp_path: Path, all_masks_artifact: Path) -> None:
    Image.fromarray(scene(900_003)).save(tmp_path / "scene.png")
    (tmp_path / "grid.json").write_text(json.dumps([[[0.3, 0.4], [0.5, 0.6]]]))
    asked = ["--everything", "--point-grids", tmp_path / "grid.json", "--pred-iou-thresh", 0, "--json"]
    lenient = ["--stability-score-thresh", 0, "--box-nms-thresh", 1, "-o", tmp_path / "a.json"]
    found = ask(tmp_path / "scene.png", "--model", all_masks_artifact, *asked, *lenient)
    assert found.exit_code == 0, found.output
    clicks = {tuple(one["point_coords"][0]) for one in json.loads((tmp_path / "a.json").read_bytes())["annotations"]}
    assert clicks == {(0.3 * SIDE, 0.4 * SIDE), (0.5 * SIDE, 0.6 * SIDE)}
