"""Every operation of the evaluator, against coremltools' own constant folding, or PyTorch where it has none."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from mil_cases import (
    FULL,
    HALF,
    INT,
    RANDOM,
    Case,
    bytes_of,
    full,
    goes_in_half,
    half,
    integers,
    ints,
    names,
    normal,
    one,
    positive,
    same,
    through_half,
    truths,
    two,
)
from mil_packages import Array, mb, program
from torch.nn import functional as F

from samx.errors import ArtifactError
from samx.runtimes.mil.evaluate import Evaluator
from samx.runtimes.mil.operations import OPERATIONS

X, P = normal(2, 3, 4), positive(2, 3, 4)
UNIT = RANDOM.uniform(-0.9, 0.9, (2, 3, 4)).astype(FULL)
TIES = np.array([[1, 5, 5, 0], [7, 7, 7, 7]], FULL)
ALPHA = {"alpha": FULL(0.3)}
BOTH = {"alpha": FULL(0.3), "beta": FULL(0.6)}
OPEN = {"begin_mask": [True] * 3, "end_mask": [True] * 3}
MASKS = {"begin_mask": [False, True, False], "end_mask": [True, False, False]}

FOLDED: list[Case] = [
    *(one(kind, X) for kind in ("abs", "ceil", "cos", "cosh", "erf", "exp", "exp2", "floor", "identity", "relu")),
    *(one(kind, X) for kind in ("relu6", "sigmoid", "sign", "sin", "sinh", "softplus", "softsign", "square", "tan")),
    *(one(kind, UNIT) for kind in ("acos", "asin", "atan", "atanh", "tanh")),
    *(one(kind, integers(3, 4)) for kind in ("abs", "sign", "square")),
    one("softplus", np.array([-200, -1, 0, 1, 200], FULL)),
    one("round", np.array([-2.5, -1.5, -0.5, 0.5, 1.5, 2.5, 2.6], FULL)),
    one("sqrt", P),
    *(one(kind, P) for kind in ("rsqrt", "log", "inverse")),
    *(one(kind, P, epsilon=FULL(0.5)) for kind in ("rsqrt", "log", "inverse")),
    *(one("gelu", X, mode=mode) for mode in ("EXACT", "TANH_APPROXIMATION", "SIGMOID_APPROXIMATION")),
    one("gelu", X),
    *(one("clip", X, alpha=FULL(a), beta=FULL(b)) for a, b in ((-0.5, 0.5), (0, 6))),
    *(one(kind, X, **ALPHA) for kind in ("threshold", "leaky_relu", "elu")),
    one("threshold", integers(8), alpha=INT(2)),
    *(one(kind, X, **BOTH) for kind in ("linear_activation", "sigmoid_hard", "scaled_tanh")),
    *(two(kind, X, normal(3, 1)) for kind in ("add", "sub", "mul", "real_div", "maximum", "minimum")),
    *(two(kind, integers(2, 3), integers(3)) for kind in ("add", "sub", "mul", "maximum", "minimum")),
    *(two(kind, integers(40), integers(40, low=1)) for kind in ("floor_div", "mod")),
    *(two(kind, integers(40), integers(40, low=-9, high=0)) for kind in ("floor_div", "mod")),
    two("mod", X, positive(4)),
    two("pow", P, X),
    *(two(kind, np.round(X), np.round(normal(4))) for kind in ("equal", "not_equal", "greater", "greater_equal")),
    *(two(kind, np.round(X), np.round(normal(4))) for kind in ("less", "less_equal")),
    *(two(kind, integers(60), integers(60)) for kind in ("equal", "not_equal", "less", "greater_equal")),
    *(two(kind, truths(4, 8), truths(8)) for kind in ("logical_and", "logical_or", "logical_xor")),
    one("logical_not", truths(9)),
    Case("select", {"cond": truths(2, 1, 4), "a": X, "b": normal(3, 1)}),
    Case("select", {"cond": truths(9), "a": integers(9), "b": integers(9)}),
    Case("select", {"cond": truths(9), "a": truths(9), "b": truths(9)}),
    *(one("cast", 3 * X, dtype=dtype) for dtype in ("int32", "bool", "int16", "int8", "fp16", "fp32")),
    *(one("cast", 9 * P, dtype=dtype) for dtype in ("uint8", "uint16")),
    *(one("cast", integers(9), dtype=dtype) for dtype in ("fp32", "fp16", "bool", "int8", "int16")),
    *(one("cast", truths(9), dtype=dtype) for dtype in ("fp32", "int32")),
    *(one("reshape", X, shape=shape) for shape in ([6, 4], [-1, 2], [0, -1], [3, 0, 2, 2], [1, 0, -1, 0])),
    one("reshape", integers(2, 6), shape=[3, 4]),
    *(one("expand_dims", X, axes=axes) for axes in ([0], [-1], [1, 3], [-1, -2], [0, -1])),
    *(one("squeeze", normal(1, 3, 1, 2), axes=axes) for axes in ([0], [-2], [0, 2])),
    one("squeeze", normal(1, 3, 1, 2)),
    *(one("transpose", X, perm=perm) for perm in ([2, 0, 1], [-1, 1, 0])),
    one("slice_by_index", X, begin=[0, 1, 1], end=[1, 3, 4]),
    one("slice_by_index", X, begin=[-1, -2, 0], end=[2, -1, -1]),
    one("slice_by_index", X, begin=[0, 0, 3], end=[2, 3, 0], stride=[1, 2, -1]),
    one("slice_by_index", X, begin=[1, 2, 3], end=[0, 0, 0], stride=[1, -1, -2], **OPEN),
    one("slice_by_index", X, begin=[1, 2, 1], end=[0, 2, 3], **MASKS),
    one("slice_by_index", X, begin=[1, 0, -1], end=[2, 3, 4], squeeze_mask=[True, False, True]),
    one("slice_by_index", integers(3, 4), begin=[1, 2], end=[2, 3], squeeze_mask=[True, True]),
    *(one("slice_by_size", X, begin=begin, size=[1, 2, -1]) for begin in ([0, 1, 2], [-1, -2, 1])),
    *(Case("concat", {"values": [X, normal(2, 5, 4)]}, {"axis": axis}) for axis in (1, -2)),
    Case("concat", {"values": [integers(3), integers(2)]}, {"axis": 0}),
    *(Case("stack", {"values": [X, normal(2, 3, 4)]}, {"axis": axis}) for axis in (0, 2, -1)),
    one("split", X, num_splits=2, axis=-1),
    one("split", X, split_sizes=[1, 2], axis=1),
    one("split", X, num_splits=3, split_sizes=[1, 2, 1], axis=2),
    one("tile", X, reps=[1, 2, 3]),
    one("pad", X, pad=[1, 0, 2, 3]),
    one("pad", X, pad=[1, 2], mode="constant", constant_val=FULL(7)),
    *(Case("gather", {"x": X, "indices": np.array(i, INT)}, {"axis": a}) for i, a in (([2, 0], 1), ([[3, 1]], -1))),
    Case("gather", {"x": X, "indices": np.array([-1, 0], INT)}, {"axis": 2}, ios=16),
    Case("gather_along_axis", {"x": X, "indices": integers(2, 3, 4, low=0, high=3)}, {"axis": 1}),
    Case("gather_along_axis", {"x": X, "indices": integers(2, 3, 2, low=-4, high=4)}, {"axis": -1}, ios=16),
    two("matmul", normal(2, 3, 4), normal(4, 5)),
    two("matmul", normal(2, 4, 3), normal(2, 1, 5, 4), transpose_x=True, transpose_y=True),
    two("matmul", normal(4), normal(4, 5)),
    two("matmul", integers(3, 4), integers(4, 5)),
    Case("einsum", {"values": [normal(2, 3, 1, 5), normal(1, 5, 4, 6)]}, {"equation": "nchw,nwhu->nchu"}),
    Case("einsum", {"values": [normal(3, 4, 5), normal(5, 4, 6)]}, {"equation": "chw,whu->chu"}),
    *(
        one(kind, x, axes=axes, keep_dims=keep)
        for kind in ("reduce_sum", "reduce_max", "reduce_min", "reduce_prod", "reduce_sum_square", "reduce_l1_norm")
        for x, axes, keep in ((X, [1], True), (X, [-1, 0], False), (integers(3, 4), [1], False))
    ),
    *(one(kind, X, axes=[0, -1]) for kind in ("reduce_mean", "reduce_l2_norm", "reduce_log_sum_exp")),
    *(one(kind, X) for kind in ("reduce_mean", "reduce_sum", "reduce_max")),
    *(one(kind, x, axis=axis) for kind in ("reduce_argmax", "reduce_argmin") for x, axis in ((TIES, 1), (X, 0))),
    *(one(kind, TIES, axis=-1, keep_dims=True, output_dtype="uint16") for kind in ("reduce_argmax", "reduce_argmin")),
    Case("reduce_argmax", {"x": TIES}, {"axis": 1}, ios=16),
    *(one("softmax", 20 * X, axis=axis) for axis in (0, 1, -1)),
    one("layer_norm", X, axes=[-1], gamma=normal(4), beta=normal(4), epsilon=FULL(1e-3)),
    one("layer_norm", X, axes=[1, 2], gamma=normal(3, 4), beta=normal(3, 4)),
    one("layer_norm", X, axes=[1]),
    Case("linear", {"x": normal(2, 3, 4)}, {"weight": normal(5, 4), "bias": normal(5)}),
    Case("linear", {"x": normal(3, 4)}, {"weight": normal(5, 4)}),
    Case("quantize", {"input": 9 * X}, {"scale": FULL(0.1), "output_dtype": "int8"}),
    Case("quantize", {"input": 9 * X}, {"scale": FULL(0.1), "zero_point": np.uint8(128), "output_dtype": "uint8"}),
    Case(
        "quantize", {"input": X},
        {"scale": positive(3), "zero_point": bytes_of(1, -2, 3), "axis": 1, "output_dtype": "int8"},
    ),
]  # fmt: skip


@pytest.mark.parametrize("case", FOLDED, ids=names(FOLDED))
def test_float32_and_integers_agree_with_coremltools(case: Case) -> None:
    same(case.evaluated(), case.folded(), 0 if OPERATIONS[case.kind].moves else 2e-6)


HALVES = [case for case in FOLDED if goes_in_half(case)]


@pytest.mark.parametrize("case", HALVES, ids=names(HALVES))
def test_float16_is_the_float32_result_rounded(case: Case) -> None:
    rounded = through_half(case)
    for narrow, wide in zip(rounded.evaluated(HALF), rounded.evaluated(), strict=True):
        np.testing.assert_array_equal(narrow, wide.astype(narrow.dtype))


WEIGHT, BIAS, PLANE = normal(6, 4, 3, 2), normal(6), normal(2, 4, 7, 8)
GROUPED = normal(6, 2, 3, 3)
GROWTH, GROUPED_GROWTH = normal(4, 3, 2, 2), normal(4, 2, 2, 2)
SQUARES = np.arange(16, dtype=FULL).reshape(1, 8, 1, 2)  # 2 channels of 2x2 sub-pixels at 2 places
UNFOLDED = np.array([[[[0, 2, 1, 3], [4, 6, 5, 7]], [[8, 10, 9, 11], [12, 14, 13, 15]]]], FULL)
INTS = integers(2, 3, 4).astype(np.int8)
INFINITY = float("inf")
TIES_AND_ENDS = np.array(
    [-0.5, 0.5, 1.5, 2.5, 0.4, -1.5, 126.5, 127.49, 128, -128, -200, INFINITY, -INFINITY], FULL
)  # fmt: skip
PADS = {"pad_type": "custom", "pad": [1, 0, 2, 3], "strides": [2, 1]}


def convolved(x: Array, weight: Array, bias: Array | None, pads: list[int], **options: Any) -> Array:
    """Pad as (left, right, top, bottom) and convolve."""
    taken = None if bias is None else torch.from_numpy(bias)
    return F.conv2d(F.pad(torch.from_numpy(x), pads), torch.from_numpy(weight), taken, **options).numpy()


def transposed(x: Array, bias: Array | None, weight: Array = GROWTH, **options: Any) -> Array:
    """Convolve the other way round, nothing cut off."""
    taken = None if bias is None else torch.from_numpy(bias)
    return F.conv_transpose2d(torch.from_numpy(x), torch.from_numpy(weight), taken, **options).numpy()


# Of what coremltools does not fold: the case, and what it must give.
KNOWN: list[tuple[Case, Array]] = [
    (one("conv", PLANE, weight=WEIGHT, bias=BIAS), convolved(PLANE, WEIGHT, BIAS, [0] * 4)),
    (one("conv", PLANE, weight=WEIGHT, **PADS), convolved(PLANE, WEIGHT, None, [2, 3, 1, 0], stride=(2, 1))),
    (
        one("conv", PLANE, weight=WEIGHT, strides=[2, 2], pad_type="same"),  # 7 -> 4 needs 2 more, 8 -> 4 none
        convolved(PLANE, WEIGHT, None, [0, 0, 1, 1], stride=2),
    ),
    (
        one("conv", PLANE, weight=WEIGHT, pad_type="same", dilations=[1, 3]),
        convolved(PLANE, WEIGHT, None, [1, 2, 1, 1], dilation=(1, 3)),
    ),
    (
        one("conv", PLANE, weight=WEIGHT, pad_type="same_lower", dilations=[1, 3]),
        convolved(PLANE, WEIGHT, None, [2, 1, 1, 1], dilation=(1, 3)),
    ),
    (one("conv", PLANE, weight=GROUPED, bias=BIAS, groups=2), convolved(PLANE, GROUPED, BIAS, [0] * 4, groups=2)),
    (
        one("conv", PLANE[:, :, 0], weight=WEIGHT[:, :, 0], bias=BIAS),
        convolved(PLANE[:, :, :1], WEIGHT[:, :, :1], BIAS, [0] * 4)[:, :, 0],
    ),
    (one("conv_transpose", PLANE, weight=GROWTH, strides=[2, 2], bias=BIAS[:3]), transposed(PLANE, BIAS[:3], stride=2)),
    (
        one("conv_transpose", PLANE, weight=GROWTH, strides=[2, 3], pad_type="custom", pad=[1, 0, 0, 2]),
        transposed(PLANE, None, stride=(2, 3))[:, :, 1:, :-2],
    ),
    (
        one("conv_transpose", PLANE, weight=GROWTH, strides=[3, 3], output_shape=[2, 3, 21, 24], bias=BIAS[:3]),
        transposed(PLANE, BIAS[:3], stride=3, output_padding=1),
    ),
    (
        one("conv_transpose", PLANE, weight=GROUPED_GROWTH, groups=2, bias=BIAS[:4]),
        transposed(PLANE, BIAS[:4], GROUPED_GROWTH, groups=2),
    ),
    (one("silu", X), X / (1 + np.exp(-X))),
    (one("pixel_shuffle", SQUARES, upscale_factor=2), UNFOLDED),
    (one("pixel_unshuffle", UNFOLDED, downscale_factor=np.uint32(2)), SQUARES),
    (Case("concat", {"values": [X, -X]}, {"axis": 1, "interleave": True}), np.stack([X, -X], 2).reshape(2, 6, 4)),
    (one("gather", X, indices=INT(2), axis=1), X[:, 2]),
    (
        Case("quantize", {"input": TIES_AND_ENDS}, {"scale": FULL(1), "output_dtype": "int8"}),
        np.array([0, 0, 2, 2, 0, -2, 126, 127, 127, -128, -128, 127, -128], np.int8),
    ),
    (
        Case(
            "quantize", {"input": TIES_AND_ENDS}, {"scale": FULL(2), "zero_point": np.int8(-3), "output_dtype": "int8"}
        ),
        np.array([-3, -3, -2, -2, -3, -4, 60, 61, 61, -67, -103, 127, -128], np.int8),
    ),
    (
        Case(
            "quantize",
            {"input": TIES_AND_ENDS},
            {"scale": FULL(1), "zero_point": np.uint8(128), "output_dtype": "uint8"},
        ),
        np.array([128, 128, 130, 130, 128, 126, 254, 255, 255, 0, 0, 255, 0], np.uint8),
    ),
    (Case("dequantize", {"input": INTS}, {"scale": HALF(0.5)}), 0.5 * INTS.astype(FULL)),
    (
        Case(
            "dequantize", {"input": np.array([0, 128, 255], np.uint8)}, {"scale": FULL(3), "zero_point": np.uint8(128)}
        ),
        np.array([-384, 0, 381], FULL),
    ),
    (
        Case("dequantize", {"input": INTS}, {"scale": P[0, :, 0], "zero_point": bytes_of(1, -2, 3), "axis": -2}),
        P[0, :, :1] * (INTS - np.array([[1], [-2], [3]], FULL)),
    ),
]


@pytest.mark.parametrize(("case", "wanted"), KNOWN, ids=names([case for case, _ in KNOWN]))
def test_what_coremltools_does_not_fold(case: Case, wanted: Array) -> None:
    same(case.evaluated(), [wanted], 0 if OPERATIONS[case.kind].moves else 2e-6)


def test_every_operation_has_a_case() -> None:
    tested = {"fill"} | {case.kind for case in FOLDED} | {case.kind for case, _ in KNOWN}
    assert tested == {kind for kind in OPERATIONS if not kind.startswith("constexpr_")}


def test_fill_gives_one_value() -> None:
    made = program(lambda x: (mb.fill(shape=[2, 3], value=HALF(1.5)), x), {"x": ((1,), "fp32")})
    name = made.outputs("main")[0].name
    found = Evaluator(made, "main")({"x": np.zeros(1, FULL)})[name]
    assert found.dtype == HALF
    np.testing.assert_array_equal(found, np.full((2, 3), 1.5))


@pytest.mark.parametrize(
    ("case", "words"),
    [
        (Case("gather", {"x": X, "indices": ints(-1)}, {"axis": 1}), "gather 'g.*takes index -1 to -1 of 3"),
        (Case("gather", {"x": X, "indices": ints(3)}, {"axis": 1}, ios=16), "takes index 3 to 3 of 3"),
        (Case("gather_along_axis", {"x": X, "indices": np.full((2, 1, 4), 3, INT)}, {"axis": 1}), "takes index 3"),
        (one("cast", full(300), dtype="uint8"), "gives 300 to 300, which uint8 does not hold"),
        (one("cast", full(-1), dtype="uint16"), "which uint16 does not hold"),
        (one("cast", full(3e9), dtype="int32"), "which int32 does not hold"),
        (one("cast", full(np.nan), dtype="int32"), "casts infinity or NaN to int32"),
    ],
)  # fmt: skip
def test_a_value_without_a_meaning_is_an_error(case: Case, words: str) -> None:
    with pytest.raises(ArtifactError, match=words):
        case.evaluated()


def test_float16_overflows_to_infinity_and_keeps_small_numbers() -> None:
    x = np.array([300, -300, 2.0**-13, 1], HALF)
    np.testing.assert_array_equal(one("square", x).evaluated(), [half(np.inf, np.inf, 2.0**-26, 1)])
    np.testing.assert_array_equal(
        two("mul", x, half(300, 300, 2.0**-11, 1)).evaluated()[0][:3], half(np.inf, -np.inf, 2.0**-24)
    )


def test_a_value_that_float16_cannot_hold_changes() -> None:
    x = np.array([2048, 0.1], HALF)
    (found,) = two("add", x, half(1, 0)).evaluated()
    assert found.tolist() == [2048, HALF(0.1)]
    (wide,) = two("add", x.astype(FULL), full(1, 0)).evaluated()
    assert wide[0] == 2049


def test_what_is_no_number_has_no_8_bits() -> None:
    case = Case("quantize", {"input": np.array([np.nan], FULL)}, {"scale": FULL(1), "output_dtype": "int8"})
    with pytest.raises(ArtifactError, match="quantize"):
        case.evaluated()
