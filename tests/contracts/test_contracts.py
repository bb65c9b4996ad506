"""Each contract's graph in the hands of its programs: what they send and how they read it, against upstream's code."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from contract_files import (
    LANDSCAPE,
    MASK_PX,
    PORTRAIT,
    SIZE_PX,
    SQUARE,
    Array,
    assert_same,
    blob,
    by_name,
    by_position,
    coords,
    hugging_face,
    image,
    interpolated,
    metas_answer,
    program,
    sam2_answer,
)

from samx.contracts.table import CONTRACTS

pytestmark = pytest.mark.long

PICTURES = [LANDSCAPE, PORTRAIT, SQUARE]
NO_MASK = np.zeros((1, 1, MASK_PX, MASK_PX), np.float32)
POINT_PADDED, BOX, BOX_PADDED, POINTS_PADDED = [1, -1], [2, 3], [2, 3, -1], [1, 0, 1, -1]


def labels(rows: int, values: list[int], dtype: Any = np.float32) -> Array:
    return np.tile(np.array(values, dtype), (rows, 1))


def valid(picture: tuple[int, int]) -> tuple[int, int]:
    """Return the part of the frame that a picture fills."""
    return tuple(int(side * SIZE_PX / max(picture) + 0.5) for side in picture)  # type: ignore[return-value]


def metas_feed(kind: list[int], picture: tuple[int, int], prompts: int = 1, **more: Any) -> dict[str, Array]:
    points = coords(prompts, len(kind), valid(picture))
    points[:, np.array(kind) == -1] = 0
    flag = {"mask_input": NO_MASK, "has_mask_input": np.zeros(1, np.float32), **more}
    size = np.array(picture, np.float32)
    return {
        **image("sam1"),
        "point_coords": points,
        "point_labels": labels(prompts, kind),
        **flag,
        "orig_im_size": size,
    }


@pytest.mark.parametrize("picture", PICTURES)
@pytest.mark.parametrize("kind", [POINT_PADDED, BOX, BOX_PADDED, POINTS_PADDED], ids=str)
@pytest.mark.parametrize("name", ["meta", "meta-single"])
def test_metas_graph_of_any_picture(name: str, kind: list[int], picture: tuple[int, int]) -> None:
    feed = metas_feed(kind, picture)
    found = by_position(name, *feed.values())  # three outputs, unpacked by programs
    for ours, theirs in zip(found, metas_answer(name == "meta-single", feed), strict=True):
        assert_same(ours, theirs)
    assert found[0].shape == (1, 1 if name == "meta-single" else 4, *picture)


def test_programs_that_read_the_first_mask_see_the_best_one_for_a_click() -> None:
    feed = metas_feed(POINT_PADDED, LANDSCAPE)
    _, iou, all_masks = metas_answer(single=False, feed=feed)
    masks, score, _ = by_name("meta-single", **feed)
    best = 1 + int(iou[0, 1:].argmax())
    assert score[0, 0] == pytest.approx(iou[0, best], abs=1e-5)
    assert not np.array_equal(all_masks[0, best] > 0, all_masks[0, 0] > 0), "else no program would notice"
    assert masks[0][0].shape == LANDSCAPE


@pytest.mark.parametrize("name", ["meta", "meta-single"])
def test_a_mask_is_fed_back(name: str) -> None:
    first = by_name(name, **metas_feed(POINT_PADDED, PORTRAIT))
    best = int(first[1][0].argmax())
    previous = first[2][:, best : best + 1]
    feed = metas_feed(POINTS_PADDED, PORTRAIT, mask_input=previous, has_mask_input=np.ones(1, np.float32))
    found, wanted = by_name(name, **feed), metas_answer(name == "meta-single", feed)
    for ours, theirs in zip(found, wanted, strict=True):
        assert_same(ours, theirs)
    without = by_name(name, **{**feed, "has_mask_input": np.zeros(1, np.float32)})
    assert np.abs(without[2] - found[2]).max() > 1e-2 * np.abs(found[2]).max(), "else the mask was not read"


@pytest.mark.parametrize("flag", [0, -1])
def test_a_flag_that_is_not_above_zero_means_no_mask(flag: float) -> None:
    feed = metas_feed(POINT_PADDED, SQUARE)
    given = {**feed, "mask_input": 7 * blob(), "has_mask_input": np.array([flag], np.float32)}
    for ours, theirs in zip(by_name("meta-single", **given), metas_answer(True, feed), strict=True):
        assert_same(ours, theirs)


@pytest.mark.parametrize("name", ["meta", "meta-single"])
def test_several_prompts_share_a_flag_and_a_mask(name: str) -> None:
    more = {"mask_input": blob(), "has_mask_input": np.ones(1, np.float32)}
    feed = metas_feed(BOX, LANDSCAPE, prompts=3, **more)
    found = by_name(name, **feed)
    assert found[0].shape[0] == 3
    for ours, theirs in zip(found, metas_answer(name == "meta-single", feed), strict=True):
        assert_same(ours, theirs)


@pytest.mark.parametrize("picture", PICTURES)
@pytest.mark.parametrize(("kind", "padded"), [([1], True), ([1, 0], True), (BOX, False), ([2, 3, 1], False)], ids=str)
def test_a_mask_is_cut_out(kind: list[int], padded: bool, picture: tuple[int, int]) -> None:
    feed = metas_feed(kind, picture)
    more = {
        "point_coords": np.pad(feed["point_coords"], ((0, 0), (0, 1), (0, 0))),
        "point_labels": labels(1, [*kind, -1]),
    }
    masks, _, low_res = metas_answer(True, {**feed, **more} if padded else feed)
    left, top, right, bottom, cut, previous = by_name("cvat", **feed)
    inside = masks[0, 0] > 0
    rows, columns = np.flatnonzero(inside.any(1)), np.flatnonzero(inside.any(0))
    assert (left[0], top[0], right[0], bottom[0]) == (columns[0], rows[0], columns[-1], rows[-1])
    assert cut.dtype == np.uint8
    assert set(np.unique(cut)) <= {0, 255}
    np.testing.assert_array_equal(cut[0, 0] > 0, inside[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1])
    assert_same(previous, low_res)


def test_a_cut_out_mask_is_fed_back() -> None:
    previous = by_name("cvat", **metas_feed([1], PORTRAIT))[-1]
    feed = metas_feed([1, 0], PORTRAIT, mask_input=previous, has_mask_input=np.ones(1, np.float32))
    padded = {
        "point_coords": np.pad(feed["point_coords"], ((0, 0), (0, 1), (0, 0))), "point_labels": labels(1, [1, 0, -1]),
    }  # fmt: skip
    assert_same(by_name("cvat", **feed)[-1], metas_answer(True, {**feed, **padded})[2])


def sam2_feed(kind: list[int], prompts: int, mask: Array | None, flags: Any) -> list[Array]:
    """Return the inputs of both contracts of SAM 2's own form, in their order."""
    features = image("sam2")
    points = coords(prompts, len(kind))
    given = np.zeros((1, 1, MASK_PX, MASK_PX), np.float32) if mask is None else mask
    return [*features.values(), points, labels(prompts, kind), given, np.array(flags, np.float32)]


