"""A candidate that computes something else is refused before anything is timed."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from samx.benchmarks.agreement import Parts, check_agreement
from samx.benchmarks.interleave import Candidate
from samx.benchmarks.scenarios import MIN_SIDE_PX, box_feed
from samx.errors import ParityError
from samx.models.session import Feed
from samx.models.spec import sam1_spec

SPEC = sam1_spec(masks="all")


def decode(prompts: Feed) -> Parts:
    """Answer each prompt by its own coordinates."""
    coords = prompts["point_coords"].reshape(-1, 4)
    masks = np.broadcast_to(coords[:, :, None, None], (*coords.shape, 8, 8)).copy()
    return [[masks, coords / np.float32(SPEC.image_size)]]


def candidate(call: Callable[[Feed], Parts], prompts: int = 3) -> Candidate:
    return Candidate("candidate", prompts, call, lambda number: box_feed(SPEC, number, prompts))


def test_equal_outputs_agree_however_they_are_cut() -> None:
    def two_runs(prompts: Feed) -> Parts:
        cut = [{name: value[rows] for name, value in prompts.items()} for rows in (slice(2), slice(2, None))]
        return [part for feed in cut for part in decode(feed)]

    found = check_agreement([candidate(decode), candidate(two_runs)], decode)
    assert found == [{"candidate": "candidate", "prompts": 3, "logit_error": 0.0, "iou_error": 0.0}] * 2


@pytest.mark.parametrize(("output", "fault"), [(0, 2e-3), (1, 2e-4), (0, np.nan), (1, np.inf)])
def test_one_wrong_value_of_the_peer_is_caught(output: int, fault: float) -> None:
    def perturbed(prompts: Feed) -> Parts:
        parts = decode(prompts)
        parts[0][output].flat[-1] += fault
        return parts

    with pytest.raises(ParityError, match=r"candidate: .* differs from the peer's") as caught:
        check_agreement([candidate(decode)], perturbed)
    assert caught.value.exit_code == 3


def test_rounding_is_no_disagreement() -> None:
    def rounded(prompts: Feed) -> Parts:
        return [[parts[0] + np.float32(5e-4), parts[1] + np.float32(5e-5)] for parts in decode(prompts)]

    (found,) = check_agreement([candidate(rounded)], decode)
    assert found["logit_error"] == pytest.approx(5e-4, rel=0.1)


def test_prompts_in_another_order_are_caught() -> None:
    with pytest.raises(ParityError):
        check_agreement([candidate(lambda prompts: [[a[::-1] for a in decode(prompts)[0]]])], decode)


def test_missing_prompts_are_caught() -> None:
    with pytest.raises(ParityError, match="another shape"):
        check_agreement([candidate(lambda prompts: [[a[:-1] for a in decode(prompts)[0]]])], decode)


def test_boxes_lie_in_the_frame_and_differ_between_rounds() -> None:
    first, second = box_feed(SPEC, 0, 500), box_feed(SPEC, 1, 500)
    corners = first["point_coords"]
    assert corners.min() >= 0
    assert corners.max() <= SPEC.image_size
    assert (corners[:, 1] - corners[:, 0]).min() >= MIN_SIDE_PX * 0.999
    assert (first["point_labels"] == [2, 3]).all()
    assert not np.array_equal(corners, second["point_coords"])
    assert np.array_equal(corners, box_feed(SPEC, 0, 500)["point_coords"])
