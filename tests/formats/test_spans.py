"""A range is min, usual and max, in order, or it is refused with what it was for."""

from __future__ import annotations

from typing import Any

import pytest

from samx.errors import ArtifactError, UsageError
from samx.models.shape_range import ShapeRange


@pytest.mark.parametrize(
    ("text", "span"), [("1:8:64", ShapeRange(1, 8, 64)), ("8", ShapeRange(8, 8, 8)), ("2:2:2", ShapeRange(2, 2, 2))]
)
def test_a_range_is_read(text: str, span: ShapeRange) -> None:
    assert ShapeRange.parse(text, "--profile") == span
    assert ShapeRange.from_json(span.to_json(), "here") == span


@pytest.mark.parametrize(
    "text", ["", "0", "0:1:2", "3:2:4", "1:5:4", "1:2", "1:2:3:4", "-1:2:3", "1.0:2:3", " 1:2:3", "1\n", "٣", "9" * 40]
)  # fmt: skip
def test_no_range_is_refused_in_one_line(text: str) -> None:
    with pytest.raises(
        UsageError, match=r"--prompts-profile is no range to build for: found .* expected MIN:OPT:MAX"
    ) as caught:
        ShapeRange.parse(text, "--prompts-profile")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "value", [None, 1, [1, 2], [1, 2, 3, 4], [1, 2, "3"], [True, 2, 3], [1.0, 2, 3], [3, 2, 1], {}]
)
def test_json_that_is_no_range_is_refused(value: Any) -> None:
    with pytest.raises(ArtifactError, match="here: prompts is no range"):
        ShapeRange.from_json(value, "here: prompts")


@pytest.mark.parametrize(("number", "inside"), [(0, False), (1, True), (64, True), (65, False)])
def test_what_a_range_contains(number: int, inside: bool) -> None:
    assert (number in ShapeRange(1, 8, 64)) is inside