KINDS = [([1], 1), ([2, 3], 1), ([2, 3, 1], 1), ([1, 0, 1, 1], 1), ([1], 3), ([2, 3], 3)]


@pytest.mark.parametrize(("kind", "prompts"), KINDS, ids=str)
def test_sam2_by_position_with_the_padding_inside(kind: list[int], prompts: int) -> None:
    feed = sam2_feed(kind, prompts, None, [0])
    masks, iou = by_position("samexporter-sam2", *feed)
    theirs, scores = sam2_answer(feed[3], feed[4])  # Meta's prompt encoder pads
    assert masks.shape == (prompts, 3, MASK_PX, MASK_PX)
    assert_same(masks, np.clip(theirs[:, 1:], -32, 32))
    assert_same(iou, scores[:, 1:])
    best = int(np.argmax(iou.squeeze() if prompts == 1 else iou[0]))
    assert_same(
        interpolated(masks[:1, best : best + 1], LANDSCAPE),
        interpolated(np.clip(theirs[:1, 1:], -32, 32)[:, best : best + 1], LANDSCAPE),
    )


def test_sam2s_logits_are_clamped() -> None:
    masks, _ = by_position("samexporter-sam2", *sam2_feed([1], 1, None, [0]))
    theirs, _ = sam2_answer(*sam2_feed([1], 1, None, [0])[3:5])
    assert np.abs(theirs).max() > 32, "else nothing is clamped"
    assert np.abs(masks).max() == 32


@pytest.mark.parametrize("flags", [[1], [1, 1, 1]], ids=["one flag", "a flag each"])
def test_sam2s_previous_mask(flags: list[int]) -> None:
    feed = sam2_feed([1, 0], 3, blob(), flags)
    masks, iou = by_position("samexporter-sam2", *feed)
    theirs, scores = sam2_answer(feed[3], feed[4], np.repeat(blob(), 3, axis=0))
    assert_same(masks, np.clip(theirs[:, 1:], -32, 32))
    assert_same(iou, scores[:, 1:])


