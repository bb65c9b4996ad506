"""What a lint says of itself and of a program; what no package may have."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from coremltools.converters.mil.mil import types
from lint_faults import FAULTS, FULL, HALF, SOUND, WIDE, broken, function, half, mb

from samx.formats.coreml.lint import SHOWS, FunctionLint, forbidden, lint, lint_json, lint_lines
from samx.formats.coreml.lint_rules import LARGE, RULES


def both() -> dict[str, FunctionLint]:
    return lint({"points_1": FAULTS["float32"][0], "points_2": SOUND["a softmax over channels"]})


def test_the_report_calls_itself_a_lint() -> None:
    data = lint_json(both())
    assert (data["kind"], data["shows"]) == ("lint", SHOWS)
    assert "nothing ran on a Neural Engine" in SHOWS
    assert "lint, not a measurement" in lint_lines(both())[0]


def test_the_report_is_plain_data_with_its_rules_and_shares() -> None:
    data = json.loads(json.dumps(lint_json(both())))
    assert set(data["rules"]) == {rule.name for rule in RULES}
    assert data["functions"]["points_1"]["share_of_operations"] == 0.0
    assert data["functions"]["points_1"]["findings"][0]["rule"] == "float32"
    (group,) = data["functions"]["points_1"]["float32_groups"]
    assert (group["operations"], group["first"]) == (1, group["last"])


def test_the_summary_has_the_shares_and_the_gravest_rule_first() -> None:
    made = function(lambda x: mb.softmax(x=mb.sqrt(x=mb.cast(x=x, dtype="fp16")), axis=-1), WIDE, dtypes=(FULL,))
    head, *rules = lint({"points_1": made})["points_1"].lines("points_1")
    assert head.startswith("points_1: 3 of 3 operations (100.0 %)")
    assert [line.split(":")[0].strip() for line in rules] == ["slow", "watch"]


def test_the_summary_counts_operations_and_groups() -> None:
    lines = lint({"main": FAULTS["float32"][0]})["main"].lines("main")
    assert lines[1:] == ["  falls off: float32, 1 operation in 1 group; runs on the CPU or the GPU"]


def test_a_share_that_is_not_whole_does_not_look_so() -> None:
    def build(x: Any, y: Any) -> Any:
        return mb.conv(x=x, weight=half(64, 64, 1, 1)), mb.conv(x=y, weight=np.ones((1, 1, 1, 1), np.float32))

    made = function(build, (1, 64, 1, 4096), (1, 1, 1, 1), dtypes=(HALF, FULL))
    assert "99.9 % of the multiply-adds" in lint({"f": made})["f"].lines("f")[0]


@pytest.mark.parametrize("rule", ["dynamic shape", "unknown rank"])
def test_what_is_not_fixed_is_forbidden(rule: str) -> None:
    faults = forbidden({"points_1": FAULTS[rule][0]})
    assert len(faults) == 2  # what goes in and what comes out
    assert all(fault.startswith("points_1: tensor '") for fault in faults)
    assert all(("a dynamic dimension in (1, 8, 1, ?)" if "dynamic" in rule else "an unknown rank") in f for f in faults)


def fake(dtype: type, shape: tuple[int, ...] = (2,), constant: bool = False) -> Any:
    """Make a function that no converter makes: one value of a type."""
    variable = SimpleNamespace(name="odd", shape=shape, dtype=dtype, is_descendant_of_const=constant, val=None)
    operation = SimpleNamespace(op_type="const", name="odd", inputs={}, outputs=[variable], blocks=[])
    return SimpleNamespace(inputs={}, operations=[operation])


@pytest.mark.parametrize(
    ("made", "words"),
    [
        (fake(types.int64), "the type int64"),
        (fake(types.int64, (), constant=True), "the type int64"),
        (fake(types.str, ()), "the type string"),
        (fake(types.str, (3,), constant=True), "the type string"),
        (fake(types.list(types.fp16)), "the type list"),
    ],
)
def test_a_forbidden_type_is_named(made: Any, words: str) -> None:
    assert forbidden({"main": made}) == [f"main: tensor 'odd' has {words}"]


def test_what_is_fixed_is_not_forbidden() -> None:
    faults = [name for name in FAULTS if name not in ("dynamic shape", "unknown rank")]
    assert forbidden({name: FAULTS[name][0] for name in faults}) == []
    assert forbidden(SOUND) == []  # among them a gelu, whose mode is a string


def test_large_means_more_than_its_limit() -> None:
    at_limit = function(lambda x: mb.transpose(x=x, perm=(0, 2, 1, 3)), (1, 8, LARGE // 1024, 128))
    assert "large tensor moved" not in broken(at_limit)
