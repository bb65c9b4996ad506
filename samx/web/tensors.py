"""How large the largest tensor of a graph is: GPUs in browsers take no buffer beyond a limit."""

from __future__ import annotations

from collections.abc import Iterator
from math import prod
from typing import TYPE_CHECKING, Any

from samx.extras import require

if TYPE_CHECKING:
    import onnx

OPEN_AXIS = 64  # what an axis of any size is reckoned with: tokens of a long prompt


def largest_tensor_bytes(data: bytes) -> int:
    """Return the bytes of the largest tensor in a graph, weights and what flows between operators.

    Raises: MissingExtraError.
    """
    library = require("onnx", "export", "writing a site")
    model = library.load_model_from_string(data)
    return max(_sizes(library, library.shape_inference.infer_shapes(model, data_prop=True)))


def _sizes(library: Any, model: onnx.ModelProto) -> Iterator[int]:
    graph = model.graph
    for weight in graph.initializer:
        yield prod(weight.dims) * _item_bytes(library, weight.data_type)
    for value in (*graph.input, *graph.output, *graph.value_info):
        tensor = value.type.tensor_type
        sides = [
            dim.dim_value or (1 if dim.dim_param in ("prompts", "pictures") else OPEN_AXIS) for dim in tensor.shape.dim
        ]
        yield prod(sides) * _item_bytes(library, tensor.elem_type)


def _item_bytes(library: Any, kind: int) -> int:
    return int(library.helper.tensor_dtype_to_np_dtype(kind).itemsize)
