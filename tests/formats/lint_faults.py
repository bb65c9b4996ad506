"""MIL functions that break one rule of the lint each, and functions that break none."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import coremltools as ct
import numpy as np
from coremltools.converters.mil.mil import types
from coremltools.converters.mil.mil.program import get_new_symbol, get_new_variadic_symbol

from samx.formats.coreml.lint import FunctionLint, lint
from samx.formats.coreml.lint_rules import MAX_SIZE

mb = ct.converters.mil.Builder
HALF, FULL, INT = types.fp16, types.fp32, types.int32
Build = Callable[..., Any]


def function(build: Build, *shapes: tuple[Any, ...], dtypes: tuple[type, ...] = ()) -> Any:
    """Make a MIL function of float16 inputs, or of the types given."""
    kinds = dtypes or (HALF,) * len(shapes)
    specs = [mb.TensorSpec(shape, dtype) for shape, dtype in zip(shapes, kinds, strict=True)]
    return mb.program(input_specs=specs, opset_version=ct.target.iOS18)(build).functions["main"]


def half(*shape: int) -> Any:
    return np.full(shape, 0.5, np.float16)


def report(made: Any) -> FunctionLint:
    return lint({"main": made})["main"]


def broken(made: Any) -> dict[str, int]:
    """Count the operations by the rule that they break."""
    return {finding.rule: finding.operations for finding in report(made).findings}


def relu(x: Any) -> Any:
    return mb.relu(x=x)


def conv(x: Any) -> Any:
    return mb.conv(x=x, weight=half(8, x.shape[1], 1, 1))


def eight_bits(x: Any) -> Any:
    scale = np.float16(0.5)
    return conv(mb.dequantize(input=mb.quantize(input=x, scale=scale, output_dtype="int8"), scale=scale))


WIDE = (1, 8, 128, 128)  # 131072 elements, rows of 256 bytes
SMALL = (1, 8, 4, 32)
DYNAMIC = (1, 8, 1, get_new_symbol("points"))
FAULTS: dict[str, tuple[Any, int]] = {
    "dynamic shape": (function(relu, DYNAMIC), 1),
    "unknown rank": (function(relu, (get_new_variadic_symbol(),)), 1),
    "rank above 5": (function(relu, (1, 1, 1, 2, 2, 32)), 1),
    "size above 16384": (function(relu, (1, 1, 1, MAX_SIZE + 1)), 1),
    "float32": (function(relu, SMALL, dtypes=(FULL,)), 1),
    "other type": (function(lambda x: mb.add(x=x, y=np.int32(1)), SMALL, dtypes=(INT,)), 1),
    "no such operation": (function(lambda x: mb.cumsum(x=x, axis=1), SMALL), 1),
    "recurrent cell": (
        function(
            lambda x, h: mb.rnn(x=x, initial_h=h, weight_ih=half(4, 3), weight_hh=half(4, 4))[0], (5, 1, 3), (1, 4)
        ),
        1,
    ),
    "gather by computed indices": (
        function(lambda x, i: mb.gather(x=x, indices=i, axis=1), SMALL, (3,), dtypes=(HALF, types.uint16)), 1,
    ),
    "product of rank 5": (function(lambda x: mb.matmul(x=x, y=x, transpose_y=True), (1, 1, 1, 4, 32)), 1),
    "computed kernel in a batch": (
        function(lambda x, w: mb.conv(x=x, weight=w), (2, 8, 1, 32), (4, 8, 1, 1)), 1,
    ),
    "long argmax": (function(lambda x: mb.reduce_argmax(x=x, axis=-1), (1, 1, 1, 2049)), 1),
    "rank above 4": (function(relu, (1, 1, 2, 2, 32)), 1),
    "narrow last axis": (function(relu, (1, 16, 8192, 1)), 1),
    "large tensor moved": (function(lambda x: mb.transpose(x=x, perm=(0, 2, 1, 3)), WIDE), 1),
    "linear layer": (
        function(lambda x: mb.matmul(x=mb.linear(x=x, weight=half(32, 32)), y=half(32, 32)), (1, 64, 32)), 2,
    ),
    "large tensor repeated": (
        function(lambda x, y: (mb.tile(x=x, reps=(1, 8, 1, 1)), mb.mul(x=x, y=y)), (1, 1, 128, 128), (1, 8, 1, 1)), 2,
    ),
    "softmax over a row": (function(lambda x: mb.softmax(x=x, axis=-1), WIDE), 1),
    "larger than 2 MiB": (function(relu, (1, 8, 512, 257)), 1),
    "border of float32": (function(lambda x: mb.cast(x=mb.cast(x=x, dtype="fp32"), dtype="fp16"), SMALL), 2),
    "truth values": (function(lambda x: mb.select(cond=mb.less(x=x, y=np.float16(0)), a=x, b=x), SMALL), 2),
    "8-bit activations": (function(eight_bits, SMALL), 1),
    "newer chips only": (function(lambda x: mb.sin(x=x), SMALL), 1),
    "gather": (function(lambda x: mb.gather(x=x, indices=np.array([1, 0], np.int32), axis=1), SMALL), 1),
    "infinite constant": (function(lambda x: mb.add(x=x, y=np.float16(-np.inf)), SMALL), 1),
    "slice inside a row": (
        function(lambda x: mb.slice_by_index(x=x, begin=(0, 0, 0, 1), end=(1, 8, 4, 32)), SMALL), 1,
    ),
}  # fmt: skip
# What looks like a fault and is none. Each breaks no rule at all.
SOUND: dict[str, Any] = {
    "a convolution and what follows it": function(
        lambda x: mb.gelu(x=mb.add(x=conv(x), y=half(1, 8, 1, 1)), mode="EXACT"), (1, 16, 1, 64)
    ),
    "the longest axis": function(relu, (1, 1, 1, MAX_SIZE)),
    "a narrow tensor that is small": function(relu, (1, 8, 8, 1)),
    "a small transpose": function(lambda x: mb.transpose(x=x, perm=(0, 2, 1, 3)), SMALL),
    "a product of two computed tensors": function(lambda x, y: mb.matmul(x=x, y=y), (1, 2, 8, 32), (1, 2, 32, 64)),
    "a computed kernel for one": function(lambda x, w: mb.conv(x=x, weight=w), (1, 8, 1, 32), (4, 8, 1, 1)),
    "a softmax over channels": function(lambda x: mb.softmax(x=x, axis=1), WIDE),
    "a slice from the start of its row": function(
        lambda x: mb.slice_by_index(x=x, begin=(0, 1, 0, 0), end=(1, 8, 4, 16)), SMALL
    ),
    "a large finite constant": function(lambda x: mb.add(x=x, y=np.float16(-40000)), SMALL),
    "a scale for each channel of a large tensor": function(lambda x: mb.mul(x=x, y=half(1, 8, 1, 1)), WIDE),
}
