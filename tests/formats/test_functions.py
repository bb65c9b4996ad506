"""Which function takes how many points, read from options that anybody may have written."""

from __future__ import annotations

from typing import Any

import pytest

from samx.errors import ArtifactError
from samx.formats.coreml.contract import functions_of

OPTIONS = {"functions": {"points_8": 8, "points_1": 1, "points_2": 2}, "points": [1, 2, 8]}


def test_functions_come_smallest_first() -> None:
    found = functions_of(OPTIONS, "toy")
    assert list(found.items()) == [(1, "points_1"), (2, "points_2"), (8, "points_8")]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"functions": None}, "toy: functions has the wrong type"),
        ({"functions": ["points_1"]}, "toy: functions has the wrong type"),
        ({"functions": {}}, "functions do not tell points apart: found {}"),
        ({"functions": {"a": 2, "b": 2}}, "functions do not tell points apart"),
        ({"functions": {"a": "2"}}, "toy: functions: a has the wrong type: found '2'"),
        ({"functions": {"a": True}}, "functions: a has the wrong type"),
        ({"functions": {"a": 1.0}}, "functions: a has the wrong type"),
        ({"functions": {"a": 0}}, "functions: a is out of range: found 0, expected 1 to 999999"),
        ({"functions": {"a": -1}}, "functions: a is out of range: found -1"),
        ({"functions": {"a": 10**30}}, "functions: a is out of range"),
        ({"functions": {"../a": 1}}, "a name that no function can have"),
        ({"functions": {"a b": 1}}, "a name that no function can have"),
        ({"functions": {"points_1": 1}}, r"points and functions disagree: found points 1:2:8, expected 1 to 1"),
        ({"points": [2, 2, 8]}, "points and functions disagree"),
        ({"points": "1:2:8"}, "toy: points is no range"),
    ],
)
def test_options_that_no_exporter_writes(change: dict[str, Any], words: str) -> None:
    with pytest.raises(ArtifactError, match=words) as caught:
        functions_of({**OPTIONS, **change}, "toy")
    assert len(str(caught.value)) < 400
