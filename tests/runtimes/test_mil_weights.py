"""Compressed weights, unfolded as coremltools does it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from mil_cases import FULL, HALF, bytes_of, integers, normal, positive
from mil_packages import Array, mb, program

from samx.errors import ArtifactError
from samx.runtimes.mil.evaluate import Evaluator
from samx.runtimes.mil.operations import OPERATIONS

BYTES = integers(6, 4, low=0, high=256).astype(np.uint8)
SIGNED = BYTES.astype(np.int8)
SHAPE = np.array([6, 4], np.uint32)


def affine(data: Array, zero_point: Any, scale: Any, axis: int) -> tuple[str, dict[str, Any], int]:
    inputs = {"quantized_data": data, "zero_point": zero_point, "scale": scale, "axis": axis}
    return "constexpr_affine_dequantize", inputs, 16


COMPRESSED: list[tuple[str, dict[str, Any], int]] = [
    affine(SIGNED, np.int8(7), HALF(0.1), 0),
    affine(SIGNED, bytes_of(1, -2, 3, -4), positive(4), -1),
    affine(SIGNED, FULL(1.5), FULL(0.1), 0),
    ("constexpr_blockwise_shift_scale", {"data": SIGNED, "scale": positive(6, 1).astype(HALF)}, 18),
    ("constexpr_blockwise_shift_scale", {"data": SIGNED, "scale": positive(1, 1)}, 18),
    ("constexpr_lut_to_dense", {"indices": BYTES.reshape(-1), "lut": normal(256), "shape": SHAPE}, 16),
    ("constexpr_lut_to_dense", {"indices": BYTES, "lut": normal(1, 1, 256, 1)}, 18),
]


@pytest.mark.parametrize(
    ("kind", "inputs", "ios"), COMPRESSED, ids=[f"{k}-{i}" for i, (k, *_) in enumerate(COMPRESSED)]
)
def test_compressed_weights_are_unfolded_as_coremltools_does(kind: str, inputs: dict[str, Any], ios: int) -> None:
    made: list[Any] = []

    def build(x: Any) -> Any:
        made.append(getattr(mb, kind)(**inputs))
        return made[-1], mb.relu(x=x)

    evaluator = Evaluator(program(build, {"x": ((1,), "fp32")}, ios), "main")
    found = evaluator({"x": np.zeros(1, FULL)})[made[0].name]
    wanted = made[0].op.materialized_val_inference()
    assert found.dtype == wanted.dtype
    np.testing.assert_array_equal(found, wanted)


def test_every_form_has_a_case() -> None:
    assert {kind for kind, *_ in COMPRESSED} == {kind for kind in OPERATIONS if kind.startswith("constexpr_")}


UNKNOWN: list[tuple[str, dict[str, Any], int, str]] = [
    ("constexpr_lut_to_dense", {"indices": BYTES, "lut": normal(3, 2, 256, 1)}, 18, "takes tables of"),
    ("constexpr_lut_to_dense", {"indices": BYTES[:1, 0], "lut": normal(2), "shape": SHAPE[:1]}, 16, "takes tables of"),
    (
        "constexpr_blockwise_shift_scale",
        {"data": SIGNED, "scale": positive(6, 1), "offset": SIGNED[:, :1]}, 18, "unexpected keyword argument 'offset'",
    ),
    ("constexpr_blockwise_shift_scale", {"data": SIGNED, "scale": positive(3, 1)}, 18, "must match the size"),
    ("constexpr_affine_dequantize", affine(BYTES, np.uint8(7), HALF(0.1), 0)[1], 16, "of types that do not go"),
    ("constexpr_cast", {"source_val": normal(5).astype(HALF), "output_dtype": "fp32"}, 16, "does not know"),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "inputs", "ios", "words"), UNKNOWN, ids=[f"{i}" for i in range(len(UNKNOWN))])
def test_another_way_to_store_weights_is_refused(kind: str, inputs: dict[str, Any], ios: int, words: str) -> None:
    def build(x: Any) -> Any:
        return getattr(mb, kind)(**inputs), mb.relu(x=x)

    with pytest.raises(ArtifactError, match=words):
        Evaluator(program(build, {"x": ((1,), "fp32")}, ios), "main")
