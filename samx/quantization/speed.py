"""What ONNX Runtime makes of an INT8 file on this machine: which products it really computes in integers."""

from __future__ import annotations

import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx

from samx.extras import require

# Operators of a session's own graph, by what they compute.
INTEGER_OPERATORS = (
    "QLinearMatMul", "QGemm", "MatMulInteger", "MatMulIntegerToFloat", "DynamicQuantizeMatMul", "MatMulNBits",
    "QLinearConv", "ConvInteger",
)  # fmt: skip
FLOAT_OPERATORS = ("MatMul", "Gemm", "FusedMatMul", "FusedGemm", "Conv", "FusedConv", "Attention")
CONVERSIONS = ("QuantizeLinear", "DequantizeLinear")


@dataclass(frozen=True)
class IntegerWork:
    """Count the operators of the graph that runs."""

    integer: dict[str, int]
    floating: dict[str, int]
    conversions: dict[str, int]

    def to_json(self) -> dict[str, Any]:
        """Give the counts as plain data."""
        return {"integer": self.integer, "floating": self.floating, "conversions": self.conversions}


def integer_work(model: bytes) -> IntegerWork:
    """Open a graph as users' sessions do, and count what ONNX Runtime made of it."""
    ort = require("onnxruntime", "onnxruntime", "INT8")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "optimised.onnx"
        options = ort.SessionOptions()
        options.log_severity_level = 3
        options.optimized_model_filepath = str(path)
        ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        counts = Counter(node.op_type for node in onnx.load(str(path)).graph.node)
    return IntegerWork(*({op: counts[op] for op in ops if op in counts}
                         for ops in (INTEGER_OPERATORS, FLOAT_OPERATORS, CONVERSIONS)))  # fmt: skip
