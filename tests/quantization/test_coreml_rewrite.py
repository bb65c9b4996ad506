"""INT8 in MIL functions: pairs round inputs, 8-bit weights, scales, and what is counted."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from mil_packages import function, mb

from samx.errors import SamxError, UsageError
from samx.formats.coreml.program import Program
from samx.quantization import groups
from samx.quantization.coreml_rewrite import (
    GROUPS,
    INTEGER,
    LEFT_ALONE,
    MOST,
    QUANTISABLE,
    arithmetic,
    convolutions,
    group_of,
    rewrite,
    scale_of,
    whole_plan,
)
from samx.quantization.search import Plan
from samx.runtimes.mil.evaluate import Evaluator

RANDOM = np.random.default_rng(3)
FIRST = RANDOM.normal(size=(64, 64, 1, 1)).astype(np.float16)
SECOND, BIAS = RANDOM.normal(size=(96, 64, 1, 1)).astype(np.float16), RANDOM.normal(size=96).astype(np.float16)
X = RANDOM.normal(size=(1, 64, 1, 40)).astype(np.float16)
KEY, VALUE = (f"p_decoder_transformer_layers_0_token_to_image_{name}_weight" for name in ("key", "value"))
GROUP = "image projections, layer 0"


def built(ios: int = 18) -> Any:
    """Make a function of two convolutions that read one tensor."""

    def build(x: Any) -> Any:
        taken = mb.relu(x=x)
        keys = mb.conv(x=taken, weight=mb.const(val=FIRST, name=KEY), name="keys")
        values = mb.conv(x=taken, weight=mb.const(val=SECOND, name=VALUE), bias=BIAS, name="values")
        return keys, values

    return function(build, {"x": (X.shape, "fp16")}, ios)


def quantised(plan: Plan, largest: float = 2.5, ios: int = 18) -> Any:
    made = built(ios)
    rewrite({"main": made}, convolutions(made), plan, {KEY: largest, VALUE: largest})
    return made


def evaluated(made: Any, x: Any = X) -> dict[str, Any]:
    return Evaluator(Program("a test", 9, {"main": made}, "main"), "main")({"x": x})


def count(made: Any, kind: str) -> int:
    return sum(op.op_type == kind for op in made.operations)


def in_integers(made: Any, name: str, x: Any, bias: Any) -> Any:
    """Compute a convolution as a chip would: both factors in integers, the scales afterwards."""
    weight = next(op for op in made.operations if op.name == name).weight.op
    data, scales = (var.val for var in stored_as(weight))
    scale = float(scale_of(2.5))
    steps = np.clip(np.rint(x.astype(np.float64) / scale), -128, 127).astype(np.int64)
    sums = np.einsum("oc,ncst->nost", data[:, :, 0, 0].astype(np.int64), steps)
    return sums * scale * scales.astype(np.float64).reshape(-1, 1, 1) + np.reshape(bias, (-1, 1, 1))


def stored_as(weight: Any) -> tuple[Any, Any]:
    """Give an 8-bit weight's integers and scales, as iOS 17 and as iOS 18 name them."""
    return (weight.quantized_data if weight.op_type == "constexpr_affine_dequantize" else weight.data), weight.scale


@pytest.mark.parametrize("ios", [17, 18])
def test_a_rewritten_convolution_is_the_integer_one(ios: int) -> None:
    made, x = quantised(Plan(integer=(GROUP,)), ios=ios), np.maximum(X, 0)
    found, before = evaluated(made), evaluated(built())
    for name, bias in (("keys", 0.0), ("values", BIAS)):
        exact = in_integers(made, name, x, bias)
        close = np.abs(exact).max() * 1e-3  # what is dequantised is rounded to float16 before it is multiplied
        np.testing.assert_allclose(found[name], exact, rtol=1e-3, atol=close)
        assert np.abs(exact - before[name]).max() > 10 * close  # and the float one is another


def test_one_pair_serves_all_that_read_a_tensor() -> None:
    made = quantised(Plan(integer=(GROUP,)))
    assert (count(made, "quantize"), count(made, "dequantize")) == (1, 1)
    assert count(made, "constexpr_blockwise_shift_scale") == 2


