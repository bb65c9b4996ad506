"""Take tables of positions out of ONNX graphs: what they are made of is written, and makes them as a graph is loaded.

A decoder's large constants are linear maps of the image tokens' positional encoding, which is sines and cosines of a
2 x C/2 matrix. Runtimes compute what depends on constants alone once, when they load a graph.

Letters in the shape comments: G x G = L image tokens, C channels, m rows of a table.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from samx.extras import require

if TYPE_CHECKING:
    import onnx

Array = NDArray[np.float32]
LEAST_BYTES = 512 * 1024  # of a table that is worth it
CLOSE = 2e-6  # of a table's largest value: a few roundings of float32
RANK = 1e-7  # singular values below this share of the largest are rounding
TURN = np.array(2 * np.pi, np.float32)
TABLE = "positions"  # how names of what is written here begin


class Explained(NamedTuple):
    """Hold what makes a table of positions: weights (C, m) and constants (m,), None where it is the encoding itself."""

    weights: Array | None
    constant: Array | None
    is_last: bool  # whether the image tokens are the table's last axis, else its last but one


def without_tables(model: onnx.ModelProto, matrix: Array, grid: int) -> list[str]:
    """Replace every constant that positions explain to the last roundings; return their names.

    Shapes: matrix (2, C / 2).
    """
    library, graph = require("onnx", "export", "ONNX export"), model.graph
    encoding = encode(matrix, grid)
    inverse: NDArray[np.float64] = np.linalg.pinv(_with_ones(encoding), rcond=RANK).astype(np.float64)
    nodes: list[Any] = []
    constants: dict[str, NDArray[Any]] = {}
    replaced = []
    for tensor in graph.initializer:
        if tensor.data_type == library.TensorProto.FLOAT and len(tensor.raw_data) >= LEAST_BYTES:
            found = explained(library.numpy_helper.to_array(tensor), encoding, inverse)
            if found is not None:
                nodes += _table(library, tensor.name, list(tensor.dims), found, constants)
                replaced.append(tensor)
    if replaced:
        nodes = [*_encoding(library, matrix, grid, constants), *nodes, *graph.node]
        del graph.node[:]
        graph.node.extend(nodes)
        for tensor in replaced:
            graph.initializer.remove(tensor)
        graph.initializer.extend(library.numpy_helper.from_array(value, name) for name, value in constants.items())
    return [tensor.name for tensor in replaced]


def places(grid: int) -> Array:
    """Return the centres of image tokens along a side, from -1 to 1. Shapes: (G,)."""
    return (2 * ((np.arange(grid, dtype=np.float32) + 0.5) / grid) - 1).astype(np.float32)


def encode(matrix: Array, grid: int) -> Array:
    """Encode the places of image tokens, in the order of the reference's roundings. Shapes: (2, C / 2) -> (L, C)."""
    side = places(grid)
    angles = TURN * (side[None, :, None] * matrix[0] + side[:, None, None] * matrix[1])
    return np.concatenate([np.sin(angles), np.cos(angles)], axis=-1).reshape(grid * grid, -1)


def explained(table: Array, encoding: Array, inverse: NDArray[np.float64]) -> Explained | None:
    """Find what makes a table of positions; None where they do not explain it.

    Shapes: encoding (L, C), inverse (C + 1, L) of the encoding and a column of ones.
    """
    (count, width), is_last = encoding.shape, table.shape[-1] == len(encoding)
    if count <= width or (not is_last and (table.ndim < 2 or table.shape[-2] != count)):
        return None  # as few image tokens as channels explain anything
    rows = table.reshape(-1, count).T if is_last else table.reshape(count, -1)
    limit = CLOSE * float(np.abs(rows).max())
    if rows.shape == encoding.shape and np.abs(rows - encoding).max() <= limit:
        return Explained(None, None, is_last)
    fitted = (inverse @ rows).astype(np.float32)
    weights, constant = fitted[:-1], fitted[-1]
    is_close = np.abs(encoding @ weights + constant - rows).max() <= limit
    return Explained(weights, constant, is_last) if is_close else None


def _with_ones(encoding: Array) -> NDArray[np.float64]:
    return np.concatenate([encoding, np.ones((len(encoding), 1), np.float32)], axis=1).astype(np.float64)


def _encoding(library: Any, matrix: Array, grid: int, constants: dict[str, NDArray[Any]]) -> list[Any]:
    """Write encode() as nodes."""
    given = {
        "across": places(grid)[None, :, None], "down": places(grid)[:, None, None], "turn": TURN,
        "by_across": matrix[0], "by_down": matrix[1], "shape": np.array([grid * grid, -1], np.int64),
    }  # fmt: skip
    constants |= {f"{TABLE}.{name}": value for name, value in given.items()}
    steps = [
        ("Mul", ("across", "by_across"), "turns_across", {}), ("Mul", ("down", "by_down"), "turns_down", {}),
        ("Add", ("turns_across", "turns_down"), "turns", {}), ("Mul", ("turns", "turn"), "angles", {}),
        ("Sin", ("angles",), "sines", {}), ("Cos", ("angles",), "cosines", {}),
        ("Concat", ("sines", "cosines"), "grid", {"axis": -1}),
        ("Reshape", ("grid", "shape"), "encoding", {}),
    ]  # fmt: skip
    return [
        library.helper.make_node(kind, [f"{TABLE}.{name}" for name in taken], [f"{TABLE}.{made}"], **attributes)
        for kind, taken, made, attributes in steps
    ]


def _table(
    library: Any, name: str, shape: list[int], found: Explained, constants: dict[str, NDArray[Any]]
) -> Iterator[Any]:
    """Write a table as nodes."""
    steps: list[tuple[str, NDArray[Any] | None, dict[str, Any]]] = [("Reshape", np.array(shape, np.int64), {})]
    if found.is_last:
        steps.insert(0, ("Transpose", None, {"perm": [1, 0]}))
    if found.weights is not None:
        steps[:0] = [("MatMul", found.weights, {}), ("Add", found.constant, {})]
    taken = f"{TABLE}.encoding"
    for i, (kind, value, attributes) in enumerate(steps, 1):
        made, beside = name if i == len(steps) else f"{TABLE}.{name}.{i}", f"{TABLE}.{name}.{kind}"
        if value is not None:
            constants[beside] = value
        yield library.helper.make_node(kind, [taken, *([] if value is None else [beside])], [made], **attributes)
        taken = made
