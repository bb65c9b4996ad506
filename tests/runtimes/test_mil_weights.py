"""Compressed weights, unfolded as coremltools does it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from mil_cases import FULL, HALF, INT, bytes_of, integers, normal, positive, truths
from mil_packages import Array, mb, program, types

from samx.runtimes.mil.evaluate import Evaluator
from samx.runtimes.mil.operations import OPERATIONS


def packed(indices: Array, bits: int) -> Array:
    """Pack numbers into bytes, lowest bits first."""
    single = (indices.reshape(-1, 1) >> np.arange(bits)) & 1
    return np.packbits(single.astype(np.uint8).reshape(-1), bitorder="little")


def sub_byte(values: Array, word: str) -> Array:
    return values.astype(types.nptype_from_builtin(types.string_to_builtin(word)))


WIDE = integers(6, 4, low=0, high=256)
BYTES = WIDE.astype(np.uint8)
SIGNED = BYTES.astype(np.int8)
SHAPE = np.array([6, 4], np.uint32)
MASK = truths(6, 4)


def table(bits: int) -> tuple[str, dict[str, Any], int]:
    indices = packed(WIDE % 2**bits, bits)
    return "constexpr_lut_to_dense", {"indices": indices, "lut": normal(2**bits), "shape": SHAPE}, 16


def tables(bits: int) -> tuple[str, dict[str, Any], int]:
    indices = sub_byte(WIDE % 2**bits, f"uint{bits}")
    return "constexpr_lut_to_dense", {"indices": indices, "lut": normal(3, 2, 2**bits, 1)}, 18


def vectors(axis: int) -> tuple[str, dict[str, Any], int]:
    lut = normal(2, 1, 4, 3).astype(HALF)
    return "constexpr_lut_to_dense", {"indices": sub_byte(WIDE % 4, "uint2"), "lut": lut, "vector_axis": axis}, 18


def affine(data: Array, zero_point: Any, scale: Any, axis: int) -> tuple[str, dict[str, Any], int]:
    inputs = {"quantized_data": data, "zero_point": zero_point, "scale": scale, "axis": axis}
    return "constexpr_affine_dequantize", inputs, 16


def blocks(data: Array, scale: Array, **offset: Array) -> tuple[str, dict[str, Any], int]:
    return "constexpr_blockwise_shift_scale", {"data": data, "scale": scale, **offset}, 18


def sparse(mask: Array, ios: int, **shape: Any) -> tuple[str, dict[str, Any], int]:
    return "constexpr_sparse_to_dense", {"nonzero_data": normal(int(MASK.sum())), "mask": mask, **shape}, ios


COMPRESSED: list[tuple[str, dict[str, Any], int]] = [
    affine(BYTES, np.uint8(7), HALF(0.1), 0),
    affine(SIGNED, bytes_of(1, -2, 3, -4), positive(4), -1),
    affine(SIGNED, FULL(1.5), FULL(0.1), 0),
    blocks(SIGNED, positive(6, 1).astype(HALF)),
    blocks(BYTES, positive(3, 2), offset=BYTES[:3, :2]),
    blocks(sub_byte(WIDE % 16, "uint4"), positive(1, 4), offset=sub_byte(WIDE[:1] % 16, "uint4")),
    blocks(sub_byte(WIDE % 16 - 8, "int4"), positive(1, 1)),
    *map(table, (1, 2, 4, 6, 8)),
    *map(tables, (1, 2, 3, 4, 6, 8)),
    *map(vectors, (0, 1, -1)),
    sparse(packed(MASK.astype(INT), 1), 16, shape=SHAPE),
    sparse(sub_byte(MASK, "uint1"), 18),
    ("constexpr_cast", {"source_val": normal(5).astype(HALF), "output_dtype": "fp32"}, 16),
]


@pytest.mark.parametrize(
    ("kind", "inputs", "ios"), COMPRESSED, ids=[f"{k}-{i}" for i, (k, *_) in enumerate(COMPRESSED)]
)
def test_compressed_weights_are_unfolded_as_coremltools_does(kind: str, inputs: dict[str, Any], ios: int) -> None:
    made: list[Any] = []

    def build(x: Any) -> Any:
        made.append(getattr(mb, kind)(**inputs))
        return made[-1], mb.identity(x=x)

    evaluator = Evaluator(program(build, {"x": ((1,), "fp32")}, ios), "main")
    found = evaluator({"x": np.zeros(1, FULL)})[made[0].name]
    wanted = made[0].op.materialized_val_inference()
    assert found.dtype == wanted.dtype
    np.testing.assert_array_equal(found, wanted)


def test_every_form_has_a_case() -> None:
    assert {kind for kind, *_ in COMPRESSED} == {kind for kind in OPERATIONS if kind.startswith("constexpr_")}