@pytest.mark.parametrize("picture", PICTURES)
@pytest.mark.parametrize(("kind", "prompts"), KINDS, ids=str)
def test_sam2_at_picture_size(kind: list[int], prompts: int, picture: tuple[int, int]) -> None:
    feed = sam2_feed(kind, prompts, None, [0])
    masks, iou, low_res = by_position("rectlabel", *feed, np.array(picture, np.int64))
    theirs, scores = sam2_answer(feed[3], feed[4])
    assert masks.shape == (prompts, 4, *picture)
    assert_same(masks, interpolated(theirs, picture))
    assert_same(low_res, np.clip(theirs, -32, 32))
    assert_same(iou, scores)


def test_one_previous_mask_for_several_boxes_at_picture_size() -> None:
    feed = sam2_feed([2, 3], 3, blob(), [1])
    masks, _, low_res = by_position("rectlabel", *feed, np.array(PORTRAIT, np.int64))
    theirs, _ = sam2_answer(feed[3], feed[4], np.repeat(blob(), 3, axis=0))
    assert_same(masks, interpolated(theirs, PORTRAIT))
    assert_same(low_res, np.clip(theirs, -32, 32))


def sam2_onnx_feed(kind: list[int], prompts: int = 1, mask: Array | None = None, flag: float = 0) -> dict[str, Array]:
    """Return what sam2-onnx sends: integer labels, and a flag of two axes."""
    points, given = coords(prompts, len(kind)), NO_MASK if mask is None else mask
    names = ("image_embed", "high_res_feat_0", "high_res_feat_1")
    return {
        **dict(zip(names, image("sam2").values(), strict=True)), "point_coords": points,
        "point_labels": labels(prompts, kind, np.int64), "mask_input": given,
        "has_mask_input": np.full((1, 1), flag, np.float32),
    }  # fmt: skip


def sam2_onnx_reads(outputs: list[Array], picture: tuple[int, int], threshold: float) -> tuple[Array, Array, Array]:
    """Return what sam2-onnx makes of the first two outputs: masks of 0 and 1, scores, logits to hand back."""
    low_res, iou = np.clip(outputs[0], -32, 32), outputs[1]
    masks = (interpolated(low_res, picture) > threshold).astype(np.float32)
    return masks[0], iou[0], low_res[0]


def test_sam2_onnx_finds_its_names_and_types() -> None:
    session, feed = program(CONTRACTS["sam2-onnx"]), sam2_onnx_feed([1])
    kinds = {one.name: (one.type, len(one.shape)) for one in session.get_inputs()}
    assert list(kinds) == list(feed)
    assert kinds["point_labels"] == ("tensor(int64)", 2)
    assert kinds["has_mask_input"] == ("tensor(float)", 2)
    assert [one.name for one in session.get_outputs()] == ["low_res_masks", "iou_predictions"]
    with pytest.raises(Exception, match="data type"):
        session.run(None, {**feed, "point_labels": np.ones((1, 1), np.float32)})
    with pytest.raises(Exception, match=r"(?i)invalid rank .*has_mask_input"):
        session.run(None, {**feed, "has_mask_input": np.zeros(1, np.float32)})


@pytest.mark.parametrize("threshold", [0.0, 2.5])
@pytest.mark.parametrize("picture", PICTURES)
@pytest.mark.parametrize("kind", [[1], [2, 3], [2, 3, 1], [1, 0, 1, 1]], ids=str)
def test_sam2_onnx_of_any_picture(kind: list[int], picture: tuple[int, int], threshold: float) -> None:
    feed = sam2_onnx_feed(kind)
    masks, iou, low_res = sam2_onnx_reads(by_name("sam2-onnx", **feed), picture, threshold)
    theirs, scores = sam2_answer(feed["point_coords"], feed["point_labels"])  # Meta's prompt encoder pads
    wanted = interpolated(np.clip(theirs[:, 1:], -32, 32), picture)[0]
    assert masks.shape == (3, *picture)
    assert (wanted > threshold).any(), "else nothing is compared"
    both, either = ((masks > 0) & (wanted > threshold)).sum(), ((masks > 0) | (wanted > threshold)).sum()
    assert both / either >= 0.9999
    assert_same(iou, scores[0, 1:])
    assert_same(low_res[None], np.clip(theirs[:, 1:], -32, 32))


