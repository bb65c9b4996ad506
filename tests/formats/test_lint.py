"""Every rule of the lint finds its fault in a program made for it, and leaves its neighbour alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from lint_faults import FAULTS, FULL, HALF, SMALL, SOUND, WIDE, Build, broken, conv, function, half, mb, relu, report

from samx.formats.coreml.lint_rules import FALLS_OFF, RULES, multiply_adds, steps_of


def test_every_rule_has_a_fault() -> None:
    assert set(FAULTS) == {rule.name for rule in RULES}


@pytest.mark.parametrize("rule", FAULTS)
def test_a_planted_fault_is_found(rule: str) -> None:
    made, operations = FAULTS[rule]
    assert broken(made).get(rule) == operations


@pytest.mark.parametrize("name", SOUND)
def test_what_is_sound_breaks_no_rule(name: str) -> None:
    found = report(SOUND[name])
    assert found.findings == ()
    assert found.operations == found.passing > 0
    assert found.share_of_operations == found.share_of_multiply_adds == 1.0


@pytest.mark.parametrize("rule", RULES, ids=[rule.name for rule in RULES])
def test_only_what_falls_off_is_taken_from_the_share(rule: Any) -> None:
    found = report(FAULTS[rule.name][0])
    gravest = {other.severity for other in RULES for finding in found.findings if other.name == finding.rule}
    assert (found.passing < found.operations) == (FALLS_OFF in gravest)


def test_every_rule_says_why_and_who_says_so() -> None:
    assert all(rule.why and rule.source for rule in RULES)
    assert len({rule.name for rule in RULES}) == len(RULES)


def test_a_float32_group_is_named_once_with_its_operations() -> None:
    def build(x: Any, y: Any) -> Any:
        wide = mb.cast(x=x, dtype="fp32")
        first = mb.sqrt(x=mb.exp(x=wide, name="begin"), name="end")
        return mb.cast(x=first, dtype="fp16"), mb.relu(x=y, name="other"), relu(x)

    found = report(function(build, SMALL, SMALL, dtypes=(HALF, FULL)))
    assert sorted(tuple(group.values()) for group in found.float32_groups) == [
        (1, "other", "other"), (2, "begin", "end"),
    ]  # fmt: skip
    assert (found.operations, found.passing) == (6, 3)  # the casts are its border


def test_a_group_that_meets_another_is_one() -> None:
    def build(x: Any, y: Any) -> Any:
        return mb.add(x=mb.exp(x=x), y=mb.exp(x=y))

    found = report(function(build, SMALL, SMALL, dtypes=(FULL, FULL)))
    assert [group["operations"] for group in found.float32_groups] == [3]


def multiplied(build: Build, *shapes: tuple[int, ...]) -> int:
    return sum(multiply_adds(step) for step in steps_of(function(build, *shapes)))


@pytest.mark.parametrize(
    ("build", "shapes", "expected"),
    [
        (conv, [(1, 16, 4, 32)], 8 * 4 * 32 * 16),
        (lambda x: mb.conv(x=x, weight=half(8, 4, 3, 3), groups=2, pad_type="same"), [(1, 8, 4, 4)], 8 * 16 * 4 * 9),
        (lambda x: mb.conv_transpose(x=x, weight=half(8, 4, 2, 2), strides=(2, 2)), [(1, 8, 4, 4)], 8 * 16 * 4 * 4),
        (lambda x: mb.linear(x=x, weight=half(5, 32)), [(3, 32)], 3 * 32 * 5),
        (lambda x, y: mb.matmul(x=x, y=y), [(2, 3, 8), (2, 8, 5)], 2 * 3 * 8 * 5),
        (lambda x, y: mb.matmul(x=x, y=y, transpose_x=True, transpose_y=True), [(2, 8, 3), (2, 5, 8)], 2 * 3 * 8 * 5),
        (
            lambda x, y: mb.einsum(values=(x, y), equation="nchw,nwhu->nchu"), [(1, 2, 3, 4), (1, 4, 3, 5)],
            1 * 2 * 3 * 4 * 5,
        ),
        (relu, [SMALL], 0),
    ],
    ids=["conv", "grouped", "conv_transpose", "linear", "matmul", "matmul_transposed", "einsum", "relu"],
)  # fmt: skip
def test_multiply_adds_are_counted_from_shapes(build: Build, shapes: list[tuple[int, ...]], expected: int) -> None:
    assert multiplied(build, *shapes) == expected


def test_the_share_of_multiply_adds_is_of_the_work() -> None:
    found = report(function(lambda x, y: (conv(x), conv_full(y)), (1, 8, 1, 96), (1, 8, 1, 32), dtypes=(HALF, FULL)))
    assert (found.share_of_operations, found.share_of_multiply_adds) == (0.5, 0.75)


def conv_full(x: Any) -> Any:
    return mb.conv(x=x, weight=np.ones((8, 8, 1, 1), np.float32))


def test_compressed_weights_are_constants() -> None:
    def build(x: Any) -> Any:
        scale = np.full((8, 1, 1, 1), 0.5, np.float16)
        return mb.conv(
            x=x, weight=mb.constexpr_blockwise_shift_scale(data=np.ones((8, 16, 1, 1), np.int8), scale=scale)
        )

    found = report(function(build, (1, 16, 1, 64)))
    assert (found.findings, found.operations, found.multiply_adds) == ((), 1, 8 * 64 * 16)


def test_operations_inside_a_loop_are_seen() -> None:
    def build(x: Any) -> Any:
        return mb.while_loop(
            _cond=lambda i: mb.less(x=i, y=np.float16(3)), _body=lambda i: mb.cumsum(x=i, axis=0), loop_vars=(x,)
        )

    places = {f.rule: f.places for f in report(function(build, (1,))).findings}
    assert {place.split(" ")[0] for place in places["no such operation"]} == {"while_loop", "cumsum"}


def test_bytes_moved_and_wasted_are_counted() -> None:
    found = {f.rule: f for f in report(FAULTS["large tensor moved"][0]).findings}
    assert found["large tensor moved"].bytes == 2 * 8 * 128 * 128
    narrow = {f.rule: f for f in report(FAULTS["narrow last axis"][0]).findings}["narrow last axis"]
    assert narrow.bytes == 16 * 8192 * (64 - 2)
    assert "32 times its size" in narrow.places[0]


def reshaped(shape: tuple[int, ...]) -> str:
    return report(function(lambda x: mb.reshape(x=x, shape=shape), WIDE)).findings[0].places[0]


def test_a_reshape_that_keeps_its_rows_says_so() -> None:
    kept, lost = (reshaped(shape) for shape in ((1, 1024, 1, 128), (1, 8, 64, 256)))
    assert (kept.endswith("rows kept"), lost.endswith("rows kept")) == (True, False)


def test_a_repeated_fault_is_counted_whole_and_named_in_part() -> None:
    def build(x: Any) -> Any:
        for _ in range(30):
            x = mb.relu(x=x)
        return x

    (finding,) = report(function(build, SMALL, dtypes=(FULL,))).findings
    assert (finding.operations, len(finding.places)) == (30, 12)
