"""Prompts: what is refused, and which tokens the rest becomes."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray

from samx.errors import Doubt, PromptError
from samx.models.session import Feed, Outputs, Placement
from samx.models.spec import DecoderSpec, sam1_spec, sam2_spec
from samx.processing.frames import Frame
from samx.processing.prompts import (
    Prompt,
    PromptBatch,
    decode_prompts,
    group_prompts,
    parse_box,
    parse_point,
    point_grid,
)

SAM1, SAM2 = sam1_spec(), sam2_spec()
WIDTH, HEIGHT = 512, 256  # 1024 x 512 in SAM 1's frame, 1024 x 1024 in SAM 2's
BOX = (10.0, 20.0, 110.0, 120.0)
POINT = Prompt([(100, 50)], [1])


def tokens(spec: DecoderSpec, prompt: Prompt) -> tuple[list[list[float]], list[float]]:
    feed = PromptBatch.of([prompt]).feed(spec, Frame.of(spec, WIDTH, HEIGHT))
    return feed["point_coords"][0].tolist(), feed["point_labels"][0].tolist()


def test_sam1_pads_points_without_a_box() -> None:
    assert tokens(SAM1, Prompt([(100, 50), (7, 8)], [1, 0])) == ([[200, 100], [14, 16], [0, 0]], [1, 0, -1])


def test_sam1_pads_no_box() -> None:
    assert tokens(SAM1, Prompt(box=BOX)) == ([[20, 40], [220, 240]], [2, 3])


def test_sam1_puts_a_box_after_the_points() -> None:
    assert tokens(SAM1, Prompt([(100, 50)], [1], BOX)) == ([[200, 100], [20, 40], [220, 240]], [1, 2, 3])


def test_sam2_pads_points_and_boxes() -> None:
    assert tokens(SAM2, POINT) == ([[200, 200], [0, 0]], [1, -1])
    assert tokens(SAM2, Prompt(box=BOX)) == ([[20, 80], [220, 480], [0, 0]], [2, 3, -1])


def test_sam2_puts_a_box_before_the_points() -> None:
    expected = ([[20, 80], [220, 480], [200, 200], [0, 0]], [2, 3, 1, -1])
    assert tokens(SAM2, Prompt([(100, 50)], [1], BOX)) == expected


def test_a_mask_alone_is_no_token() -> None:
    mask = np.zeros((256, 256), np.float32)
    assert tokens(sam1_spec(mask_input=True), Prompt(mask=mask)) == ([], [])
    assert tokens(sam2_spec(mask_input=True), Prompt(mask=mask)) == ([], [])


@pytest.mark.parametrize("spec", [SAM1, SAM2, sam1_spec(mask_input=True), sam2_spec(mask_input=True)])
def test_the_feed_has_the_names_types_and_ranks_of_the_spec(spec: DecoderSpec) -> None:
    feed = PromptBatch.of([POINT, POINT]).feed(spec, Frame.of(spec, WIDTH, HEIGHT))
    assert [*feed] == [tensor.name for tensor in spec.prompt_inputs]
    for tensor in spec.prompt_inputs:
        assert feed[tensor.name].dtype == np.float32
        assert feed[tensor.name].ndim == len(tensor.shape)


def test_masks_are_given_per_prompt() -> None:
    spec = sam1_spec(mask_input=True, image_size=64)
    mask = np.random.default_rng(0).standard_normal((16, 16))
    batch = PromptBatch.of([POINT, Prompt([(3, 4)], [1], mask=mask.astype(np.float32))])
    feed = batch.feed(spec, Frame.of(spec, WIDTH, HEIGHT))
    assert feed["has_mask_input"].tolist() == [0, 1]
    assert not feed["mask_input"][0].any()
    np.testing.assert_array_equal(feed["mask_input"][1, 0], mask.astype(np.float32))


def test_a_mask_is_not_ignored_by_a_decoder_that_takes_none() -> None:
    with pytest.raises(PromptError, match="takes no mask prompt"):
        tokens(SAM1, Prompt([(1, 1)], [1], mask=np.zeros((256, 256), np.float32)))


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: PromptBatch.of([]), "no prompt given"),
        (lambda: group_prompts([]), "no prompt given"),
        (lambda: PromptBatch(np.zeros((0, 1, 2)), np.zeros((0, 1))), "no prompt given"),
        (lambda: Prompt(), "says nothing"),
        (lambda: PromptBatch(np.zeros((2, 0, 2)), np.zeros((2, 0)), masks=[logits(), None]), "says nothing"),
        (lambda: Prompt([(1, 2)], [2]), "label of point 0 of prompt 0 is unknown: found 2"),
        (lambda: Prompt([(1, 2)], [-1]), "label of point 0 of prompt 0 is unknown: found -1"),
        (lambda: Prompt([(1, 2)], [0.5]), "found 0.5"),  # type: ignore[list-item]
        (lambda: Prompt([(1, 2)]), "labels have the wrong shape"),
        (lambda: Prompt((), [1]), "labels have the wrong shape"),
        (lambda: Prompt([(1, float("nan"))], [1]), "points of prompt 0 are not finite: found nan"),
        (lambda: Prompt([(1, float("inf"))], [1]), "points of prompt 0 are not finite: found inf"),
        (lambda: Prompt([(1, 2, 3)], [1]), "points have the wrong shape"),  # type: ignore[list-item]
        (lambda: Prompt([(1, 2), (1,)], [1, 1]), "points are no table of numbers"),  # type: ignore[list-item]
        (lambda: Prompt([("a", "b")], [1]), "points are no table of numbers"),  # type: ignore[list-item]
        (
            lambda: Prompt(box=(9, 2, 3, 4)),
            r"swapped corners: found 9,2,3,4.*width,height, give 9,2,12,6; if not, 3,2,9,4\.",
        ),
        (lambda: Prompt(box=(1, 8, 3, 4)), r"width,height, give 1,8,4,12; if not, 1,4,3,8\."),
        (lambda: Prompt(box=(1, 2, 1, 4)), "has no area"),
        (lambda: Prompt(box=(1, 2, 1, 2)), "has no area"),
        (lambda: Prompt(box=(1, 2, float("nan"), 4)), "boxes of prompt 0 are not finite"),
        (lambda: Prompt(box=(1, 2, 3)), "boxes have the wrong shape"),  # type: ignore[arg-type]
        (lambda: Prompt(mask=logits(np.nan)), "logits that are not finite"),
        (lambda: Prompt(mask=logits().astype(bool)), "no low-resolution mask: found bool"),
        (lambda: Prompt(mask=logits().astype(np.uint8)), "found uint8"),
        (lambda: Prompt(mask=logits()[None].repeat(3, 0)), r"found float32 \(3, 256, 256\)"),
        (lambda: Prompt(mask=(logits() + 1).astype(np.float64) * 1e300), "not finite"),  # type: ignore[arg-type]
        (lambda: PromptBatch.of([POINT, Prompt(box=BOX)]), "Sort them with group_prompts"),
        (lambda: PromptBatch(np.zeros((2, 1, 2)), np.ones((2, 1)), masks=[logits()]), "masks do not match"),
    ],
)
def test_what_no_decoder_could_mean_is_refused(build: Callable[[], object], message: str) -> None:
    with pytest.raises(PromptError, match=message) as error:
        build()
    assert "\n" not in str(error.value)
    assert error.value.exit_code == 6


def logits(value: float = 0.0) -> NDArray[np.float32]:
    return np.full((256, 256), value, np.float32)


@pytest.mark.parametrize("spec", [SAM1, SAM2])
@pytest.mark.parametrize("xy", [(-2.01, 5), (5, -3), (WIDTH + 2.01, 5), (5, HEIGHT + 3)])
def test_coordinates_outside_the_picture_are_refused(spec: DecoderSpec, xy: tuple[float, float]) -> None:
    limits = rf"expected 0 <= x <= {WIDTH} and 0 <= y <= {HEIGHT}"
    with pytest.raises(PromptError, match=f"point 1 of prompt 0 is outside the picture.*{limits}"):
        tokens(spec, Prompt([(1, 1), xy], [1, 1]))
    with pytest.raises(PromptError, match=r"box corner . of prompt 0 is outside the picture"):
        tokens(spec, Prompt(box=(min(xy[0], 1), min(xy[1], 1), max(xy[0], 2), max(xy[1], 2))))


@pytest.mark.parametrize("spec", [SAM1, SAM2])
def test_a_detectors_box_just_beyond_the_picture_is_moved_to_its_border_and_that_is_said(spec: DecoderSpec) -> None:
    with pytest.warns(Doubt, match=r"2 box corner\(s\) up to 0.4 px outside the picture: moved to its border"):
        moved = tokens(spec, Prompt(box=(-0.4, 0, WIDTH, HEIGHT + 0.3)))
    assert moved == tokens(spec, Prompt(box=(0, 0, WIDTH, HEIGHT)))


def test_a_rounding_on_the_border_is_not_worth_a_word(recwarn: pytest.WarningsRecorder) -> None:
    tokens(SAM1, Prompt([(WIDTH + 1e-7, 5)], [1]))
    assert not recwarn


@pytest.mark.parametrize(
    "prompt", [Prompt(box=(0.1, 0.2, 0.8, 1)), Prompt([(0.5, 0.5)], [1]), Prompt([(0.5, 0.5)], [1], (0, 0, 1, 1))]
)
def test_shares_of_the_picture_are_doubted(prompt: Prompt) -> None:
    with pytest.warns(Doubt, match=rf"shares of it, multiply them by its size, {WIDTH} x {HEIGHT} px"):
        tokens(SAM1, prompt)


@pytest.mark.parametrize("prompt", [Prompt([(0, 0)], [1]), Prompt(box=(0, 0, 1, 1)), Prompt(box=(0.5, 0.5, 9, 9))])
def test_pixels_near_the_corner_are_not(prompt: Prompt, recwarn: pytest.WarningsRecorder) -> None:
    tokens(SAM1, prompt)
    assert not recwarn


def test_the_border_is_in_the_picture() -> None:
    coords, _ = tokens(SAM1, Prompt([(0, 0), (WIDTH, HEIGHT)], [1, 1], (0, 0, WIDTH, HEIGHT)))
    assert coords == [[0, 0], [1024, 512], [0, 0], [1024, 512]]


def test_a_mask_of_another_size_is_refused() -> None:
    spec = sam1_spec(mask_input=True)
    with pytest.raises(PromptError, match=r"wrong size: found \(16, 16\), expected \(256, 256\)"):
        tokens(spec, Prompt([(1, 1)], [1], mask=np.zeros((16, 16), np.float32)))


def test_a_mask_is_taken_as_metas_predictors_hand_it_back() -> None:
    (flat,), (deep,) = (PromptBatch.of([Prompt(mask=mask)]).masks for mask in (logits(), logits()[None]))
    assert flat is not None
    np.testing.assert_array_equal(flat, deep)


def test_a_frame_of_another_decoder_is_refused() -> None:
    with pytest.raises(PromptError, match="another decoder"):
        PromptBatch.of([POINT]).feed(SAM2, Frame.of(SAM1, WIDTH, HEIGHT))


def test_later_changes_of_the_users_array_do_not_reach_the_batch() -> None:
    points = np.ones((1, 1, 2))
    batch = PromptBatch(points, np.ones((1, 1)))
    points[:] = np.nan
    assert np.isfinite(batch.points).all()


def test_clicks_become_labels() -> None:
    prompt = Prompt.of_clicks([(1, 2)], [(3, 4), (5, 6)], BOX)
    assert (list(prompt.points), list(prompt.labels), prompt.box) == ([(1, 2), (3, 4), (5, 6)], [1, 0, 0], BOX)


class EchoSession:
    """Answer every prompt with its first coordinate and its token count."""

    def __init__(self, spec: DecoderSpec) -> None:
        self.spec = spec
        self.calls = 0

    def set_image(self, image: Feed) -> None: ...

    def decode(self, prompts: Feed) -> Outputs:
        self.calls += 1
        coords = prompts["point_coords"]
        count = np.full(len(coords), coords.shape[1], np.float32)
        return {"iou_predictions": np.stack([coords[:, 0, 0], count], axis=1)}

    def placement(self) -> Placement:
        raise NotImplementedError


def test_mixed_prompts_take_one_call_a_kind_and_come_back_in_order() -> None:
    box = Prompt(box=(50, 2, 60, 8))
    prompts = [Prompt([(x, 1)] * count, [1] * count) for x, count in ((1, 1), (2, 2), (3, 1), (4, 3), (5, 2))] + [box]
    session = EchoSession(SAM1)
    outputs = decode_prompts(session, prompts, Frame.of(SAM1, 1024, 1024))
    assert session.calls == 4
    assert outputs["iou_predictions"].tolist() == [[1, 2], [2, 3], [3, 2], [4, 4], [5, 3], [50, 2]]


def test_groups_name_the_places_of_their_prompts() -> None:
    two = Prompt([(1, 1), (2, 2)], [1, 0])
    groups = group_prompts([POINT, two, POINT, Prompt(box=BOX)])
    assert [(places, len(batch)) for places, batch in groups] == [([0, 2], 2), ([1], 1), ([3], 1)]


def test_the_grid_covers_the_picture_evenly() -> None:
    frame = Frame.of(SAM1, 100, 50)
    grid = point_grid(2, frame)
    assert grid.points[:, 0].tolist() == [[25, 12.5], [75, 12.5], [25, 37.5], [75, 37.5]]
    assert grid.labels.tolist() == [[1]] * 4
    with pytest.raises(PromptError, match="at least 1"):
        point_grid(0, frame)


def test_split_batches_hold_every_prompt_once() -> None:
    batch = PromptBatch(np.arange(20.0).reshape(10, 1, 2), np.ones((10, 1)), np.tile(BOX, (10, 1)))
    parts = list(batch.split(4))
    assert [len(part) for part in parts] == [4, 4, 2]
    np.testing.assert_array_equal(np.concatenate([part.points for part in parts]), batch.points)


def test_points_and_boxes_are_read_from_the_command_line() -> None:
    assert parse_point("3,4.5") == (3, 4.5)
    assert parse_box(" 1, 2,3,4 ") == (1, 2, 3, 4)


@pytest.mark.parametrize("text", ["", "3", "3,", "3,4,5", "a,b", "nan,1", "1,inf", "3 4", "1;2"])
def test_unreadable_points_are_refused(text: str) -> None:
    with pytest.raises(PromptError, match=r"point cannot be read.*expected x,y"):
        parse_point(text)


@pytest.mark.parametrize("text", ["", "1,2", "1,2,3", "1,2,3,4,5", "1,2,3,x", "1,2,3,nan"])
def test_unreadable_boxes_are_refused(text: str) -> None:
    with pytest.raises(PromptError, match=r"box cannot be read.*expected x0,y0,x1,y1"):
        parse_box(text)
