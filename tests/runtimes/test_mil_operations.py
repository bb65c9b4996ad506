"""Every operation of the evaluator, against coremltools' own constant folding, or PyTorch where it has none."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from mil_cases import (
    FULL,
    HALF,
    Case,
    full,
    goes_in_half,
    half,
    integers,
    names,
    normal,
    one,
    positive,
    same,
    through_half,
    truths,
    two,
)
from mil_packages import Array
from torch.nn import functional as F

from samx.errors import ArtifactError
from samx.runtimes.mil.operations import OPERATIONS

X, P = normal(2, 3, 4), positive(2, 3, 4)
TIES = np.array([[1, 5, 5, 0], [7, 7, 7, 7]], FULL)
MASKS = {"begin_mask": [False, True, False], "end_mask": [True, False, False]}

FOLDED: list[Case] = [
    *(one(kind, X) for kind in ("abs", "cos", "sin", "relu", "sigmoid", "gelu")),
    one("rsqrt", P),
    one("rsqrt", P, epsilon=FULL(0.5)),
    one("abs", integers(3, 4)),
    *(one("gelu", X, mode=mode) for mode in ("EXACT", "TANH_APPROXIMATION")),
    *(one("clip", X, alpha=FULL(a), beta=FULL(b)) for a, b in ((-0.5, 0.5), (0, 6))),
    *(two(kind, X, normal(3, 1)) for kind in ("add", "sub", "mul", "real_div", "maximum")),
    *(two(kind, integers(2, 3), integers(3)) for kind in ("add", "sub", "mul")),
    *(
        two(kind, np.round(X), np.round(normal(4)))
        for kind in ("equal", "less", "greater", "greater_equal", "less_equal")
    ),
    *(two(kind, integers(60), integers(60)) for kind in ("equal", "less_equal", "greater_equal")),
    two("logical_or", truths(4, 8), truths(8)),
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
    one("slice_by_index", X, begin=[0, 0, 1], end=[2, 3, 4], stride=[1, 2, 2]),
    one("slice_by_index", X, begin=[1, 2, 1], end=[0, 2, 3], **MASKS),
    one("slice_by_index", X, begin=[1, 0, -1], end=[2, 3, 4], squeeze_mask=[True, False, True]),
    one("slice_by_index", integers(3, 4), begin=[1, 2], end=[2, 3], squeeze_mask=[True, True]),
    *(Case("concat", {"values": [X, normal(2, 5, 4)]}, {"axis": axis}) for axis in (1, -2)),
    Case("concat", {"values": [integers(3), integers(2)]}, {"axis": 0}),
    one("tile", X, reps=[1, 2, 3]),
    two("matmul", normal(2, 3, 4), normal(4, 5)),
    two("matmul", normal(2, 4, 3), normal(2, 1, 5, 4), transpose_x=True, transpose_y=True),
    two("matmul", integers(3, 4), integers(4, 5)),
    Case("einsum", {"values": [normal(2, 3, 1, 5), normal(1, 5, 4, 6)]}, {"equation": "nchw,nwhu->nchu"}),
    *(
        one(kind, x, axes=axes, keep_dims=keep)
        for kind in ("reduce_sum", "reduce_max")
        for x, axes, keep in ((X, [1], True), (X, [-1, 0], False), (integers(3, 4), [1], False))
    ),
    *(one(kind, X) for kind in ("reduce_sum", "reduce_max", "reduce_mean")),
    *(one("reduce_mean", X, axes=axes, keep_dims=keep) for axes, keep in (([1], True), ([-1, 0], False))),
    one("split", X, num_splits=2, axis=-1),
    one("split", integers(5, 3), split_sizes=[2, 3], axis=0),
    Case("linear", {"x": X}, {"weight": normal(5, 4), "bias": normal(5)}),
    Case("linear", {"x": X}, {"weight": normal(5, 4)}),
    *(one("reduce_argmax", x, axis=axis) for x, axis in ((TIES, 1), (X, 0))),
    one("reduce_argmax", TIES, axis=-1, keep_dims=True, output_dtype="uint16"),
    Case("reduce_argmax", {"x": TIES}, {"axis": 1}, ios=16),
    *(one("softmax", 20 * X, axis=axis) for axis in (0, 1, -1)),
    one("layer_norm", X, axes=[-1], gamma=normal(4), beta=normal(4), epsilon=FULL(1e-3)),
    one("layer_norm", X, axes=[1, 2], gamma=normal(3, 4), beta=normal(3, 4)),
    one("layer_norm", X, axes=[1]),
    Case("quantize", {"input": 9 * X}, {"scale": FULL(0.1), "output_dtype": "int8"}),
]


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
GROUPED, POINTWISE = normal(6, 2, 3, 3), normal(6, 4, 1, 1)
SQUARES = np.arange(16, dtype=FULL).reshape(1, 8, 1, 2)  # 2 channels of 2x2 sub-pixels at 2 places
UNFOLDED = np.array([[[[0, 2, 1, 3], [4, 6, 5, 7]], [[8, 10, 9, 11], [12, 14, 13, 15]]]], FULL)
INTS = integers(2, 3, 4).astype(np.int8)
INFINITY = float("inf")
TIES_AND_ENDS = np.array(
    [-0.5, 0.5, 1.5, 2.5, 0.4, -1.5, 126.5, 127.49, 128, -128, -200, INFINITY, -INFINITY], FULL
)  # fmt: skip


def convolved(weight: Array, bias: Array | None, **options: Any) -> Array:
    taken = None if bias is None else torch.from_numpy(bias)
    return F.conv2d(torch.from_numpy(PLANE), torch.from_numpy(weight), taken, **options).numpy()


# Of what coremltools does not fold: the case, and what it must give.
KNOWN: list[tuple[Case, Array]] = [
    (one("conv", PLANE, weight=WEIGHT, bias=BIAS), convolved(WEIGHT, BIAS)),
    (one("conv", PLANE, weight=POINTWISE, bias=BIAS), convolved(POINTWISE, BIAS)),
    (one("conv", PLANE, weight=WEIGHT, strides=[2, 1]), convolved(WEIGHT, None, stride=(2, 1))),
    (one("conv", PLANE, weight=WEIGHT, dilations=[1, 3]), convolved(WEIGHT, None, dilation=(1, 3))),
    (one("conv", PLANE, weight=GROUPED, bias=BIAS, groups=2), convolved(GROUPED, BIAS, groups=2)),
    (one("conv", PLANE, weight=WEIGHT, pad_type="custom", pad=[2, 2, 1, 1]), convolved(WEIGHT, None, padding=(2, 1))),
    (one("conv", PLANE, weight=POINTWISE, pad_type="custom", pad=[0, 0, 0, 0]), convolved(POINTWISE, None)),
    (
        one("avg_pool", PLANE, kernel_sizes=[2, 3], strides=[2, 1], pad_type="valid"),
        F.avg_pool2d(torch.from_numpy(PLANE), (2, 3), (2, 1)).numpy(),
    ),
    (
        one("pad", PLANE, pad=[0, 0, 1, 2, 3, 0], mode="constant", constant_val=FULL(1.5)),
        F.pad(torch.from_numpy(PLANE), (3, 0, 1, 2), value=1.5).numpy(),
    ),
    (
        one("upsample_nearest_neighbor", PLANE, scale_factor_height=2, scale_factor_width=3),
        F.interpolate(torch.from_numpy(PLANE), scale_factor=(2, 3), mode="nearest").numpy(),
    ),
    (one("pixel_shuffle", SQUARES, upscale_factor=2), UNFOLDED),
    (one("pixel_unshuffle", UNFOLDED, downscale_factor=np.uint32(2)), SQUARES),
    (
        Case("quantize", {"input": TIES_AND_ENDS}, {"scale": FULL(1), "output_dtype": "int8"}),
        np.array([0, 0, 2, 2, 0, -2, 126, 127, 127, -128, -128, 127, -128], np.int8),
    ),
    (Case("dequantize", {"input": INTS}, {"scale": HALF(0.5)}), 0.5 * INTS.astype(FULL)),
]


@pytest.mark.parametrize(("case", "wanted"), KNOWN, ids=names([case for case, _ in KNOWN]))
def test_what_coremltools_does_not_fold(case: Case, wanted: Array) -> None:
    same(case.evaluated(), [wanted], 0 if OPERATIONS[case.kind].moves else 2e-6)


def test_every_operation_has_a_case() -> None:
    tested = {case.kind for case in FOLDED} | {case.kind for case, _ in KNOWN}
    assert tested == {kind for kind in OPERATIONS if not kind.startswith("constexpr_")}


@pytest.mark.parametrize(
    ("case", "words"),
    [
        (one("cast", full(300), dtype="uint8"), "gives 300 to 300, which uint8 does not hold"),
        (one("cast", full(-1), dtype="uint16"), "which uint16 does not hold"),
        (one("cast", full(3e9), dtype="int32"), "which int32 does not hold"),
        (one("cast", full(np.nan), dtype="int32"), "casts infinity or NaN to int32"),
    ],
)  # fmt: skip
def test_a_value_without_a_meaning_is_an_error(case: Case, words: str) -> None:
    with pytest.raises(ArtifactError, match=words):
        case.evaluated()


@pytest.mark.parametrize(
    "case",
    [
        one("avg_pool", PLANE, kernel_sizes=[2, 2], strides=[2, 2], pad_type="custom", pad=[1, 1, 0, 0]),
        one("upsample_nearest_neighbor", PLANE, scale_factor_height=1.5, scale_factor_width=1.5),
    ],
    ids=["padded average", "half a pixel"],
)
def test_a_way_that_no_export_has_is_refused(case: Case) -> None:
    with pytest.raises(ArtifactError, match=case.kind):
        case.evaluated()


def test_float16_overflows_to_infinity_and_keeps_small_numbers() -> None:
    x = np.array([300, -300, 2.0**-13, 1], HALF)
    np.testing.assert_array_equal(two("mul", x, x).evaluated(), [half(np.inf, np.inf, 2.0**-26, 1)])
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
