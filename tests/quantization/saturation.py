"""Whether this processor's 8-bit products saturate: without VNNI, libraries add pairs of them in 16 bits.

What is quantised with unsigned activations is then less exact, and a search gives it up. Tests ask, and do not guess.
"""

from __future__ import annotations

from functools import cache

import numpy as np
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper

INNER = 64
LARGEST = 255 * 127 * INNER


@cache
def saturates() -> bool:
    """Multiply the largest numbers, and see whether some of the sum is lost."""
    constants = {
        "weight": np.full((INNER, 8), 127, np.int8), "scale": np.float32(1), "zero": np.uint8(0), "none": np.int8(0),
    }  # fmt: skip
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["x8"]),
        helper.make_node("DequantizeLinear", ["x8", "scale", "zero"], ["xd"]),
        helper.make_node("DequantizeLinear", ["weight", "scale", "none"], ["wd"]),
        helper.make_node("MatMul", ["xd", "wd"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes, "products", [helper.make_tensor_value_info("x", TensorProto.FLOAT, [4, INNER])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [4, 8])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {"x": np.full((4, INNER), 255, np.float32)})
    return float(found.min()) < 0.99 * LARGEST
