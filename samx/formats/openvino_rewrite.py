"""Rewrite a graph into operations that OpenVINO's CPU plugin computes as it should; what they compute stays the same.

The plugin folds `(x + 0.5) / 1024 * 2 - 1` into operations of its own, which know nothing of exemptions from bfloat16.
It multiplies by a constant with more axes than rows and columns in float32 only, and much slower.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from samx.extras import require

PERIODIC = ("Sin", "Cos")
COORDINATES, AXES = "point_coords", 2
FAR_PX = 1024.0  # where slopes are taken; the steps to it are as large as the values, and lose no digits
CALCULATED: Mapping[str, Callable[..., NDArray[np.float64]]] = {
    "Add": np.add, "Subtract": np.subtract, "Multiply": np.multiply, "Divide": np.divide,
}  # fmt: skip


def rewrite(graph: Any) -> None:
    """Change a graph in place."""
    _straighten_angles(graph)
    for product in [operation for operation in graph.get_ordered_ops() if operation.get_type_name() == "MatMul"]:
        _turn_weight(product)
        _join_heads(product)
    graph.validate_nodes_and_infer_types()


def rewrite_encoder(graph: Any) -> None:
    """Let means of means stay two in an image encoder's graph, which is changed in place.

    The plugin makes one of them, and adds a whole picture up value by value: 1e-5 of the features; apart 2e-7.
    """
    make = _operations()
    for mean in [operation for operation in graph.get_ordered_ops() if operation.get_type_name() == "ReduceMean"]:
        inner = mean.input_value(0).get_node()
        if inner.get_type_name() != "ReduceMean":
            continue
        values, axes = inner.input_value(0), inner.input_value(1)
        count = np.prod([values.get_partial_shape()[int(axis)].get_length() for axis in axes.get_node().data])
        total = make.reduce_sum(values, axes, inner.get_attributes()["keep_dims"])
        _replace(inner.output(0), make.multiply(total, make.constant(np.float32(1 / count))))
    graph.validate_nodes_and_infer_types()


def _straighten_angles(graph: Any) -> None:
    """Write the angle of a point as one product for each coordinate, and their sum."""
    angle = next((op.input_value(0) for op in graph.get_ops() if op.get_type_name() in PERIODIC), None)
    if angle is None:
        return
    make = _operations()
    coords = next(port.get_node() for port in graph.inputs if port.get_any_name() == COORDINATES)
    at_zero, *far = (_angles(angle, point) for point in np.vstack([np.zeros(AXES), FAR_PX * np.eye(AXES)]))
    found = make.constant(at_zero.astype(np.float32))
    for axis, angles in enumerate(far):
        column = make.gather(coords, _integers([axis]), _integers(-1))
        found = make.add(found, make.multiply(column, make.constant(((angles - at_zero) / FAR_PX).astype(np.float32))))
    _replace(angle, found)


def _angles(value: Any, point: NDArray[np.float64]) -> NDArray[np.float64]:
    """Calculate what a graph makes of one point, in float64. Shapes: (2,) -> (C/2,)."""
    node = value.get_node()
    kind = node.get_type_name()
    if kind == "Parameter":
        return point
    if kind == "Constant":
        return np.asarray(node.data, np.float64).reshape(node.data.shape[-1:])
    found = [_angles(argument, point) for argument in node.input_values()]
    if kind == "Slice":  # of the coordinates, along the last axis
        data, start, stop, *_ = found
        return data[int(start[0]) : int(stop[0])]
    return CALCULATED[kind](*found)


def _turn_weight(product: Any) -> None:
    """Let a matrix stand as the others do, inputs first: so the plugin packs it once, and not in every call."""
    weight = product.input_value(1).get_node()
    if weight.get_type_name() != "Constant" or not product.get_attributes()["transpose_b"] or weight.data.ndim != 2:
        return
    make = _operations()
    turned = make.constant(np.ascontiguousarray(weight.data.T))
    _replace(product.output(0), make.matmul(product.input_value(0), turned, False, False))


def _join_heads(product: Any) -> None:
    """Multiply by all heads' matrices as one, each head's rows having zeros for the others.

    Eight times the operations on a weight that is packed once take less time than the few on one that never is.
    Shapes: (N, h, T, d) x (h, d, K) -> (N, h, T, K).
    """
    weight, rows = product.input_value(1).get_node(), product.input_value(0)
    if weight.get_type_name() != "Constant" or len(rows.get_partial_shape()) != 4 or weight.data.ndim < 3:
        return
    assert not any(product.get_attributes().values()), "turned factors"
    make, (heads, width, outputs) = _operations(), weight.data.shape[-3:]
    own = make.constant(np.eye(heads, dtype=np.float32).reshape(1, heads, 1, heads, 1))
    spread = make.multiply(make.reshape(rows, _integers([0, 0, 0, 1, width]), True), own)
    joined = make.reshape(spread, _integers([0, 0, 0, heads * width]), True)
    matrix = make.constant(np.ascontiguousarray(weight.data).reshape(heads * width, outputs))
    _replace(product.output(0), make.matmul(joined, matrix, False, False))


def _replace(old: Any, new: Any) -> None:
    """Let everything that reads one value read another."""
    for reader in list(old.get_target_inputs()):
        reader.replace_source_output(new.output(0))


def _integers(values: Any) -> Any:
    return _operations().constant(np.array(values, np.int64))


def _operations() -> ModuleType:
    return require("openvino.opset13", "openvino", "OpenVINO files")