def test_stored_weights_leave_the_input_alone() -> None:
    made = quantised(Plan(stored=(GROUP,)))
    assert (count(made, "quantize"), count(made, "constexpr_blockwise_shift_scale")) == (0, 2)


def test_an_empty_plan_changes_no_bit() -> None:
    found, before = evaluated(quantised(Plan())), evaluated(built())
    assert all(np.array_equal(found[name], before[name]) for name in before)


def test_weights_have_a_scale_for_each_output_and_use_the_whole_range() -> None:
    made = quantised(Plan(stored=(GROUP,)))
    stored = [op for op in made.operations if op.op_type == "constexpr_blockwise_shift_scale"]
    assert [op.scale.shape for op in stored] == [(64, 1, 1, 1), (96, 1, 1, 1)]
    for op in stored:
        assert op.data.val.dtype == np.int8
        assert (np.abs(op.data.val.astype(int)).max((1, 2, 3)) == MOST).all()
        assert op.offset is None


def test_what_exceeds_the_range_stays_at_its_end() -> None:
    made = quantised(Plan(integer=(GROUP,)), largest=1.0)
    inside, beyond = np.full(X.shape, 1.0, np.float16), np.full(X.shape, 60.0, np.float16)
    assert np.array_equal(evaluated(made, inside)["keys"], evaluated(made, beyond)["keys"])


@pytest.mark.parametrize("largest", [1.0, 3.1415, 2047.7, 60000.0])
def test_the_scale_reaches_the_largest_and_no_further(largest: float) -> None:
    scale = scale_of(largest)
    assert scale.dtype == np.float16
    assert largest <= float(scale) * MOST <= largest * 1.001


@pytest.mark.parametrize("largest", [0.0, 1e-9])
def test_a_tensor_that_is_nothing_has_a_scale(largest: float) -> None:
    assert scale_of(largest) == np.finfo(np.float16).tiny


def test_what_is_in_integers_is_counted() -> None:
    cells = X.shape[-1]
    products = cells * (FIRST.size + SECOND.size)
    assert arithmetic(quantised(Plan(integer=(GROUP,)))) == {
        "convolutions": 2, "integer_convolutions": 2, "multiply_adds": products,
        "constant_weight_multiply_adds": products, "integer_multiply_adds": products,
    }  # fmt: skip
    assert arithmetic(quantised(Plan(stored=(GROUP,))))["integer_convolutions"] == 0


def test_convolutions_are_found_with_their_size() -> None:
    keys, values = convolutions(built())
    assert (keys.group, keys.weight, keys.shape) == (GROUP, KEY, FIRST.shape)
    assert values.multiply_adds == X.shape[-1] * SECOND.size
    assert values.bytes_saved == SECOND.size - 2 * 96


def test_groups_have_the_names_of_other_exports() -> None:
    assert set(QUANTISABLE) <= {*groups.INTEGER, *groups.STORED}
    assert set(INTEGER) == set(groups.INTEGER)


@pytest.mark.parametrize(
    ("weight", "group"),
    [
        ("p_decoder_transformer_layers_1_image_to_token_out_weight", "image projections, layer 1"),
        ("p_decoder_transformer_layers_1_image_to_token_key_weight", "token projections"),
        ("p_decoder_transformer_final_attention_value_weight", "image projections, final"),
        ("p_decoder_planes_second_weight", "upscaling 2"),
        ("p_decoder_mask_weights_mlps_2_layers_0_weight", "mask weights"),
        ("b_points_table", "point encoding"),
    ],
)
def test_a_weight_s_name_says_its_group(weight: str, group: str) -> None:
    assert group_of(weight) == group


def test_an_unknown_weight_is_our_bug() -> None:
    with pytest.raises(SamxError, match="p_other_weight"):
        group_of("p_other_weight")


def test_a_group_that_is_not_there_cannot_be_excluded() -> None:
    there = convolutions(built())
    assert whole_plan(there, []) == Plan(integer=(GROUP,))
    assert whole_plan(there, [GROUP]) == Plan()
    for unknown in ("absorbed projections", "upscaling 1", "point encoding"):
        with pytest.raises(UsageError, match=f"{unknown}, expected {GROUP}"):
            whole_plan(there, [unknown])


def test_no_two_patterns_share_a_name() -> None:
    assert len(GROUPS) == len(QUANTISABLE) + len(LEFT_ALONE)