def test_sam2_onnx_hands_a_mask_back() -> None:
    _, iou, low_res = sam2_onnx_reads(by_name("sam2-onnx", **sam2_onnx_feed([1])), PORTRAIT, 0)
    previous = low_res[iou.argmax()][None, None]
    feed = sam2_onnx_feed([1, 0], mask=previous, flag=1)
    masks, scores = by_name("sam2-onnx", **feed)
    theirs, wanted = sam2_answer(feed["point_coords"], feed["point_labels"], previous)
    assert_same(masks, theirs[:, 1:])
    assert_same(scores, wanted[:, 1:])
    without = by_name("sam2-onnx", **sam2_onnx_feed([1, 0]))[0]
    assert np.abs(without - masks).max() > 1e-2 * np.abs(masks).max(), "else the mask was not read"
    unused = by_name("sam2-onnx", **sam2_onnx_feed([1, 0], mask=previous, flag=0))[0]
    np.testing.assert_array_equal(unused, without)


def test_sam2_onnx_clamps_by_itself() -> None:
    feed = sam2_onnx_feed([1])
    masks, _ = by_name("sam2-onnx", **feed)
    assert np.abs(masks).max() > 32
    assert_same(masks, sam2_answer(feed["point_coords"], feed["point_labels"])[0][:, 1:])


def test_several_prompts_behind_sam2_onnx_names() -> None:
    feed = sam2_onnx_feed([2, 3], 3, blob(), 1)
    masks, iou = by_name("sam2-onnx", **feed)
    theirs, scores = sam2_answer(feed["point_coords"], feed["point_labels"], np.repeat(blob(), 3, axis=0))
    assert_same(masks, theirs[:, 1:])
    assert_same(iou, scores[:, 1:])


@pytest.mark.parametrize(("objects", "kind"), [(1, [1]), (1, [1, 0, 1]), (3, [1]), (2, [1, 0])], ids=str)
@torch.no_grad()
def test_objects_of_sam1(objects: int, kind: list[int]) -> None:
    points, codes, features = coords(objects, len(kind))[None], labels(objects, kind, np.int64)[None], image("sam1")
    found = by_name(
        "hf-sam1", input_points=points, input_labels=codes, **features,
        image_positional_embeddings=np.full_like(features["image_embeddings"], np.nan),
    )  # fmt: skip
    theirs = hugging_face("sam1")(
        image_embeddings=torch.from_numpy(features["image_embeddings"]), multimask_output=True,
        input_points=torch.from_numpy(points), input_labels=torch.from_numpy(codes).int(),
    )  # fmt: skip
    assert_same(found[0], theirs.iou_scores.numpy())
    assert found[1].shape == (1, objects, 3, MASK_PX, MASK_PX)
    assert_same(found[1][0], theirs.pred_masks.numpy()[0])


SAM2_OBJECTS = [(1, [1], 0), (3, [1, 0], 0), (0, [], 1), (0, [], 3), (1, [1, 0], 1)]


@pytest.mark.parametrize(("objects", "kind", "boxes"), SAM2_OBJECTS, ids=str)
@torch.no_grad()
def test_objects_of_sam2_and_axes_without_elements(objects: int, kind: list[int], boxes: int) -> None:
    features = image("sam2")
    corners = np.sort(coords(boxes, 2, seed=3), axis=1).reshape(1, boxes, 4)
    points = coords(max(objects, 1), len(kind))[None]
    codes = labels(objects or boxes, kind, np.int64).reshape(1, objects or boxes, len(kind))
    levels = [features[name] for name in ("high_res_features_0", "high_res_features_1", "image_embeddings")]
    found = by_name(
        "hf-sam2", input_points=points, input_labels=codes, input_boxes=corners,
        **{f"image_embeddings.{i}": level for i, level in enumerate(levels)},
    )  # fmt: skip
    asked: dict[str, Any] = {"input_boxes": torch.from_numpy(corners)} if boxes else {}
    if objects:
        asked |= {"input_points": torch.from_numpy(points), "input_labels": torch.from_numpy(codes).int()}
    theirs = hugging_face("sam2")(
        image_embeddings=[torch.from_numpy(level) for level in levels], multimask_output=True, **asked
    )
    assert_same(found[0], theirs.iou_scores.numpy())
    assert found[1].shape == (1, objects or boxes, 3, MASK_PX, MASK_PX)
    assert_same(found[1][0], theirs.pred_masks.numpy()[0])
    assert_same(found[2], theirs.object_score_logits.numpy())


@pytest.mark.parametrize(("kind", "prompts"), [([1], 1), ([2, 3], 4), ([1, 2, 3], 2)], ids=str)
def test_three_inputs_two_outputs(kind: list[int], prompts: int) -> None:
    feed = metas_feed(kind, SQUARE, prompts)
    low_res, iou = by_position("evit", *(feed[name] for name in ("image_embeddings", "point_coords", "point_labels")))
    _, scores, theirs = metas_answer(False, feed)
    assert_same(low_res, theirs)
    assert_same(iou, scores)
